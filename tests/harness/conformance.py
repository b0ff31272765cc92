"""What every executor must do: one suite over all implementations.

A test module imports all of it and lists its executors in ``EXECUTORS``: name -> what makes one;
``MANY`` is how many stages are many there.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps import stages

from harness import graph, process
from harness.dispatch import Outcome, dispatch
from harness.executors.base import Executor
from harness.executors.inline import InlineExecutor
from harness.graph import Plan
from harness.store import Status, Store
from observe.errors import InputError

Make = Callable[[], Executor]


def isolated(test: Callable[..., None]) -> Callable[..., None]:
    """Only for executors whose stages run in processes of their own."""
    test.isolated = True  # type: ignore[attr-defined]
    return test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test of the suite on what the importing module lists in EXECUTORS."""
    if "make" in metafunc.fixturenames:
        makes = metafunc.module.EXECUTORS
        if hasattr(metafunc.function, "isolated"):
            makes = {name: make for name, make in makes.items() if make is not InlineExecutor}
        metafunc.parametrize("make", list(makes.values()), ids=list(makes))


@pytest.fixture(autouse=True)
def fake_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graph.KINDS, "fake", graph.Kind(function="fake_stages:stage", version=1))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sweep")


def run(plan: Plan, store: Store, make: Make, retries: int = 2) -> Outcome:
    store.directory.mkdir(exist_ok=True)
    return dispatch(plan, store, make(), retries=retries, code="abc")


def interrupt(store: Store, stage: str, *pauses: float) -> None:
    """Once the stage is at work, send SIGINT to this process after each pause (seconds)."""

    def send() -> None:
        while not (store.log(stage).exists() and store.log(stage).read_text()):
            time.sleep(0.02)
        for pause in pauses:
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


def starts(store: Store, stage: str) -> list[str]:
    path = store.folder(stage) / "starts"
    return path.read_text().splitlines() if path.exists() else []


def test_stages_run_in_the_order_of_what_they_consume(make: Make, store: Store) -> None:
    plan = stages(("a", {}, []), ("b", {"x": 1.5}, ["a"]), ("c", {}, ["a", "b"]))
    outcome = run(plan, store, make)
    assert outcome.complete and outcome.started == 3
    assert store.result("c")["roles"] == ["input0", "input1"]
    assert store.result("b")["config"] == {"x": 1.5}
    ended = [e["stage"] for e in store.events() if e["event"] == "done"]
    assert ended == ["a", "b", "c"]


def test_status_tells_who_when_and_with_what_code(make: Make, store: Store) -> None:
    before = time.time()
    run(stages(("a", {}, [])), store, make)
    status = store.status("a")
    assert status.state == "done" and status.attempt == 1 and status.code == "abc"
    assert status.executor == make().name and status.process is not None
    assert before <= status.started <= status.ended <= time.time()
    assert 0 <= status.seconds < 30
    assert store.log("a").read_text() == "start 1\n"


def test_a_finished_stage_is_not_repeated(make: Make, store: Store) -> None:
    plan = stages(("a", {}, []), ("b", {}, ["a"]))
    run(plan, store, make)
    again = run(plan, store, make)
    assert again.complete and again.started == 0
    assert len(starts(store, "a")) == len(starts(store, "b")) == 1


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        ("raise", "ValueError", "a mistake of the stage"),
        ("bad_input", "InputError", "questions.jsonl:3: gold: missing; add it"),
        ("exit", "SystemExit", "the stage leaves"),
        ("unwritable", "TypeError", "Object of type object is not JSON serializable"),
    ],
)
def test_a_stage_that_fails_by_itself_fails_once(
    make: Make, store: Store, do: str, error: str, message: str
) -> None:
    plan = stages(("bad", {"do": do}, []), ("after", {}, ["bad"]), ("other", {}, []))
    outcome = run(plan, store, make)
    assert outcome.states == {"bad": "failed", "after": "cancelled", "other": "done"}
    assert store.status("bad").error == {"class": error, "message": message}
    assert len(starts(store, "bad")) == 1
    assert not (store.folder("bad") / "result.json").exists()
    assert error in store.log("bad").read_text() or do == "bad_input"


def test_what_depends_on_a_failed_stage_names_it_and_runs_when_it_is_mended(
    make: Make, store: Store
) -> None:
    plan = stages(("bad", {"do": "raise"}, []), ("next", {}, ["bad"]), ("last", {}, ["next"]))
    run(plan, store, make)
    for stage in ("next", "last"):
        error = store.status(stage).error
        assert error == {"class": "Blocked", "message": "it needs bad, which is failed"}
        assert starts(store, stage) == []
    mended = stages(("bad", {}, []), ("next", {}, ["bad"]), ("last", {}, ["next"]))
    assert run(mended, store, make).complete
    assert store.status("bad").attempt == 2


def test_ctrl_c_stops_running_stages_and_the_next_launch_goes_on(make: Make, store: Store) -> None:
    plan = stages(("long", {"do": "sleep", "seconds": 20}, []), ("after", {}, ["long"]))
    interrupt(store, "long", 1.0)
    began = time.monotonic()
    outcome = run(plan, store, make)
    assert time.monotonic() - began < 15
    assert outcome.stopped and not outcome.complete
    assert outcome.states == {"long": "cancelled", "after": "pending"}
    status = store.status("long")
    assert status.state == "cancelled" and status.error["class"] == "Cancelled"
    assert status.progress["message"] == "asleep"
    shorter = stages(("long", {"do": "sleep", "seconds": 0.1}, []), ("after", {}, ["long"]))
    assert run(shorter, store, make).complete
    assert store.status("long").attempt == 2
    assert store.status("long").earlier_seconds > 0.5


def test_a_stage_of_a_launcher_that_died_is_run_again(make: Make, store: Store) -> None:
    plan = stages(("a", {}, []))
    store.folder("a").mkdir(parents=True)
    child = subprocess.Popen([sys.executable, "-c", ""])
    dead = process.identity(child.pid)
    child.wait()
    store.write_status(Status(stage="a", state="running", attempt=1, process=dead))
    assert run(plan, store, make).complete
    assert store.status("a").attempt == 2
    assert [e["event"] for e in store.events()][0] == "lost"


def test_a_stage_that_still_runs_is_waited_for(make: Make, store: Store) -> None:
    store.folder("a").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"]) as child:
        alive = Status(stage="a", state="running", attempt=1, process=process.identity(child.pid))
        store.write_status(alive)
        threading.Thread(target=child.wait).start()
        began = time.monotonic()
        assert run(stages(("a", {}, [])), store, make).complete
    assert time.monotonic() - began > 0.8
    assert len(starts(store, "a")) == 1


def test_a_stage_on_a_machine_that_cannot_be_seen_is_left_alone(make: Make, store: Store) -> None:
    store.folder("a").mkdir(parents=True)
    elsewhere = {**process.identity(), "host": "elsewhere"}
    store.write_status(Status(stage="a", state="running", attempt=1, process=elsewhere))
    with pytest.raises(InputError, match="running on elsewhere.*--gone"):
        run(stages(("a", {}, [])), store, make)
    assert store.status("a").state == "running" and starts(store, "a") == []


@isolated
def test_a_killed_worker_is_replaced_and_its_stage_tried_again(make: Make, store: Store) -> None:
    plan = stages(("a", {"do": "die_once"}, []), ("b", {}, ["a"]))
    outcome = run(plan, store, make)
    assert outcome.complete
    assert len(set(starts(store, "a"))) == 2, "another process"
    assert store.status("a").attempt == 2
    retries = [e["detail"] for e in store.events() if e["event"] == "retry"]
    assert len(retries) == 1 and "was killed by SIGKILL (out of memory?)" in retries[0]


@isolated
@pytest.mark.parametrize("retries", [0, 2])
def test_a_stage_that_kills_every_worker_fails(make: Make, store: Store, retries: int) -> None:
    plan = stages(("bad", {"do": "die"}, []), ("after", {}, ["bad"]), ("other", {}, []))
    outcome = run(plan, store, make, retries=retries)
    assert outcome.states == {"bad": "failed", "after": "cancelled", "other": "done"}
    assert len(starts(store, "bad")) == retries + 1
    assert store.status("bad").error["class"] == "WorkerDied"
    assert "SIGKILL" in store.status("bad").error["message"]


@isolated
def test_what_a_killed_worker_started_dies_too(make: Make, store: Store) -> None:
    run(stages(("bad", {"do": "die_with_child"}, [])), store, make, retries=0)
    child = int((store.folder("bad") / "child").read_text())
    deadline = time.monotonic() + 5
    while process.start_of(child) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.start_of(child) is None


@isolated
def test_threads_are_those_of_the_resources(make: Make, store: Store) -> None:
    run(stages(("a", {}, []), cpus=1), store, make)
    run(stages(("b", {}, []), cpus=3), store, make)
    assert store.result("a")["threads"] == "1"
    assert store.result("b")["threads"] == "3"


@isolated
def test_no_process_is_left(make: Make, store: Store) -> None:
    plan = stages(("a", {}, []), ("b", {}, []), ("bad", {"do": "die"}, []))
    run(plan, store, make, retries=1)
    pids = {int(pid) for stage in plan.stages for pid in starts(store, stage)}
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()], "not even a zombie"


@isolated
def test_a_second_ctrl_c_kills(make: Make, store: Store) -> None:
    plan = stages(("stubborn", {"do": "stubborn"}, []))
    interrupt(store, "stubborn", 0.5, 1.0)
    began = time.monotonic()
    outcome = run(plan, store, make)
    assert time.monotonic() - began < 12, "no waiting for the grace period's end"
    assert outcome.states == {"stubborn": "cancelled"}


def test_many_stages_are_each_run_once(
    make: Make, store: Store, request: pytest.FixtureRequest
) -> None:
    count = request.module.MANY
    # Every tenth consumes the one before it.
    described = [(f"s{i}", {"i": i}, [f"s{i - 1}"] if i % 10 == 9 else []) for i in range(count)]
    outcome = run(stages(*described), store, make)
    assert outcome.complete and outcome.started == count
    assert all(len(starts(store, f"s{i}")) == 1 for i in range(count))
    assert [event["event"] for event in store.events()].count("done") == count


def test_every_stage_of_a_warm_process_has_its_own_log(
    make: Make, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = stages(*((f"s{i}", {"do": "log", "i": i}, []) for i in range(6)))
    with capsys.disabled():
        run(plan, store, make)
    for i in range(6):
        lines = store.log(f"s{i}").read_text().splitlines()
        assert sorted(lines) == [f"from a child {i}", f"logged {i}", "start 1"]


def alive(store: Store, stage: str) -> list[int]:
    """Ranks of a stage, of all its starts, that are still there."""
    pids = [int(pid) for file in store.folder(stage).glob("starts.*") for pid in file.open()]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@isolated
def test_a_stage_on_several_processes_has_the_result_of_the_first(make: Make, store: Store) -> None:
    assert run(stages(("a", {}, []), cpus=2, processes=2), store, make).complete
    found = store.result("a")
    assert 0 < found.pop("port") < 65536
    assert found == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    assert not alive(store, "a")


@isolated
def test_the_first_error_of_a_process_ends_all_and_is_the_stages(make: Make, store: Store) -> None:
    plan = stages(
        ("a", {"fails": 1, "waits": True}, []), ("b", {"bad_input": 0, "waits": True}, []),
        processes=2,
    )  # fmt: skip
    began = time.monotonic()
    outcome = run(plan, store, make)
    assert outcome.states == {"a": "failed", "b": "failed"} and outcome.started == 2
    error = store.status("a").error
    assert error["class"] == "RankError" and "ValueError: the lamp is out" in error["message"]
    assert error["message"].startswith("rank 1 of 2 on ")
    assert "Traceback" in store.log("a").read_text()
    assert store.status("b").error == {
        "class": "InputError",
        "message": "questions.jsonl:3: gold: missing; add it",
    }
    assert time.monotonic() - began < 55 and not alive(store, "a") + alive(store, "b")


@isolated
def test_a_stage_one_of_whose_processes_was_killed_is_tried_again(make: Make, store: Store) -> None:
    outcome = run(stages(("a", {"dies": 1, "waits": True}, []), processes=2), store, make)
    assert outcome.complete and store.status("a").attempt == 2
    assert "rank 1 was killed by SIGKILL (out of memory?)" in store.log("a").read_text()
    assert not alive(store, "a")


@isolated
def test_all_processes_of_a_stage_stop_with_the_sweep(make: Make, store: Store) -> None:
    def stop() -> None:
        while sum(1 for _ in store.folder("a").glob("starts.*")) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    outcome = run(stages(("a", {"waits": True}, []), processes=2), store, make)
    assert outcome.stopped and outcome.states == {"a": "cancelled"}
    assert not alive(store, "a")
