"""What Slurm alone has: arrays, limits, jobs that outlive their launcher, pre-emption, silence."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import conformance
import pytest
from cluster import MAX_ARRAY_SIZE, steps_on_this_node
from conformance import starts
from sweeps import stages

from harness import cancel, slurm, status
from harness.ablation import Resources
from harness.dispatch import Outcome, dispatch
from harness.executors import slurm as slurm_executor
from harness.executors import slurm_array
from harness.executors.slurm import SlurmExecutor
from harness.graph import Plan, write_plan
from harness.profile import Profile
from harness.store import State, Status, Store
from harness.task import Task
from observe.errors import InputError

PROFILE = Profile(poll_seconds=0.3)
fake_kind, store = conformance.fake_kind, conformance.store


def run(plan: Plan, store: Store, profile: Profile = PROFILE, **options: object) -> Outcome:
    store.directory.mkdir(exist_ok=True)
    return dispatch(plan, store, SlurmExecutor(profile), code="abc", **options)  # type: ignore[arg-type]


LAUNCHERS: list[multiprocessing.Process] = []


def launch(plan: Plan, store: Store) -> multiprocessing.Process:
    """A launcher in a process of its own."""
    store.directory.mkdir(exist_ok=True)
    write_plan(plan, store.plan_file)
    context = multiprocessing.get_context("fork")
    launcher = context.Process(target=run, args=(plan, store))
    launcher.start()
    LAUNCHERS.append(launcher)  # type: ignore[arg-type]
    return launcher  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def no_launcher_left() -> Iterator[None]:
    yield
    while LAUNCHERS:
        LAUNCHERS.pop().kill()


def kill(launcher: multiprocessing.Process) -> None:
    assert launcher.pid
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.join()


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def asking(plan: Plan, **resources: float) -> Plan:
    """The plan with other resources for every stage."""
    asked = Resources(**{"mem_gb": 0.1, **resources})  # type: ignore[arg-type]
    changed = {id: dataclasses.replace(s, resources=asked) for id, s in plan.stages.items()}
    return dataclasses.replace(plan, stages=changed)


def waiting_or_running() -> list[slurm.Job]:
    jobs = slurm.queue()
    assert jobs is not None
    return [job for job in jobs.values() if not job.final]


def events(store: Store, *names: str) -> list[dict[str, object]]:
    return [event for event in store.events() if event["event"] in names]


def meanwhile(act: Callable[[], None]) -> None:
    """Act beside the launcher; stop that when something goes wrong here."""

    def guarded() -> None:
        try:
            act()
        except BaseException:
            os.kill(os.getpid(), signal.SIGINT)
            raise

    threading.Thread(target=guarded, daemon=True).start()


def start_now(store: Store, stage: str) -> None:
    """Spare the two minutes that Slurm makes a requeued job wait."""
    wait_for(lambda: store.status(stage).state == "submitted", 90)
    job = str(store.status(stage).job)
    wait_for(lambda: (slurm.queue() or {})[job].state == "PENDING")
    # What they still tell of the first start, Slurm would take for the end of the second.
    wait_for(lambda: not steps_on_this_node(job))
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def test_arrays_are_no_longer_than_allowed_and_the_queue_no_fuller(store: Store) -> None:
    plan = stages(*((f"s{i}", {"i": i}, []) for i in range(2 * MAX_ARRAY_SIZE + 2)))
    most = 0

    def watch(states: dict[str, State]) -> None:
        nonlocal most
        most = max(most, sum(job.state != "COMPLETING" for job in waiting_or_running()))

    limit = MAX_ARRAY_SIZE + 2
    profile = dataclasses.replace(PROFILE, max_submitted=limit)
    assert run(plan, store, profile, watch=watch).complete
    assert all(len(starts(store, stage)) == 1 for stage in plan.stages)
    assert 2 <= most <= limit
    sizes = [
        len(json.loads(marker.read_text())["tasks"])
        for marker in (store.directory / "slurm").glob("*/array.json")
    ]
    assert sum(sizes) == len(plan.stages) and max(sizes) == MAX_ARRAY_SIZE


def test_resources_and_profile_become_the_job(store: Store) -> None:
    plan = asking(stages(("a", {}, []), cpus=2), cpus=2, mem_gb=0.5, hours=3)
    profile = dataclasses.replace(
        PROFILE,
        partition="main",
        setup=("export FAKE=1",),
        time_limit_factor=1.5,
        sbatch={"comment": "a question"},
    )
    assert run(plan, store, profile).complete
    command = ["scontrol", "show", "job", "-o", str(store.status("a").job)]
    job = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for part in ("CPUs/Task=2", "mem=512M", "TimeLimit=04:30:00", "Partition=main"):
        assert part in job
    assert "Comment=a question" in job and re.search(r"JobName=sweep-[0-9a-f]{16} ", job)
    assert store.result("a")["threads"] == "2" and store.result("a")["gpus"] == ""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_launcher_killed_around_sbatch_neither_loses_nor_doubles_a_job(
    moment: str,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    send = f'{shutil.which("sbatch")} "$@"\n' if moment == "after" else ""
    sbatch.write_text(f"#!/bin/sh\n{send}kill -9 $PPID\n")
    sbatch.chmod(0o755)
    plan = stages(("a", {}, []), ("b", {}, []), ("c", {}, ["a", "b"]))
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
        launcher = launch(plan, store)
        launcher.join()
    assert launcher.exitcode == -signal.SIGKILL
    assert run(plan, store).complete
    for stage in plan.stages:
        assert len(starts(store, stage)) == 1 and store.status(stage).attempt == 1
    assert events(store, "lost", "retry") == []


def test_another_launcher_takes_over_what_runs_and_what_waits(store: Store) -> None:
    work = {"do": "sleep", "seconds": 6}
    plan = stages(*((f"s{i}", {**work, "i": i}, []) for i in range(3)), ("last", {}, ["s0"]))
    wide = asking(plan, cpus=4)  # Two fit at a time.
    launcher = launch(wide, store)
    wait_for(lambda: [s for s in wide.stages if starts(store, s)])
    kill(launcher)
    assert status.main([str(store.directory)]) == 1
    assert run(wide, store).complete
    assert all(len(starts(store, stage)) == 1 for stage in wide.stages)
    assert events(store, "lost", "retry") == []


def test_cancel_leaves_nothing_in_the_queue(
    store: Store,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = {"do": "sleep", "seconds": 60}
    plan = asking(stages(*((f"s{i}", {**work, "i": i}, []) for i in range(4))), cpus=4)
    launcher = launch(plan, store)
    wait_for(lambda: any(s.state == "running" for s in map(store.status, plan.stages)))
    kill(launcher)
    assert status.main([str(store.directory)]) == 1
    assert "running: s" in capsys.readouterr().out  # Slurm says which of the four is first.
    assert cancel.main([str(store.directory)]) == 0
    assert {store.status(stage).state for stage in plan.stages} == {"cancelled"}
    assert waiting_or_running() == []


def test_a_displaced_job_is_queued_again_and_goes_on(store: Store) -> None:
    plan = stages(("a", {"do": "wait_once"}, []))

    def displace() -> None:
        wait_for(lambda: starts(store, "a"))
        subprocess.run(["scancel", "--signal=USR2", str(store.status("a").job)], check=True)
        start_now(store, "a")

    meanwhile(displace)
    assert run(plan, store).complete
    assert len(starts(store, "a")) == 2 and store.status("a").attempt == 1
    assert store.status("a").earlier_seconds > 0
    assert events(store, "retry") == [] and len(events(store, "submitted")) == 2


def test_a_job_that_reaches_its_time_limit_goes_on_in_the_next(store: Store) -> None:
    plan = stages(("a", {"do": "wait_once"}, []))
    profile = dataclasses.replace(PROFILE, min_minutes=1, max_minutes=1)

    def hurry() -> None:
        wait_for(lambda: starts(store, "a"))
        start_now(store, "a")

    meanwhile(hurry)
    assert run(plan, store, profile).complete
    assert len(starts(store, "a")) == 2 and store.status("a").attempt == 1
    assert store.status("a").earlier_seconds > 10


def test_a_stage_that_never_gets_done_is_not_queued_for_ever(store: Store) -> None:
    plan = stages(("a", {"do": "wait_once"}, []))

    def displace() -> None:
        wait_for(lambda: starts(store, "a"))
        subprocess.run(["scancel", "--signal=USR2", str(store.status("a").job)], check=True)

    meanwhile(displace)
    outcome = run(plan, store, dataclasses.replace(PROFILE, max_requeues=0))
    assert outcome.states == {"a": "failed"} and len(starts(store, "a")) == 1
    error = store.status("a").error
    assert error and error["class"] == "TimeLimit" and "raise the stage's hours" in error["message"]


def node() -> tuple[str, str]:
    """The node of partition ``main``, and its state."""
    asked = ["sinfo", "-h", "-p", "main", "-o", "%n %T"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    name, _, state = told.strip().partition(" ")
    return name, state


def set_node(state: str) -> None:
    # Refused where the node has come back by itself already.
    update = ["scontrol", "update", f"NodeName={node()[0]}", f"State={state}", "Reason=test"]
    subprocess.run(update, check=False)


def node_is_up() -> bool:
    """Whether it takes jobs; it is told to."""
    if node()[1].startswith(("down", "drain")):
        set_node("resume")
    return node()[1] in ("idle", "mixed", "allocated")


@pytest.fixture(autouse=True)
def node_that_works() -> Iterator[None]:
    """What a failed test did to the node must not keep the next one's jobs from it."""
    yield
    wait_for(node_is_up)


def test_a_job_whose_node_fails_is_started_again(store: Store) -> None:
    plan = stages(("a", {"do": "wait_once"}, []))

    def fail() -> None:
        wait_for(lambda: starts(store, "a"))
        job = str(store.status("a").job)
        set_node("down")
        wait_for(lambda: [job for job in waiting_or_running() if job.state == "PENDING"])
        # The node takes no second copy of a job: what is left of the first must have gone.
        wait_for(lambda: not steps_on_this_node(job))
        wait_for(node_is_up)
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
        # It may still find that it has a copy, and Slurm takes it away then.
        wait_for(lambda: node_is_up() and len(starts(store, "a")) == 2)

    meanwhile(fail)
    assert run(plan, store).complete
    assert len(starts(store, "a")) == 2


def test_a_job_that_its_node_does_not_take_is_sent_anew(store: Store) -> None:
    plan = stages(("a", {}, []))
    configuration = Path(os.environ["SLURM_CONF"])
    text = configuration.read_text()

    def reconfigure(text: str) -> None:
        configuration.write_text(text)
        subprocess.run(["scontrol", "reconfigure"], check=True)

    def mend() -> None:
        wait_for(lambda: events(store, "retry"))
        reconfigure(text)
        wait_for(node_is_up)

    reconfigure(text + "Prolog=/bin/false\n")
    try:
        meanwhile(mend)
        assert run(plan, store).complete
    finally:
        reconfigure(text)
    (lost,) = events(store, "retry")
    assert "launch failed" in str(lost["detail"])
    assert len(starts(store, "a")) == 1 and waiting_or_running() == []


def test_silence_of_slurm_is_not_the_death_of_a_job(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = stages(("a", {"do": "sleep", "seconds": 15}, []), ("b", {}, ["a"]))
    configuration, nobody = os.environ["SLURM_CONF"], tmp_path / "slurm.conf"
    text = Path(configuration).read_text()
    nobody.write_text(re.sub("SlurmctldPort=.*", "SlurmctldPort=1", text))

    def silence() -> None:
        wait_for(lambda: starts(store, "a"))
        monkeypatch.setenv("SLURM_CONF", str(nobody))
        try:
            assert slurm.queue() is None
        finally:
            monkeypatch.setenv("SLURM_CONF", configuration)

    meanwhile(silence)
    assert run(plan, store).complete
    assert "Slurm does not answer" in capsys.readouterr().out
    assert len(starts(store, "a")) == 1 and events(store, "retry") == []


def test_what_slurm_refuses_is_bad_input_and_can_be_mended(store: Store) -> None:
    plan = stages(("a", {}, []))
    with pytest.raises(InputError, match=r"resources.a \(1 cpus, .*Memory specification"):
        run(asking(plan, mem_gb=10_000), store)
    with pytest.raises(InputError, match="invalid partition specified: nowhere"):
        run(plan, store, dataclasses.replace(PROFILE, partition="nowhere"))
    assert waiting_or_running() == []
    assert run(plan, store).complete


def test_a_job_queued_again_while_nobody_watched_is_taken_up(store: Store) -> None:
    plan = stages(("a", {"do": "wait_once"}, []))
    launcher = launch(plan, store)
    wait_for(lambda: starts(store, "a"))
    kill(launcher)
    job = str(store.status("a").job)
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for(lambda: (slurm.queue() or {})[job].state == "PENDING")
    meanwhile(lambda: start_now(store, "a"))
    assert run(plan, store).complete
    assert len(starts(store, "a")) == 2 and store.status("a").attempt == 1
    assert events(store, "lost", "retry") == []


def test_a_job_queued_again_after_its_end_is_taken_out(store: Store) -> None:
    plan = stages(("a", {}, []))

    def requeue() -> None:
        wait_for(lambda: store.status("a").state == "done")
        job = str(store.status("a").job)
        wait_for(lambda: (slurm.queue() or {})[job].final)
        subprocess.run(["scontrol", "requeue", job], check=True)

    meanwhile(requeue)
    # It looks first before the stage has begun, and then when it is queued again.
    assert run(plan, store, dataclasses.replace(PROFILE, poll_seconds=6)).complete
    assert waiting_or_running() == []
    assert len(starts(store, "a")) == 1


def test_an_id_that_slurm_gave_out_again_is_another_job(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_executor, "LAG_S", 1.0)
    sbatch = ["sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true"]
    other = subprocess.run(sbatch, capture_output=True, text=True, check=True).stdout.strip()
    plan = stages(("a", {}, []))
    task = Task(
        id="a",
        function="fake_stages:stage",
        config={},
        inputs={},
        directory=str(store.directory),
        attempt=1,
    )
    store.write_status(Status(stage="a", state="submitted", attempt=1, executor="slurm"))
    tasks, sent = [task], time.time() - 1000
    name = slurm_array.name_of(tasks)
    slurm_array.Array(
        name=name, sent=sent, minutes=10, max_requeues=1, tasks=tasks, job=other
    ).write()
    assert run(plan, store).complete
    assert store.status("a").attempt == 2 and len(starts(store, "a")) == 1
    assert [job.key for job in waiting_or_running()] == [other], "it is none of ours"


def test_a_job_of_an_earlier_question_is_left_alone(store: Store) -> None:
    long = {"do": "sleep", "seconds": 60}
    launcher = launch(stages(("a", long, []), ("b", {}, [])), store)
    wait_for(lambda: starts(store, "a") and store.status("b").state == "done")
    kill(launcher)
    assert run(stages(("b", {}, []), ("c", {}, ["b"])), store).complete
    assert store.status("a").state == "running" and len(starts(store, "b")) == 1
    assert len(waiting_or_running()) == 1
