"""The rollout server as a process of its own: the same samples, new weights, death and return."""

import dataclasses
import json
import os
import signal
import urllib.error
import urllib.request

import pytest
import torch

pytest.importorskip("vllm", reason="no vLLM: make test-vllm sets it up")

from observe.config import RolloutConfig, VllmConfig  # noqa: E402
from observe.errors import EngineError, InputError  # noqa: E402
from observe.glyphs import questions  # noqa: E402
from observe.model.policy import load_policy  # noqa: E402
from observe.prompts import build_messages  # noqa: E402
from observe.rollout.client import ServerEngine, StaleWeights, request_json  # noqa: E402
from observe.rollout.engine import SamplingParams  # noqa: E402
from observe.rollout.factory import make_engine  # noqa: E402

PARAMS = SamplingParams(max_new_tokens=40, n=3)


@pytest.fixture(scope="module")
def server(base):
    """An engine with its server, which is started once for the tests of this module."""
    config = VllmConfig(kv_cache_gb=0.25, start_timeout_s=240)
    engine = make_engine(
        load_policy(base / "checkpoint"), RolloutConfig(engine="server", vllm=config)
    )
    yield engine
    engine.close()


@pytest.fixture
def samples(trained):
    made = []
    for i, question in enumerate(questions("validation", 6)):
        images = int(i != 2)
        messages = build_messages("think", question.text, question.options, images)
        made.append(trained.processor.sample(messages, question.open_images() * images))
    return made


def shaken(policy):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight += 0.1 * weight.abs().mean() * torch.randn(weight.shape, generator=generator)


def tokens(groups):
    return [[completion.token_ids for completion in group] for group in groups]


def test_it_samples_what_the_engine_in_the_trainer_samples(server, engine_of, trained, samples):
    server.policy = trained
    for _ in range(2):
        server.sync()
        told = {}
        found = server.generate(samples, PARAMS, range(6), told.update)
        assert told == dict(enumerate(found))
        expected = engine_of(trained).generate(samples, PARAMS, range(6))
        assert tokens(found) == tokens(expected)
        assert [c.text for g in found for c in g] == [c.text for g in expected for c in g]
        for one, other in zip(found, expected, strict=True):
            for completion, same in zip(one, other, strict=True):
                assert completion.logprobs == pytest.approx(same.logprobs, abs=1e-4)
        shaken(trained)
    assert server.generate([], PARAMS, []) == []


def test_killed_at_any_time_it_is_started_again_with_the_trainer_s_weights(
    server, trained, samples
):
    server.policy = trained
    shaken(trained)
    server.sync()
    expected = tokens(server.generate(samples, PARAMS, range(6)))
    restarts, boot = (
        server.restarts,
        request_json(f"{server.url}/health", None, timeout_s=10)["boot"],
    )
    os.kill(server.launched.process.pid, signal.SIGKILL)
    assert tokens(server.generate(samples, PARAMS, range(6))) == expected
    assert server.restarts == restarts + 1
    assert request_json(f"{server.url}/health", None, timeout_s=10)["boot"] != boot


def test_the_server_ends_with_its_trainer(server, trained, samples):
    server.policy = trained
    server.launched.process.stdin.close()
    assert server.launched.process.wait(timeout=30) == 0
    # And a synchronisation finds it gone, and starts it.
    server.sync()
    assert server.launched.process.poll() is None


def test_a_server_that_others_started_is_used_by_its_address(server, trained, samples):
    server.policy = trained
    server.sync()
    expected = tokens(server.generate(samples, PARAMS, range(6)))
    other = ServerEngine(trained, VllmConfig(url=f"{server.url}/", start_timeout_s=5))
    assert tokens(other.generate(samples, PARAMS, range(6))) == expected
    other.close()
    # The first one's weights are gone from the server, which it notices.
    assert tokens(server.generate(samples, PARAMS, range(6))) == expected


def test_sleeping_between_rollouts(server, trained, samples):
    server.policy = trained
    server.sync()
    expected = tokens(server.generate(samples, PARAMS, range(6)))
    for path, asleep in (("/sleep", False), ("/wake", False)):
        assert request_json(server.url + path, {}, timeout_s=60)["asleep"] is asleep
    assert tokens(server.generate(samples, PARAMS, range(6))) == expected


def test_completions_of_other_weights_are_refused(server):
    body = {"prompts": [], "params": dataclasses.asdict(PARAMS), "seeds": [], "weights": "others"}
    with pytest.raises(StaleWeights):
        request_json(f"{server.url}/generate", body, timeout_s=60)


def test_bad_requests_are_answered_with_what_is_wrong(server, tmp_path):
    def post(path, body):
        return request_json(f"{server.url}{path}", body, timeout_s=60)

    missing = {"path": str(tmp_path / "none.safetensors"), "weights": "x"}
    with pytest.raises(InputError, match="none.safetensors.*rollout.vllm.sync_folder"):
        post("/weights", missing)
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(EngineError, match="vLLM does not take the new weights"):
        post("/weights", {"path": str(tmp_path / "bad.safetensors"), "weights": "x"})
    with pytest.raises(EngineError, match="/generate: bad request .*weights"):
        post("/generate", {})
    with pytest.raises(EngineError, match="/nowhere: no such request"):
        post("/nowhere", {})
    with pytest.raises(EngineError, match="/nowhere: no such request"):
        request_json(f"{server.url}/nowhere", None, timeout_s=60)
    request = urllib.request.Request(f"{server.url}/generate", b"{no json")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert "no JSON" in json.loads(caught.value.read())["error"]


def test_a_prompt_that_does_not_fit_is_bad_input_of_the_trainer(server, trained, samples):
    server.policy = trained
    with pytest.raises(InputError, match="rollout.vllm.max_model_len"):
        server.generate(samples, dataclasses.replace(PARAMS, max_new_tokens=4000), range(6))


def test_settings_that_vllm_refuses_are_bad_input_with_the_end_of_the_log(trained):
    config = VllmConfig(max_model_len=10**9, kv_cache_gb=0.25, start_timeout_s=240)
    with pytest.raises(
        InputError, match=r"did not start \(exit code 2\).*\n(.*\n)*.*max_model_len"
    ):
        ServerEngine(trained, config)
