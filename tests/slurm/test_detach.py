"""A sweep whose launcher is a job itself: nothing has to stay open, and any of it may die."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweeps import write_ablation
from test_slurm import steps_on_this_node, wait_for

from harness import cancel, provenance, slurm, status
from harness.graph import read_plan
from harness.store import Store

ROOT = Path(__file__).parents[2]
FAKE = [sys.executable, str(ROOT / "tests" / "harness" / "fake_sweep.py")]
ONE_ARM = {
    "design": "arms",
    "arms": [{}],
    "reference": {"curriculum": "off", "format": "off", "bonus": "off"},
    "variants": {},
    "resources": {kind: {"mem_gb": 0.2} for kind in ("base", "train", "evaluate")},
}
PROFILE = "{partition: main, poll_seconds: 0.3, launcher: {mem_gb: 0.5}}\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_ablation(tmp_path, ONE_ARM)
    (tmp_path / "profile.yaml").write_text(PROFILE)
    return Store(tmp_path / "runs" / "small")


def sweep(folder: Path, *options: str, step_s: float = 0.0) -> "subprocess.CompletedProcess[str]":
    """The command on fake stages, and what it said."""
    slurm_options = ["--executor", "slurm", "--profile", "profile.yaml"]
    return subprocess.run(
        [*FAKE, "ablation.yaml", *slurm_options, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FAKE_STEP_S": str(step_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def detach(folder: Path, *options: str, step_s: float = 0.0) -> str:
    """Start the sweep, detached; the launcher's job."""
    run = sweep(folder, "--detach", *options, step_s=step_s)
    assert run.returncode == 0, run.stdout
    return run.stdout.partition("launcher: Slurm job ")[2].partition(",")[0]


def active() -> dict[str, slurm.Job]:
    jobs = slurm.queue()
    assert jobs is not None
    return {key: job for key, job in jobs.items() if not job.final}


def done(store: Store) -> dict[str, str]:
    """Finished stage -> how often it was started."""
    folders = store.directory.glob("stages/*")
    finished = [f for f in folders if store.status(f.name).state == "done"]
    return {folder.name: (folder / "starts").read_text() for folder in finished}


def reported(store: Store) -> bool:
    """Whether all was done, each stage once, and the report is there."""
    starts = list(done(store).values())
    assert all(len(start.splitlines()) == 1 for start in starts)
    complete = len(starts) == len(read_plan(store.plan_file).stages)
    return complete and (store.report / "index.html").exists()


@pytest.fixture
def full_cluster() -> Iterator[Callable[[], None]]:
    """Another's job has all cores, until what this gives is called."""
    blocker = ["sbatch", "--parsable", "--exclusive", "--output=/dev/null", "--wrap=sleep 300"]
    job = subprocess.run(blocker, capture_output=True, text=True, check=True).stdout.strip()
    wait_for(lambda: active()[job].state == "RUNNING")

    def free() -> None:
        subprocess.run(["scancel", job], check=False)

    yield free
    free()
    wait_for(lambda: job not in active())


def test_a_detached_sweep_runs_and_reports_by_itself(store: Store, tmp_path: Path) -> None:
    job = detach(tmp_path)
    wait_for(lambda: job not in active(), 120)
    log = (store.directory / "launcher.log").read_text()
    assert reported(store), log
    assert f"{len(done(store))} stages started" in log and "report: " in log
    assert status.main([str(store.directory)]) == 0
    assert active() == {}
    command = json.loads((store.results / "sweep.json").read_text())["provenance"]["command"]
    assert command.endswith("--profile profile.yaml --detach")


def test_a_queued_launcher_is_seen_and_holds_the_sweep(
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    full_cluster: Callable[[], None],
) -> None:
    job = detach(tmp_path)
    assert status.main([str(store.directory)]) == 1
    assert f"launcher: queued (Slurm job {job}" in capsys.readouterr().out
    for options in (["--detach"], []):
        second = sweep(tmp_path, *options)
        assert second.returncode == 2
        assert f"Slurm job {job}" in second.stdout and "is to run this sweep" in second.stdout
    assert cancel.main([str(store.directory)]) == 0
    assert job not in active()
    assert status.main([str(store.directory)]) == 1
    assert "launcher: none" in capsys.readouterr().out


def test_cancel_stops_the_launcher_and_its_stages(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = detach(tmp_path, step_s=20)
    stages = read_plan(store.plan_file).stages
    wait_for(lambda: any(store.status(stage).state == "running" for stage in stages))
    assert status.main([str(store.directory)]) == 1
    assert f"launcher: alive (Slurm job {job})" in capsys.readouterr().out
    second = sweep(tmp_path, "--detach")
    assert second.returncode == 2 and f"Slurm job {job} is to run this sweep" in second.stdout
    assert cancel.main([str(store.directory)]) == 0
    assert active() == {}
    assert {store.status(stage).state for stage in stages} <= {"cancelled", "pending"}


def test_a_launcher_that_was_killed_leaves_its_stages_and_the_next_goes_on(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = detach(tmp_path, step_s=1.5)
    wait_for(lambda: done(store))
    subprocess.run(["scancel", "--full", "--signal=KILL", job], check=True)
    wait_for(lambda: job not in active(), 120)
    assert status.main([str(store.directory)]) == 1
    assert "launcher: dead" in capsys.readouterr().out
    again = detach(tmp_path)
    wait_for(lambda: again not in active(), 120)
    assert reported(store)
    assert [event for event in store.events() if event["event"] == "retry"] == []


def test_a_launcher_whose_time_is_up_is_queued_again_and_goes_on(
    store: Store, tmp_path: Path
) -> None:
    job = detach(tmp_path, step_s=2)
    stages = read_plan(store.plan_file).stages.values()
    training = next(stage.id for stage in stages if stage.kind == "train")
    wait_for(lambda: store.status(training).state == "running")
    # What Slurm does some time before the limit.
    subprocess.run(["scancel", "--batch", "--signal=USR2", job], check=True)
    wait_for(lambda: active()[job].state == "PENDING")
    assert len(active()) > 1, "its stages go on"
    # Slurm waits for two minutes, as a node refuses a job within the second in which it was killed.
    wait_for(lambda: not steps_on_this_node(job))
    time.sleep(2)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    wait_for(lambda: job not in active(), 120)
    assert reported(store)
    log = (store.directory / "launcher.log").read_text()
    assert "near: it is queued again" in log and "going on: " in log


def test_jobs_run_the_code_of_the_launch_though_the_checkout_moves_on(
    tmp_path: Path, full_cluster: Callable[[], None]
) -> None:
    checkout = provenance.snapshot(tmp_path)
    profile = tmp_path / "profile.yaml"
    profile.write_text(PROFILE)
    command = ["-m", "harness.sweep", str(Path(__file__).with_name("tiny.yaml"))]
    options = ["--executor", "slurm", "--profile", str(profile), "--detach"]
    run = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path / "runs"), *options],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for module in ("harness/launch.py", "harness/job.py", "observe/base.py"):
        (checkout / module).write_text("raise SystemExit('the code of tomorrow')\n")
    full_cluster()
    store = Store(tmp_path / "runs" / "tiny")
    plan = read_plan(store.plan_file)
    base = next(stage.id for stage in plan.stages.values() if stage.kind == "base")
    wait_for(lambda: store.status(base).state not in ("pending", "submitted", "running"))
    assert store.status(base).state == "done"
    assert "tomorrow" not in store.log(base).read_text()
    assert cancel.main([str(store.directory)]) == 0
    assert active() == {}


def test_a_launcher_that_slurm_refuses_is_bad_input(store: Store, tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text("{launcher: {partition: nowhere}}\n")
    refused = sweep(tmp_path, "--detach")
    assert refused.returncode == 2
    assert "invalid partition specified: nowhere" in refused.stdout
    assert "change the profile" in refused.stdout and active() == {}
