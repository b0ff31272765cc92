"""The folder of a sweep under corruption, concurrency and death."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import machine, process, provenance
from harness.store import Status, Store, write_atomically
from observe.errors import InputError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sweep")


def test_a_status_is_read_as_it_was_written(store: Store) -> None:
    status = Status(stage="a", state="running", attempt=2, started=1.0, heartbeat=4.0)
    store.write_status(status)
    assert store.status("a") == status
    assert status.seconds == 3.0
    assert store.status("b") == Status(stage="b")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"stage": "a", "state": "finished"}', '{"state": "done"}',
     '{"stage": "b", "state": "done"}', '{"stage": "a", "other": 1}'],
)  # fmt: skip
def test_a_corrupt_status_is_neither_done_nor_pending(store: Store, text: str) -> None:
    store.folder("a").mkdir(parents=True)
    (store.folder("a") / "status.json").write_text(text)
    with pytest.raises(InputError, match="status.json: not a stage's status.*delete the folder"):
        store.status("a")


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"


def append(store: Store, writer: int) -> None:
    for i in range(100):
        store.event("tick", writer=writer, i=i, padding="x" * 200)


def test_writers_of_events_do_not_mix_lines(store: Store) -> None:
    store.directory.mkdir()
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append, args=(store, i)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = store.events()
    assert len(events) == 400
    for writer in range(4):
        assert [e["i"] for e in events if e["writer"] == writer] == list(range(100))


def test_half_a_line_does_not_swallow_the_next(store: Store) -> None:
    store.directory.mkdir()
    assert store.events() == []
    store.event("one")
    with (store.directory / "events.jsonl").open("a") as file:
        file.write('{"event": "tor')
    store.event("two")
    assert [event["event"] for event in store.events()] == ["one", "two"]


def test_a_message_may_hold_any_character(store: Store) -> None:
    store.directory.mkdir()
    message = "one\ntwo\u2028three\x85four"
    store.event("failed", message=message)
    assert [event["message"] for event in store.events()] == [message]


def test_a_second_launcher_is_refused_and_death_releases_the_first(store: Store) -> None:
    code = """
import sys, time
from pathlib import Path
from harness.store import Store
with Store(Path(sys.argv[1])).launcher():
    print("held", flush=True)
    time.sleep(60)
"""
    arguments = [sys.executable, "-c", code, str(store.directory)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert process.liveness(store.launcher_process()) == "alive"
        with (
            pytest.raises(InputError, match=f"process {holder.pid} on .* is running this sweep"),
            store.launcher(),
        ):
            pass
        holder.kill()
    assert process.liveness(store.launcher_process()) == "dead"
    with store.launcher():
        assert store.launcher_process()["pid"] == os.getpid()
    assert store.launcher_process() is None


def test_liveness_is_known_only_where_it_can_be_seen() -> None:
    me = process.identity()
    assert process.liveness(me) == "alive"
    assert process.liveness({**me, "start": me["start"] - 1}) == "dead", "a reused process id"
    assert process.liveness({**me, "pid": 2**22 + 1}) == "dead"
    assert process.liveness({**me, "boot": "before"}) == "dead", "the machine was restarted"
    assert process.liveness({**me, "host": "elsewhere"}) == "unknown"
    assert process.liveness({**me, "namespace": "pid:[1]"}) == "unknown", "another container"
    assert process.liveness(None) == "unknown"


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    identity = process.identity(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.liveness(identity) == "dead"
    child.wait()


def test_ps_tells_the_same() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        started = process.start_by_ps(child.pid)
        assert started and started == process.start_by_ps(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.start_by_ps(child.pid) is None, "a zombie"
    assert process.start_by_ps(child.pid) is None


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 64), ("250000 100000", 2), ("50000 100000", 1), ("", 64)]
)
def test_a_containers_quota_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
        (tmp_path / "memory.max").write_text(str(2**30) + "\n")
    assert machine.cores() == expected
    assert machine.memory_gb() == 1.0 or not quota


def test_visible_gpus_are_those_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7")
    assert machine.gpus() == ["2", "GPU-7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus() == []


def test_status_is_plain_json(store: Store) -> None:
    store.write_status(Status(stage="a", process=process.identity()))
    content = json.loads((store.folder("a") / "status.json").read_text())
    assert content["state"] == "pending" and content["process"]["pid"] == os.getpid()


def test_the_code_is_a_commit_only_where_the_files_are_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(\+dirty)?|observe-ablations .*", provenance.code())
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    copy = tmp_path / "provenance.py"
    copy.write_text("")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "__file__", str(copy))
    monkeypatch.setattr(provenance, "PACKAGE", "pytest")
    assert provenance.code() == f"pytest {pytest.__version__}"
    monkeypatch.setattr(provenance, "PACKAGE", "nobody-has-this-package")
    assert provenance.code() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "add", "provenance.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "m"], check=True)
    assert re.fullmatch(r"[0-9a-f]{40}", provenance.code())
    copy.write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{40}\+dirty", provenance.code())
