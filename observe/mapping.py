"""Between YAML files, nested plain values and config dataclasses: strict, by dotted keys.

Light on purpose (neither torch nor transformers), as the planner is.
"""

import dataclasses
import difflib
import functools
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from observe.errors import InputError

Config = TypeVar("Config")


def load_yaml(path: Path) -> Any:
    """Read a YAML 1.2 file: only ``true`` and ``false`` are booleans; ``on`` and ``off`` are words.

    Raises InputError naming the file (and the line, when the YAML itself is broken).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML text file ({error})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """The content of a YAML 1.2 text. Raises InputError naming ``source``."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    # Not all are YAMLErrors: of a date without sense, a number of 5000 digits, a text nested too
    # deeply, ``!!bool 5``.
    except (YAMLError, ValueError, KeyError, RecursionError) as error:
        raise InputError(f"{source}: not valid YAML: {error}") from None


def with_overrides(mapping: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A nested mapping with dotted keys (``reward.bonus.weight``) set; the rest is shared."""
    result = dict(mapping)
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        node = result
        for parent in parents:
            inner = node.get(parent)
            node[parent] = dict(inner) if isinstance(inner, dict) else {}
            node = node[parent]
        node[leaf] = value
    return result


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as nested plain values (tuples become lists), as written to YAML and hashed."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in _walk(config)}


def _walk(config: Any) -> list[tuple[str, Any]]:
    pairs = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        pairs.append((field.name, to_mapping(value) if dataclasses.is_dataclass(value) else value))
    return pairs


def from_mapping(cls: type[Config], mapping: Any, *, source: str, key: str = "") -> Config:
    """Build a config dataclass from nested plain values; what is absent keeps its default.

    Strict: an unknown key, a missing required key or a value of the wrong type raises InputError
    with ``source`` (the file), the dotted key and what was expected. An integer is taken for a
    float, nothing else is converted; a number must be finite. What a dataclass itself refuses
    (``__post_init__``) names its own key, which the way there is put in front of.
    """
    if not isinstance(mapping, dict):
        raise InputError(f"{source}: {key or 'the file'}: expected a mapping, got {mapping!r}")
    hints = _hints(typing.cast(type, cls))
    for name in mapping:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(hints)}"
            raise InputError(f"{source}: {_join(key, name)}: unknown key; {remedy}")
    values = {
        name: _convert(hints[name], value, source, _join(key, name))
        for name, value in mapping.items()
    }
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and field.name not in values:
            raise InputError(f"{source}: {_join(key, field.name)}: missing")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{source}: {_join(key, str(error))}") from None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Field -> its type."""
    return typing.get_type_hints(cls)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else str(name)


def _convert(kind: Any, value: Any, source: str, key: str) -> Any:
    """``value`` as type ``kind``, or InputError."""
    if dataclasses.is_dataclass(kind):
        return from_mapping(typing.cast(type, kind), value, source=source, key=key)
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal and value in options and not isinstance(value, bool):
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        inner = [option for option in options if option is not type(None)]
        if len(inner) == 1:
            return _convert(inner[0], value, source, key)
        for option in inner:
            try:
                return _convert(option, value, source, key)
            except InputError:
                continue
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(options[0], v, source, f"{key}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {
            _convert(options[0], k, source, key): _convert(options[1], v, source, _join(key, k))
            for k, v in value.items()
        }
    if kind is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise InputError(f"{source}: {key}: expected a finite number, got {value}")
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if kind is Any:
        return value
    if origin is Literal:
        expected = "one of " + ", ".join(map(str, options))
    else:
        expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise InputError(f"{source}: {key}: expected {expected}, got {value!r}")
