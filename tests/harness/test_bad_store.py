"""A sweep's folder that takes no more: one clear error, and nothing that is done is lost."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import conformance
import pytest
from conformance import run, starts
from sweeps import stages, write_ablation

from harness.executors.local import LocalExecutor
from harness.store import Store, Unwritable, write_atomically

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(Path(__file__).parent / "fake_sweep.py"), "ablation.yaml"]
fake_kind = conformance.fake_kind


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of sixteen megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16M", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def launch(folder: Path, out: Path, step_s: float = 0.0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "--out", str(out)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FAKE_STEP_S": str(step_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def done(store: Store) -> dict[str, str]:
    """Finished stage -> how often it was started."""
    folders = store.directory.glob("stages/*")
    finished = [f for f in folders if store.status(f.name).state == "done"]
    return {folder.name: (folder / "starts").read_text() for folder in finished}


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def fill(folder: Path) -> Path:
    """Leave no room on a file system."""
    filler = folder / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def says_once(said: str, reason: str) -> None:
    """That the command ends with this one error, and with no trace of Python's."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and reason in errors[0], said
    assert "--out" in errors[0] and "Traceback" not in said, said


def test_a_disk_that_fills_up_is_one_error_and_costs_nothing_that_is_done(
    tmp_path: Path, disk: Path
) -> None:
    write_ablation(tmp_path, {"design": "leave_one_out", "variants": {}})
    store = Store(disk / "small")
    launcher = launch(tmp_path, disk, step_s=0.1)
    wait_for(lambda: len(done(store)) >= 3)
    filler = fill(disk)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    says_once(said, "No space left on device); free some space there")
    assert str(store.directory) in said
    kept = done(store)
    assert len(kept) >= 3
    full = launch(tmp_path, disk)
    says_once(full.communicate(timeout=60)[0], "No space left on device")
    assert full.returncode == 2
    filler.unlink()
    again = launch(tmp_path, disk)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert kept.items() <= done(store).items(), "nothing finished was repeated"


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path, disk: Path) -> None:
    write_ablation(tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    launcher = launch(tmp_path, disk)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    says_once(said, f"{disk}/small")
    assert "Read-only file system); make it writable" in said


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


@needs_dev_full
def test_a_history_without_room_stops_the_launch(tmp_path: Path) -> None:
    write_ablation(tmp_path)
    store = Store(tmp_path / "runs" / "small")
    store.directory.mkdir(parents=True)
    (store.directory / "events.jsonl").symlink_to("/dev/full")
    launcher = launch(tmp_path, tmp_path / "runs")
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    says_once(said, f"{store.directory}/events.jsonl: cannot be written (No space left on device)")


@needs_dev_full
def test_a_stage_that_cannot_write_fails_with_the_reason_and_runs_when_it_can(
    tmp_path: Path,
) -> None:
    store, plan = Store(tmp_path / "sweep"), stages(("a", {}, []), ("b", {}, []))
    store.folder("a").mkdir(parents=True)
    store.log("a").symlink_to("/dev/full")
    outcome = run(plan, store, LocalExecutor)
    assert outcome.states == {"a": "failed", "b": "done"}
    assert "No space left on device" in store.status("a").error["message"]
    store.log("a").unlink()
    assert run(plan, store, LocalExecutor).complete
    assert len(starts(store, "b")) == 1


def test_half_a_file_is_neither_taken_for_the_whole_nor_left(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from harness.store import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
write_atomically(Path(sys.argv[1]), "new " * 1000)
"""
    path = tmp_path / "file"
    write_atomically(path, "old")
    writer = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert f"{path}: cannot be written (File too large)" in writer.stderr
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_stands_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "sweep")
    with pytest.raises(Unwritable, match="cannot be written .Not a directory"), store.launcher():
        pass
