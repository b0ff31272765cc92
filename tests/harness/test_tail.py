"""What one run is doing, as ``harness.status --run`` shows it."""

import dataclasses
import threading
import time
from pathlib import Path

import pytest
from sweeps import plan_of, write_ablation

from harness import status, tail
from harness.graph import Plan, write_plan
from harness.store import Status, Store
from observe.errors import InputError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A sweep whose first run is being trained."""
    store = Store(tmp_path / "sweep")
    store.directory.mkdir()
    write_plan(plan_of(write_ablation(tmp_path)), store.plan_file)
    run = running(store)
    for kind in ("base", "train"):
        stage = run.stages[kind]
        store.folder(stage).mkdir(parents=True)
        state = "done" if kind == "base" else "running"
        store.write_status(Status(stage=stage, state=state, started=time.time()))  # type: ignore[arg-type]
    train = run.stages["train"]
    progress = {"done": 2, "total": 4, "message": "reward 0.500"}
    store.write_status(dataclasses.replace(store.status(train), progress=progress))
    store.log(train).write_text("loading\nstep 1\nstep 2\nhalf a li")
    (store.folder(train) / "metrics.jsonl").write_text('{"step": 2, "reward": 0.5, "note": "x"}\n')
    return store


def plan(store: Store) -> Plan:
    return status.read_plan(store.plan_file)


def running(store: Store) -> tail.Run:
    return tail.run_of(plan(store), "control/seed0")


def test_a_run_is_shown_with_its_last_metrics_and_the_end_of_its_log(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(store.directory), "--run", "control/seed0", "--lines", "2"]
    assert status.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "control/seed0"
    assert "  train     running 2/4 reward 0.500" in lines
    assert "  step 2: reward 0.5" in lines
    assert lines[-2:] == ["  step 2", "  half a li"]


def test_following_ends_with_the_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "LOOK_S", 0.02)
    run = running(store)

    def go_on() -> None:
        train = run.stages["train"]
        with store.log(train).open("a") as file:
            file.write("ne\nstep 3\n")
        with (store.folder(train) / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "reward": 0.75}\n')
        time.sleep(0.1)
        for stage in run.stages.values():
            store.folder(stage).mkdir(parents=True, exist_ok=True)
            store.write_status(Status(stage=stage, state="done"))

    followed = tail.follow(run, store)
    threading.Timer(0.1, go_on).start()
    assert list(followed)[-3:] == ["ne", "step 3", "step 3: reward 0.75"]


def test_metrics_that_were_taken_back_are_shown_when_they_come_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(store)
    metrics = store.folder(run.stages["train"]) / "metrics.jsonl"
    rows = [f'{{"step": {step}, "reward": {step / 10}}}\n' for step in range(1, 8)]
    metrics.write_text("".join(rows[:5]))

    def end() -> None:
        for stage in run.stages.values():
            store.folder(stage).mkdir(parents=True, exist_ok=True)
            store.write_status(Status(stage=stage, state="done"))

    # What happens between two looks.
    happens = iter(
        [
            lambda: metrics.write_text("".join(rows[:2])),
            lambda: metrics.write_text("".join(rows)),
            end,
        ]
    )
    monkeypatch.setattr(tail.time, "sleep", lambda seconds: next(happens)())
    shown = [line for line in tail.follow(run, store) if line.startswith("step ")]
    assert shown == [f"step {step}: reward {step / 10:.4g}" for step in range(3, 8)]


def test_a_failed_stage_is_the_one_that_is_shown(store: Store) -> None:
    run = running(store)
    store.folder(run.stages["evaluate"]).mkdir(parents=True)
    store.write_status(Status(stage=run.stages["evaluate"], state="cancelled"))
    train = run.stages["train"]
    store.write_status(Status(stage=train, state="failed"))
    assert tail.current_stage(run, store) == train


def test_an_unknown_run_is_named_with_those_there_are(store: Store) -> None:
    with pytest.raises(InputError, match="--run contrl: .*control/seed0"):
        tail.run_of(plan(store), "contrl")
