"""What Slurm's commands print, read by programs that print the same; some of them never end."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import slurm
from harness.executors import slurm as executor
from harness.executors import slurm_array
from harness.executors.slurm import SlurmExecutor
from harness.profile import Profile
from harness.store import Status, Store
from harness.task import Task
from observe.errors import InputError

Commands = Callable[..., None]
SQUEUE = """#!/bin/sh
cat <<'END'
7|N/A|full-0123456789abcdef|RUNNING|None|0|1|
8|3|eval|all|the things|PENDING|Priority|0|0|
9|N/A||FAILED|NonZeroExitCode|256|0|
END
"""


QUEUED = """#!/bin/sh
cat {folder}/queue 2>/dev/null || true
"""
CONFIG = """#!/bin/sh
cat <<'END'
Configuration data as of 2026-01-02T03:04:05
MaxArraySize            = {size}
MaxJobCount             = 10000
END
"""
SENDS = """#!/bin/sh
grep -q '^#SBATCH --array' "$1" && echo array >> {folder}/sent || echo job >> {folder}/sent
name=$(sed -n 's/^#SBATCH --job-name=//p' "$1")
count=$(wc -l < {folder}/sent)
echo "$count|N/A|$name|PENDING|Priority|0|0|" >> {folder}/queue
echo "Submitted batch job $count"
"""
"""sbatch; the queue has what it took."""
TAKES_AND_HANGS = SENDS.replace('echo "Submitted batch job $count"', "exec sleep 30")
HANGS = """#!/bin/sh
echo job >> {folder}/sent
exec sleep 30
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Puts programs on PATH: name -> its text."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def put(**texts: str) -> None:
        for name, text in texts.items():
            (folder / name).write_text(text.replace("{folder}", str(folder)))
            (folder / name).chmod(0o755)

    return put


def executor_in(folder: Path, stages: int) -> SlurmExecutor:
    """With so many stages that wait to be sent."""
    slurm_executor = SlurmExecutor(Profile(poll_seconds=0.01))
    for number in range(stages):
        task = Task(
            id=f"train-{number}",
            function="none:none",
            config={},
            inputs={},
            directory=str(folder / "sweep"),
            attempt=1,
        )
        Store(folder / "sweep").write_status(
            Status(stage=task.id, state="submitted", attempt=1, executor="slurm")
        )
        slurm_executor.submit(task)
    return slurm_executor


def jobs_of(folder: Path) -> list[str | None]:
    """The ids that the markers of a sweep note."""
    return [element.array.job for element in slurm_array.elements(folder / "sweep").values()]


def test_jobs_of_any_name_are_read(commands: Commands) -> None:
    commands(squeue=SQUEUE)
    jobs = slurm.queue()
    assert jobs == {
        "7": slurm.Job(
            key="7", name="full-0123456789abcdef", state="RUNNING", reason="None", restarts=1
        ),
        "8_3": slurm.Job(key="8_3", name="eval|all|the things", state="PENDING", reason="Priority"),
        "9": slurm.Job(key="9", name="", state="FAILED", reason="NonZeroExitCode", exit=1),
    }


@pytest.mark.parametrize(("size", "sent"), [(1001, ["array"]), (1, ["job"] * 3), (0, ["job"] * 3)])
def test_where_arrays_are_switched_off_jobs_are_sent_one_by_one(
    tmp_path: Path, commands: Commands, size: int, sent: list[str]
) -> None:
    config = CONFIG.format(size=size)
    commands(sbatch=SENDS, squeue=QUEUED, scontrol=config, srun="#!/bin/sh\n")
    assert executor_in(tmp_path, 3).poll(0) == []
    assert (tmp_path / "bin" / "sent").read_text().split() == sent
    assert sorted(set(jobs_of(tmp_path))) == [str(number + 1) for number in range(len(sent))]


def test_a_job_that_an_sbatch_without_an_answer_left_is_found(
    tmp_path: Path,
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(slurm, "SEND_S", 1.0)
    config = CONFIG.format(size=1001)
    commands(sbatch=TAKES_AND_HANGS, squeue=QUEUED, scontrol=config, srun="#!/bin/sh\n")
    began = time.monotonic()
    assert executor_in(tmp_path, 1).poll(0) == []
    assert time.monotonic() - began < 20
    assert "sbatch timed out: no answer in 1 s; trying again" in capsys.readouterr().out
    assert jobs_of(tmp_path) == ["1"]
    assert (tmp_path / "bin" / "sent").read_text().split() == ["job"]


def test_an_sbatch_without_an_answer_is_repeated_when_its_job_does_not_come(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "SEND_S", 1.0)
    config = CONFIG.format(size=1001)
    commands(sbatch=HANGS, squeue=QUEUED, scontrol=config, srun="#!/bin/sh\n")
    slurm_executor = executor_in(tmp_path, 1)
    monkeypatch.setattr(slurm_array, "SETTLE_S", 60.0)
    assert slurm_executor.poll(0) == []
    time.sleep(0.02)
    assert slurm_executor.poll(0) == [], "it may still come"
    assert jobs_of(tmp_path) == [None]
    monkeypatch.setattr(slurm_array, "SETTLE_S", 0.0)
    commands(sbatch=SENDS)
    for _ in range(2):
        time.sleep(0.02)
        assert slurm_executor.poll(0) == []
    assert jobs_of(tmp_path) == ["2"]


def test_the_job_of_a_launcher_is_found_without_an_answer_too(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "SEND_S", 0.5)
    commands(sbatch="#!/bin/sh\nexec sleep 30\n", squeue=SQUEUE)
    script = tmp_path / "launcher.sh"
    assert slurm.submit(script, {"job_name": "full-0123456789abcdef"}) == "7"
    with pytest.raises(InputError, match="may have taken the job or not"):
        slurm.submit(script, {"job_name": "another"})


def test_a_requeue_without_an_answer_is_no_refusal(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "COMMAND_S", 0.5)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    commands(scontrol="#!/bin/sh\nexec sleep 30\n")
    with pytest.raises(subprocess.TimeoutExpired):
        slurm.requeue_this_job()


def test_a_slurm_without_an_answer_has_not_ended_the_jobs(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.format(size=1001)
    commands(
        sbatch=SENDS, squeue=QUEUED, scontrol=config, srun="#!/bin/sh\n", scancel="#!/bin/sh\n"
    )
    executor_in(tmp_path, 1).poll(0)
    status = Store(tmp_path / "sweep").status("train-0")
    monkeypatch.setattr(slurm, "COMMAND_S", 0.1)
    monkeypatch.setattr(executor, "CANCEL_S", 0.5)
    commands(squeue="#!/bin/sh\nexec sleep 30\n")
    began = time.monotonic()
    executor.cancel_sweep(tmp_path / "sweep", [status])
    assert time.monotonic() - began > 0.5, "it waited for an answer"
    assert executor.liveness(tmp_path / "sweep", [status]) == {"train-0": "unknown"}
