"""Metrics of a run: one JSON object per step, under TRL's names where TRL has the metric.

Beside them ``timing_s/*``, ``perf/*``, and ``observe/*`` for what Observe-R1 adds.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from observe.data.question import Question
from observe.errors import InputError
from observe.rewards import RewardBreakdown
from observe.rollout.engine import Completion


class JsonLines:
    """An append-only JSONL file that a resumed run continues."""

    def __init__(self, path: Path | None, *, resume_at: int) -> None:
        """Drop the rows beyond step ``resume_at``, which the run is about to make again.

        Without a path nothing is kept: of several processes the first alone writes.

        Half a last line, as a killed run leaves it, is dropped too; InputError when any other line
        is damaged.
        """
        self.path = path
        if path is None:
            return
        kept = []
        lines = path.read_bytes().splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                if number == len(lines):
                    break
                raise InputError(
                    f"{path}: line {number} is damaged; delete {path.parent} to train from the "
                    "start, or restore the line"
                ) from None
            if step <= resume_at:
                kept.append(line + b"\n")
        # Replaced by renaming: killed in between, the file still has all rows.
        new = path.with_name(f"{path.name}.new")
        with new.open("wb") as file:
            file.write(b"".join(kept))
            file.flush()
            os.fsync(file.fileno())  # A power cut may keep the new name and lose what it names.
        os.replace(new, path)

    def append(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write one row at once; it has a ``step``. Returns it as it is read again.

        JSON has no NaN: such a number becomes null.
        """
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(finite, allow_nan=False) + "\n")
        return finite

    def sync(self) -> None:
        """Bring the rows to the disk, where a power cut leaves them."""
        if self.path is not None:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All rows, the oldest first."""
        if self.path is None:
            return []
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


def rollout_metrics(
    rewards: RewardBreakdown, lengths_PG: Tensor, truncated_PG: Tensor, advantages_PG: Tensor
) -> dict[str, float]:
    """Rewards and completions of one step, over P groups of G."""
    lengths = lengths_PG.float()
    ended = lengths[~truncated_PG]
    total = rewards.total_PG[rewards.scored_PG]
    # Over the completions that could be judged; a group with fewer than two has no spread.
    groups = [group[~group.isnan()] for group in rewards.total_PG]
    stds_P = torch.stack([g.std() if len(g) > 1 else torch.tensor(torch.nan) for g in groups])
    constant_P = torch.tensor([bool((g == g[:1]).all()) for g in groups])
    metrics = {
        "reward": _mean(total),
        "reward_std": _mean(stds_P[~stds_P.isnan()]),
        "frac_reward_zero_std": _mean(constant_P.float()),
        "observe/zero_advantage_share": _mean((advantages_PG == 0).all(dim=1).float()),
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/mean_terminated_length": _mean(ended),
        "completions/clipped_ratio": _mean(truncated_PG.float()),
        "observe/format_failure_share": _mean((~rewards.format_ok_PG).float()),
        "observe/unscored_share": _mean((~rewards.scored_PG).float()),
        "observe/bonus_share": _mean((rewards.bonus_PG > 0).any(dim=1).float()),
    }
    components = (
        ("accuracy", rewards.accuracy_PG[rewards.scored_PG]),
        ("format", rewards.format_PG),
        ("bonus", rewards.bonus_PG),
        ("overlong", rewards.overlong_PG),
    )
    for name, values in components:
        metrics[f"rewards/{name}/mean"] = _mean(values)
        metrics[f"rewards/{name}/std"] = float(values.std()) if values.numel() > 1 else 0.0
    return metrics


def weight_metrics(weights_P: Tensor, correct_PG: Tensor) -> dict[str, float]:
    """How the groups were weighted.

    The mechanism is at work where a weight is neither 0 nor 1, or where it is 0 although the group
    is partly right (form vcrl).
    """
    fraction_P = correct_PG.nanmean(-1)
    mixed_P = (fraction_P > 0) & (fraction_P < 1)
    active_P = (weights_P != 1) & ((weights_P != 0) | mixed_P)
    return {
        "observe/weight_mean": _mean(weights_P),
        "observe/weight_min": float(weights_P.min()),
        "observe/weight_max": float(weights_P.max()),
        "observe/weight_active_share": _mean(active_P.float()),
    }


def kl_metrics(kl_PG: Tensor | None, lengths_PG: Tensor) -> dict[str, float]:
    """The divergence per token, where it is part of the reward."""
    return {} if kl_PG is None else {"kl": float(kl_PG.sum() / lengths_PG.sum())}


def completion_row(
    step: int,
    question: Question,
    group: Sequence[Completion],
    rewards: RewardBreakdown,
    index: int,
) -> dict[str, Any]:
    """One group as logged to completions.jsonl: texts with each component of their reward."""
    return {
        "step": step,
        "question": question.id,
        "text": question.text,
        "gold": question.gold,
        "completions": [
            {
                "text": completion.text,
                "tokens": len(completion.token_ids),
                "truncated": completion.truncated,
                "reward": _number(rewards.total_PG[index, j]),
                "accuracy": _number(rewards.accuracy_PG[index, j]),
                "format": _number(rewards.format_PG[index, j]),
                "bonus": _number(rewards.bonus_PG[index, j]),
                "overlong": _number(rewards.overlong_PG[index, j]),
                "correct": _verdict(rewards.correct_PG[index, j]),
                "format_ok": bool(rewards.format_ok_PG[index, j]),
                "answer": rewards.answers[index][j],
                "reason": rewards.reasons[index][j],
            }
            for j, completion in enumerate(group)
        ],
    }


def completions_table(row: dict[str, Any]) -> str:
    """A row of completions.jsonl as a Markdown table."""
    columns = ("reward", "accuracy", "format", "bonus", "tokens", "answer", "reason", "text")
    lines = [
        f"**{_cell(row['question'])}** {_cell(row['text'])} Gold: {_cell(row['gold'])}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
    ]
    for completion in row["completions"]:
        lines.append("| " + " | ".join(_cell(completion[name]) for name in columns) + " |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _verdict(correct: Tensor) -> bool | None:
    return None if torch.isnan(correct) else bool(correct)


def _mean(values: Tensor) -> float:
    return float(values.float().mean()) if values.numel() else 0.0


def _number(value: Tensor) -> float | None:
    return None if torch.isnan(value) else float(value)
