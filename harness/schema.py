"""JSON Schemas of ablation and search files, for editors: ``python -m harness.schema``.

Made from the dataclasses that read the file, their docstrings included, so that an editor completes
and explains every key and every setting of the trainer.
"""

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from typing import Any, Literal

from jsonargparse import ArgumentParser

from benchmarks.config import EvaluateConfig
from harness.ablation import Ablation, Factor, Levels, Variant
from harness.search_file import Confirm, Search
from observe.config import TrainConfig

Schema = dict[str, Any]

FILES: dict[str, type[Ablation] | type[Search]] = {"ablation": Ablation, "search": Search}
"""Kind of file -> what it is read as."""

WORD: Schema = {"type": ["string", "integer", "number", "boolean", "null"]}
"""A level's name: any YAML scalar, read as a word."""

SETTINGS: Schema = {"$ref": "#/$defs/settings"}
"""Settings of the trainer by dotted key."""


def file_schema(cls: type[Ablation] | type[Search]) -> Schema:
    """The JSON Schema (draft 2020-12) of an ablation or search file."""
    settings = setting_schemas(TrainConfig)
    del settings["seed"]  # The seed is no setting of an arm.
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{cls.__name__.lower()} file",
        **_object(cls),
        "$defs": {
            "settings": {
                "type": "object",
                "properties": settings,
                "additionalProperties": False,
            }
        },
    }


def setting_schemas(cls: type, prefix: str = "") -> dict[str, Schema]:
    """Dotted key -> schema of every single setting of a config dataclass."""
    found: dict[str, Schema] = {}
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            found |= setting_schemas(typing.cast(type, kind), f"{prefix}{field.name}.")
        else:
            default = field.default
            found[prefix + field.name] = {
                **_value(kind),
                "description": docs[field.name],
                "default": list(default) if isinstance(default, tuple) else default,
            }
    return found


def field_docs(cls: type) -> dict[str, str]:
    """Field -> the docstring under it, on one line; inherited ones, too."""
    docs: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            docs |= field_docs(base)
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    for statement, after in zip(body.body, body.body[1:], strict=False):
        match statement, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs


def _object(cls: type) -> Schema:
    hints, docs = typing.get_type_hints(cls), field_docs(cls)
    properties = {
        field.name: {**_field(cls, field.name, hints[field.name]), "description": docs[field.name]}
        for field in dataclasses.fields(cls)
    }
    required = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _field(cls: type, name: str, kind: Any) -> Schema:
    """A field's schema; those that hold settings list all settings there are."""
    if (cls, name) in ((Ablation, "set"), (Variant, "set"), (Search, "set")):
        return SETTINGS
    if (cls, name) == (Search, "space"):
        searched = [key for key in setting_schemas(TrainConfig) if key != "seed"]
        return {**_value(kind), "propertyNames": {"enum": searched}}
    if (cls, name) == (Factor, "levels"):
        return {"type": "object", "additionalProperties": {"anyOf": [SETTINGS, {"type": "null"}]}}
    if (cls, name) == (Factor, "control"):
        return WORD
    if (cls, name) in ((Ablation, "evaluate"), (Confirm, "evaluate")):
        own = setting_schemas(EvaluateConfig)
        for arms_own in ("prompt", "model"):
            own.pop(arms_own, None)
        return {"type": "object", "properties": own, "additionalProperties": False}
    return _value(kind)


def _value(kind: Any) -> Schema:
    """The schema of a type as ``observe.mapping.from_mapping`` reads it."""
    if dataclasses.is_dataclass(kind):
        return _object(typing.cast(type, kind))
    if kind is Any:
        return {}
    if kind == Levels:
        return {"type": "object", "additionalProperties": WORD}
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return {"enum": list(options)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_value(option) for option in options]}
    if origin is tuple:
        return {"type": "array", "items": _value(options[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(options[1])}
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return {"type": "null" if kind is type(None) else names[kind]}


def main(arguments: list[str] | None = None) -> int:
    """Print a schema."""
    parser = ArgumentParser(
        prog="python -m harness.schema",
        description="Print a JSON Schema; editors complete and check the file by it.",
    )
    parser.add_argument("--of", choices=list(FILES), default="ablation", help="The kind of file.")
    options = parser.parse_args(arguments)
    print(json.dumps(file_schema(FILES[options.of]), indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
