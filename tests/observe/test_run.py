"""What a training run holds: its questions, their order, and its seeds."""

import dataclasses
import hashlib

import pytest
from small_runs import changed

from observe.config import (
    BonusConfig,
    DataConfig,
    RewardConfig,
)
from observe.data.question import Question, write_jsonl
from observe.data.sources import load_questions
from observe.run import choose_questions, resolve_rewards, stable_seed


def handed_out(ladder, order, seed=0, size=20):
    data = DataConfig(size=size, selection="ladder", order=order)
    questions, curriculum = choose_questions(changed(data=data, seed=seed), ladder)
    batches = [curriculum.next_batch(4) for _ in range(size // 4)]
    assert curriculum.next_batch(4) == []
    assert {question.id for question in questions} == {i for batch in batches for i in batch}
    return [i for batch in batches for i in batch]


def test_every_order_and_seed_hands_out_the_same_questions_once(ladder):
    orders = [handed_out(ladder, order) for order in ("shuffled", "ladder", "easy_to_hard")]
    orders.append(handed_out(ladder, "shuffled", seed=1))
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len(set(orders[0])) == 20
    assert len({tuple(order) for order in (orders[0], orders[1], orders[3])}) == 3


@pytest.mark.parametrize("source", ["glyphs", "questions.jsonl"])
def test_the_seed_of_a_raw_run_changes_the_order_and_not_the_questions(tmp_path, source):
    if source != "glyphs":
        source = str(tmp_path / source)
        asked = [
            Question(id=f"q{i:02d}", text="?", gold="1", answer_type="integer") for i in range(60)
        ]
        write_jsonl(asked, tmp_path / "questions.jsonl")
    data = DataConfig(source=source, size=20, selection="raw")
    (questions, one), (same, two) = (
        choose_questions(changed(data=data, seed=seed), None) for seed in (1, 2)
    )
    assert questions == load_questions(source, size=20, seed=0)
    assert same == questions
    orders = one.next_batch(20), two.next_batch(20)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(question.id for question in questions)
    assert orders[0] != orders[1]


@pytest.mark.parametrize(
    ("prompt", "bonus", "expected"),
    [
        ("think", BonusConfig(weight=0.2, min_length_quantile=0.5), 20),
        ("think", BonusConfig(weight=0.2, min_length_quantile=0.1), 12),
        ("observe", BonusConfig(weight=0.2, min_length_quantile=0.5), 120),
        ("think", BonusConfig(weight=0.2, min_length_quantile=0.5, min_length=7), 7),
        ("think", BonusConfig(weight=0.2), None),
        ("think", BonusConfig(weight=0.0, min_length_quantile=0.5), None),
    ],
)
def test_the_bonus_takes_its_least_length_from_the_ladder(ladder, prompt, bonus, expected):
    reward = RewardConfig(accuracy=0.9, format="observe", shuffle=True, bonus=bonus)
    resolved = resolve_rewards(changed(prompt=prompt, reward=reward), ladder)
    assert resolved.bonus.min_length == expected
    assert resolved.bonus.weight == bonus.weight
    assert dataclasses.replace(resolved, bonus=bonus) == reward


def test_seeds_are_stable_and_tell_their_parts_apart():
    assert stable_seed(0, 1, "a") == int(hashlib.sha256(b"0/1/a").hexdigest()[:16], 16) >> 1
    assert len({stable_seed(0, 1), stable_seed(1, 0), stable_seed(0, 11), stable_seed(0)}) == 4
    assert all(0 <= stable_seed(i) < 2**63 for i in range(100))
