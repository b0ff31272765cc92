"""What an endpoint's engine makes of servers that are busy, broken, or of another kind."""

import socket
import time

import pytest
from openai_server import MODEL, serving

from observe.config import EndpointConfig, SamplerConfig
from observe.errors import EngineError, InputError
from observe.glyphs import questions
from observe.model.policy import load_policy
from observe.prompts import build_messages
from observe.rollout.endpoint import EndpointEngine, EndpointProcessor, to_messages
from observe.rollout.engine import SamplingParams
from observe.rollout.factory import open_sampler

PARAMS = SamplingParams(max_new_tokens=6, temperature=0.0)
BUSY = (503, {"error": {"message": "overloaded"}}, {})


@pytest.fixture(scope="module")
def policy(base):
    return load_policy(base / "checkpoint")


@pytest.fixture
def server(policy):
    with serving(policy) as server:
        yield server


def engine(server, **settings):
    config = {"url": server.url, "model": MODEL, "backoff_s": 0.001, **settings}
    return EndpointEngine(EndpointConfig(**config))


def samples(number=4):
    return [
        EndpointProcessor().sample(build_messages("think", q.text, q.options, 1), q.open_images())
        for q in questions("validation", number)
    ]


def ask(engine, number=4, **changes):
    return engine.generate(samples(number), PARAMS, [0] * number, **changes)


def test_a_busy_server_is_asked_again(server):
    expected = ask(engine(server))
    server.troubles = [BUSY, (429, {}, {}), (500, b"", {}), (502, b"<html>", {})]
    assert ask(engine(server, concurrency=1)) == expected
    assert server.requests == 4 + 8 and len(server.bodies) == 8


def test_a_server_may_name_the_pause(server):
    server.troubles = [(429, {}, {"Retry-After": "0.4"})]
    started = time.monotonic()
    ask(engine(server), 1)
    assert time.monotonic() - started >= 0.4


def test_a_server_that_stays_busy_is_given_up_and_what_was_answered_is_kept(server):
    server.troubles = []
    told = {}
    asked = engine(server, concurrency=1, retries=2)

    def finished(groups):
        told.update(groups)
        if len(told) == 2:
            server.troubles = [BUSY] * 9

    with pytest.raises(EngineError, match=r"no answer after 3 requests \(HTTP 503.*overloaded"):
        ask(asked, finished=finished)
    assert sorted(told) == [0, 1]


def test_a_server_that_is_not_there():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        config = EndpointConfig(url=url, model=MODEL, retries=1, backoff_s=0.001)
        with pytest.raises(EngineError, match="no answer after 2 requests.*refused"):
            ask(EndpointEngine(config), 1)


def test_the_key_is_read_from_the_environment_and_never_shown(policy, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "secret-1")
    with serving(policy, key="secret-1") as server:
        assert ask(engine(server, key_variable="TINY_KEY"))
        monkeypatch.setenv("TINY_KEY", "secret-2")
        with pytest.raises(InputError, match="HTTP 401.*wrong key.*TINY_KEY, which holds") as info:
            ask(engine(server, key_variable="TINY_KEY"))
        assert "secret" not in str(info.value)
        with pytest.raises(InputError, match="NO_KEY, which is not set"):
            ask(engine(server, key_variable="NO_KEY"))


def test_a_redirect_is_refused_lest_the_key_go_elsewhere(server):
    server.troubles = [(307, b"", {"Location": "http://127.0.0.1:1/v1"})]
    with pytest.raises(InputError, match="HTTP 307"):
        ask(engine(server, concurrency=1))
    assert server.requests == 1


def test_a_request_that_is_refused_is_not_made_again(server):
    with pytest.raises(InputError, match="HTTP 404.*no such model"):
        ask(engine(server, model="other", concurrency=1))
    assert server.requests == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>hello</html>", "answers no JSON but b'<html>hello"),
        ({"choices": []}, "not an answer of OpenAI's chat completions"),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}, "'usage'"),
        ([], "not an answer"),
    ],
)
def test_an_answer_of_another_kind_is_shown(server, answer, message):
    server.troubles = [(200, answer, {})]
    with pytest.raises(EngineError, match=message):
        ask(engine(server), 1)


def test_half_a_surrogate_pair_is_no_text(server):
    choice = {"message": {"content": "a\ud800b"}, "finish_reason": "stop"}
    server.troubles = [(200, {"choices": [choice], "usage": {"completion_tokens": 2}}, {})]
    ((completion,),) = ask(engine(server), 1)
    assert completion.text == "a?b"


def test_as_many_requests_are_under_way_as_may_be(server):
    server.pause_s = 0.05
    ask(engine(server, concurrency=3), 12)
    assert server.busiest == 3


def test_what_is_asked_for(server):
    ask(engine(server, extra='{"repetition_penalty": 1.0}'), 1)
    greedy = server.bodies[-1]
    assert greedy["max_tokens"] == 6 and greedy["temperature"] == 0.0
    assert greedy["repetition_penalty"] == 1.0 and "seed" not in greedy
    params = SamplingParams(max_new_tokens=6, temperature=0.7, top_p=0.9, top_k=5, n=2)
    engine(server).generate(samples(1), params, [3])
    one, two = server.bodies[-2:]
    assert one["seed"] != two["seed"] and 0 <= one["seed"] < 2**31
    assert (one["temperature"], one["top_p"], one["top_k"]) == (0.7, 0.9, 5)


def test_a_chat_keeps_its_order():
    image = questions("validation", 1)[0].open_images()[0]
    messages = build_messages("think", "Which?", None, 2)
    system, user = to_messages(EndpointProcessor().sample(messages, [image, image]))
    assert system == {"role": "system", "content": messages[0]["content"][0]["text"]}
    assert [part["type"] for part in user["content"]] == ["image_url", "image_url", "text"]
    with pytest.raises(InputError, match="2 image placeholders for 1 images"):
        EndpointProcessor().sample(messages, [image])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "endpoint.url: '127.0.0.1:8000' is no address"),
        ({"url": "file:///etc/passwd"}, "no address"),
        ({"concurrency": 0}, "^concurrency: expected at least 1"),
        ({"extra": "[1]"}, "^extra: expected a JSON object"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        EndpointEngine(EndpointConfig(**{"url": "http://x/v1", "model": "m", **settings}))


def test_an_endpoint_needs_an_address_and_takes_no_adapter():
    with pytest.raises(InputError, match="needs endpoint.url and endpoint.model"):
        SamplerConfig(engine="endpoint")
    endpoint = EndpointConfig(url="http://x/v1", model="m")
    with pytest.raises(InputError, match="adapter: an endpoint's model is the server's"):
        SamplerConfig(engine="endpoint", endpoint=endpoint, adapter="a")
    assert open_sampler("", SamplerConfig(engine="endpoint", endpoint=endpoint)).engine
