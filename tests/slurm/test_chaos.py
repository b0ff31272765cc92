"""A sweep whose launcher, jobs, node and controller die at random moments is done all the same.

``CHAOS_SEEDS`` (with commas) says which sweeps and which misfortunes; ``make chaos`` tries several.
"""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster
import pytest
from sweeps import stages

from harness import graph, process, slurm
from harness.dispatch import dispatch
from harness.executors import slurm as slurm_executor
from harness.graph import Kind, Plan, write_plan
from harness.profile import Profile
from harness.store import Status, Store

SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "0").split(",")]
STAGES = 28
PROFILE = Profile(poll_seconds=0.3, max_submitted=8)
LIMIT_S = 240.0
EARLY = 0.4
"""Share of a stage's seconds after which Slurm is no longer asked to end it: what takes effect at
the very moment of its end is not noted as done, and no harness can tell."""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[cluster.Cluster]:
    """A cluster that may be left in any state."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        cluster.running(cluster.fetch(), Path(folder)) as started,
    ):
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started


class Sweep:
    """A sweep, and its launcher in a process of its own."""

    def __init__(self, store: Store, rng: random.Random, own: cluster.Cluster) -> None:
        self.store, self.rng, self.own = store, rng, own
        self.plan = plan_of(rng)
        self.began = time.monotonic()
        store.directory.mkdir()
        write_plan(self.plan, store.plan_file)
        self.launch()

    def launch(self) -> None:
        self.launcher = multiprocessing.get_context("fork").Process(target=self._dispatch)
        self.launcher.start()

    def _dispatch(self) -> None:
        with self.store.launcher():
            executor = slurm_executor.SlurmExecutor(PROFILE)
            outcome = dispatch(self.plan, self.store, executor, retries=100, code="abc")
        sys.exit(0 if outcome.complete else 1)

    def at_work(self, *, early: bool) -> Status | None:
        """A stage whose process works; ``early``: with most of its time before it."""
        found = []
        for stage in self.plan.stages.values():
            status = self.store.status(stage.id)
            if status.state == "running" and process.liveness(status.process) == "alive":
                assert status.started
                spent = (time.time() - status.started) / stage.config["seconds"]
                if spent < EARLY or not early:
                    found.append(status)
        return self.rng.choice(found) if found else None

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {what}", flush=True)

    def describe(self) -> str:
        """What there is to know when it does not end."""
        statuses = [self.store.status(stage) for stage in self.plan.stages]
        waiting = [s for s in statuses if s.state != "done"]
        return f"{waiting}\n{slurm.queue()}\nlauncher's exit code: {self.launcher.exitcode}"


def plan_of(rng: random.Random) -> Plan:
    """Stages of 2 to 6 seconds; half of them consume one or two others."""
    described = []
    for i in range(STAGES):
        consumed = rng.sample(range(i), k=min(i, rng.choice([0, 0, 1, 2])))
        seconds = round(rng.uniform(2, 6), 2)
        described.append((f"s{i:02}", {"seconds": seconds}, [f"s{j:02}" for j in consumed]))
    return stages(*described)


# Misfortunes: each returns what it did, or None when there was nothing to do it to.


def kill_the_launcher(sweep: Sweep) -> str:
    assert sweep.launcher.pid
    os.kill(sweep.launcher.pid, signal.SIGKILL)
    sweep.launcher.join()
    time.sleep(sweep.rng.uniform(0, 2))
    sweep.launch()
    return "the launcher was killed"


def kill_a_stage(sweep: Sweep) -> str | None:
    status = sweep.at_work(early=False)
    if status is None or status.process is None:
        return None
    pid = status.process["pid"]
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        while "\nState:\tT" not in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.001)
        if (sweep.store.folder(status.stage) / "effect").exists():
            os.kill(pid, signal.SIGCONT)
            return None
        os.kill(pid, signal.SIGKILL)
        return f"{status.stage} was killed"
    return None


def kill_a_script(sweep: Sweep) -> str | None:
    status = sweep.at_work(early=True)
    if status is None or status.process is None:
        return None
    job = _job_of(status.process["pid"])
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_text(errors="replace")
            if "slurm_script" in command and _job_of(int(folder.name)) == job:
                os.kill(int(folder.name), signal.SIGKILL)
                return f"the script of {status.stage} was killed"
    return None


def _job_of(pid: int) -> str | None:
    """The Slurm job that a process belongs to."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0"):
            if entry.startswith("SLURM_JOB_ID="):
                return entry
    return None


def requeue_a_job(sweep: Sweep) -> str | None:
    status = sweep.at_work(early=True)
    if status is None:
        return None
    told = subprocess.run(["scontrol", "requeue", str(status.job)], capture_output=True, text=True)
    return f"{status.stage} was queued again {told.stderr.strip()}"


def kill_slurmd(sweep: Sweep) -> str:
    return _interrupt(sweep, "slurmd")


def kill_slurmctld(sweep: Sweep) -> str:
    return _interrupt(sweep, "slurmctld")


def _interrupt(sweep: Sweep, daemon: str) -> str:
    seconds = sweep.rng.uniform(0.5, 3)
    sweep.own.kill(daemon)
    time.sleep(seconds)
    sweep.own.start(daemon)
    return f"{daemon} was away for {seconds:.1f} s"


MISFORTUNES: dict[Callable[[Sweep], str | None], int] = {
    kill_the_launcher: 4,
    kill_a_stage: 3,
    kill_a_script: 2,
    requeue_a_job: 3,
    kill_slurmd: 2,
    kill_slurmctld: 2,
}
"""How often each befalls a sweep."""


def operate(stuck: dict[str, float]) -> None:
    """What people do who look after a cluster: bring nodes back, and let jobs go on.

    ``stuck``: since when jobs have been running or completing. What a node that was away, or a
    controller, does not know of them is asked after a minute or a day; told to read its
    configuration again, Slurm does so at once.
    """
    command = ["sinfo", "-h", "-p", "main", "-o", "%n %T"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    node, _, state = told.strip().partition(" ")
    if state.startswith(("drain", "down")):
        _scontrol("update", f"NodeName={node}", "State=resume")
    now, jobs = time.monotonic(), slurm.queue() or {}
    at_work = {key for key, job in jobs.items() if job.state in ("RUNNING", "COMPLETING")}
    for key in set(stuck) - at_work:
        del stuck[key]
    if any(now - stuck.setdefault(key, now) > 12 for key in at_work):
        _scontrol("reconfigure")
        stuck.clear()
    for job in jobs.values():
        if job.state == "PENDING" and job.reason == "BeginTime":  # It would wait two minutes.
            _scontrol("update", f"JobId={job.key}", "StartTime=now")
        if job.state == "PENDING" and "held" in job.reason.lower():
            _scontrol("release", job.key)


def _scontrol(*arguments: str) -> None:
    """Tell Slurm something; where it came too late that is no harm."""
    subprocess.run(["scontrol", *arguments], capture_output=True, check=False)


def befall(sweep: Sweep) -> None:
    """Misfortunes in random order until they are used up, and the sweep to its end."""
    coming = [act for act, times in MISFORTUNES.items() for _ in range(times)]
    sweep.rng.shuffle(coming)
    rest, stuck = 3.0, dict[str, float]()
    while sweep.launcher.is_alive():
        assert time.monotonic() - sweep.began < LIMIT_S, sweep.describe()
        time.sleep(0.2)
        rest -= 0.2
        if coming and rest < 0 and (did := coming[-1](sweep)):
            sweep.say(did)
            coming.pop()
            rest = sweep.rng.uniform(0, 1.5)
        operate(stuck)
    sweep.say("the launcher ended")
    assert sweep.launcher.exitcode == 0, sweep.describe()
    left = [act.__name__ for act in coming]
    assert len(left) <= sum(MISFORTUNES.values()) // 2, f"it was over too soon for {left}"


@pytest.mark.parametrize("seed", SEEDS)
def test_every_stage_takes_effect_exactly_once(
    seed: int, own: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(graph.KINDS, "fake", Kind(function="fake_stages:effect", version=1))
    # A controller that is killed forgets what it was told last. Nothing here is late as on NFS.
    monkeypatch.setattr(slurm_executor, "LAG_S", 10.0)
    store = Store(tmp_path / "sweep")
    sweep = Sweep(store, random.Random(seed), own)
    try:
        befall(sweep)
        while (queue := slurm.queue()) is None:
            time.sleep(0.5)
        assert [job for job in queue.values() if not job.final and job.state != "COMPLETING"] == []
    finally:
        sweep.launcher.kill()
        sweep.launcher.join()
    assert store.launcher_process() is None
    for stage in sweep.plan.stages:
        folder = store.folder(stage)
        assert store.status(stage).state == "done"
        assert (folder / "effect").read_text() == "effect\n", "done once"
        assert not (folder / "overlap").exists(), "never two at once"
        pids = [int(pid) for pid in (folder / "starts").read_text().split()]
        assert [pid for pid in pids if process.start_of(pid) is not None] == []
