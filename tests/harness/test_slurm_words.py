"""What Slurm's commands print, read by programs that print the same."""

import os
from pathlib import Path

import pytest

from harness import slurm

SQUEUE = """#!/bin/sh
cat <<'END'
7|N/A|full-0123456789abcdef|RUNNING|None|0|1|
8|3|eval|all|the things|PENDING|Priority|0|0|
9|N/A||FAILED|NonZeroExitCode|256|0|
END
"""


def test_jobs_of_any_name_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "squeue").write_text(SQUEUE)
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    jobs = slurm.queue()
    assert jobs == {
        "7": slurm.Job(
            key="7", name="full-0123456789abcdef", state="RUNNING", reason="None", restarts=1
        ),
        "8_3": slurm.Job(key="8_3", name="eval|all|the things", state="PENDING", reason="Priority"),
        "9": slurm.Job(key="9", name="", state="FAILED", reason="NonZeroExitCode", exit=1),
    }
