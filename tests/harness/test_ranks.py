"""A stage on several nodes: what Slurm would start on each, started here side by side."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import ranks
from harness.job import Task
from harness.store import Store

FOLLOW = """
import json, sys
from pathlib import Path
from harness import ranks
from harness.job import Task
task = Task(**json.loads(sys.argv[1]))
ranks.follow(task, Store(Path(task.directory)))
"""


def task_of(store: Store, config: dict[str, object]) -> Task:
    store.folder("a").mkdir(parents=True)
    return Task(
        id="a",
        function="fake_stages:stage",
        config=config,
        inputs={},
        directory=str(store.directory),
        attempt=1,
        cpus=2,
        nodes=2,
        processes=2,
    )


def follower(task: Task) -> "subprocess.Popen[bytes]":
    """The supervisor of the second node."""
    import json

    script = FOLLOW.replace("import json, sys", "import json, sys\nfrom harness.store import Store")
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(dataclasses.asdict(task))],
        env={**os.environ, "SLURM_NODEID": "1", "PYTHONPATH": paths},
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
