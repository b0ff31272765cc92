"""What a sweep needs from outside: models, questions, a ready ladder, benchmarks' data sets.

Found and verified without loading any of it. Light on purpose (no torch).
"""

import dataclasses
import json
import os
import struct
import sys
from pathlib import Path
from typing import Any, Literal

import benchmarks
from benchmarks.config import EvaluateConfig
from harness.ablation import Ablation
from harness.ablation_checks import SUITES
from harness.graph import Plan
from observe.config import EMBEDDED
from observe.errors import InputError
from observe.hub import cached_model, download_command, is_hub_id, is_pinned
from observe.mapping import from_mapping, load_yaml

REGISTRY = Path(benchmarks.__file__).resolve().parent / "registry.yaml"
"""Benchmark -> where its data set lies; the embedded world's benchmarks need none."""

Kind = Literal["model", "questions", "ladder", "dataset"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """One thing from outside."""

    kind: Kind
    """model, questions, ladder or dataset."""
    name: str
    """A path, or an id on the Hub."""
    revision: str | None = None
    """Of a data set: its commit, where that is known."""
    configs: tuple[str, ...] = ()
    """Of a data set: its configurations that are read; none: its only one."""
    split: str | None = None
    """Of a data set: the split that is read."""
    users: tuple[str, ...] = ()
    """What reads it: arms or benchmarks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """An input as it is here."""

    problems: tuple[str, ...] = ()
    """What is missing or damaged; none: it can be used."""
    notes: tuple[str, ...] = ()
    """What one should know."""
    folder: Path | None = None
    """Where it lies."""
    size: int = 0
    """Bytes."""
    remedy: str = ""
    """The command, or what else, that mends the problems."""


def inputs_of(plan: Plan, ablation: Ablation) -> list[Input]:
    """Everything that the plan reads and no stage of it makes, each once."""
    models: dict[str, list[str]] = {}
    questions: dict[str, list[str]] = {}
    ladders: dict[str, list[str]] = {}
    for run in plan.runs:
        config = run.config
        if config is None:
            continue
        for found, value in (
            (models, config["model"]["path"]),
            (questions, config["data"]["source"]),
            (ladders, config["data"]["ladder"]["path"]),
        ):
            if value not in (None, EMBEDDED):
                found.setdefault(value, []).append(run.arm)
    kinds: tuple[tuple[Kind, dict[str, list[str]]], ...] = (
        ("model", models),
        ("questions", questions),
        ("ladder", ladders),
    )
    needed = [
        Input(kind=kind, name=name, users=tuple(dict.fromkeys(arms)))
        for kind, found in kinds
        for name, arms in found.items()
    ]
    return needed + datasets_of(ablation)


def datasets_of(ablation: Ablation) -> list[Input]:
    """The data sets of the benchmarks that an ablation evaluates on."""
    evaluate = from_mapping(EvaluateConfig, ablation.evaluate, source="evaluate")
    if ablation.evaluate.get("data_dir"):  # Files of the user's own.
        return []
    suites: dict[str, list[str]] = load_yaml(SUITES)
    tasks = [task for suite in evaluate.suites for task in suites[suite]] + list(evaluate.tasks)
    registry: dict[str, dict[str, Any]] = load_yaml(REGISTRY) if REGISTRY.exists() else {}
    found: dict[tuple[str, str], Input] = {}
    for task in dict.fromkeys(tasks):
        if task not in registry:
            continue
        entry = registry[task]
        key = (entry["hub"], entry["split"])
        before = found.get(key)
        configs = tuple(entry.get("configs", ()))
        found[key] = Input(
            kind="dataset",
            name=entry["hub"],
            revision=entry.get("revision"),
            configs=tuple(dict.fromkeys([*(before.configs if before else ()), *configs])),
            split=entry["split"],
            users=(*(before.users if before else ()), task),
        )
    return list(found.values())


def look(one: Input, *, file: str) -> Found:
    """Whether an input is here and whole; ``file`` is the ablation file, for the remedy."""
    prefetch = f"{Path(sys.executable).name} -m harness.prefetch {file}"
    if one.kind == "model":
        return _look_for_model(one.name, prefetch)
    if one.kind == "questions":
        return _look_for_questions(Path(one.name))
    if one.kind == "ladder":
        return _look_for_ladder(Path(one.name))
    return _look_for_dataset(one, prefetch)


def _look_for_model(name: str, prefetch: str) -> Found:
    folder: Path | None = Path(name)
    notes, remedy = [], f"give another model.path, or copy the model to {name}"
    if is_hub_id(name) and not Path(name).exists():
        remedy = f"{prefetch}, or {download_command(name)}"
        if not is_pinned(name):
            notes.append(
                "its revision is not pinned: write org/name@<commit>, so that all jobs read the "
                "same weights"
            )
        folder = cached_model(name)
        if folder is None:
            return Found(problems=("not in the Hub cache",), notes=tuple(notes), remedy=remedy)
    assert folder is not None
    problems = model_problems(folder)
    size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    return Found(
        problems=tuple(problems), notes=tuple(notes), folder=folder, size=size, remedy=remedy
    )


def model_problems(folder: Path) -> list[str]:
    """What a Hugging Face model folder lacks, or holds damaged; the weights are not read."""
    if not folder.is_dir():
        return [f"no folder {folder}"]
    problems = []
    for names in (
        ("config.json",),
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "vocab.json"),
    ):
        if not any((folder / name).is_file() for name in names):
            problems.append(f"no {' or '.join(names)}")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            return [*problems, f"{index.name} is damaged"]
    else:
        files = ["model.safetensors"]
    return problems + [p for name in files if (p := _weights_problem(folder / name))]


def _weights_problem(path: Path) -> str | None:
    """Whether a safetensors file is as long as its own header says."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
    except FileNotFoundError:
        return f"no {path.name}"
    except (OSError, ValueError, struct.error):
        return f"{path.name} is no safetensors file"
    ends = [value["data_offsets"][1] for key, value in header.items() if key != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        return f"{path.name} is cut short: {size} of {expected} bytes"
    return None


def _look_for_questions(path: Path) -> Found:
    remedy = (
        "build them with observe.ladder, as docs/paper_scale.md says, or point data.source at a "
        "JSONL file of yours"
    )
    if not path.is_file():
        return Found(problems=(f"no file {path}",), remedy=remedy)
    count, size, lost = 0, path.stat().st_size, 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.strip():
                continue
            count += 1
            try:
                images = json.loads(line).get("images") or []
            except (ValueError, AttributeError):
                problem = f"line {count} is not a JSON object"
                return Found(problems=(problem,), folder=path.parent, remedy="mend that line")
            for image in images:
                try:
                    size += (path.parent / image).stat().st_size
                except (OSError, TypeError):
                    lost += 1
    problems = (f"{lost} images are missing",) if lost else ()
    return Found(
        problems=problems,
        notes=(f"{count:,} questions",),
        folder=path.parent,
        size=size,
        remedy="copy the images beside it" if lost else "",
    )


def _look_for_ladder(folder: Path) -> Found:
    from observe.data.rungs import load_ladder

    try:
        ladder = load_ladder(folder)
    except InputError as error:
        remedy = f"build it as docs/paper_scale.md says: python -m observe.ladder --out {folder}"
        return Found(problems=(str(error),), remedy=f"{remedy} ...")
    size = sum(path.stat().st_size for path in folder.glob("*.json*"))
    return Found(notes=(f"{len(ladder.rungs):,} questions on it",), folder=folder, size=size)


def _look_for_dataset(one: Input, prefetch: str) -> Found:
    """A data set in the cache of `datasets`, which the jobs read offline."""
    folders = [
        path for path in dataset_cache().glob("*___*") if _plain(path.name) == _plain(one.name)
    ]
    notes = () if one.revision else ("its revision is not pinned",)
    missing = [
        config
        for config in one.configs or (None,)
        if not any(any(folder.glob(f"{config or '*'}/*/*/dataset_info.json")) for folder in folders)
    ]
    if missing:
        which = ", ".join(config for config in missing if config)
        problem = "not in the cache of datasets" + (f": {which}" if which else "")
        return Found(problems=(problem,), notes=notes, remedy=prefetch)
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*.arrow"))
    return Found(notes=notes, folder=folders[0], size=size)


def _plain(name: str) -> str:
    """``org/DataSet`` and the cache's ``org___data_set`` as the same word."""
    return name.replace("/", "").replace("_", "").lower()


def dataset_cache() -> Path:
    """Where `datasets` keeps what it has prepared."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
