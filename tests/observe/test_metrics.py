"""Metrics of a step against hand-counted ones, and a log that survives kills."""

import json
import os

import pytest
import torch

from observe.config import BonusConfig, RewardConfig
from observe.data.question import Question
from observe.errors import InputError
from observe.metrics import (
    JsonLines,
    completion_row,
    completions_table,
    rollout_metrics,
    weight_metrics,
)
from observe.rewards import compute_rewards
from observe.rollout.engine import Completion

QUESTIONS = [
    Question(id="a", text="How many?", gold="3", answer_type="integer"),
    Question(id="b", text="Is there?", gold="yes", answer_type="yes_no"),
]
RIGHT_A, WRONG_A = "<think>x</think><answer>3</answer>", "<think>x</think><answer>4</answer>"
BARE_A, RIGHT_B = "The answer is 3", "<think>x</think><answer>yes</answer>"
TEXTS = [[RIGHT_A, WRONG_A, BARE_A], [RIGHT_B, RIGHT_B, RIGHT_B]]
LENGTHS = torch.tensor([[12, 14, 5], [10, 10, 20]])
REWARD = RewardConfig(
    format="think", format_weight=0.5, bonus=BonusConfig(weight=0.2, min_length=7)
)


def breakdown():
    return compute_rewards(TEXTS, LENGTHS, QUESTIONS, REWARD)


def metrics(rewards):
    truncated = torch.tensor([[False, False, False], [False, False, True]])
    return rollout_metrics(rewards, LENGTHS, truncated, torch.zeros(2, 3))


def test_the_metrics_of_a_step_are_those_counted_by_hand():
    found = metrics(breakdown())
    # Totals: 1.5, 0.5, 1.0 (the shortest right one is too short for a bonus); 1.7, 1.5, 1.5.
    expected = {
        "reward": (1.5 + 0.5 + 1.0 + 1.7 + 1.5 + 1.5) / 6,
        "reward_std": (0.5 + torch.tensor([1.7, 1.5, 1.5]).std().item()) / 2,
        "rewards/accuracy/mean": 5 / 6,
        "rewards/format/mean": 0.5 * 5 / 6,
        "rewards/bonus/mean": 0.2 / 6,
        "completions/mean_length": 71 / 6,
        "completions/min_length": 5,
        "completions/max_length": 20,
        "completions/mean_terminated_length": 51 / 5,
        "completions/clipped_ratio": 1 / 6,
        "observe/format_failure_share": 1 / 6,
        "observe/unscored_share": 0,
        "observe/bonus_share": 0.5,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)


def test_groups_of_equal_rewards_are_counted_by_their_rewards():
    # A weight of 0 also makes advantages 0, which is another matter.
    texts = [[RIGHT_A, WRONG_A], [RIGHT_B, RIGHT_B]]
    lengths = torch.tensor([[9, 9], [9, 9]])
    rewards = compute_rewards(texts, lengths, QUESTIONS, RewardConfig())
    ended = torch.zeros(2, 2, dtype=torch.bool)
    found = rollout_metrics(rewards, lengths, ended, torch.zeros(2, 2))
    assert found["frac_reward_zero_std"] == 0.5
    assert found["observe/zero_advantage_share"] == 1.0


def test_what_could_not_be_judged_is_counted_and_left_out_of_the_means():
    # An unreadable gold answer cannot be judged.
    questions = [
        Question(id="a", text="?", gold="no number", answer_type="integer"),
        QUESTIONS[1],
    ]
    rewards = compute_rewards(TEXTS, LENGTHS, questions, REWARD)
    assert rewards.correct_PG[0].isnan().all()
    found = metrics(rewards)
    assert found["observe/unscored_share"] == 0.5
    assert found["rewards/accuracy/mean"] == 1.0
    assert found["reward"] == pytest.approx((1.7 + 1.5 + 1.5) / 3)
    assert found["reward_std"] == pytest.approx(torch.tensor([1.7, 1.5, 1.5]).std().item())
    assert all(torch.isfinite(torch.tensor(value)) for value in found.values())


def test_a_weight_other_than_0_or_1_is_the_mechanism_at_work():
    correct_PG = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert weight_metrics(torch.ones(4), correct_PG)["observe/weight_active_share"] == 0
    found = weight_metrics(torch.tensor([0.0, 1.0, 1.35, 1.8]), correct_PG)
    assert found["observe/weight_active_share"] == 0.5
    assert found["observe/weight_mean"] == pytest.approx(4.15 / 4)
    assert found["observe/weight_max"] == pytest.approx(1.8)


def test_a_weight_of_0_is_the_mechanism_at_work_where_a_group_is_partly_right():
    nan = float("nan")
    correct_PG = torch.tensor([[1.0, 0.0, nan], [1.0, 1.0, nan], [0.0, 0.0, 0.0], [nan, nan, nan]])
    found = weight_metrics(torch.zeros(4), correct_PG)
    assert found["observe/weight_active_share"] == 0.25


def test_a_logged_group_shows_every_component_of_its_rewards():
    rewards = breakdown()
    group = [
        Completion(token_ids=[1] * int(n), text=text, truncated=False)
        for text, n in zip(TEXTS[0], LENGTHS[0], strict=True)
    ]
    row = completion_row(7, QUESTIONS[0], group, rewards, 0)
    assert (row["step"], row["question"], row["gold"]) == (7, "a", "3")
    shown = [
        (c["text"], c["tokens"], c["accuracy"], c["format"], c["bonus"], c["overlong"], c["answer"])
        for c in row["completions"]
    ]
    assert shown == [
        (RIGHT_A, 12, 1.0, 0.5, 0.0, 0.0, "3"),
        (WRONG_A, 14, 0.0, 0.5, 0.0, 0.0, "4"),
        (BARE_A, 5, 1.0, 0.0, 0.0, 0.0, "3"),
    ]
    assert [c["reward"] for c in row["completions"]] == [1.5, 0.5, 1.0]
    assert [c["correct"] for c in row["completions"]] == [True, False, True]
    assert [c["format_ok"] for c in row["completions"]] == [True, True, False]
    assert all(c["reason"] and c["truncated"] is False for c in row["completions"])
    assert json.loads(json.dumps(row)) == row


def test_a_logged_group_is_a_table_whose_cells_stay_cells():
    group = [Completion(token_ids=[1], text=f"{text}|\nx", truncated=False) for text in TEXTS[0]]
    table = completions_table(completion_row(7, QUESTIONS[0], group, breakdown(), 0))
    head, _, columns, rule, *lines = table.splitlines()
    assert head == "**a** How many? Gold: 3"
    assert columns.count("|") == rule.count("|") == 9
    assert [line.count("|") - line.count("\\|") for line in lines] == [9, 9, 9]
    assert "&lt;answer>3&lt;/answer>\\| x" in lines[0]
    assert lines[1].startswith("| 0.50 | 0.00 | 0.50 | 0.00 |")


def test_a_number_that_json_does_not_know_is_written_as_null(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl", resume_at=0)
    written = lines.append({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "lr": 0.1})
    assert written == {"step": 1, "loss": None, "grad_norm": None, "lr": 0.1}
    assert "NaN" not in lines.path.read_text() and lines.rows() == [written]


def log(tmp_path, text, resume_at):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    return JsonLines(path, resume_at=resume_at)


def test_what_a_resumed_run_keeps_is_on_the_disk_before_it_takes_the_place(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    JsonLines(path, resume_at=1)
    assert done == ["sync", "replace"] and path.read_text() == '{"step": 1}\n'


def test_rows_beyond_the_step_that_is_resumed_are_made_again(tmp_path):
    lines = "".join(f'{{"step": {i}}}\n' for i in range(5))
    resumed = log(tmp_path, lines, 2)
    assert [row["step"] for row in resumed.rows()] == [0, 1, 2]
    resumed.append({"step": 3, "new": True})
    assert resumed.rows()[-1] == {"step": 3, "new": True}


@pytest.mark.parametrize("half", ['{"step": 3, "rew', '{"st', "{", '{"step"', "\0\0\0\0"])
def test_half_a_last_line_is_dropped(tmp_path, half):
    resumed = log(tmp_path, '{"step": 1}\n{"step": 2}\n' + half, 9)
    assert resumed.rows() == [{"step": 1}, {"step": 2}]


def test_a_last_line_without_its_newline_is_kept_and_ended(tmp_path):
    resumed = log(tmp_path, '{"step": 1}', 1)
    resumed.append({"step": 2})
    assert resumed.rows() == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", ["not json", "{}", "[1]", "3"])
def test_a_damaged_line_among_others_is_named_and_nothing_is_lost(tmp_path, line):
    text = f'{{"step": 1}}\n{line}\n{{"step": 2}}\n'
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is damaged; .* restore"):
        log(tmp_path, text, 9)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_new_log_is_empty(tmp_path):
    assert JsonLines(tmp_path / "metrics.jsonl", resume_at=0).rows() == []
