"""Fingerprints of input files by content: a stage's identity does not hang on where they lie."""

import hashlib
import json
from pathlib import Path

from observe.errors import InputError
from observe.fingerprint import file_digest


def fingerprint_questions(path: Path) -> str:
    """A JSONL file of questions: its content, and names and sizes of the images it names.

    Raises InputError for a line that is not a JSON object, and for a missing image.
    """
    digest = hashlib.sha256(file_digest(path).encode())
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a JSONL file ({error}); write it in UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            images = json.loads(line).get("images") or []
        except (ValueError, AttributeError):
            raise InputError(
                f"{path}:{number}: not a JSON object; correct or remove this line"
            ) from None
        if not isinstance(images, list):
            raise InputError(f"{path}:{number}: images: expected a list of files, got {images!r}")
        for image in images:
            try:
                size = (path.parent / image).stat().st_size
            except (OSError, TypeError, ValueError):
                raise InputError(
                    f"{path}:{number}: images: {image!r} not found; paths are relative to {path}"
                ) from None
            digest.update(f"{image} {size}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def fingerprint_folder(folder: Path) -> str:
    """A folder of benchmarks: names and sizes of all its files, contents of the tables of rows."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            if path.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
                digest.update(file_digest(path).encode())
    return f"sha256:{digest.hexdigest()}"


def fingerprint_ladder(folder: Path) -> str:
    """A ladder that was built before: its rungs, and the lengths that a bonus may refer to.

    Raises InputError when there is none.
    """
    try:
        digest = hashlib.sha256(file_digest(folder / "ladder.jsonl").encode())
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        lengths = json.dumps(summary["correct_lengths"], sort_keys=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no ladder there ({error}); expected a folder that observe.ladder wrote"
        ) from None
    digest.update(lengths.encode())
    return f"sha256:{digest.hexdigest()}"
