"""Orders: the same questions once each, and a saved state goes on exactly."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observe.data.curriculum import make_order
from observe.data.rungs import Rung
from observe.errors import InputError

ORDERS = ("ladder", "easy_to_hard", "shuffled")


def rungs(n):
    """Rungs whose place on the ladder is neither their number nor their difficulty."""
    return [
        Rung(
            question=f"q{i}",
            family="f",
            difficulty=(i % 9) / 8,
            complexity=float(40 - i % 7),
            prompts=("think",) * 8,
            correct=(True,) * (8 - i % 9) + (False,) * (i % 9),
            lengths=(40 - i % 7,) * 8,
            level=i % 9,
            order_index=(i * 7) % n if n % 7 else i,
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("order", ORDERS)
@given(n=st.integers(1, 60), batch=st.integers(1, 17), seed=st.integers(0, 5))
def test_every_order_hands_out_every_question_once(order, n, batch, seed):
    curriculum = make_order(order, rungs(n), seed=seed)
    seen = Counter()
    while ids := curriculum.next_batch(batch):
        assert len(ids) == min(batch, n - seen.total())
        seen.update(ids)
    assert seen == Counter(f"q{i}" for i in range(n))
    assert curriculum.next_batch(batch) == []


@pytest.mark.parametrize("order", ORDERS)
@given(steps=st.integers(1, 12), stop=st.integers(0, 12), batch=st.integers(1, 9))
def test_a_restored_state_goes_on_where_it_was_saved(order, steps, stop, batch):
    stop = min(stop, steps)
    whole = make_order(order, rungs(60), seed=1)
    expected = [(whole.next_batch(batch), whole.metrics()) for _ in range(steps)]
    first = make_order(order, rungs(60), seed=1)
    got = [(first.next_batch(batch), first.metrics()) for _ in range(stop)]
    second = make_order(order, rungs(60), seed=1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.metrics() == first.metrics()
    got += [(second.next_batch(batch), second.metrics()) for _ in range(steps - stop)]
    assert got == expected


def test_orders_differ_in_what_they_say():
    climbed = make_order("ladder", rungs(60), seed=0).next_batch(60)
    assert climbed == [r.question for r in sorted(rungs(60), key=lambda r: r.order_index)]
    by_id = {r.question: r for r in rungs(60)}
    rising = [by_id[q] for q in make_order("easy_to_hard", rungs(60), seed=0).next_batch(60)]
    keys = [(r.difficulty, r.complexity) for r in rising]
    assert keys == sorted(keys)
    shuffled = [make_order("shuffled", rungs(60), seed=s).next_batch(60) for s in (0, 0, 1)]
    assert shuffled[0] == shuffled[1] != shuffled[2]
    reordered = make_order("shuffled", rungs(60)[::-1], seed=0).next_batch(60)
    assert reordered == shuffled[0]


def test_metrics_describe_the_last_batch():
    curriculum = make_order("easy_to_hard", rungs(18), seed=0)
    assert curriculum.metrics() == {"observe/data_position": 0.0}
    curriculum.next_batch(4)
    metrics = curriculum.metrics()
    assert metrics["observe/data_position"] == pytest.approx(4 / 18)
    assert metrics["observe/difficulty"] == pytest.approx((0 + 0 + 1 / 8 + 1 / 8) / 4)
    assert 34 <= metrics["observe/complexity"] <= 40


def test_a_state_of_other_questions_is_refused():
    state = make_order("shuffled", rungs(10), seed=0).state_dict()
    for other in (
        make_order("shuffled", rungs(10), seed=1),
        make_order("ladder", rungs(9), seed=0),
    ):
        with pytest.raises(InputError, match="other questions or another order"):
            other.load_state_dict(state)
