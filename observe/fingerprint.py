"""Fingerprints of files and models by content: what is computed does not hang on where they lie."""

import contextlib
import hashlib
import json
import os
from pathlib import Path

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
                digest.update(file_digest(path).encode())
    return f"sha256:{digest.hexdigest()}"


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    stat = path.stat()
    if stat.st_size < LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(cache_home) / "observe-ablations" / "fingerprints.json"
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    if key not in known:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        known[key] = digest.hexdigest()
        # Where nothing can be remembered, as in a home that is read-only, it is hashed again.
        with contextlib.suppress(OSError):
            _replace(cache, json.dumps(known))
    return known[key]


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
