"""Which code results come from."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "observe-ablations"
PACKAGES = ("torch", "transformers", "lm-eval", "numpy", "pandas", "math-verify")
"""What results depend on."""


def code() -> str | None:
    """Commit of this code, ``+dirty`` with uncommitted changes; outside its repository its version.

    None where neither is known (files copied from somewhere).

    A commit names the code only if these files are in it: an environment inside some other
    project's checkout has that project's commit.
    """
    if _git("ls-files", "--error-unmatch", __file__) is None:
        installed = versions((PACKAGE,)).get(PACKAGE)
        return f"{PACKAGE} {installed}" if installed else None
    head = _git("rev-parse", "HEAD")
    return f"{head}+dirty" if _git("status", "--porcelain", "--untracked-files=no") else str(head)


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None
