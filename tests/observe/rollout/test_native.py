"""The in-process sampler against Hugging Face's generate, and its choice of a token exactly."""

import pytest
import torch
from dense import padded
from hypothesis import given
from hypothesis import strategies as st

from observe.glyphs import questions
from observe.model.logprobs import completion_logprobs
from observe.model.policy import load_policy
from observe.model.processor import PromptSize
from observe.prompts import build_messages
from observe.rollout import memory, native
from observe.rollout.batches import batches
from observe.rollout.engine import SamplingParams
from observe.rollout.native import NativeEngine, _choose


@pytest.fixture(scope="module")
def trained(base):
    """A model that ends its answers, so that rows leave the batch at different times."""
    return load_policy(base / "checkpoint", dtype=torch.float64)


def prompts(policy, number=12):
    return [
        policy.processor.sample(
            build_messages("think", question.text, question.options, 1), question.open_images()
        )
        for question in questions("validation", number)
    ]


def test_greedy_is_what_hugging_face_generates(trained):
    samples = prompts(trained)
    ours = NativeEngine(trained).generate(
        samples, SamplingParams(max_new_tokens=48, temperature=0.0), [0] * len(samples)
    )
    lengths = set()
    for sample, (completion,) in zip(samples, ours, strict=True):
        inputs = padded(trained, [(sample, [])])
        del inputs["position_ids"]
        theirs = trained.model.generate(
            **inputs,
            mm_token_type_ids=(inputs["input_ids"] == trained.processor.image_pad_id).int(),
            max_new_tokens=48,
            do_sample=False,
            suppress_tokens=trained.processor.banned_ids,
        )[0, sample.length :].tolist()
        assert completion.token_ids == theirs
        lengths.add(len(theirs))
    assert len(lengths) > 1


@pytest.mark.parametrize("batch_size", [1, 4, 7, 256])
def test_the_size_of_its_batches_changes_nothing(trained, batch_size):
    samples, params = prompts(trained), SamplingParams(max_new_tokens=40, n=4)
    expected = NativeEngine(trained, batch_size=48).generate(samples, params, range(12))
    found = NativeEngine(trained, batch_size=batch_size).generate(samples, params, range(12))
    for one, other in zip(sum(found, []), sum(expected, []), strict=True):
        assert (one.token_ids, one.text, one.truncated) == (
            other.token_ids,
            other.text,
            other.truncated,
        )
        assert one.logprobs == pytest.approx(other.logprobs, rel=1e-9, abs=1e-11)
    assert len({len(c.token_ids) for group in expected for c in group}) > 5


@pytest.mark.parametrize("tokens", [1, 150, 400])
def test_in_how_many_parts_the_prompts_are_read_changes_nothing(trained, tokens, monkeypatch):
    samples, params = prompts(trained), SamplingParams(max_new_tokens=40, n=4)
    expected = NativeEngine(trained).generate(samples, params, range(12))
    monkeypatch.setattr(native, "PREFILL_TOKENS", tokens)
    found = NativeEngine(trained).generate(samples, params, range(12))
    for one, other in zip(sum(found, []), sum(expected, []), strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, rel=1e-9, abs=1e-11)


def test_log_probabilities_are_exact_while_rows_leave_and_buffers_grow(trained, monkeypatch):
    """In double precision, over lengths at which groups lose some or all of their rows."""
    monkeypatch.setattr(memory, "GROWTH", 8)
    samples, params = prompts(trained), SamplingParams(max_new_tokens=100, n=6)
    groups = NativeEngine(trained).generate(samples, params, range(12))
    lengths = {len(c.token_ids) for group in groups for c in group}
    assert len(lengths) > 10 and max(lengths) > 24
    with torch.no_grad():
        expected_NT, _, mask_NT = completion_logprobs(
            trained, samples, [[c.token_ids for c in group] for group in groups]
        )
    for row, completion in enumerate(c for group in groups for c in group):
        found = torch.tensor(completion.logprobs, dtype=torch.double)
        expected = expected_NT[row][mask_NT[row].bool()]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_what_it_samples_is_what_the_trainer_scores(trained):
    """Tokens drawn by inversion at u are those whose cumulative probability first exceeds u."""
    from observe.rollout.native import _uniforms

    samples, params = prompts(trained, 4), SamplingParams(max_new_tokens=16, temperature=1.3, n=2)
    groups = NativeEngine(trained).generate(samples, params, [5, 6, 7, 8])
    uniforms = _uniforms([5, 6, 7, 8], params)
    vocabulary = range(len(trained.processor.tokenizer))
    for i, group in enumerate(groups):
        for j, completion in enumerate(group):
            for step in (0, len(completion.token_ids) - 1):
                chosen = completion.token_ids[step]
                prefix = completion.token_ids[:step]
                with torch.no_grad():
                    logprobs, _, _ = completion_logprobs(
                        trained,
                        [samples[i]],
                        [[[*prefix, token] for token in vocabulary]],
                        temperature=1.3,
                    )
                cumulative = logprobs[:, step].exp().cumsum(0)
                u = float(uniforms[step, 2 * i + j])
                assert cumulative[chosen] > u - 1e-6
                assert chosen == 0 or cumulative[chosen - 1] <= u + 1e-6


def test_training_mode_is_given_back(trained):
    params = SamplingParams(max_new_tokens=2)
    for training in (True, False):
        trained.model.train(training)
        NativeEngine(trained).generate(prompts(trained, 1), params, [0])
        assert trained.model.training == training
    trained.model.eval()


def chosen(logits, uniforms, **params):
    rows = torch.tensor(logits).repeat(len(uniforms), 1)
    settings = SamplingParams(max_new_tokens=1, **params)
    return _choose(rows, settings, torch.tensor(uniforms, dtype=torch.double)).tolist()


EVEN = [0.0, 0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1 - 2**-53]


def test_a_token_is_drawn_in_proportion_to_its_probability():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().tolist()
    grid = [(i + 0.5) / 1000 for i in range(1000)]
    counts = torch.bincount(torch.tensor(chosen(logits, grid))).tolist()
    assert counts == [100, 200, 300, 400]


def test_temperature_sharpens_and_flattens():
    logits = torch.tensor([0.2, 0.8]).log().tolist()
    grid = [(i + 0.5) / 1000 for i in range(1000)]
    assert sum(chosen(logits, grid, temperature=0.5)) == pytest.approx(1000 * 16 / 17, abs=1)
    assert sum(chosen(logits, grid, temperature=2.0)) == pytest.approx(1000 * 2 / 3, abs=1)


def test_top_k_keeps_the_k_most_probable():
    logits = [0.0, 3.0, 1.0, 2.0]
    assert set(chosen(logits, EVEN, top_k=2)) == {1, 3}
    assert set(chosen(logits, EVEN, top_k=99, temperature=5.0)) == {0, 1, 2, 3}


def test_top_p_keeps_the_smallest_set_with_that_mass():
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log().tolist()
    assert set(chosen(logits, EVEN, top_p=0.45)) == {1}
    assert set(chosen(logits, EVEN, top_p=0.75)) == {1, 3}
    assert set(chosen(logits, EVEN, top_p=0.9)) == {1, 2, 3}
    assert set(chosen(logits, EVEN, top_p=1.0)) == {0, 1, 2, 3}


def test_top_p_measures_the_mass_at_the_temperature():
    logits = torch.tensor([0.1, 0.9]).log().tolist()
    assert set(chosen(logits, EVEN, top_p=0.8)) == {1}
    assert set(chosen(logits, EVEN, top_p=0.8, temperature=4.0)) == {0, 1}


@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=20),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 5),
    st.floats(0.01, 1.0),
)
def test_an_impossible_token_is_never_chosen(logits, uniform, top_k, top_p):
    impossible = [float("-inf"), *logits, float("-inf")]
    (token,) = chosen(impossible, [uniform], top_k=top_k, top_p=top_p)
    assert 0 < token < len(impossible) - 1


def test_greedy_needs_no_random_number():
    assert _choose(
        torch.tensor([[0.0, 2.0, 1.0]]), SamplingParams(max_new_tokens=1), None
    ).tolist() == [1]


class Small(NativeEngine):
    """Runs out of memory as a GPU would: when a batch has more than so many image tokens."""

    def __init__(self, policy, room, **settings):
        super().__init__(policy, **settings)
        self.room = room
        self.tried = []

    def _generate(self, samples, params, seeds):
        tokens = sum(self._size(sample).image_tokens for sample in samples)
        self.tried.append(tokens)
        if tokens > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return super()._generate(samples, params, seeds)


@pytest.mark.parametrize("n", [1, 3])
def test_without_memory_the_batch_is_halved_and_stays_small(trained, n):
    samples, params = prompts(trained), SamplingParams(max_new_tokens=20, n=n)
    expected = NativeEngine(trained).generate(samples, params, range(12))
    one = NativeEngine(trained)._size(samples[0]).image_tokens
    engine = Small(trained, 4 * one, batch_size=12 * n, shrink=True)
    told = {}
    found = engine.generate(samples, params, range(12), told.update)
    assert [[c.token_ids for c in g] for g in found] == [[c.token_ids for c in g] for g in expected]
    assert [told[i] for i in range(12)] == found
    failed = [tokens for tokens in engine.tried if tokens > engine.room]
    assert engine.tried[: len(failed)] == failed and len(failed) == 2
    engine.tried = []
    engine.generate(samples, params, range(12))
    assert max(engine.tried) <= engine.room


def test_a_prompt_that_does_not_fit_alone_is_an_error(trained):
    with pytest.raises(torch.OutOfMemoryError):
        Small(trained, 1, shrink=True).generate(
            prompts(trained, 3), SamplingParams(max_new_tokens=4), range(3)
        )
    with pytest.raises(torch.OutOfMemoryError):
        Small(trained, 1).generate(prompts(trained, 1), SamplingParams(max_new_tokens=4), [0])


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), max_size=40),
    st.integers(1, 9),
    st.integers(1, 60) | st.none(),
)
def test_batches_are_sorted_bounded_and_as_full_as_may_be(sizes, limit, image_tokens):
    prompts = [PromptSize(length=length + i, image_tokens=i) for length, i in sizes]
    found = batches(prompts, prompts=limit, image_tokens=image_tokens)
    order = [i for part in found for i in part]
    assert order == sorted(range(len(prompts)), key=lambda i: prompts[i].length)
    loads = [sum(prompts[i].image_tokens for i in part) for part in found]
    for part, load in zip(found, loads, strict=True):
        assert 1 <= len(part) <= limit
        assert image_tokens is None or load <= image_tokens or len(part) == 1
    for part, load, after in zip(found, loads, found[1:], strict=False):
        more = load + prompts[after[0]].image_tokens
        assert len(part) == limit or (image_tokens is not None and more > image_tokens)
