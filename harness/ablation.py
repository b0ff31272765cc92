"""The ablation file: a question, as typed and checked values.

Read strictly: an unknown key, an unknown setting of the trainer, a value of the wrong type, an
unknown factor, level or arm raises InputError, naming file, key and remedy, before anything runs.
"""

import dataclasses
import graphlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

import benchmarks
import observe
from benchmarks.config import EvaluateConfig
from observe.config import EMBEDDED, TrainConfig
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml, to_mapping, with_overrides

RECIPES = Path(observe.__file__).resolve().parent.parent / "recipes"
"""Where named recipes live."""

SUITES = Path(benchmarks.__file__).resolve().parent / "suites.yaml"
"""Suite -> benchmarks."""

RESERVED = ("run", "arm", "seed", "kind", "prompt", "code")
"""Columns of the runs table beside the factors."""

Levels = dict[str, str]
"""Factor -> level."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor:
    """One thing that is switched."""

    control: str
    """The level that stands for "without"; effects are a level minus this one."""
    levels: dict[str, dict[str, Any]]
    """Level -> settings of the trainer it makes (dotted keys)."""
    when: Levels = dataclasses.field(default_factory=dict)
    """Levels of other factors that must hold for this one to vary; elsewhere it stays at its
    control level, and cells that are then equal are run once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A named extra arm: the reference with something changed that is no factor.

    It is run and compared, and takes no part in the factors' effects.
    """

    levels: Levels = dataclasses.field(default_factory=dict)
    """Factor levels that differ from the reference's."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the trainer made last (dotted keys), e.g. reward.shuffle: true for a placebo."""
    seed: int | None = None
    """Its one seed instead of the sweep's, e.g. for an A/A pair with the reference."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources:
    """What one stage occupies."""

    gpus: int = 0
    """GPUs; without any, the stage sees none."""
    cpus: int = 1
    """Cores and threads of torch. Part of a stage's identity: the thread count changes
    floating-point results."""
    mem_gb: float = 3.0
    """Memory in gigabytes."""
    hours: float = 1.0
    """Expected hours, for estimates until a stage of the kind has been measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResources:
    """What the stages of each kind occupy."""

    base: Resources = Resources()
    """Building the embedded base model."""
    ladder: Resources = Resources()
    """Building the curriculum."""
    train: Resources = Resources()
    """One training run."""
    evaluate: Resources = Resources()
    """The evaluation of one model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """A comparison of two arms that was planned before the results were seen."""

    arm: str
    """The arm of interest."""
    against: str
    """What it is compared with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """How the results are reported."""

    confidence: float = 0.95
    """Level of the intervals."""
    correction: Literal["holm", "none"] = "holm"
    """Correction for multiple comparisons within a family."""
    planned_contrasts: tuple[Contrast, ...] = ()
    """Comparisons that the sweep was made for."""


Design = Literal[
    "full_factorial",
    "fractional_factorial",
    "leave_one_out",
    "add_one_in",
    "product",
    "zip",
    "arms",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """An ablation file."""

    name: str
    """Name of the sweep, and of its folder."""
    recipe: str
    """What every arm starts from: a named recipe, or a YAML file of training settings."""
    set: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the trainer that differ from the recipe in every arm (dotted keys)."""
    factors: dict[str, Factor]
    """Factor -> its levels."""
    design: Design
    """Which cells are run: full_factorial (all); fractional_factorial (the smallest regular
    two-level fraction of the resolution asked for that holds the reference); leave_one_out (the
    reference, and the reference without each of its factors); add_one_in (the control, the control
    with one level of one factor, and the reference); product (all combinations of the factors under
    vary, the others as in the reference); zip (their first levels, their second levels, ..., and
    the reference); arms (those listed under arms)."""
    resolution: Literal["III", "IV", "V"] | None = None
    """Of a fractional_factorial: III keeps main effects apart from each other, IV also from
    interactions of two factors, V also those from each other."""
    vary: tuple[str, ...] = ()
    """The factors of designs product and zip."""
    reference: Levels
    """The level of every factor in the reference arm."""
    arms: tuple[Levels, ...] = ()
    """The cells of design arms; a factor that is not named has its control level."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each cell is run once with each."""
    exclude: tuple[Levels, ...] = ()
    """Cells that are not run: every cell with all of these levels."""
    variants: dict[str, Variant] = dataclasses.field(default_factory=dict)
    """Name -> an extra arm."""
    evaluate: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the evaluation, without the prompt: each arm has its own."""
    resources: StageResources = StageResources()
    """What stages occupy."""
    report: Report = Report()
    """How results are reported."""


def load_ablation(
    path: Path, overrides: Mapping[str, Any] | None = None
) -> tuple[Ablation, dict[str, Any]]:
    """Read an ablation file: the question, and the training settings every arm starts from.

    ``overrides`` (dotted) change keys of the file or, when they name none, settings of the trainer
    in every arm. Paths in the result are absolute. Raises InputError.
    """
    raw = load_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping, got {raw!r}; see ablations/full.yaml")
    keys = {field.name for field in dataclasses.fields(Ablation)}
    return read_ablation(override(raw, overrides or {}, keys, str(path)), path)


def read_ablation(raw: dict[str, Any], path: Path) -> tuple[Ablation, dict[str, Any]]:
    """The content of an ablation file, checked and resolved; ``path`` is where it was read."""
    source = str(path)
    ablation = from_mapping(Ablation, _words(raw), source=source)
    folder = path.resolve().parent
    _check(ablation, source)
    ablation, recipe = _resolve(ablation, folder, source)
    start = to_mapping(train_config(recipe, ablation.set, f"{source}: set"))
    _check_settings(ablation, start, source)
    return ablation, start


def parse_override(text: str) -> tuple[str, Any]:
    """``key=value`` as on the command line; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text}: expected key=value")
    try:
        return key, YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise InputError(f"--set {text}: the value is not valid YAML: {error}") from None


def train_config(start: dict[str, Any], settings: dict[str, Any], source: str) -> TrainConfig:
    """Training settings with dotted ones on top, strictly typed."""
    return from_mapping(TrainConfig, with_overrides(start, settings), source=source)


def to_plain(config: Any) -> dict[str, Any]:
    """A dataclass, e.g. an Ablation, as nested plain values, as written to ``sweep.yaml``."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    return plain(dataclasses.asdict(config))


def override(
    raw: dict[str, Any], overrides: Mapping[str, Any], keys: set[str], source: str
) -> dict[str, Any]:
    """The content of a file with dotted changes to its ``keys``; all others go under ``set``."""
    own = {key: value for key, value in overrides.items() if key.split(".")[0] in keys}
    settings = {key: value for key, value in overrides.items() if key not in own}
    raw = with_overrides(raw, own)
    if settings:
        existing = raw.get("set") or {}
        if not isinstance(existing, dict):
            raise InputError(f"{source}: set: expected a mapping, got {existing!r}")
        raw["set"] = {**existing, **settings}
    return raw


def _words(raw: dict[str, Any]) -> dict[str, Any]:
    """The file with every level name as a word: ``8:`` and ``true:`` name levels "8" and "true"."""

    def levels(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: _word(level) for key, level in value.items()}

    def each(value: Any, convert: Any) -> Any:
        return [convert(item) for item in value] if isinstance(value, list) else value

    def factor(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "control" in value:
            value["control"] = _word(value["control"])
        if "when" in value:
            value["when"] = levels(value["when"])
        if isinstance(value.get("levels"), dict):
            value["levels"] = {
                _word(name): {} if settings is None else settings
                for name, settings in value["levels"].items()
            }
        return value

    def variant(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: levels(item) if key == "levels" else item for key, item in value.items()}

    def values(value: Any, convert: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: convert(item) for key, item in value.items()}

    convert = {
        "factors": lambda value: values(value, factor),
        "reference": levels,
        "arms": lambda value: each(value, levels),
        "exclude": lambda value: each(value, levels),
        "variants": lambda value: values(value, variant),
    }
    return {key: convert.get(key, lambda value: value)(value) for key, value in raw.items()}


def _word(value: Any) -> Any:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (int, float)) else value


def _resolve(ablation: Ablation, folder: Path, source: str) -> tuple[Ablation, dict[str, Any]]:
    """Find the recipe, and make every path absolute: relative to the file that names it."""
    recipe_path = _recipe_path(ablation.recipe, folder, source)
    raw = load_yaml(recipe_path)
    recipe = to_mapping(from_mapping(TrainConfig, raw or {}, source=str(recipe_path)))
    for dotted in ("model.path", "data.source"):
        section, key = dotted.split(".")
        value = recipe[section][key]
        recipe[section][key] = _path(dotted, value, recipe_path.parent, str(recipe_path))

    def settings(mapping: dict[str, Any], key: str) -> dict[str, Any]:
        return {
            name: _path(name, value, folder, f"{source}: {key}") for name, value in mapping.items()
        }

    factors = {
        name: dataclasses.replace(
            factor,
            levels={
                level: settings(changes, f"factors.{name}.levels.{level}")
                for level, changes in factor.levels.items()
            },
        )
        for name, factor in ablation.factors.items()
    }
    variants = {
        name: dataclasses.replace(variant, set=settings(variant.set, f"variants.{name}.set"))
        for name, variant in ablation.variants.items()
    }
    named = ablation.recipe if recipe_path.parent == RECIPES else str(recipe_path)
    resolved = dataclasses.replace(
        ablation,
        recipe=named,
        set=settings(ablation.set, "set"),
        factors=factors,
        variants=variants,
    )
    return resolved, recipe


def _recipe_path(recipe: str, folder: Path, source: str) -> Path:
    named = RECIPES / f"{recipe}.yaml"
    if re.fullmatch(r"[\w-]+", recipe) and named.is_file():
        return named
    if (folder / recipe).is_file():
        return (folder / recipe).resolve()
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml"))) or "none"
    raise InputError(
        f"{source}: recipe: {recipe!r} is neither a named recipe ({names}) nor a file; a path is "
        "relative to the ablation file"
    )


def _path(dotted: str, value: Any, folder: Path, source: str) -> Any:
    """The value of a setting; absolute when it is a path."""
    if dotted not in ("model.path", "data.source") or not isinstance(value, str):
        return value
    if value == EMBEDDED:
        return value
    found = folder / Path(value).expanduser()
    if found.exists():
        return str(found.resolve())
    if dotted == "model.path" and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", value):
        return value  # A Hub id.
    expected = "a Hugging Face folder or Hub id" if dotted == "model.path" else "a JSONL file"
    raise InputError(
        f"{source}: {dotted}: {value!r} not found (looked for {found}); expected {expected}, or "
        f"{EMBEDDED!r}"
    )


def _check(ablation: Ablation, source: str) -> None:
    """Names must exist and numbers make sense."""

    def fail(key: str, message: str) -> None:
        raise InputError(f"{source}: {key}: {message}")

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", ablation.name):
        fail("name", f"{ablation.name!r} is no folder name; use letters, digits, '.', '_', '-'")
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
    if design == "fractional_factorial":
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


def _check_settings(ablation: Ablation, start: dict[str, Any], source: str) -> None:
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
                "variant's 'seed'"
            )
        if isinstance(value, dict):
            inner = ", ".join(f"{setting}.{name}" for name in value)
            raise InputError(
                f"{source}: {key}.{setting}: expected a single value; write dotted keys ({inner})"
            )


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")
