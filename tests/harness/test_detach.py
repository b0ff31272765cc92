"""A sweep that nobody waits for, on this machine."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import write_ablation

from harness import cancel, process, status
from harness.graph import read_plan
from harness.store import Store

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(Path(__file__).parent / "fake_sweep.py"), "ablation.yaml"]
ONE_ARM = {
    "design": "arms",
    "arms": [{}],
    "reference": {"curriculum": "off", "format": "off", "bonus": "off"},
    "variants": {},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_ablation(tmp_path, ONE_ARM)
    return Store(tmp_path / "runs" / "small")


def environment(step_s: float) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "FAKE_STEP_S": str(step_s)}


def sweep(folder: Path, *options: str, step_s: float = 0.0) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *options],
        cwd=folder,
        env=environment(step_s),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def alive(store: Store) -> bool:
    return process.liveness(store.launcher_process()) == "alive"


def test_a_detached_sweep_outlives_its_terminal_and_ends_with_a_report(
    store: Store, tmp_path: Path
) -> None:
    shell, terminal = pty.fork()
    if shell == 0:
        os.chdir(tmp_path)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # Ignored where nohup runs the tests.
        line = " ".join([*COMMAND, "--detach; sleep 60"])
        os.execve("/bin/sh", ["sh", "-c", line], environment(0.3))
    said = ""
    while "stop:" not in said:
        said += os.read(terminal, 4096).decode()
    assert "log runs/small/launcher.log" in said
    os.close(terminal)  # The terminal's processes get SIGHUP.
    os.waitpid(shell, 0)
    assert alive(store)
    wait_for(lambda: store.launcher_process() is None, 120)
    log = (store.directory / "launcher.log").read_text()
    assert "report: runs/small/report/index.html" in log and "Traceback" not in log
    assert (store.report / "index.html").exists()
    assert status.main([str(store.directory)]) == 0
    command = json.loads((store.results / "sweep.json").read_text())["provenance"]["command"]
    assert command == "python -m harness.sweep ablation.yaml --detach"


def test_a_detached_sweep_is_seen_not_started_twice_and_can_be_stopped(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert sweep(tmp_path, "--detach", step_s=5).returncode == 0
    assert time.monotonic() - began < 10, "at once"
    launcher = store.launcher_process()
    assert launcher and launcher["pid"] == os.getsid(launcher["pid"]), "a session of its own"
    for options in (["--detach"], []):
        second = sweep(tmp_path, *options)
        assert second.returncode == 2
        assert f"process {launcher['pid']} on" in second.stdout
        assert "is running this sweep" in second.stdout
    assert status.main([str(store.directory)]) == 1
    shown = capsys.readouterr().out
    assert f"launcher: alive (process {launcher['pid']} on" in shown
    assert f"launcher said: {store.directory}/launcher.log" in shown
    assert cancel.main([str(store.directory)]) == 0
    assert process.liveness(launcher) == "dead"
    states = {store.status(stage).state for stage in read_plan(store.plan_file).stages}
    assert states <= {"pending", "done", "cancelled"} and "cancelled" in states
    assert sweep(tmp_path, "--detach").returncode == 0
    wait_for(lambda: not alive(store), 120)
    assert status.main([str(store.directory)]) == 0


def test_bad_input_is_said_before_anything_is_detached(store: Store, tmp_path: Path) -> None:
    refused = sweep(tmp_path, "--detach", "--jobs", "0")
    assert refused.returncode == 2 and "--jobs 0: expected 1 or more" in refused.stdout
    assert not store.directory.exists()


def test_what_an_earlier_launch_did_is_said_and_counted(store: Store, tmp_path: Path) -> None:
    assert sweep(tmp_path, "--detach", step_s=0.6).returncode == 0
    plan = read_plan(store.plan_file)
    training = next(stage.id for stage in plan.stages.values() if stage.kind == "train")

    def steps() -> int:
        return (store.status(training).progress or {"done": 0})["done"]

    wait_for(lambda: steps() >= 1)
    launcher, worker = store.launcher_process(), store.status(training).process
    assert launcher and worker
    for victim in (launcher, worker):
        os.kill(victim["pid"], 9)
    wait_for(lambda: process.liveness(worker) == "dead")
    kept = sum(store.status(stage).state == "done" for stage in plan.stages)
    again = sweep(tmp_path)
    assert again.returncode == 0
    assert re.search(
        rf"going on: {kept} stages? done; train control/seed0 resumes after \d of 4\n", again.stdout
    )
    counted = re.search(r"wall +(\d+) s  of this .*; (\d+) s in 2 launches", again.stdout)
    assert counted and int(counted[2]) >= int(counted[1]) + 2
    assert "going on" not in sweep(tmp_path).stdout, "all is done"
