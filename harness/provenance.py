"""Which code results come from: its commit, what was changed since, and a copy to run it from."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.store import write_atomically, writing

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("observe", "harness", "benchmarks", "reports", "recipes")
"""The folders under ROOT that stages run from."""
PACKAGE = "observe-ablations"
PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "pandas", "math-verify")
"""What results depend on."""


def code() -> str | None:
    """Commit of this code, ``+dirty`` with uncommitted changes; outside its repository its version.

    None where neither is known (files copied from somewhere).
    """
    if not _in_repository():
        installed = versions((PACKAGE,)).get(PACKAGE)
        return f"{PACKAGE} {installed}" if installed else None
    head = _git("rev-parse", "HEAD").strip()
    return f"{head}+dirty" if _git("status", "--porcelain", "--untracked-files=no") else head


def record(directory: Path) -> str | None:
    """Note in ``code/`` of a sweep's folder which code this is, and return ``code()``.

    ``commit``; ``diff``, a patch with what is not committed; ``untracked``, the source files that
    are in neither.
    """
    commit, diff, untracked = code(), "", ""
    if _in_repository():
        diff = _git("diff", "--binary", "--no-ext-diff", "--no-color", "HEAD")
        untracked = _git("ls-files", "--others", "--exclude-standard", "--", *SOURCES)
    texts = {"commit": f"{commit or 'unknown'}\n", "diff": diff, "untracked": untracked}
    for name, text in texts.items():
        write_atomically(directory / "code" / name, text, durable=False)
    return commit


def snapshot(directory: Path) -> Path:
    """A copy of this code in ``code/<hash of its content>/`` of a sweep's folder.

    Equal code has one copy.
    """
    contents = {name: (ROOT / name).read_bytes() for name in _source_files()}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    folder = directory.resolve() / "code" / digest.hexdigest()[:16]
    if folder.exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    with writing(folder):
        for name, content in contents.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        temporary.rename(folder)
    return folder


def _source_files() -> list[str]:
    """Files under ROOT that git tracks or would; all of the packages where there is no git."""
    if _in_repository():
        told = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES)
        names = [name for name in told.split("\0") if (ROOT / name).is_file()]
    else:
        found = [path for source in SOURCES for path in (ROOT / source).rglob("*")]
        kept = [path for path in found if path.is_file() and "__pycache__" not in path.parts]
        names = [str(path.relative_to(ROOT)) for path in kept]
    return sorted(names)


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _in_repository() -> bool:
    """Whether a commit names this code.

    Only if these files are in it: an environment inside some other project's checkout has that
    project's commit.
    """
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%H", "--", __file__]
    try:
        run = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return bool(run.stdout)


def _git(*arguments: str) -> str:
    """What git prints, as it is."""
    command = ["git", "-C", str(ROOT), *arguments]
    run = subprocess.run(command, capture_output=True, check=True)
    return run.stdout.decode(errors="replace")
