"""What can be deleted of a sweep, and that nothing else is."""

import dataclasses
import json
from pathlib import Path

import pytest
from sweeps import plan_of, write_ablation

from harness import gc, process
from harness.executors.slurm_array import Array
from harness.graph import Plan, write_plan
from harness.launch import Launch
from harness.store import State, Status, Store, write_atomically
from harness.task import Task


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(write_ablation(tmp_path))


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Store:
    """A finished sweep: every training has a model and its optimizer state."""
    store = Store(tmp_path / "runs" / "small")
    write_plan(plan, store.plan_file)
    for stage in plan.stages.values():
        store.write_status(Status(stage=stage.id, state="done"))
        store.write_result(stage.id, {})
        if stage.kind == "train":
            checkpoint = store.folder(stage.id) / "checkpoint"
            checkpoint.mkdir()
            (checkpoint / "model.safetensors").write_bytes(b"m" * 1000)
            (checkpoint / gc.RESUME_ONLY).write_bytes(b"o" * 2000)
    return store


def of_kind(plan: Plan, kind: str) -> list[str]:
    return [stage.id for stage in plan.stages.values() if stage.kind == kind]


def paths(store: Store, *, models: bool = False) -> set[Path]:
    return {item.path for item in gc.find_waste(store, models=models)}


def test_a_finished_training_needs_its_optimizer_no_more(store: Store, plan: Plan) -> None:
    trained = of_kind(plan, "train")
    assert paths(store) == {store.folder(t) / "checkpoint" / gc.RESUME_ONLY for t in trained}
    assert paths(store, models=True) == {store.folder(t) / "checkpoint" for t in trained}


def test_earlier_checkpoints_go_with_the_end_of_the_training(store: Store, plan: Plan) -> None:
    done, interrupted = of_kind(plan, "train")[:2]
    store.write_status(Status(stage=interrupted, state="failed"))
    for stage in (done, interrupted):
        for name in ("checkpoint.new", "checkpoint.step3", "checkpoint.damaged"):
            (store.folder(stage) / name).mkdir()
    found = {path for path in paths(store) if path.name.startswith("checkpoint.")}
    assert found == {
        store.folder(interrupted) / "checkpoint.new",
        *(store.folder(done) / f"checkpoint.{part}" for part in ("new", "step3", "damaged")),
    }


def test_a_model_that_waits_for_its_evaluation_is_kept(store: Store, plan: Plan) -> None:
    waiting = of_kind(plan, "evaluate")[-1]
    store.write_status(Status(stage=waiting, state="failed"))
    model = plan.stages[waiting].consumes["model"]
    assert store.folder(model) / "checkpoint" not in paths(store, models=True)
    assert store.folder(model) / "checkpoint" / gc.RESUME_ONLY in paths(store, models=True)


def test_what_is_not_done_keeps_what_it_goes_on_from(store: Store, plan: Plan) -> None:
    for state in ("pending", "running", "failed", "cancelled"):
        interrupted = of_kind(plan, "train")[0]
        store.write_status(Status(stage=interrupted, state=state))
        assert not any(store.folder(interrupted) in path.parents for path in paths(store))


def test_stages_of_an_earlier_question_go_unless_they_may_run(store: Store) -> None:
    for stage in ("train-old", "train-live", "train-odd"):
        store.folder(stage).mkdir()
    store.write_status(Status(stage="train-old", state="done"))
    store.write_status(Status(stage="train-live", state="running", process=process.identity()))
    (store.folder("train-odd") / "status.json").write_text("{")
    found = {path for path in paths(store) if path.parent.name == "stages"}
    assert found == {store.folder("train-old")}


def test_the_command_deletes_only_when_told_to(
    store: Store, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    count = len(of_kind(plan, "train"))
    assert gc.main([str(store.directory)]) == 0
    assert f"0.0 MB in {count} places; --delete deletes them" in capsys.readouterr().out
    assert len(paths(store)) == count
    assert gc.main([str(store.directory), "--delete"]) == 0
    assert paths(store) == set()
    model = store.folder(of_kind(plan, "train")[0]) / "checkpoint" / "model.safetensors"
    assert model.exists()
    assert gc.main([str(store.directory)]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_a_sweep_that_runs_is_not_touched(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with store.launcher():
        assert gc.main([str(store.directory), "--delete"]) == 2
    assert "is running this sweep" in capsys.readouterr().err
    assert paths(store)
    assert gc.main([str(tmp_path / "nothing"), "--delete"]) == 2
    assert not (tmp_path / "nothing").exists()


def test_code_goes_when_no_job_runs_from_it_and_it_is_not_the_last(
    store: Store, plan: Plan
) -> None:
    copies = {name: store.directory / "code" / name for name in ("old", "running", "last")}
    for folder in copies.values():
        folder.mkdir(parents=True)
    launch = Launch(executor="slurm", command="sweep", source=str(copies["last"]))
    write_atomically(store.directory / "launch.json", json.dumps(dataclasses.asdict(launch)))
    for number, name in enumerate(("old", "running")):
        stage = of_kind(plan, "train")[number]
        task = Task(
            id=stage,
            function="",
            config={},
            inputs={},
            directory=str(store.directory),
            attempt=1,
            source=str(copies[name]),
        )
        Array(name=name, sent=0.0, minutes=1, max_requeues=0, tasks=[task]).write()
        state: State = "running" if name == "running" else "done"
        store.write_status(Status(stage=stage, state=state, attempt=1))
    assert copies["old"] in paths(store)
    assert not {copies["running"], copies["last"]} & paths(store)
