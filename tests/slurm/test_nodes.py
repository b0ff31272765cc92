"""Stages on two nodes of a real Slurm: one group of processes, which lives and ends together."""

import dataclasses
import subprocess
import threading
import time

import conformance
from sweeps import stages

from harness.ablation import Resources
from harness.dispatch import Outcome, dispatch
from harness.executors.slurm import SlurmExecutor
from harness.graph import Plan
from harness.profile import Profile
from harness.store import Store

PROFILE = Profile(partition="pair", poll_seconds=0.3)
fake_kind, store = conformance.fake_kind, conformance.store


def on_two_nodes(config: dict[str, object]) -> Plan:
    plan = stages(("a", config, []))
    asks = Resources(nodes=2, processes=2, cpus=2, mem_gb=0.1)
    plan.stages["a"] = dataclasses.replace(plan.stages["a"], resources=asks)
    return plan


def run(plan: Plan, store: Store) -> Outcome:
    store.directory.mkdir(exist_ok=True)
    return dispatch(plan, store, SlurmExecutor(PROFILE), code="abc")


def test_two_nodes_make_one_group_of_processes(store: Store) -> None:
    assert run(on_two_nodes({}), store).complete, store.log("a").read_text()
    result = store.result("a")
    assert (result["WORLD_SIZE"], result["LOCAL_WORLD_SIZE"], result["RANK"]) == ("4", "2", "0")
    started = sorted(path.name for path in store.folder("a").glob("starts.*"))
    assert started == [f"starts.{rank}" for rank in range(4)]
    assert store.status("a").attempt == 1


def test_an_error_on_the_second_node_is_the_stages(store: Store) -> None:
    outcome = run(on_two_nodes({"fails": 3, "waits": True}), store)
    assert outcome.states == {"a": "failed"} and outcome.started == 1
    assert "rank 3 of 4 on " in store.status("a").error["message"]
    assert "the lamp is out" in store.status("a").error["message"]


def test_a_process_killed_on_the_second_node_takes_the_job_along(store: Store) -> None:
    assert run(on_two_nodes({"dies": 3, "waits": True}), store).complete
    assert store.status("a").attempt == 2
    assert "rank 3 was killed by SIGKILL" in store.log("a").read_text()


def test_a_job_on_two_nodes_that_has_to_leave_is_queued_again(store: Store) -> None:
    def displace() -> None:
        while sum(1 for _ in store.folder("a").glob("starts.*")) < 4:
            time.sleep(0.05)
        job = str(store.status("a").job)
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        while "PENDING" not in _state(job):
            time.sleep(0.05)
        # Slurm lets a job that was queued again wait for two minutes.
        subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True)

    thread = threading.Thread(target=displace, daemon=True)
    thread.start()
    assert run(on_two_nodes({"waits": True}), store).complete
    thread.join(timeout=5)
    assert not thread.is_alive() and store.status("a").attempt == 1
    assert len((store.folder("a") / "starts.0").read_text().splitlines()) == 2
    assert [path.name for path in sorted((store.folder("a") / "ranks").iterdir())] == ["1.0", "1.1"]


def _state(job: str) -> str:
    told = subprocess.run(
        ["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True, check=False
    )
    return told.stdout
