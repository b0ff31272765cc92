"""Fingerprints of input files by content: a stage's identity does not hang on where they lie."""

import hashlib
import json
import os
from pathlib import Path

from harness.store import write_atomically
from observe.errors import InputError

LARGE = 64 * 2**20
"""Files from this size (bytes) on are hashed once and remembered by path, size and time."""

_CONTENT = {".json", ".safetensors", ".bin", ".txt", ".model", ".jinja"}


def fingerprint_model(folder: Path) -> str:
    """A model folder: names and sizes of all its files, contents of weights and configs."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            if path.suffix in _CONTENT:
                digest.update(_of_file(path).encode())
    return f"sha256:{digest.hexdigest()}"


def fingerprint_questions(path: Path) -> str:
    """A JSONL file of questions: its content, and names and sizes of the images it names.

    Raises InputError for a line that is not a JSON object, and for a missing image.
    """
    digest = hashlib.sha256(_of_file(path).encode())
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            images = json.loads(line).get("images") or []
        except (ValueError, AttributeError):
            raise InputError(
                f"{path}:{number}: not a JSON object; correct or remove this line"
            ) from None
        for image in images:
            try:
                size = (path.parent / image).stat().st_size
            except (FileNotFoundError, TypeError):
                raise InputError(
                    f"{path}:{number}: images: {image!r} not found; paths are relative to {path}"
                ) from None
            digest.update(f"{image} {size}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _of_file(path: Path) -> str:
    stat = path.stat()
    if stat.st_size < LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(cache_home) / "observe-ablations" / "fingerprints.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    if key not in known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        known[key] = digest.hexdigest()
        write_atomically(cache, json.dumps(known), durable=False)
    return known[key]
