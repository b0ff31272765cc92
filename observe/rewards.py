"""Rewards of sampled completions: accuracy, format, bonus and length, each kept visible.

Observe-R1 (arXiv 2505.12432): accuracy 0 or 1, plus 0.5 for a valid form, plus 0.2 for the most
concise correct completion of a group. Shape suffixes: P prompts, G completions per prompt.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from observe import grpo
from observe.config import RewardConfig
from observe.errors import InputError
from observe.scoring import AnswerType, ScoreRequest, score_many

_TAGS = re.compile(r"</?(?:observe|think|answer)>")
_OBSERVE, _THINK, _ANSWER = (f"<{t}>(?P<{t}>.*?)</{t}>" for t in ("observe", "think", "answer"))
_THINK_ANSWER = re.compile(rf"{_THINK}\s*{_ANSWER}", re.DOTALL)
_OBSERVE_THINK_ANSWER = re.compile(rf"{_OBSERVE}\s*{_THINK}\s*{_ANSWER}", re.DOTALL)
_NESTED = re.compile(
    rf"<think>(?P<before>.*?){_OBSERVE}(?P<after>.*?)</think>\s*{_ANSWER}", re.DOTALL
)


class Judgeable(Protocol):
    """What a reward needs to know of a question (`observe.data.question.Question` has it)."""

    @property
    def gold(self) -> str: ...
    @property
    def answer_type(self) -> AnswerType | None: ...
    @property
    def options(self) -> Sequence[str]: ...


@dataclass(frozen=True, kw_only=True)
class RewardBreakdown:
    """The rewards of P groups of G completions by component; every tensor is (P, G)."""

    accuracy_PG: Tensor
    """Weighted accuracy reward; NaN where the answer could not be judged."""
    format_PG: Tensor
    """Weighted format reward; 0 everywhere when no form is asked for."""
    bonus_PG: Tensor
    """Conciseness bonus."""
    overlong_PG: Tensor
    """Punishment of length, 0 or less."""
    total_PG: Tensor
    """Sum of the four, NaN where the answer could not be judged."""
    correct_PG: Tensor
    """1 correct, 0 wrong, NaN could not be judged."""
    scored_PG: Tensor
    """Bool: the answer could be judged."""
    format_ok_PG: Tensor
    """Bool: the completion has the form asked for (True everywhere when none is)."""
    answers: tuple[tuple[str | None, ...], ...]
    """The extracted answer of each completion."""
    reasons: tuple[tuple[str, ...], ...]
    """The scorer's reason for each verdict."""

    def with_groups(self, indices: Sequence[int], others: "RewardBreakdown") -> "RewardBreakdown":
        """These rewards with the groups at ``indices`` replaced by the groups of ``others``."""
        place = torch.tensor(indices)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(others, field.name)
            if isinstance(mine, Tensor):
                values[field.name] = mine.index_copy(0, place, theirs)
            else:
                rows = dict(enumerate(mine)) | dict(zip(indices, theirs, strict=True))
                values[field.name] = tuple(rows.values())
        return RewardBreakdown(**values)


def format_valid(text: str, form: Literal["think", "observe"]) -> bool:
    """Whether `text` is exactly the tags of `form`, in order, each once, and none of them blank.

    Only white space may stand around and between the elements; inside them everything is free but
    the tags themselves. "think": think, answer. "observe": observe, think, answer, or observe
    nested in a think that says something besides (then answer).
    """
    text = text.strip()
    num_tags = len(_TAGS.findall(text))
    if form == "think":
        match = _THINK_ANSWER.fullmatch(text)
        return num_tags == 4 and match is not None and all(map(str.strip, match.groups()))
    if num_tags != 6:
        return False
    match = _OBSERVE_THINK_ANSWER.fullmatch(text)
    if match is not None:
        return all(map(str.strip, match.groups()))
    match = _NESTED.fullmatch(text)
    if match is None:
        return False
    reasoning = match["before"] + match["after"]
    return all(map(str.strip, (reasoning, match["observe"], match["answer"])))


def compute_rewards(
    texts: Sequence[Sequence[str]],
    lengths_PG: Tensor,
    questions: Sequence[Judgeable],
    config: RewardConfig,
    *,
    workers: int = 2,
    timeout_s: float = 5.0,
) -> RewardBreakdown:
    """Score P groups of G completions and add up their rewards.

    `texts` is P x G, `lengths_PG` counts the completions' tokens, `questions` has the P questions.
    `config.bonus.min_length` and `config.overlong.max_length` are taken as they are (see
    `observe.run.resolve_rewards`), and `config.shuffle` is left to the caller
    (`shuffle_within_groups`). What cannot be judged within
    `timeout_s` is NaN, never silently wrong.
    """
    requests = [
        ScoreRequest(
            response=text,
            gold=question.gold,
            answer_type=question.answer_type,
            options=tuple(question.options),
        )
        for group, question in zip(texts, questions, strict=True)
        for text in group
    ]
    verdicts = score_many(requests, workers=workers, timeout_s=timeout_s)
    shape = tuple(lengths_PG.shape)
    correct_PG = torch.tensor(
        [torch.nan if v.correct is None else float(v.correct) for v in verdicts]
    ).reshape(shape)
    if config.format == "none":
        format_ok_PG = torch.ones(shape, dtype=torch.bool)
        format_PG = torch.zeros(shape)
    else:
        form = config.format
        format_ok_PG = torch.tensor(
            [[format_valid(text, form) for text in group] for group in texts]
        ).reshape(shape)
        format_PG = config.format_weight * format_ok_PG.float()
    accuracy_PG = config.accuracy * correct_PG
    bonus_PG = grpo.bonus(
        correct_PG,
        lengths_PG,
        weight=config.bonus.weight,
        min_length=config.bonus.min_length,
        max_length=config.bonus.max_length,
    )
    overlong_PG = torch.zeros(shape)
    if config.overlong.weight:
        if config.overlong.max_length is None:
            raise InputError("reward.overlong.max_length: missing; give a number of tokens")
        max_length = config.overlong.max_length
        buffer = max(1, round(config.overlong.buffer_share * max_length))
        overlong_PG = config.overlong.weight * grpo.overlong_penalty(
            lengths_PG, max_length=max_length, buffer=buffer
        )
    group_size = shape[1]
    groups = [verdicts[i : i + group_size] for i in range(0, len(verdicts), group_size)]
    return RewardBreakdown(
        accuracy_PG=accuracy_PG,
        format_PG=format_PG,
        bonus_PG=bonus_PG,
        overlong_PG=overlong_PG,
        total_PG=accuracy_PG + format_PG + bonus_PG + overlong_PG,
        correct_PG=correct_PG,
        scored_PG=~correct_PG.isnan(),
        format_ok_PG=format_ok_PG,
        answers=tuple(tuple(v.answer for v in group) for group in groups),
        reasons=tuple(tuple(v.reason for v in group) for group in groups),
    )


def concatenate(parts: Sequence[RewardBreakdown]) -> RewardBreakdown:
    """The rewards of several sets of groups as those of one set, in the order given."""
    joined: dict[str, Any] = {}
    for spec in dataclasses.fields(RewardBreakdown):
        values = [getattr(part, spec.name) for part in parts]
        joined[spec.name] = torch.cat(values) if spec.name.endswith("_PG") else sum(values, ())
    return RewardBreakdown(**joined)


def shuffle_within_groups(total_PG: Tensor, generator: torch.Generator) -> Tensor:
    """Permute the rewards within each group: the placebo keeps their distribution and no signal."""
    order_PG = torch.rand(total_PG.shape, generator=generator).argsort(-1)
    return total_PG.gather(-1, order_PG)
