"""Which code ran, and a copy of it."""

import subprocess
from pathlib import Path

import pytest

from harness import provenance

GIT = ["git", "-c", "user.name=n", "-c", "user.email=e"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit."""
    checkout = tmp_path / "checkout"
    for name, text in {
        "harness/provenance.py": "one\n",
        "observe/config.py": "two\n",
        "README.md": "not code\n",
        ".gitignore": "*.log\n",
    }.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "m"]):
        subprocess.run([*GIT, *command], cwd=checkout, check=True)
    monkeypatch.setattr(provenance, "ROOT", checkout)
    monkeypatch.setattr(provenance, "__file__", str(checkout / "harness" / "provenance.py"))
    return checkout


def files(folder: Path) -> dict[str, str]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def test_commit_and_changes_are_recorded(checkout: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    commit = provenance.record(sweep)
    assert files(sweep / "code") == {"commit": f"{commit}\n", "diff": "", "untracked": ""}
    (checkout / "observe" / "config.py").write_text("three\n")
    (checkout / "observe" / "new.py").write_text("new\n")
    (checkout / "observe" / "out.log").write_text("ignored\n")
    assert provenance.record(sweep) == f"{commit}+dirty"
    recorded = files(sweep / "code")
    assert recorded["commit"] == f"{commit}+dirty\n"
    assert recorded["untracked"] == "observe/new.py\n"
    subprocess.run([*GIT, "checkout", "-q", "observe/config.py"], cwd=checkout, check=True)
    apply = ["git", "apply", str(sweep / "code" / "diff")]
    subprocess.run(apply, cwd=checkout, check=True)
    assert (checkout / "observe" / "config.py").read_text() == "three\n"


def test_equal_code_has_one_copy_and_changed_code_another(checkout: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    (checkout / "observe" / "out.log").write_text("ignored\n")
    first = provenance.snapshot(sweep)
    assert files(first) == {"harness/provenance.py": "one\n", "observe/config.py": "two\n"}
    (checkout / "README.md").write_text("other words\n")
    assert provenance.snapshot(sweep) == first
    (checkout / "observe" / "new.py").write_text("new\n")
    (checkout / "observe" / "config.py").unlink()
    second = provenance.snapshot(sweep)
    assert files(second) == {"harness/provenance.py": "one\n", "observe/new.py": "new\n"}
    assert set((sweep / "code").iterdir()) == {first, second}


def test_code_that_no_repository_knows_is_copied_too(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = provenance.snapshot(tmp_path / "sweep")
    subprocess.run(["rm", "-rf", ".git"], cwd=checkout, check=True)
    (checkout / "harness" / "__pycache__").mkdir()
    (checkout / "harness" / "__pycache__" / "x.pyc").write_text("")
    assert provenance.snapshot(tmp_path / "sweep") == known
    monkeypatch.setattr(provenance, "PACKAGE", "nobody-has-this-package")
    assert provenance.record(tmp_path / "sweep") is None
    assert (tmp_path / "sweep" / "code" / "diff").read_text() == ""
