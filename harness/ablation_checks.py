"""What an ablation file may not say: unknown names, numbers without sense, contradictions.

Each is an InputError that names file, key and remedy, before anything runs.
"""

import dataclasses
import graphlib
import math
import re
from pathlib import Path
from typing import Any, NoReturn

import benchmarks
from benchmarks.config import EvaluateConfig
from harness.ablation import Ablation, Levels, Resources, StageResources
from observe.config import TrainConfig
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml, with_overrides

SUITES = Path(benchmarks.__file__).resolve().parent / "suites.yaml"
"""Suite -> benchmarks."""
TASKS = SUITES.parent / "tasks"
"""A file for each benchmark."""

MOST_COMBINATIONS = 100_000
"""Combinations of levels that a design may consist of, before exclude."""
MOST_IN_FRACTION = 16
"""Factors among whose fractions the smallest is found within seconds."""

RESERVED = ("run", "arm", "seed", "kind", "prompt", "code")
"""Columns of the runs table beside the factors."""


def train_config(start: dict[str, Any], settings: dict[str, Any], source: str) -> TrainConfig:
    """Training settings with dotted ones on top, strictly typed."""
    return from_mapping(TrainConfig, with_overrides(start, settings), source=source)


def check(ablation: Ablation, source: str) -> None:
    """Names must exist and numbers make sense."""

    def fail(key: str, message: str) -> None:
        raise InputError(f"{source}: {key}: {message}")

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", ablation.name):
        fail(
            "name",
            f"{ablation.name!r} is no folder name; use up to 100 letters, digits, '.', '_', '-'",
        )
    if not ablation.factors:
        fail("factors", "at least one factor is needed")
    for name, factor in ablation.factors.items():
        key = f"factors.{name}"
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            fail(key, "a factor's name consists of letters, digits and '_'")
        if name in RESERVED or name.startswith("train_"):
            fail(key, "a column of the result tables has this name; rename the factor")
        if len(factor.levels) < 2:
            fail(f"{key}.levels", "at least two levels are needed")
        for level in factor.levels:
            if not level.isprintable() or not level.strip():
                fail(f"{key}.levels", f"{level!r} is no name; use characters that can be seen")
        if factor.control not in factor.levels:
            known = ", ".join(factor.levels)
            fail(f"{key}.control", f"unknown level {factor.control!r}; levels: {known}")
    _check_levels(ablation, ablation.reference, "reference", source)
    missing = [name for name in ablation.factors if name not in ablation.reference]
    if missing:
        fail("reference", f"no level for {', '.join(missing)}; name one for every factor")
    _check_design(ablation, source)
    for i, levels in enumerate(ablation.arms):
        _check_levels(ablation, levels, f"arms[{i}]", source)
    if (ablation.design == "arms") != bool(ablation.arms):
        fail("arms", "list the arms here with design arms, and only with it")
    for i, levels in enumerate(ablation.exclude):
        _check_levels(ablation, levels, f"exclude[{i}]", source)
        if not levels:
            fail(f"exclude[{i}]", "names no level, so that it would exclude every cell")
    if not ablation.seeds or len(set(ablation.seeds)) < len(ablation.seeds):
        fail("seeds", f"expected different integers, at least one, got {list(ablation.seeds)}")
    for name, variant in ablation.variants.items():
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", name):
            fail(f"variants.{name}", "a variant's name consists of letters, digits, '_', '.', '-'")
        _check_levels(ablation, variant.levels, f"variants.{name}.levels", source)
    for field in dataclasses.fields(StageResources):
        resources: Resources = getattr(ablation.resources, field.name)
        key = f"resources.{field.name}"
        if resources.cpus < 1:
            fail(f"{key}.cpus", f"expected 1 or more, got {resources.cpus}")
        if resources.gpus < 0:
            fail(f"{key}.gpus", f"expected 0 or more, got {resources.gpus}")
        for name, number in (("nodes", resources.nodes), ("processes", resources.processes)):
            if number < 1:
                fail(f"{key}.{name}", f"expected 1 or more, got {number}")
            if number > 1 and field.name != "train":
                fail(f"{key}.{name}", "only train shares its work out; remove this key")
        if resources.gpus % resources.processes and resources.processes > 1:
            fail(
                f"{key}.processes",
                f"{resources.gpus} GPUs for {resources.processes} processes; every one of them "
                "needs as many GPUs as the others",
            )
        if resources.mem_gb < 0:
            fail(f"{key}.mem_gb", f"expected 0 or more, got {resources.mem_gb}")
        if resources.hours <= 0:
            fail(f"{key}.hours", f"expected more than 0, got {resources.hours}")
    if not 0.5 <= ablation.report.confidence < 1:
        given = ablation.report.confidence
        fail("report.confidence", f"expected a number from 0.5 to below 1, got {given}")
    for name, whose in (("prompt", "prompt"), ("model", "trained model")):
        if name in ablation.evaluate:
            fail(f"evaluate.{name}", f"each arm is evaluated with its own {whose}; remove this key")


def _check_design(ablation: Ablation, source: str) -> None:
    """What a design needs must be there, and conditions on factors must not go in circles."""
    factors, design = ablation.factors, ablation.design

    def fail(key: str, message: str) -> NoReturn:
        raise InputError(f"{source}: {key}: {message}")

    if (design == "fractional_factorial") != (ablation.resolution is not None):
        fail("resolution", "give III, IV or V with design fractional_factorial, and only with it")
    if (design in ("product", "zip")) != bool(ablation.vary):
        fail("vary", "list factors here with the designs product and zip, and only with them")
    for i, name in enumerate(ablation.vary):
        if name not in factors:
            fail(f"vary[{i}]", f"unknown factor {name!r}; factors: {', '.join(factors)}")
    if len(set(ablation.vary)) < len(ablation.vary):
        fail("vary", "a factor is listed twice")
    counts = {name: len(factors[name].levels) for name in ablation.vary}
    if design == "zip" and len(set(counts.values())) > 1:
        given = ", ".join(f"{name} {count}" for name, count in counts.items())
        fail(
            "vary", f"zip pairs levels one to one, but the factors have differently many ({given})"
        )
    varied = {"full_factorial": tuple(factors), "product": ablation.vary}.get(design, ())
    combinations = math.prod(len(factors[name].levels) for name in varied)
    if combinations > MOST_COMBINATIONS:
        fail(
            "design",
            f"{combinations} combinations of levels, more than {MOST_COMBINATIONS}; use "
            "fractional_factorial, leave_one_out or arms",
        )
    if design == "fractional_factorial":
        if len(factors) > MOST_IN_FRACTION:
            fail(
                "factors",
                f"{len(factors)} are too many for a fractional_factorial, which takes up to "
                f"{MOST_IN_FRACTION}; use leave_one_out or arms",
            )
        for name, factor in factors.items():
            if len(factor.levels) != 2:
                fail(
                    f"factors.{name}.levels",
                    f"a fractional_factorial needs two levels, not {len(factor.levels)}; use "
                    "full_factorial or product",
                )
            if factor.when:
                fail(
                    f"factors.{name}.when",
                    "a condition would break the balance of a fractional_factorial; use "
                    "full_factorial or arms",
                )
    for name, factor in factors.items():
        _check_levels(ablation, factor.when, f"factors.{name}.when", source)
    try:
        in_order_of_conditions(ablation)
    except graphlib.CycleError as error:
        fail("factors", f"conditions go in a circle: when of {' needs '.join(error.args[1])}")
    for name, factor in factors.items():
        reference = ablation.reference
        unmet = [other for other, level in factor.when.items() if reference[other] != level]
        if unmet and reference[name] != factor.control:
            fail(
                f"reference.{name}",
                f"its condition does not hold there ({unmet[0]} is {reference[unmet[0]]}), so that "
                f"it must be at its control level {factor.control!r}",
            )


def in_order_of_conditions(ablation: Ablation) -> list[str]:
    """The factors, each behind those that its ``when`` names; graphlib.CycleError for a circle."""
    needs = {name: list(factor.when) for name, factor in ablation.factors.items()}
    return list(graphlib.TopologicalSorter(needs).static_order())


def _check_levels(ablation: Ablation, levels: Levels, key: str, source: str) -> None:
    for name, level in levels.items():
        if name not in ablation.factors:
            known = ", ".join(ablation.factors)
            raise InputError(f"{source}: {key}: unknown factor {name!r}; factors: {known}")
        if level not in ablation.factors[name].levels:
            known = ", ".join(ablation.factors[name].levels)
            raise InputError(f"{source}: {key}.{name}: unknown level {level!r}; levels: {known}")


def check_settings(ablation: Ablation, start: dict[str, Any], source: str) -> None:
    """Every setting must exist with the right type, and belong to one factor."""
    _check_section(ablation.set, "set", source)
    owner: dict[str, str] = {}
    for name, factor in ablation.factors.items():
        configs: dict[str, TrainConfig] = {}
        for level, settings in factor.levels.items():
            key = f"factors.{name}.levels.{level}"
            _check_section(settings, key, source)
            config = _config_with(ablation, start, settings, f"{source}: {key}")
            for other, same in configs.items():
                if same == config:
                    raise InputError(
                        f"{source}: {key}: the same settings as level {other!r}; a factor's "
                        "levels must differ"
                    )
            configs[level] = config
            for setting in settings:
                for taken, by in owner.items():
                    if by != name and _overlap(setting, taken):
                        raise InputError(
                            f"{source}: {key}: {setting} is also set by factor {by!r}; one would "
                            "hide the other"
                        )
                owner[setting] = name
    for name, variant in ablation.variants.items():
        key = f"variants.{name}.set"
        _check_section(variant.set, key, source)
        _config_with(ablation, start, variant.set, f"{source}: {key}")
    evaluate = from_mapping(EvaluateConfig, ablation.evaluate, source=source, key="evaluate")
    suites = load_yaml(SUITES)
    for suite in evaluate.suites:
        if suite not in suites:
            raise InputError(
                f"{source}: evaluate.suites: unknown suite {suite!r}; suites: {', '.join(suites)}"
            )
    tasks = sorted(file.stem for file in TASKS.glob("*/[!_]*.yaml"))
    for task in evaluate.tasks:
        if task not in tasks:
            raise InputError(
                f"{source}: evaluate.tasks: no benchmark {task!r}; known: {', '.join(tasks)}"
            )


def _config_with(
    ablation: Ablation, start: dict[str, Any], settings: dict[str, Any], source: str
) -> TrainConfig:
    """The settings on their own or, where they make no sense alone, in the reference arm."""
    try:
        return train_config(start, settings, source)
    except InputError as alone:
        for name, level in ablation.reference.items():
            start = with_overrides(start, ablation.factors[name].levels[level])
        try:
            return train_config(start, settings, source)
        except InputError:
            raise alone from None


def _check_section(settings: dict[str, Any], key: str, source: str) -> None:
    for setting, value in settings.items():
        if setting == "seed":
            raise InputError(
                f"{source}: {key}.seed: the seed is no setting of an arm; use 'seeds', or a "
                "variant's own 'seeds'"
            )
        if isinstance(value, dict):
            inner = ", ".join(f"{setting}.{name}" for name in value)
            raise InputError(
                f"{source}: {key}.{setting}: expected a single value; write dotted keys ({inner})"
            )


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
