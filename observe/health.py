"""The known sicknesses of reinforcement learning, told from the rows of the metrics log.

Pure arithmetic on rows: what a run is told and what its log, read again, is told are the same. A
sickness is judged on the mean of the last `WINDOW` steps against the first `START`, or against the
best the run has had. Where the log knows how hard the questions are (``observe/difficulty``, the
base model's share of wrong answers, and ``observe/complexity``, its mean length), a curriculum that
gets harder is no collapse: what the base lost on harder questions is allowed for.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

WINDOW = 8
"""Steps that are averaged before a word is said; single steps are noise."""
START = 2
"""First steps that later ones are compared with; a run can be ruined before a window is full."""
REWARD_LOST = 0.5
"""Reward collapse: the share of the best reward, as expected on these questions, that is gone."""
ACCURACY_LOST = 0.1
"""A fall of accuracy that counts, in shares of the completions."""
LENGTH_COLLAPSED = 0.4
"""Length collapse: completions shorter than this share of their length at first."""
LENGTH_EXPLODED = 2.5
"""Length explosion: completions longer than so many times their length at first."""
TRUNCATED = 0.5
"""Truncation: the share of completions that reach rollout.max_new_tokens."""
FORMAT_GAINED = 0.1
"""Format hacking: the gain in valid form, in shares of the completions, while accuracy falls."""
ENTROPY_COLLAPSED = 0.1
"""Entropy collapse: below this share of the entropy at first,"""
ENTROPY_LOW = 0.05
"""and below so many nats per token."""
NO_GRADIENT = 0.75
"""Groups without gradient: the share of groups whose completions all earn the same."""
HEALED = 0.8
"""A sickness is over when what defines it is this share of its threshold, or less."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Notice:
    """A sickness that begins or ends."""

    step: int
    """The step at which it was noticed."""
    sickness: str
    """One of `SICKNESSES`."""
    event: Literal["begins", "ends"]
    message: str
    """What it is, in plain words, and what may help."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Span:
    """Means over a window of rows; shares are of the completions or groups."""

    step: int
    reward: float
    accuracy: float
    form: float
    length: float
    truncated: float
    entropy: float
    without_gradient: float
    difficulty: float
    complexity: float
    bad_steps: float
    """Their number, not their share."""

    @property
    def skill(self) -> float:
        """Accuracy with what the base lacks on these questions added back."""
        return self.accuracy + self.difficulty


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Past:
    """What a window is compared with."""

    now: _Span
    first: _Span
    best_reward: _Span
    best_skill: _Span | None
    """Of whole windows alone: a little luck in the first steps is no skill."""
    accuracy_weight: float


class Health:
    """Follows a run row by row; fed the rows of a log again it is where it was."""

    def __init__(self, *, accuracy_weight: float = 1.0) -> None:
        """``accuracy_weight``: the reward of a correct answer (reward.accuracy)."""
        self._weight = accuracy_weight
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=WINDOW)
        self._past: _Past | None = None
        self.notices: list[Notice] = []
        """Everything said so far."""
        self.present: dict[str, Notice] = {}
        """The sicknesses that have begun and not ended."""

    def observe(self, row: Mapping[str, Any]) -> list[Notice]:
        """Take in the row of a step; what begins or ends with it. Rows of evaluations are left."""
        if "reward" not in row:
            return []
        self._rows.append(row)
        whole = len(self._rows) == WINDOW
        past = self._compare(_span(self._rows, self._weight), whole)
        if whole or len(self._rows) == START:
            self._past = past
        said = []
        for name, (severity, words) in SICKNESSES.items():
            if not whole and name != "nan_steps":
                continue
            value = severity(past)
            if name not in self.present and value >= 1:
                notice = Notice(
                    step=row["step"], sickness=name, event="begins", message=words(past)
                )
                self.present[name] = notice
            elif name in self.present and value < HEALED:
                del self.present[name]
                notice = Notice(
                    step=row["step"],
                    sickness=name,
                    event="ends",
                    message=f"{name.replace('_', ' ')}: over",
                )
            else:
                continue
            said.append(notice)
        self.notices += said
        return said

    def _compare(self, now: _Span, whole: bool) -> _Past:
        past = self._past or _Past(
            now=now, first=now, best_reward=now, best_skill=None, accuracy_weight=self._weight
        )
        if not whole:
            return dataclasses.replace(past, now=now)
        return dataclasses.replace(
            past,
            now=now,
            best_reward=max(
                [past.best_reward, now],
                key=lambda span: span.reward + self._weight * span.difficulty,
            ),
            best_skill=max([past.best_skill or now, now], key=lambda span: span.skill),
        )


def _span(rows: Sequence[Mapping[str, Any]] | deque[Mapping[str, Any]], weight: float) -> _Span:
    def mean(key: str, default: float = 0.0) -> float:
        values = [row[key] for row in rows if row.get(key) is not None]
        return sum(values) / len(values) if values else default

    return _Span(
        step=rows[-1]["step"],
        reward=mean("reward"),
        accuracy=mean("rewards/accuracy/mean") / weight if weight else 0.0,
        form=1 - mean("observe/format_failure_share"),
        length=mean("completions/mean_length"),
        truncated=mean("completions/clipped_ratio"),
        entropy=mean("entropy"),
        without_gradient=mean("frac_reward_zero_std"),
        difficulty=mean("observe/difficulty"),
        complexity=mean("observe/complexity", 1.0),
        bad_steps=sum((row.get("observe/bad_step") or 0) > 0 for row in rows),
    )


# Each sickness has a severity, at least 1 where it is present, and its words.


def _reward_collapse(past: _Past) -> float:
    expected = _expected_reward(past)
    return (1 - past.now.reward / expected) / REWARD_LOST if expected > 0.1 else 0.0


def _expected_reward(past: _Past) -> float:
    """The best reward so far, less what harder questions cost the base."""
    harder = past.now.difficulty - past.best_reward.difficulty
    return past.best_reward.reward - past.accuracy_weight * harder


def _reward_collapse_words(past: _Past) -> str:
    return (
        f"reward collapse: {past.now.reward:.2f} over the last {WINDOW} steps, where "
        f"{_expected_reward(past):.2f} was to be expected after step {past.best_reward.step}. "
        "Lower optim.lr, or hold the policy back with loss.kl_coefficient"
    )


def _relative_length(past: _Past) -> float:
    """Length against the first steps', each against the length the base had on its questions."""
    first = past.first.length / max(past.first.complexity, 1e-9)
    return past.now.length / max(past.now.complexity, 1e-9) / max(first, 1e-9)


def _gained(past: _Past) -> bool:
    """Accuracy is better than in the first steps: a change of length has its use."""
    return past.now.skill > past.first.skill + 0.02


def _length_collapse(past: _Past) -> float:
    return 0.0 if _gained(past) else LENGTH_COLLAPSED / max(_relative_length(past), 1e-9)


def _length_collapse_words(past: _Past) -> str:
    return (
        f"length collapse: {past.now.length:.0f} tokens per completion, {past.first.length:.0f} in "
        "the first steps, and accuracy is no better. Raise reward.bonus.min_length, or lower "
        "reward.bonus.weight or optim.lr"
    )


def _length_explosion(past: _Past) -> float:
    longer = 0.0 if _gained(past) else _relative_length(past) / LENGTH_EXPLODED
    return max(longer, past.now.truncated / TRUNCATED)


def _length_explosion_words(past: _Past) -> str:
    return (
        f"length explosion: {past.now.length:.0f} tokens per completion, {past.first.length:.0f} "
        f"in the first steps; {past.now.truncated:.0%} are cut at rollout.max_new_tokens. Raise "
        "that bound if the answers need it; else look at completions.jsonl for repetition"
    )


def _format_hacking(past: _Past) -> float:
    if past.best_skill is None:
        return 0.0
    lost = past.best_skill.skill - past.now.skill
    gained = past.now.form - past.best_skill.form
    return min(lost / ACCURACY_LOST, gained / FORMAT_GAINED)


def _format_hacking_words(past: _Past) -> str:
    then, now = past.best_skill or past.first, past.now
    return (
        f"format hacking: since step {then.step} the valid form has risen from {then.form:.0%} to "
        f"{now.form:.0%} while accuracy fell from {then.accuracy:.0%} to {now.accuracy:.0%}. Lower "
        "reward.format_weight"
    )


def _entropy_collapse(past: _Past) -> float:
    entropy = max(past.now.entropy, 1e-9)
    return min(ENTROPY_COLLAPSED * past.first.entropy / entropy, ENTROPY_LOW / entropy)


def _entropy_collapse_words(past: _Past) -> str:
    return (
        f"entropy collapse: {past.now.entropy:.3f} nats per token, {past.first.entropy:.3f} in the "
        "first steps: the completions of a group hardly differ. Raise loss.clip_high or "
        "rollout.temperature, or lower optim.lr"
    )


def _no_gradient(past: _Past) -> float:
    return past.now.without_gradient / NO_GRADIENT


def _no_gradient_words(past: _Past) -> str:
    return (
        f"groups without gradient: in {past.now.without_gradient:.0%} of the groups all "
        "completions earn the same, so nothing is learned from them. Choose questions that are "
        "neither too easy nor too hard (data.selection: ladder), or raise rollout.group_size"
    )


def _bad_steps(past: _Past) -> float:
    return past.now.bad_steps


def _bad_steps_words(past: _Past) -> str:
    return (
        f"NaN steps: {past.now.bad_steps:.0f} of the last {WINDOW} steps had a loss or "
        "gradient that is NaN or infinite, and were left out. Lower optim.lr or "
        "optim.max_grad_norm"
    )


SICKNESSES: dict[str, tuple[Callable[[_Past], float], Callable[[_Past], str]]] = {
    "reward_collapse": (_reward_collapse, _reward_collapse_words),
    "length_collapse": (_length_collapse, _length_collapse_words),
    "length_explosion": (_length_explosion, _length_explosion_words),
    "format_hacking": (_format_hacking, _format_hacking_words),
    "entropy_collapse": (_entropy_collapse, _entropy_collapse_words),
    "groups_without_gradient": (_no_gradient, _no_gradient_words),
    "nan_steps": (_bad_steps, _bad_steps_words),
}
"""Name -> (severity, words)."""
