"""What every engine must do that answers for a model which stays as it is.

Engines outside of this process tell texts and numbers of tokens, so these are compared. vLLM has
the same tests in tests/vllm.
"""

import dataclasses

import pytest
from openai_server import MODEL, serving

from observe.config import EndpointConfig, SamplerConfig
from observe.glyphs import questions
from observe.model.policy import load_policy
from observe.prompts import build_messages
from observe.rollout.engine import SamplingParams
from observe.rollout.factory import open_sampler
from observe.rollout.native import NativeEngine

GREEDY = SamplingParams(max_new_tokens=48, temperature=0.0)


@pytest.fixture(scope="module")
def server(base):
    with serving(load_policy(base / "checkpoint")) as server:
        yield server


@pytest.fixture(params=["native", "endpoint"])
def sampler(request, base, server):
    config = SamplerConfig(
        engine=request.param, endpoint=EndpointConfig(url=server.url, model=MODEL, concurrency=3)
    )
    return open_sampler(base / "checkpoint", config)


def chats(number=9):
    """Chats with their images: none, one or two; small and large ones."""
    asked = [*questions("validation", number), *questions("ood", number)][::2][:number]
    for i, question in enumerate(asked):
        images = [*question.open_images() * 2, asked[0].open_images()[0]][i % 3 : 2]
        yield (
            build_messages(
                ("think", "observe", "plain")[i % 3],
                question.text,
                question.options,
                len(images),
            ),
            images,
        )


def prompts(sampler, number=9):
    return [sampler.processor.sample(*chat) for chat in chats(number)]


def seen(groups):
    return [[(c.text, c.num_tokens, c.truncated) for c in group] for group in groups]


def test_greedy_answers_are_those_of_the_policy(sampler, base):
    """With no, one and two images."""
    policy = load_policy(base / "checkpoint")
    samples = [policy.processor.sample(*chat) for chat in chats()]
    assert {len(sample.images) for sample in samples} == {0, 1, 2}
    expected = NativeEngine(policy).generate(samples, GREEDY, [0] * 9)
    found = sampler.engine.generate(prompts(sampler), GREEDY, [0] * 9)
    assert seen(found) == seen(expected)
    assert len({group[0].text for group in found}) > 3


def test_answers_come_in_the_order_of_their_prompts_whatever_else_is_asked(sampler):
    samples = prompts(sampler)
    together = seen(sampler.engine.generate(samples, GREEDY, [0] * 9))
    backwards = seen(sampler.engine.generate(samples[::-1], GREEDY, [0] * 9))
    alone = [seen(sampler.engine.generate([s], GREEDY, [0]))[0] for s in samples]
    assert together == backwards[::-1] == alone


def test_an_answer_ends_by_itself_or_is_cut_off(sampler):
    samples = prompts(sampler)
    whole = sampler.engine.generate(samples, GREEDY, [0] * 9)
    short = sampler.engine.generate(samples, dataclasses.replace(GREEDY, max_new_tokens=5), [0] * 9)
    assert not all(group[0].truncated for group in whole)
    for (long,), (cut,) in zip(whole, short, strict=True):
        assert long.num_tokens <= 48 and "<|" not in long.text
        assert cut.num_tokens == min(5, long.num_tokens)
        assert cut.truncated == (long.num_tokens > 5)
        assert long.text.startswith(cut.text)


def test_each_answer_is_told_once_as_soon_as_it_is_there(sampler):
    told = {}

    def finished(groups):
        assert not set(groups) & set(told)
        told.update(groups)

    samples = prompts(sampler)
    groups = sampler.engine.generate(samples, GREEDY, [0] * 9, finished)
    assert [told[i] for i in range(9)] == groups


def test_several_greedy_answers_are_the_same_one(sampler):
    samples = prompts(sampler, 3)
    groups = sampler.engine.generate(samples, dataclasses.replace(GREEDY, n=3), [0] * 3)
    once = sampler.engine.generate(samples, GREEDY, [0] * 3)
    assert seen(groups) == [group * 3 for group in seen(once)]


def test_equal_seeds_give_equal_answers_and_others_differ(sampler):
    samples = prompts(sampler, 4)
    params = SamplingParams(max_new_tokens=40, temperature=1.5, n=3)
    first = seen(sampler.engine.generate(samples, params, [1, 2, 3, 4]))
    again = seen(sampler.engine.generate(samples, params, [1, 2, 3, 4]))
    other = seen(sampler.engine.generate(samples, params, [5, 6, 7, 8]))
    assert first == again != other
    assert all(len({text for text, _, _ in group}) > 1 for group in first)


def test_slices_hold_every_prompt_once(sampler):
    sizes = [sampler.processor.prompt_size(*chat) for chat in chats()]
    slices = sampler.slices(sizes, 1)
    assert sorted(i for part in slices for i in part) == list(range(9))


def test_nothing_to_answer(sampler):
    assert sampler.engine.generate([], GREEDY, []) == []
