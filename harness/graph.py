"""From an ablation's cells to the graph of stages that gives their results.

A stage's id is its kind and a hash of everything that can change its result, so that equal stages
are the same stage: run once, shared by all arms that need it, and found again by a later sweep.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from benchmarks.config import EvaluateConfig
from harness import design
from harness.ablation import Ablation, Levels, Resources, StageResources
from harness.ablation_checks import train_config
from harness.fingerprint import (
    fingerprint_folder,
    fingerprint_ladder,
    fingerprint_questions,
)
from harness.store import write_atomically
from observe.config import EMBEDDED, TrainConfig
from observe.errors import InputError
from observe.fingerprint import fingerprint_model
from observe.mapping import from_mapping, to_mapping, with_overrides


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What runs the stages of a kind."""

    function: str
    """``module:function``, imported only by the job."""
    version: int
    """Raised when the results change for the same config."""


KINDS: dict[str, Kind] = {
    "base": Kind(function="observe.base:stage", version=3),
    "ladder": Kind(function="observe.data.ladder:stage", version=3),
    "train": Kind(function="observe.train:stage", version=3),
    "evaluate": Kind(function="benchmarks.evaluate:stage", version=4),
}
"""The stage kinds, in the order of the pipeline."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One unit of work."""

    id: str
    """``<kind>-<16 hex>``."""
    kind: str
    """base, ladder, train or evaluate."""
    config: dict[str, Any]
    """The stage's config, fully resolved."""
    consumes: dict[str, str]
    """Role -> id of the stage whose folder it reads."""
    resources: Resources
    """What it occupies while it runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One row of results: a trained arm with a seed, or the untrained base under a prompt."""

    run: str
    """Its id in the result tables."""
    arm: str
    """The arm's name."""
    kind: Literal["cell", "variant", "base", "trial"]
    """A cell of the design, an extra arm, the base, or a trial of a search: trained, and not
    evaluated."""
    seed: int
    """Seed of the training run (of a base: 0)."""
    levels: Levels
    """The level of every factor; empty for a base."""
    prompt: str
    """The prompt it is evaluated under."""
    config: dict[str, Any] | None
    """The resolved training config; None for a base."""
    stages: dict[str, str]
    """Kind -> id of the stages that make it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a sweep and the stages they need."""

    name: str
    """The sweep's name."""
    reference_arm: str
    """The arm that the others are compared with."""
    runs: list[Run]
    """Bases first, then the design's cells, then the variants."""
    stages: dict[str, Stage]
    """Id -> stage; a stage comes after what it consumes."""
    start: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The training settings that every arm starts from."""

    def stages_of(self) -> dict[str, list[Stage]]:
        """Kind -> its stages, in the order of the pipeline."""
        found: dict[str, list[Stage]] = {kind: [] for kind in KINDS}
        for stage in self.stages.values():
            found[stage.kind].append(stage)
        return {kind: stages for kind, stages in found.items() if stages}

    def runs_of(self) -> dict[str, list[Run]]:
        """Stage -> the runs it works for."""
        found: dict[str, list[Run]] = {id: [] for id in self.stages}
        for run in self.runs:
            for id in dict.fromkeys(run.stages.values()):
                found[id].append(run)
        return found


def make_plan(ablation: Ablation, start: dict[str, Any], source: str) -> Plan:
    """The plan of an ablation and the settings every arm starts from (``load_ablation``).

    ``source`` is the file, for messages. Raises InputError for arms that are not planned, or whose
    names collide, and for damaged input files.
    """
    try:
        cells, variants = design.cells(ablation), design.variants(ablation)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    _check_arms(ablation, cells, source)
    builder = _Builder(ablation.evaluate, ablation.resources, start)
    trained = []
    for cell in cells + variants:
        of_arm = f"{source}: arm {cell.arm}"
        config = train_config(start, {**cell.overrides, "seed": cell.seed}, of_arm)
        _check_training(config, ablation.resources.train, of_arm)
        trained.append(builder.trained(cell, config))
    known = dict.fromkeys(run.arm for run in trained + builder.bases)
    for i, contrast in enumerate(ablation.report.planned_contrasts):
        for key in ("arm", "against"):
            if (arm := getattr(contrast, key)) not in known:
                raise InputError(
                    f"{source}: report.planned_contrasts[{i}].{key}: unknown arm {arm!r}; "
                    f"arms: {', '.join(known)}"
                )
    return Plan(
        name=ablation.name,
        reference_arm=design.reference_arm(ablation),
        runs=builder.bases + trained,
        stages=builder.stages,
        start=start,
    )


def training(
    name: str, config: TrainConfig, resources: StageResources, start: dict[str, Any]
) -> tuple[Run, dict[str, Stage]]:
    """A run that is trained and not evaluated, and the stages it needs.

    ``start``: the settings that the plan's arms start from.
    """
    _check_training(config, resources.train, name)
    builder = _Builder({}, resources, start)
    cell = design.Cell(arm=name, kind="trial", seed=config.seed, levels={})
    run = builder.trained(cell, config)
    stages = {kind: stage for kind, stage in run.stages.items() if kind != "evaluate"}
    run = dataclasses.replace(run, run=name, stages=stages)
    return run, {id: builder.stages[id] for id in stages.values()}


def _check_arms(ablation: Ablation, cells: list[design.Cell], source: str) -> None:
    arms = dict.fromkeys(cell.arm for cell in cells)
    reference = design.reference_arm(ablation)
    if reference not in arms:
        raise InputError(
            f"{source}: reference: arm {reference!r} is not among the {len(arms)} planned arms; "
            f"choose one of them ({', '.join(arms)})"
        )
    # The other designs list their arms one by one, so that leaving one out is what was meant.
    if ablation.design in ("full_factorial", "fractional_factorial", "product"):
        meant = design.DESIGNS[ablation.design](ablation)
        for name in ablation.factors:
            if len({c.levels[name] for c in cells}) == 1 < len({m[name] for m in meant}):
                raise InputError(
                    f"{source}: factors.{name}: has one level alone in the planned arms; mend "
                    "exclude or when, or remove the factor"
                )
        for effect, others in design.indistinct(cells).items():
            raise InputError(
                f"{source}: factors: what {effect} does cannot be told from what "
                f"{' and '.join(others)} does in the {len(arms)} planned arms; exclude less, or "
                "use another design"
            )
    for name in ablation.variants:
        if name in arms:
            raise InputError(
                f"{source}: variants.{name}: an arm of the design has this name; rename it"
            )


def _check_training(config: TrainConfig, resources: Resources, source: str) -> None:
    """What training would refuse after hours of other stages.

    A ladder that is to be built must start from as many questions as are trained on; several
    processes must be told how they share the work, and have a question each.
    """
    data = config.data
    if _needs_ladder(config) and not data.ladder.path and data.ladder.pool < data.size:
        raise InputError(
            f"{source}: data.ladder.pool: {data.ladder.pool} questions to start from, fewer than "
            f"data.size ({data.size}); the ladder drops some of them, often half; give more"
        )
    if resources.ranks == 1:
        return
    if config.parallel.strategy == "none":
        raise InputError(
            f"{source}: resources.train: {resources.ranks} processes, yet parallel.strategy is "
            "none; set it to ddp or fsdp2"
        )
    if config.prompts_per_step < resources.ranks:
        raise InputError(
            f"{source}: resources.train: {resources.ranks} processes for "
            f"{config.prompts_per_step} questions a step (prompts_per_step); each needs at least "
            "one"
        )


class _Builder:
    """Collects stages, each once."""

    def __init__(
        self, evaluate: dict[str, Any], resources: StageResources, start: dict[str, Any]
    ) -> None:
        self.stages: dict[str, Stage] = {}
        self.bases: list[Run] = []
        self._start = start
        self._evaluations: dict[str, dict[str, Any]] = {}
        self._base_evaluations: set[str] = set()
        self._evaluate, self._resources = evaluate, resources
        self._fingerprints: dict[str, str] = {}

    def trained(self, cell: design.Cell, config: TrainConfig) -> Run:
        # Ten thousand arms share what they have in common.
        mapping = with_overrides(self._start, _differences(self._start, to_mapping(config)))
        stages, model = {}, {}
        if config.model.path == EMBEDDED:
            stages["base"] = self._add("base", mapping["model"]["base"], {})
            model = {"model": stages["base"]}
        ready = config.data.ladder.path if _needs_ladder(config) else None
        if _needs_ladder(config) and not ready:
            built = {k: v for k, v in mapping["data"]["ladder"].items() if k != "path"}
            ladder = {
                "ladder": built,
                "model": None if model else config.model.path,
                "source": config.data.source,
            }
            stages["ladder"] = self._add("ladder", ladder, model)
        own = {**mapping, "model": {**mapping["model"]}, "data": {**mapping["data"]}}
        del own["model"]["base"], own["data"]["ladder"]
        if ready:
            own["data"]["ladder"] = {"path": ready}
        self._base(config, model)
        consumed = {role: stages[role] for role in ("ladder",) if role in stages}
        stages["train"] = self._add("train", own, {**model, **consumed})
        stages["evaluate"] = self._add_evaluation(config, {"model": stages["train"]})
        return Run(
            run=f"{cell.arm}/seed{cell.seed}",
            arm=cell.arm,
            kind=cell.kind,
            seed=cell.seed,
            levels=cell.levels,
            prompt=config.prompt,
            config=mapping,
            stages=stages,
        )

    def _base(self, config: TrainConfig, model: dict[str, str]) -> None:
        """The untrained base under the arm's prompt, unless it is there."""
        evaluation = self._add_evaluation(config, model)
        if evaluation in self._base_evaluations:
            return
        self._base_evaluations.add(evaluation)
        arm = f"base/{config.prompt}"
        if any(base.arm == arm for base in self.bases):  # Arms that start from another model.
            arm += f"/{evaluation.removeprefix('evaluate-')[:8]}"
        self.bases.append(
            Run(
                run=arm,
                arm=arm,
                kind="base",
                seed=0,
                levels={},
                prompt=config.prompt,
                config=None,
                stages={**({"base": model["model"]} if model else {}), "evaluate": evaluation},
            )
        )

    def _add_evaluation(self, config: TrainConfig, model: dict[str, str]) -> str:
        if config.prompt not in self._evaluations:
            mapping = {**self._evaluate, "prompt": config.prompt}
            evaluate = from_mapping(EvaluateConfig, mapping, source="evaluate")
            self._evaluations[config.prompt] = to_mapping(evaluate)
        path = None if model else config.model.path
        return self._add("evaluate", {**self._evaluations[config.prompt], "model": path}, model)

    def _add(self, kind: str, config: dict[str, Any], consumes: dict[str, str]) -> str:
        resources: Resources = getattr(self._resources, kind)
        stage = Stage(
            id=stage_id(
                kind,
                config,
                consumes,
                resources.cpus,
                self._fingerprints,
                ranks=resources.ranks,
            ),
            kind=kind,
            config=config,
            consumes=consumes,
            resources=resources,
        )
        self.stages.setdefault(stage.id, stage)
        return stage.id


def stage_id(
    kind: str,
    config: dict[str, Any],
    consumes: dict[str, str],
    cpus: int,
    fingerprints: dict[str, str] | None = None,
    *,
    ranks: int = 1,
) -> str:
    """``<kind>-<16 hex>`` from everything that can change the stage's result.

    Paths of models and question files count by their content, wherever they lie;
    ``fingerprints`` remembers it from stage to stage of a plan. Left out: output folders, number
    of workers, logging.
    """
    fingerprints = {} if fingerprints is None else fingerprints
    described = {
        "kind": kind,
        "version": KINDS[kind].version,
        "config": _by_content(
            {key: value for key, value in config.items() if key not in WITHOUT_RESULT}, fingerprints
        ),
        "consumes": consumes,
        "cpus": cpus,
        **({"ranks": ranks} if ranks > 1 else {}),
    }
    canonical = json.dumps(described, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{kind}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def _needs_ladder(config: TrainConfig) -> bool:
    bonus = config.reward.bonus
    return (
        config.data.selection == "ladder"
        or config.data.order != "shuffled"
        or (bonus.weight > 0 and bonus.min_length is None and bonus.min_length_quantile is not None)
    )


FINGERPRINTS: dict[str, Callable[[Path], str]] = {
    "model": fingerprint_model,
    "model.path": fingerprint_model,
    "source": fingerprint_questions,
    "data.source": fingerprint_questions,
    "data_dir": fingerprint_folder,
    "data.ladder.path": fingerprint_ladder,
}
"""Settings of any stage that may be a path -> what makes the fingerprint of its content."""


WITHOUT_RESULT = (
    "checkpoint_every",
    "checkpoint_keep",
    "log_tensorboard",
    "log_wandb",
    "prefetch_threads",
)
"""Settings that change nothing of what a stage comes to: how it is watched and saved, and when its
images are opened."""


def _by_content(config: dict[str, Any], fingerprints: dict[str, str]) -> dict[str, Any]:
    """The config with paths replaced by fingerprints of what they name.

    An ablation's paths are absolute; anything else is a name: glyphs, a Hub id. A file that is not
    there yet counts by its path: such a plan is only looked at.
    """
    found = {}
    for setting, fingerprint in FINGERPRINTS.items():
        value: Any = config
        for key in setting.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and Path(value).is_absolute():
            if value not in fingerprints:
                there = Path(value).exists()
                fingerprints[value] = fingerprint(Path(value)) if there else f"absent: {value}"
            found[setting] = fingerprints[value]
    return with_overrides(config, found)


def _differences(one: Any, other: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings (dotted) of ``other`` that are not those of ``one``."""
    found: dict[str, Any] = {}
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(one.get(key), dict):
            found |= _differences(one[key], value, f"{prefix}{key}.")
        elif key not in one or value != one[key]:
            found[f"{prefix}{key}"] = value
    return found


def write_plan(plan: Plan, path: Path) -> None:
    """Write ``plan.json``: a line for each cell, with what differs from ``start``, and stage."""
    cells = []
    for run in plan.runs:
        settings = None if run.config is None else _differences(plan.start, run.config)
        cells.append({**vars(run), "config": settings})
    stages = [{**vars(s), "resources": vars(s.resources)} for s in plan.stages.values()]
    text = (
        f'{{"name": {_json(plan.name)}, "reference_arm": {_json(plan.reference_arm)},\n'
        f'"start": {_json(plan.start)},\n"cells": {_lines(cells)},\n"stages": {_lines(stages)}}}\n'
    )
    write_atomically(path, text)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join(map(_json, rows)) + "\n]"


def read_plan(path: Path) -> Plan:
    """Read ``plan.json``. Raises InputError when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        start = content["start"]
        return Plan(
            name=content["name"],
            reference_arm=content["reference_arm"],
            runs=[_read_run(run, start) for run in content["cells"]],
            stages={
                stage["id"]: Stage(**{**stage, "resources": Resources(**stage["resources"])})
                for stage in content["stages"]
            },
            start=start,
        )
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path.parent}: no sweep here (no {path.name}); give the folder of one, e.g. runs/full"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a plan ({error}); run the sweep again to write it") from None


def _read_run(cell: dict[str, Any], start: dict[str, Any]) -> Run:
    settings = cell["config"]
    return Run(**{**cell, "config": None if settings is None else with_overrides(start, settings)})
