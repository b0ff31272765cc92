"""A stage on several nodes: what Slurm would start on each, started here side by side."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import ranks
from harness.store import Store
from harness.task import Task

PATHS = os.pathsep.join(path or os.getcwd() for path in sys.path)
FOLLOW = """
import json, sys
from pathlib import Path
from harness import ranks
from harness.task import Task
from harness.store import Store
task = Task(**json.loads(sys.argv[1]))
ranks.follow(task, Store(Path(task.directory)))
"""


RUN = """
import json, sys, time
from pathlib import Path
from harness import ranks
from harness.task import Task
from harness.store import Store
task = Task(**json.loads(sys.argv[1]))
ranks.run(task, Store(Path(task.directory)), lambda *_: time.sleep(float(sys.argv[2])))
"""


def task_of(store: Store, config: dict[str, object], *, nodes: int = 2) -> Task:
    store.folder("a").mkdir(parents=True)
    return Task(
        id="a",
        function="fake_stages:stage",
        config=config,
        inputs={},
        directory=str(store.directory),
        attempt=1,
        cpus=2,
        nodes=nodes,
        processes=2,
    )


def follower(task: Task) -> "subprocess.Popen[bytes]":
    """The supervisor of the second node."""
    return subprocess.Popen(
        [sys.executable, "-c", FOLLOW, json.dumps(dataclasses.asdict(task))],
        env={**os.environ, "SLURM_NODEID": "1", "PYTHONPATH": PATHS},
    )


def test_two_nodes_make_one_group_of_processes(tmp_path: Path) -> None:
    store, told = Store(tmp_path), []
    task = task_of(store, {})
    second = follower(task)
    result = ranks.run(task, store, lambda done, total, message: told.append(message))
    assert second.wait(timeout=20) == 0
    assert (result["RANK"], result["WORLD_SIZE"], result["LOCAL_WORLD_SIZE"]) == ("0", "4", "2")
    assert sorted(p.name for p in store.folder("a").glob("starts.*")) == [
        f"starts.{rank}" for rank in range(4)
    ]
    assert set(told) <= {"said by 0"}


@pytest.mark.parametrize("rank", [0, 3])
def test_an_error_on_either_node_ends_both(
    tmp_path: Path, rank: int, capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    task = task_of(store, {"fails": rank, "waits": True})
    second, began = follower(task), time.monotonic()
    with pytest.raises(ranks.RankError, match=f"rank {rank} of 4 on .*the lamp is out"):
        ranks.run(task, store, lambda *_: None)
    # Wherever it was printed on the first node: by the rank, or by its supervisor.
    assert "Traceback" in capfd.readouterr().err
    assert second.wait(timeout=20) == 0
    assert time.monotonic() - began < 55


def test_a_node_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    task = task_of(store, {})
    second = follower(task)
    time.sleep(0.5)
    assert ranks.run(task, store, lambda *_: None)["WORLD_SIZE"] == "4"
    assert second.wait(timeout=20) == 0


def test_a_rank_that_ends_without_a_word_on_another_node_ends_both(tmp_path: Path) -> None:
    store = Store(tmp_path)
    task = task_of(store, {"leaves": 3, "waits": True})
    second, began = follower(task), time.monotonic()
    with pytest.raises(ranks.RankError, match="rank 3 of 4 on .* with exit code 3"):
        ranks.run(task, store, lambda *_: None)
    assert second.wait(timeout=20) == 0
    assert time.monotonic() - began < 55


@pytest.mark.parametrize(
    ("config", "telling_s"),
    [
        # Rank 1 dies, and rank 0 fails over it, while the supervisor is busy with what it was told.
        ({"tells": 0, "tells_s": 1.0, "dies": 1, "fails": 0}, 3.0),
        # Rank 1 is long in dying, and rank 0 has missed it already.
        ({"fails": 0, "dies_slowly": 1}, 0.0),
    ],
    ids=["at once", "slowly"],
)
def test_a_killed_rank_takes_the_job_along_whatever_the_others_say_of_it(
    tmp_path: Path, config: dict[str, object], telling_s: float
) -> None:
    store = Store(tmp_path)
    task = task_of(store, config, nodes=1)
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(dataclasses.asdict(task)), str(telling_s)],
        env={**os.environ, "PYTHONPATH": PATHS},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "rank 1 was killed by SIGKILL" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the port is let go of at once")
def test_the_port_is_kept_for_the_first_rank(tmp_path: Path) -> None:
    with ranks._held_port() as port, socket.socket() as other, socket.socket() as first:
        with pytest.raises(OSError, match="in use"):
            other.bind(("", port))
        # As torch's store does.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(("", port))
        first.listen()
