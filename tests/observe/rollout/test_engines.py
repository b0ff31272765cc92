"""What every rollout engine must do; a new one is added to ENGINES."""

import dataclasses

import pytest
import torch

from observe.glyphs import questions
from observe.model.logprobs import completion_logprobs
from observe.prompts import build_messages
from observe.rollout.engine import SamplingParams
from observe.rollout.native import NativeEngine

ENGINES = {"native": NativeEngine}


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def engine(request, untrained):
    return request.param(untrained)


def prompts(policy, number=5):
    """Prompts of different lengths: with and without an image, small and large grids."""
    samples = []
    asked = [*questions("train", number), *questions("ood", number)][::2]
    for i, question in enumerate(asked[:number]):
        images = 0 if i == 1 else 1
        messages = build_messages(
            ("think", "plain", "observe")[i % 3], question.text, question.options, images
        )
        samples.append(policy.processor.sample(messages, question.open_images() * images))
    return samples


PARAMS = SamplingParams(max_new_tokens=12, n=3)


def tokens(groups):
    return [[completion.token_ids for completion in group] for group in groups]


def test_every_prompt_gets_its_group_in_order(engine, untrained):
    samples = prompts(untrained)
    groups = engine.generate(samples, PARAMS, range(5))
    assert [len(group) for group in groups] == [3] * 5
    for group, sample, seed in zip(groups, samples, range(5), strict=True):
        assert tokens([group]) == tokens(engine.generate([sample], PARAMS, [seed]))


def test_a_completion_does_not_depend_on_its_batch(engine, untrained):
    samples, seeds = prompts(untrained), [11, 12, 13, 14, 15]
    together = tokens(engine.generate(samples, PARAMS, seeds))
    backwards = tokens(engine.generate(samples[::-1], PARAMS, seeds[::-1]))
    assert backwards[::-1] == together
    fewer = tokens(engine.generate(samples, dataclasses.replace(PARAMS, n=1), seeds))
    assert fewer == [group[:1] for group in together]
    longer = tokens(engine.generate(samples, dataclasses.replace(PARAMS, max_new_tokens=9), seeds))
    assert longer == [[completion[:9] for completion in group] for group in together]


def test_equal_seeds_give_equal_completions_and_different_seeds_different_ones(engine, untrained):
    sample = prompts(untrained, 1)[0]
    first, again, other = engine.generate([sample] * 3, PARAMS, [7, 7, 8])
    assert tokens([first]) == tokens([again])
    assert tokens([first]) != tokens([other])
    assert len({tuple(completion.token_ids) for completion in first}) == 3


def test_the_global_random_state_is_neither_used_nor_changed(engine, untrained):
    sample = prompts(untrained, 1)[0]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = tokens(engine.generate([sample], PARAMS, [7]))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert tokens(engine.generate([sample], PARAMS, [7])) == first


def test_an_end_token_ends_a_completion_and_the_limit_truncates_it(engine, untrained):
    params = SamplingParams(max_new_tokens=60, temperature=3.0, n=24)
    eos = set(untrained.processor.eos_ids)
    completions = [
        c for group in engine.generate(prompts(untrained), params, range(5)) for c in group
    ]
    for completion in completions:
        assert not eos & set(completion.token_ids[:-1])
        assert completion.truncated == (completion.token_ids[-1] not in eos)
        assert completion.truncated <= (len(completion.token_ids) == 60)
        assert completion.text == untrained.processor.decode(completion.token_ids)
    assert {completion.truncated for completion in completions} == {True, False}


def test_vision_tokens_are_never_sampled(engine, untrained):
    params = SamplingParams(max_new_tokens=40, temperature=50.0, n=40)
    groups = engine.generate(prompts(untrained), params, range(5))
    sampled = {token for group in tokens(groups) for completion in group for token in completion}
    assert not sampled & set(untrained.processor.banned_ids)
    assert len(sampled) > 0.9 * len(untrained.processor.tokenizer)


def test_greedy_takes_the_most_probable_token_of_a_teacher_forced_pass(engine, untrained):
    samples = prompts(untrained)
    params = SamplingParams(max_new_tokens=10, temperature=0.0, n=2)
    groups = tokens(engine.generate(samples, params, [0] * 5))
    vocabulary = sorted(
        set(range(len(untrained.processor.tokenizer))) - set(untrained.processor.banned_ids)
    )
    for sample, (one, two) in zip(samples, groups, strict=True):
        assert one == two
        for length in (0, len(one) - 1):
            options = [[[*one[:length], token] for token in vocabulary]]
            with torch.no_grad():
                logprobs, _, _ = completion_logprobs(untrained, [sample], options)
            assert vocabulary[int(logprobs[:, length].argmax())] == one[length]


def test_tokens_are_drawn_with_their_teacher_forced_probabilities(engine, untrained):
    """The distribution of the second token given the most common first one."""
    sample, number, temperature = prompts(untrained, 1)[0], 6000, 0.3
    params = SamplingParams(max_new_tokens=1, temperature=temperature, n=number)
    (group,) = tokens(engine.generate([sample], params, [3]))
    counts = torch.bincount(
        torch.tensor([completion[0] for completion in group]),
        minlength=len(untrained.processor.tokenizer),
    )
    vocabulary = [[[token] for token in range(len(counts))]]
    with torch.no_grad():
        logprobs, _, _ = completion_logprobs(
            untrained, [sample], vocabulary, temperature=temperature
        )
    expected = number * logprobs[:, 0].exp()
    common = expected > 20
    assert int(common.sum()) >= 5
    deviations = (counts[common] - expected[common]) / expected[common].sqrt()
    assert deviations.abs().max() < 4.5
    rest = number - expected[common].sum()
    assert abs(counts[~common].sum() - rest) < 4.5 * rest.clamp(min=1).sqrt()


@pytest.mark.parametrize(
    "limits", [{}, {"temperature": 0.6}, {"temperature": 0.0}, {"temperature": 1.4, "top_k": 5}]
)
def test_log_probabilities_are_the_teacher_forced_ones(engine, untrained, limits):
    samples = prompts(untrained)
    params = SamplingParams(max_new_tokens=20, n=3, **limits)
    groups = engine.generate(samples, params, range(5))
    with torch.no_grad():
        expected_NT, _, mask_NT = completion_logprobs(
            untrained, samples, tokens(groups), temperature=params.temperature or 1.0
        )
    for row, completion in enumerate(completion for group in groups for completion in group):
        found = torch.tensor(completion.logprobs, dtype=torch.double)
        expected = expected_NT[row][mask_NT[row].bool()]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("limits", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_narrowest_sampling_is_greedy(engine, untrained, limits):
    samples = prompts(untrained)
    greedy = SamplingParams(max_new_tokens=10, temperature=0.0)
    narrow = SamplingParams(max_new_tokens=10, temperature=2.0, **limits)
    assert tokens(engine.generate(samples, narrow, range(5))) == tokens(
        engine.generate(samples, greedy, range(5))
    )


def test_each_group_is_told_once_with_its_prompt_s_index(engine, untrained):
    told = {}

    def finished(groups):
        assert not set(groups) & set(told)
        told.update(groups)

    groups = engine.generate(prompts(untrained), PARAMS, range(5), finished)
    assert [told[i] for i in range(5)] == groups


def test_no_prompts_give_no_completions(engine):
    assert engine.generate([], PARAMS, []) == []
