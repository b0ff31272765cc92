"""Models and data sets into this machine's caches, for jobs without a network.

``python -m harness.prefetch FILE``, on a login node. Every file is downloaded once, and verified:
a model's against the checksums that the Hub states. Stages then read the caches offline (see
``stage_environment``).
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from harness import cli
from harness.ablation_file import load_ablation
from harness.checks import size_in_words
from harness.graph import make_plan
from harness.inputs import Input, inputs_of, look
from observe.errors import InputError
from observe.hub import FILES, is_hub_id, split_revision

CHUNK = 2**22

DATASET = """
import json, sys
from datasets import load_dataset
told = json.loads(sys.argv[1])
for config in told["configs"] or [None]:
    load_dataset(told["name"], config, split=told["split"], revision=told["revision"])
"""
"""Prepares a data set as the benchmarks read it; in a process of its own, which may be killed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetched:
    """What became of an input."""

    one: Input
    ok: bool
    detail: str


def fetch(needed: list[Input], *, file: str, verify: bool) -> Iterator[Fetched]:
    """Get what is not here, one after the other; what cannot be got is told, and the rest goes on.

    ``verify``: compare what was here before with the Hub's checksums as well.
    """
    for one in needed:
        before = look(one, file=file)
        if one.kind in ("questions", "ladder") or (one.kind == "model" and Path(one.name).exists()):
            words = "; ".join([*before.problems, *before.notes, before.remedy])
            yield Fetched(one=one, ok=not before.problems, detail=words.strip("; "))
            continue
        try:
            if one.kind == "model":
                detail = _model(one.name, here=not before.problems, verify=verify)
            else:
                detail = "was here" if not before.problems else _dataset(one)
        except InputError as error:
            yield Fetched(one=one, ok=False, detail=str(error))
            continue
        after = look(one, file=file)
        words = "; ".join([detail, *after.problems, *after.notes, size_in_words(after.size)])
        yield Fetched(one=one, ok=not after.problems, detail=words)


def _model(hub_id: str, *, here: bool, verify: bool) -> str:
    """Download a model's snapshot, and verify it; what was done. Raises InputError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if here and not verify:
        return "was here"
    repository, revision = split_revision(hub_id)
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(FILES))
        count = _verify(Path(folder), repository, revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"cannot be downloaded: {_first_line(error)}") from None
    return f"{'was here' if here else 'downloaded'}, {count} files as the Hub states them"


def _verify(folder: Path, repository: str, revision: str | None) -> int:
    """Compare a snapshot with the sizes and checksums that the Hub states; how many files.

    Raises InputError naming the first file that differs.
    """
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    stated = {file.rfilename: file for file in info.siblings or []}
    count = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in stated:
            continue
        file = stated[name]
        if file.size is not None and path.stat().st_size != file.size:
            raise InputError(
                f"{path}: {path.stat().st_size} bytes, the Hub states {file.size}; delete "
                f"{path.resolve()} and give the command again"
            )
        lfs = file.lfs
        if lfs is not None and _sha256(path) != lfs.sha256:
            raise InputError(
                f"{path}: its content is not what the Hub states; delete {path.resolve()} and "
                "give the command again"
            )
        count += 1
    return count


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _dataset(one: Input) -> str:
    told = {
        "name": one.name,
        "revision": one.revision,
        "configs": list(one.configs),
        "split": one.split,
    }
    run = subprocess.run(
        [sys.executable, "-c", DATASET, json.dumps(told)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_DATASETS_OFFLINE": "0"},
    )
    if run.returncode:
        lines = [line for line in run.stderr.strip().splitlines() if line.strip()]
        raise InputError(f"cannot be downloaded: {lines[-1] if lines else run.returncode}")
    return "downloaded"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def run(options: Namespace) -> int:
    """Fetch what the file needs; 1 when something is still missing."""
    overrides = cli.overrides_of(options.seeds, options.set)
    ablation, start = load_ablation(Path(options.file), overrides, [])
    plan = make_plan(ablation, start, options.file)
    missing = 0
    for fetched in fetch(inputs_of(plan, ablation), file=options.file, verify=options.verify):
        one = fetched.one
        missing += not fetched.ok
        mark = "ok     " if fetched.ok else "MISSING"
        print(f"{mark} {one.kind} {one.name}: {fetched.detail}", flush=True)
    models = [one for one in inputs_of(plan, ablation) if is_hub_id(one.name)]
    if not models and not missing:
        print("nothing to download")
    return int(missing > 0)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: all is here; 1: something is missing; 2: bad input."""
    parser = ArgumentParser(
        prog="python -m harness.prefetch",
        description="Download and verify the models and data sets that an ablation file needs.",
    )
    cli.add_ablation_arguments(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="Compare what is here already with the Hub's checksums as well.",
    )
    options = parser.parse_args(arguments)
    return cli.run_command(lambda: run(options))


if __name__ == "__main__":
    raise SystemExit(main())
