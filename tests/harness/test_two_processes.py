"""A real training on two processes, started, killed and resumed by the harness."""

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from harness.ablation_file import load_ablation
from harness.dispatch import Outcome, dispatch
from harness.executors.local import LocalExecutor
from harness.graph import Plan, make_plan
from harness.store import Store

TINY = Path(__file__).parents[1] / "slurm" / "tiny.yaml"
STEPS = 6
SETTINGS = {
    "data.size": 4 * STEPS,
    "parallel.strategy": "ddp",
    "resources.train": {"cpus": 2, "processes": 2, "mem_gb": 1},
}


def training() -> tuple[Plan, str]:
    """A plan of a base model and one training; the id of the latter."""
    ablation, start = load_ablation(TINY, SETTINGS)
    plan = make_plan(ablation, start, str(TINY))
    run = next(run for run in plan.runs if run.arm == plan.reference_arm)
    train = run.stages["train"]
    stages = {id: plan.stages[id] for id in (run.stages["base"], train)}
    return dataclasses.replace(plan, stages=stages), train


def metrics(store: Store, stage: str) -> list[dict[str, object]]:
    """What was logged, without what no two runs share."""
    file = store.folder(stage) / "metrics.jsonl"
    if not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    return [
        {k: v for k, v in row.items() if not k.startswith(("timing_s/", "perf/"))} for row in rows
    ]


def run(plan: Plan, store: Store) -> Outcome:
    store.directory.mkdir(exist_ok=True)
    return dispatch(plan, store, LocalExecutor(), retries=1, code="abc")


def ranks_of(store: Store, stage: str) -> dict[int, int]:
    """Rank -> process id of the ranks that live."""
    found, parents = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            if b"harness.ranks" not in command or str(store.folder(stage)).encode() not in command:
                continue
            environment = (folder / "environ").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        # None in a process that is just ending.
        for entry in environment:
            if entry.startswith(b"RANK="):
                found[int(folder.name)], parents[int(folder.name)] = int(entry[5:]), parent
    # What a rank starts looks like the rank itself until it runs its own program.
    return {rank: pid for pid, rank in found.items() if parents[pid] not in found}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_training_one_of_whose_ranks_is_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    plan, train = training()
    undisturbed = Store(tmp_path / "undisturbed")
    outcome = run(plan, undisturbed)
    assert outcome.complete, undisturbed.log(train).read_text()
    assert len(metrics(undisturbed, train)) == STEPS
    assert undisturbed.status(train).progress["total"] == STEPS

    store = Store(tmp_path / "killed")
    (base,) = set(plan.stages) - {train}
    shutil.copytree(undisturbed.folder(base), store.folder(base))

    def kill() -> None:
        # Looked for beforehand: on a busy machine that takes as long as the steps that are left.
        while 1 not in (ranks := ranks_of(store, train)):
            time.sleep(0.01)
        while len(metrics(store, train)) < 2:
            time.sleep(0.01)
        os.kill(ranks[1], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert run(plan, store).complete, store.log(train).read_text()
    killer.join(timeout=5)
    assert store.status(train).attempt == 2
    assert "rank 1 was killed by SIGKILL" in store.log(train).read_text()
    assert metrics(store, train) == metrics(undisturbed, train)
    weights = [s.folder(train) / "checkpoint" / "model.safetensors" for s in (store, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not ranks_of(store, train)
