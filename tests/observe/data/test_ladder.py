"""NeuraLadder's rules: difficulty, dropping, mixing as a permutation, selection, quantiles."""

import statistics
from collections import Counter

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observe.config import LadderConfig
from observe.data.ladder import difficulty, drop_extremes, exchange_share, mix, quantile, summarise
from observe.data.rungs import Measured, length_quantile, select
from observe.errors import InputError

CONFIG = LadderConfig()


def measured(name, wrong, complexity, prompts=("think", "observe")):
    """A question whose first ``8 - wrong`` of 8 samples are right, all of one length."""
    return Measured(
        question=name,
        family="f",
        difficulty=wrong / 8,
        complexity=float(complexity),
        prompts=tuple(prompts[i % len(prompts)] for i in range(8)),
        correct=tuple(i >= wrong for i in range(8)),
        lengths=(int(complexity),) * 8,
    )


def pool(sizes, spread=13):
    return [
        measured(f"q{wrong}-{i}", wrong, 20 + (i * 5) % spread)
        for wrong, size in enumerate(sizes)
        for i in range(size)
    ]


level_sizes = st.lists(st.integers(0, 25), min_size=9, max_size=9).filter(any)


def test_difficulty_is_the_share_of_wrong_samples():
    assert [difficulty([True] * k + [False] * (8 - k)) for k in (8, 7, 4, 0)] == [0, 0.125, 0.5, 1]
    assert difficulty([False, True, True]) == pytest.approx(1 / 3)


@given(level_sizes, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60)
def test_dropping_touches_only_the_two_extremes(sizes, floor, share):
    config = LadderConfig(easy_complexity_quantile=floor, hardest_share=share)
    given_ = pool(sizes)
    kept, dropped = drop_extremes(given_, config)
    assert Counter(m.question for m in given_) == Counter(
        [m.question for m in kept] + [d.question for d in dropped]
    )
    assert all(d.difficulty == (0 if d.reason == "too_easy" else 1) for d in dropped)
    hard = [m.complexity for m in kept if m.difficulty == 1]
    assert len(hard) == round(share * sizes[8])
    unsolved = [d.complexity for d in dropped if d.reason == "unsolved"]
    assert max(hard, default=0) <= min(unsolved, default=1000)
    easy = [m.complexity for m in kept if m.difficulty == 0]
    too_easy = [d.complexity for d in dropped if d.reason == "too_easy"]
    assert max(too_easy, default=0) < min(easy, default=1000)
    assert bool(easy) == bool(sizes[0])


@given(level_sizes, st.floats(0.3, 1), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=60)
def test_mixing_is_a_permutation_with_known_shares(sizes, own_share, neighbours, seed):
    config = LadderConfig(own_share=own_share, neighbours=neighbours, seed=seed)
    rungs = mix(pool(sizes), config)
    assert Counter(r.question for r in rungs) == Counter(m.question for m in pool(sizes))
    assert [r.order_index for r in rungs] == list(range(len(rungs)))
    assert [r.level for r in rungs] == sorted(r.level for r in rungs)
    for level, size in enumerate(sizes):
        stage = [r for r in rungs if r.level == level]
        assert len(stage) == size
        origins = Counter(r.own_level for r in stage)
        assert origins[level] >= own_share * size - 1e-9
        assert all(abs(own - level) <= neighbours for own in origins)


@given(level_sizes, st.integers(0, 3))
@settings(max_examples=60)
def test_mean_difficulty_rises_from_stage_to_stage(sizes, seed):
    rungs = mix(pool(sizes), LadderConfig(seed=seed))
    present = sorted({r.level for r in rungs})
    means = [statistics.fmean(r.difficulty for r in rungs if r.level == k) for k in present]
    assert all(a < b for a, b in zip(means, means[1:], strict=False))


def test_equal_levels_mix_as_the_paper_describes():
    rungs = mix(pool([240] * 9), CONFIG)
    summary = summarise(rungs, rungs, [], CONFIG)
    middle = summary["stages"][4]["from"]
    assert middle["4"] == pytest.approx(0.5)
    assert middle["3"] == middle["5"] == pytest.approx(1 / 6)
    assert middle["2"] == middle["6"] == pytest.approx(1 / 12)
    assert set(middle) == {"2", "3", "4", "5", "6"}
    assert summary["stages"][0]["from"]["0"] == pytest.approx(0.75)


def test_levels_are_interleaved_evenly_and_rise_in_complexity_within_a_stage():
    stage = [r for r in mix(pool([240] * 9, spread=97), CONFIG) if r.level == 4]
    halves = [stage[:120], stage[120:]]
    own = [sum(r.own_level == 4 for r in half) for half in halves]
    assert abs(own[0] - own[1]) <= 4
    complexity = [r.complexity for r in stage if r.own_level == 4]
    assert complexity[0] < complexity[-1]
    assert statistics.fmean(complexity[:60]) < statistics.fmean(complexity[-60:])


def test_mixing_depends_on_the_seed_and_not_on_the_order_given():
    questions = pool([30] * 9)
    assert mix(questions, CONFIG) == mix(questions[::-1], CONFIG)
    assert mix(questions, CONFIG) != mix(questions, LadderConfig(seed=1))


@given(st.integers(0, 4), st.floats(0.25, 1))
def test_exchange_shares_sum_to_what_is_not_the_stages_own(neighbours, own_share):
    shares = [exchange_share(d, own_share, neighbours) for d in range(1, 8)]
    assert shares == sorted(shares, reverse=True)
    assert 2 * sum(shares) == pytest.approx(1 - own_share if neighbours else 0)


@given(level_sizes, st.integers(1, 150), st.integers(0, 3))
@settings(max_examples=60)
def test_selection_is_spread_evenly_and_keeps_the_order(sizes, size, seed):
    rungs = mix(pool(sizes), CONFIG)
    if size > len(rungs):
        with pytest.raises(InputError, match=r"data\.ladder\.pool or lower data\.size"):
            select(rungs, size, seed)
        return
    chosen = [r.order_index for r in select(rungs, size, seed)]
    assert len(set(chosen)) == size
    assert chosen == sorted(chosen)
    assert chosen == [r.order_index for r in select(rungs, size, seed)]
    width = len(rungs) / size
    assert all(abs(index - i * width) <= width + 1 for i, index in enumerate(chosen))


def test_lengths_of_correct_answers_are_looked_up_and_interpolated():
    rungs = mix([measured(f"q{i}", 2, 10 + i) for i in range(101)], CONFIG)
    summary = summarise(rungs, rungs, [], CONFIG)
    assert length_quantile(summary, "think", 0.0) == 10
    assert length_quantile(summary, "think", 0.05) == pytest.approx(15)
    assert length_quantile(summary, "observe", 0.125) == pytest.approx(22.5, abs=0.2)
    assert length_quantile(summary, "think", 1.0) == 110
    with pytest.raises(InputError, match=r"'plain'.*data\.ladder\.prompts"):
        length_quantile(summary, "plain", 0.1)
    with pytest.raises(InputError, match="expected 0 to 1"):
        length_quantile(summary, "think", 5)


def test_lengths_count_correct_answers_alone():
    rungs = mix([measured("hard", 8, 30), measured("half", 1, 50)], CONFIG)
    lengths = summarise(rungs, rungs, [], CONFIG)["correct_lengths"]
    assert set(lengths["think"].values()) == {50.0}
    unsolved = mix([measured("hard", 8, 30)], CONFIG)
    assert summarise(unsolved, unsolved, [], CONFIG)["correct_lengths"]["think"] is None


@given(st.lists(st.floats(-100, 100), min_size=1), st.floats(0, 1))
def test_quantiles_agree_with_numpy(values, q):
    assert quantile(values, q) == pytest.approx(float(numpy.quantile(values, q)), abs=1e-6)
