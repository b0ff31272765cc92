"""The search file: which settings to search, what a good trial is, and how to compare the best.

Read strictly, as an ablation file is: a wrong key, setting or value raises InputError, naming file,
key and remedy, before anything runs.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.ablation import Ablation, Report, StageResources
from harness.ablation_checks import train_config
from harness.ablation_file import override, read_ablation, to_plain
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml

if TYPE_CHECKING:
    import optuna


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The values that a setting may take: from low to high, or one of choices."""

    low: int | float | None = None
    """The least value."""
    high: int | float | None = None
    """The greatest value."""
    log: bool = False
    """Whether to draw its logarithm evenly."""
    step: int | float | None = None
    """Distance between values."""
    choices: tuple[Any, ...] = ()
    """All values, where they are no range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a good trial is."""

    metric: str = "eval/accuracy"
    """A metric of the training (``metrics.jsonl``); those under eval/ are of the validation
    split."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Which values are good."""
    take: Literal["last", "best", "mean"] = "last"
    """The last value that was recorded, the best, or the mean of all after the start."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confirm:
    """The comparison of the best trial with the settings it was to improve."""

    seeds: tuple[int, ...] = (101, 102, 103)
    """Fresh seeds: the search has seen none of them."""
    evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the evaluation, as in an ablation file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search file."""

    name: str
    """Name of the search, and of its folder."""
    recipe: str
    """What every trial starts from: a named recipe, or a YAML file of training settings."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the trainer that differ from the recipe in every trial (dotted keys)."""
    space: dict[str, Range]
    """Setting of the trainer (dotted key) -> the values it may take."""
    objectives: tuple[Objective, ...] = (Objective(),)
    """What is sought; with two or more, the trials that no other beats in all of them."""
    sampler: Literal["tpe", "cmaes", "random", "nsga2"] = "tpe"
    """How values are chosen: tpe and cmaes learn from earlier trials, random does not, nsga2 is
    for several objectives."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """Which trials are ended early, by what they have reached so far: none, those below the median
    of earlier trials at the same step, or all but the best of ever fewer at ever more steps."""
    warmup_steps: int = 0
    """Training steps before the median may end a trial."""
    startup_trials: int = 5
    """Trials before the sampler and the median trust what they have seen."""
    trials: int = 20
    """How many trials, with those that were ended early."""
    seed: int = 0
    """Seed of the sampler, and of every trial's training."""
    confirm: Confirm = Confirm()
    """The comparison afterwards."""
    resources: StageResources = StageResources()
    """What stages occupy."""
    report: Report = Report()
    """How the comparison is reported."""


def load_search(path: Path, overrides: dict[str, Any]) -> tuple[Search, dict[str, Any]]:
    """Read a search file: the search, and the training settings every trial starts from.

    Raises InputError, naming file, key and remedy.
    """
    raw = load_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping, got {raw!r}; see ablations/search.yaml")
    keys = {field.name for field in dataclasses.fields(Search)}
    raw = override(raw, overrides, keys, str(path))
    search = from_mapping(Search, raw, source=str(path))
    _check(search, str(path))
    # The comparison is checked before the first trial; what will win is not known yet.
    some = {key: (r.choices or (r.low, r.high))[0] for key, r in search.space.items()}
    other = {key: (r.choices or (r.low, r.high))[-1] for key, r in search.space.items()}
    _, start = comparison(search, path, some, other)
    steps = start["data"]["size"] // start["prompts_per_step"]
    evaluated = any(0 < step <= steps for step in start["eval_steps"])
    for objective in search.objectives:
        if objective.metric.startswith("eval/") and not evaluated:
            raise InputError(
                f"{path}: objectives: {objective.metric} is never recorded after the start, as "
                f"none of eval_steps ({start['eval_steps']}) is from 1 to {steps}, the last step; "
                f"set eval_steps, e.g. to [{steps}]"
            )
    for key, values in search.space.items():
        for value in values.choices or _examples(values):
            train_config(start, {key: value}, f"{path}: space.{key}")
    return search, start


def _examples(values: Range) -> list[Any]:
    """The ends of a range, and its second value where that is given."""
    assert values.low is not None and values.high is not None
    return [values.low, values.high] + ([values.low + values.step] if values.step else [])


def _check(search: Search, source: str) -> None:
    if not search.space:
        raise InputError(f"{source}: space: no setting to search; name at least one")
    for key, values in search.space.items():
        where = f"{source}: space.{key}"
        if any(choice in values.choices[:i] for i, choice in enumerate(values.choices)):
            raise InputError(f"{where}.choices: expected different ones, got {values.choices}")
        if len(values.choices) == 1:
            raise InputError(f"{where}.choices: expected two or more; set a fixed value under set")
        if values.choices:
            if values.low is not None or values.high is not None or values.log or values.step:
                raise InputError(f"{where}: expected choices, or low and high; remove one of them")
        elif values.low is None or values.high is None or values.low >= values.high:
            raise InputError(f"{where}: expected low and high, low < high, or choices")
        elif values.step is not None and values.step <= 0:
            raise InputError(f"{where}.step: expected more than 0, got {values.step}")
        elif values.log and (values.low <= 0 or values.step):
            raise InputError(f"{where}: with log, expected low > 0 and no step")
    metrics = [objective.metric for objective in search.objectives]
    if not metrics or len(set(metrics)) < len(metrics):
        raise InputError(f"{source}: objectives: expected one or more, of different metrics")
    if len(metrics) > 1 and search.pruner != "none":
        raise InputError(
            f"{source}: pruner: {search.pruner} judges by one objective, and there are "
            f"{len(metrics)}; set it to none"
        )
    if len(metrics) > 1 and search.sampler == "cmaes":
        raise InputError(f"{source}: sampler: cmaes has one objective; use tpe or nsga2")
    for key, least in (("trials", 1), ("startup_trials", 0), ("warmup_steps", 0)):
        if getattr(search, key) < least:
            raise InputError(
                f"{source}: {key}: expected {least} or more, got {getattr(search, key)}"
            )
    if not 0 <= search.seed < 2**32:
        raise InputError(f"{source}: seed: expected 0 to {2**32 - 1}, got {search.seed}")
    if not search.confirm.seeds or search.seed in search.confirm.seeds:
        raise InputError(
            f"{source}: confirm.seeds: expected seeds that the trials do not have ({search.seed} "
            "is theirs)"
        )


def comparison(
    search: Search, path: Path, default: dict[str, Any], winner: dict[str, Any]
) -> tuple[Ablation, dict[str, Any]]:
    """The question whether the winner is better than the settings it was to improve.

    A sweep of two arms on fresh seeds, and the training settings it starts from.
    """
    raw = {
        "name": search.name,
        "recipe": search.recipe,
        "set": search.set,
        "factors": {
            "winner": {
                "control": "off",
                "levels": {"off": default, "on": winner},
            }
        },
        "design": "full_factorial",
        "reference": {"winner": "on"},
        "seeds": list(search.confirm.seeds),
        "evaluate": search.confirm.evaluate,
        "resources": dataclasses.asdict(search.resources),
        "report": to_plain(search.report),
    }
    return read_ablation(raw, path)


def suggest(trial: "optuna.Trial", search: Search, start: dict[str, Any]) -> dict[str, Any]:
    """Settings for a trial; those that it already has stay."""
    chosen: dict[str, Any] = {}
    for key, values in search.space.items():
        if values.choices:
            # Optuna keeps plain values only; a choice may be a list.
            index = trial.suggest_categorical(key, list(map(json.dumps, values.choices)))
            chosen[key] = json.loads(index)
            continue
        assert values.low is not None and values.high is not None
        if _whole(start, key, values):
            low, high, step = int(values.low), int(values.high), int(values.step or 1)
            chosen[key] = trial.suggest_int(key, low, high, step=step, log=values.log)
        else:
            chosen[key] = trial.suggest_float(
                key, values.low, values.high, step=values.step, log=values.log
            )
    return chosen


def _whole(start: dict[str, Any], key: str, values: Range) -> bool:
    """Whether the setting takes whole numbers alone."""
    assert values.low is not None
    if not all(float(v).is_integer() for v in (values.low, values.high, values.step or 1)):  # type: ignore[arg-type]
        return False
    try:
        train_config(start, {key: values.low + 0.5}, key)
    except InputError:
        return True
    return False


def value_at(start: dict[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    value: Any = start
    for part in key.split("."):
        value = value[part]
    return value
