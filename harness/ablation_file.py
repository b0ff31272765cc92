"""Reading an ablation file, strictly.

An unknown key, an unknown setting of the trainer, a value of the wrong type, an unknown factor,
level or arm raises InputError, naming file, key and remedy, before anything runs.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import observe
from harness.ablation import Ablation
from harness.ablation_checks import check, check_settings, train_config
from observe.config import EMBEDDED, TrainConfig
from observe.errors import InputError
from observe.hub import is_hub_id
from observe.mapping import from_mapping, load_yaml, parse_yaml, to_mapping, with_overrides

RECIPES = Path(observe.__file__).resolve().parent.parent / "recipes"
"""Where named recipes live."""


PATHS = {
    "model.path": f"a Hugging Face folder or Hub id, or {EMBEDDED!r}",
    "data.source": f"a JSONL file, or {EMBEDDED!r}",
    "data.ladder.path": "a folder that observe.ladder wrote",
}
"""Settings that may name files -> what is expected there."""


def load_ablation(
    path: Path, overrides: Mapping[str, Any] | None = None, absent: list[str] | None = None
) -> tuple[Ablation, dict[str, Any]]:
    """Read an ablation file: the question, and the training settings every arm starts from.

    ``overrides`` (dotted) change keys of the file or, when they name none, settings of the trainer
    in every arm. Paths in the result are absolute. Input files that are not there go into the list
    ``absent``, in words, where one is given (a plan can be looked at before its data have come).
    Raises InputError.
    """
    raw = load_yaml(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping, got {raw!r}; see ablations/full.yaml")
    keys = {field.name for field in dataclasses.fields(Ablation)}
    return read_ablation(override(raw, overrides or {}, keys, str(path)), path, absent)


def read_ablation(
    raw: dict[str, Any], path: Path, absent: list[str] | None = None
) -> tuple[Ablation, dict[str, Any]]:
    """The content of an ablation file, checked and resolved; ``path`` is where it was read."""
    source = str(path)
    ablation = from_mapping(Ablation, _words(raw), source=source)
    folder = path.resolve().parent
    check(ablation, source)
    ablation, recipe = _resolve(ablation, folder, source, absent)
    start = to_mapping(train_config(recipe, ablation.set, f"{source}: set"))
    check_settings(ablation, start, source)
    return ablation, start


def parse_override(text: str) -> tuple[str, Any]:
    """``key=value`` as on the command line; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text}: expected key=value")
    return key, parse_yaml(value, f"--set {text}")


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


def _resolve(
    ablation: Ablation, folder: Path, source: str, absent: list[str] | None
) -> tuple[Ablation, dict[str, Any]]:
    """Find the recipe, and make every path absolute: relative to the file that names it."""
    recipe_path = _recipe_path(ablation.recipe, folder, source)
    raw = load_yaml(recipe_path)
    recipe = to_mapping(from_mapping(TrainConfig, raw or {}, source=str(recipe_path)))
    for dotted in PATHS:
        *parents, key = dotted.split(".")
        section = functools.reduce(lambda node, name: node[name], parents, recipe)
        if dotted not in ablation.set:
            place = (recipe_path.parent, str(recipe_path))
            section[key] = _path(dotted, section[key], *place, absent)

    def settings(mapping: dict[str, Any], key: str) -> dict[str, Any]:
        return {
            name: _path(name, value, folder, f"{source}: {key}", absent)
            for name, value in mapping.items()
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
    evaluate = dict(ablation.evaluate)
    if isinstance(evaluate.get("data_dir"), str):
        found = _place(evaluate["data_dir"], folder, f"{source}: evaluate.data_dir")
        if not found.is_dir():
            raise InputError(
                f"{source}: evaluate.data_dir: no folder {found}; expected one with a folder or "
                "NAME.jsonl for each benchmark"
            )
        evaluate["data_dir"] = str(found.resolve())
    named = ablation.recipe if recipe_path.parent == RECIPES else str(recipe_path)
    resolved = dataclasses.replace(
        ablation,
        recipe=named,
        evaluate=evaluate,
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


def _path(dotted: str, value: Any, folder: Path, source: str, absent: list[str] | None) -> Any:
    """The value of a setting; absolute when it is a path."""
    if dotted not in PATHS or not isinstance(value, str) or value == EMBEDDED:
        return value
    found = _place(value, folder, f"{source}: {dotted}")
    if found.exists():
        if found.is_dir() == (dotted == "data.source"):
            kind = "folder" if found.is_dir() else "file"
            raise InputError(f"{source}: {dotted}: {found} is a {kind}; expected {PATHS[dotted]}")
        return str(found.resolve())
    if dotted == "model.path" and is_hub_id(value):
        return value
    message = f"{dotted}: {value!r} not found (looked for {found}); expected {PATHS[dotted]}"
    if absent is None:
        raise InputError(f"{source}: {message}")
    if message not in absent:
        absent.append(message)
    return os.path.normpath(found.absolute())


def _place(value: str, folder: Path, source: str) -> Path:
    """The path that a value of a file in ``folder`` names."""
    try:
        found = folder / Path(value).expanduser()
        found.exists()
    except (OSError, RuntimeError) as error:  # Too long for a path; ~ of a user that is not there.
        raise InputError(f"{source}: {value!r} is no path ({error}); give another") from None
    return found
