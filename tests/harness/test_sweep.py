"""The command from end to end, on fake stages: finish, fail, be killed, go on."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fake_stages
import pandas as pd
import pytest
from sweeps import plan_of, write_ablation

from harness import cancel, graph, process, status
from harness.collect import collect
from harness.dispatch import dispatch
from harness.executors.local import LocalExecutor
from harness.graph import Kind, Plan, read_plan, write_plan
from harness.store import Status, Store, write_yaml
from observe.errors import InputError

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(Path(__file__).parent / "fake_sweep.py")]
WALL_CLOCK = ["seconds", "train_seconds", "gpu_hours", "attempt"]


@pytest.fixture(autouse=True)
def fake_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in graph.KINDS:
        fake = Kind(function=f"{fake_stages.__name__}:{kind}", version=1)
        monkeypatch.setitem(graph.KINDS, kind, fake)


def launch(folder: Path, *arguments: str, step_s: float = 0.0) -> "subprocess.Popen[str]":
    """Start the command in a session of its own."""
    return subprocess.Popen(
        [*COMMAND, "ablation.yaml", "--out", "runs", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FAKE_STEP_S": str(step_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, plan: Plan, source: Path) -> Store:
    """Run a plan in this process as the command does, and collect, without a report."""
    from harness.ablation_file import load_ablation, to_plain

    store = Store(folder)
    with store.launcher():
        write_yaml(store.sweep_file, to_plain(load_ablation(source)[0]))
        write_plan(plan, store.plan_file)
        assert dispatch(plan, store, LocalExecutor(), code="abc").complete
        collect(store)
    return store


def wait_for(condition: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def done(store: Store) -> dict[str, str]:
    """Finished stage -> how often it was started."""
    found = {}
    for path in store.directory.glob("stages/*/status.json"):
        stage = path.parent.name
        if store.status(stage).state == "done":
            found[stage] = (path.parent / "starts").read_text()
    return found


def tables(store: Store) -> dict[str, Any]:
    """The result tables without what may differ between equal runs."""
    found: dict[str, Any] = {}
    for path in sorted(store.results.glob("*.parquet")):
        table = pd.read_parquet(path)
        found[path.name] = table.drop(columns=WALL_CLOCK + ["code"], errors="ignore")
    sweep = json.loads((store.results / "sweep.json").read_text())
    sweep.pop("provenance")
    found["sweep.json"] = sweep
    found["configs.json"] = json.loads((store.results / "configs.json").read_text())
    return found


def equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, table in one.items():
        if isinstance(table, pd.DataFrame):
            pd.testing.assert_frame_equal(table, other[name], obj=name)
        else:
            assert table == other[name], name


def test_killed_twice_it_ends_with_the_tables_of_an_undisturbed_run(tmp_path: Path) -> None:
    file = write_ablation(tmp_path)
    plan = plan_of(file)
    undisturbed = finish(tmp_path / "undisturbed" / "small", plan, file)
    store = Store(tmp_path / "runs" / "small")
    finished: dict[str, str] = {}
    for kill, more in ((kill_all, 5), (kill_launcher, 5)):
        launcher, enough = launch(tmp_path, step_s=0.03), len(finished) + more
        wait_for(lambda enough=enough: len(done(store)) >= enough)
        kill(launcher, store)
        launcher.communicate()
        assert finished.items() <= done(store).items(), "nothing finished was repeated"
        finished = done(store)
        assert read_plan(store.plan_file) == plan
    assert len(finished) < len(plan.stages)
    finish(store.directory, plan, file)
    assert finished.items() <= done(store).items()
    assert len(done(store)) == len(plan.stages)
    equal(tables(store), tables(undisturbed))


def kill_all(launcher: "subprocess.Popen[str]", store: Store) -> None:
    """SIGKILL to the launcher and its children."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for pid in (launcher.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)


def kill_launcher(launcher: "subprocess.Popen[str]", store: Store) -> None:
    """SIGKILL to the launcher: its workers must go by themselves."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    assert children
    os.kill(launcher.pid, signal.SIGKILL)
    wait_for(lambda: not any(process.start_of(int(pid)) for pid in children))


def test_the_command_reports_what_there_is_names_what_failed_and_goes_on(tmp_path: Path) -> None:
    write_ablation(tmp_path, {"design": "leave_one_out", "variants": {}})
    (tmp_path / "break").write_text("train")
    first = launch(tmp_path)
    said, _ = first.communicate()
    assert first.returncode == 1, said
    store = Store(tmp_path / "runs" / "small")
    failed = [s for s in read_plan(store.plan_file).stages if store.status(s).state == "failed"]
    assert len(failed) == 1
    assert f"failed: {failed[0]} (curriculum+bonus/seed0): ValueError: broken" in said
    assert f"see {Path('runs/small/stages') / failed[0] / 'log.txt'}" in said
    assert "  | ValueError: broken\n" in said, "the end of its log"
    assert "missing: curriculum+bonus/seed0; run the same command again" in said
    assert (store.report / "index.html").exists()
    sweep = json.loads((store.results / "sweep.json").read_text())
    assert "curriculum+bonus" in {cell["arm"] for cell in sweep["cells"]}
    assert status.main([str(store.directory)]) == 1

    (tmp_path / "break").unlink()
    second = launch(tmp_path)
    said, _ = second.communicate()
    assert second.returncode == 0 and "2 stages started" in said, said
    for part in ("base", "ladder", "train", "evaluate", "report"):
        assert re.search(rf"^  {part} +\d+ s", said, re.MULTILINE), said
    assert "report: runs/small/report/index.html" in said
    assert {"sweep.yaml", "plan.json", "events.jsonl", "stages", "results"} <= {
        path.name for path in store.directory.iterdir()
    }
    results = json.loads((store.report / "results.json").read_text())
    assert results["reference_arm"] == "curriculum+format+bonus"
    assert "curriculum+bonus" in {entry["arm"] for entry in results["arms"]}
    assert status.main([str(store.directory)]) == 0

    began = time.monotonic()
    third = launch(tmp_path)
    said, _ = third.communicate()
    assert third.returncode == 0 and "0 stages started" in said
    assert time.monotonic() - began < 10, "nothing to do is quick"

    dry = launch(tmp_path, "--set", "optim.lr=0.5", "--dry_run")
    said, _ = dry.communicate()
    assert dry.returncode == 0 and "train        4, 0 done" in said


def test_a_changed_file_is_planned_anew_and_equal_stages_are_kept(tmp_path: Path) -> None:
    file = write_ablation(tmp_path, {"design": "leave_one_out", "variants": {}})
    store = finish(tmp_path / "runs" / "small", plan_of(file), file)
    before = done(store)
    assert len(before) == 1 + 1 + 4 + 6
    file = write_ablation(tmp_path, {"variants": {}})
    finish(tmp_path / "runs" / "small", plan_of(file), file)
    assert before.items() <= done(store).items()
    assert len(done(store)) == 1 + 1 + 8 + 10
    assert len(pd.read_parquet(store.results / "runs.parquet")) == 10


def test_tables_say_what_the_stages_found(tmp_path: Path) -> None:
    file = write_ablation(tmp_path)
    store = finish(tmp_path / "runs" / "small", plan_of(file), file)
    found = tables(store)
    runs = pd.read_parquet(store.results / "runs.parquet").set_index("run")
    assert list(runs.index[:3]) == ["base/think", "base/observe", "control/seed0"]
    assert set(runs["code"]) == {"abc"}
    base = runs.loc["base/think"]
    assert base["kind"] == "base" and base[["curriculum", "format", "bonus"]].isna().all()
    arm = runs.loc["format+bonus/seed0"]
    assert list(arm[["curriculum", "format", "bonus", "prompt", "kind", "seed"]]) == [
        "off", "on", "on", "observe", "cell", 0,
    ]  # fmt: skip
    assert arm["train_bonus_share"] == 0.0 and arm["train_format_failure_share"] == 0.1
    assert arm["train_weight_active_share"] == 1 and arm["train_final_reward"] == 0.7
    assert runs.loc["again/seed1000", "kind"] == "variant"

    items = found["items.parquet"]
    assert len(items) == 12 * 60
    means = items[items["suite"] == "reasoning"].groupby("run")["score"].mean()
    assert means["base/think"] == 0.4 and means["format/seed0"] == 0.7
    questions = found["questions.parquet"]
    assert len(questions) == 60
    image = questions.loc[questions["item"] == "ood-0", "image"].iloc[0]
    assert (store.results / image).read_bytes() == fake_stages.PIXEL
    curves = found["curves.parquet"]
    assert set(curves["metric"]) == {"reward", "length"} and len(curves) == 10 * 4 * 2
    assert list(found["ladder.parquet"]["order_index"]) == list(range(10))
    stages = found["stages.parquet"]
    assert len(stages) == 24 and set(stages["state"]) == {"done"}

    sweep = found["sweep.json"]
    assert sweep["factors"]["format"] == {"levels": ["off", "on"], "control": "off"}
    assert sweep["suites"] == {"reasoning": ["iid", "ood"], "general": ["names"]}
    assert len(sweep["cells"]) == 12
    flagged = {(flag["arm"], flag["factor"], flag["mechanism"]) for flag in sweep["flags"]}
    on = {run.arm for run in plan_of(file).runs if run.levels.get("bonus") == "on"}
    assert flagged == {(arm, "bonus", "bonus") for arm in on}
    assert found["configs.json"]["placebo"]["reward"]["shuffle"] is True


def test_bad_input_found_by_a_stage_is_code_2(tmp_path: Path) -> None:
    write_ablation(tmp_path)
    (tmp_path / "break").write_text("base")
    launcher = launch(tmp_path)
    said, _ = launcher.communicate()
    assert launcher.returncode == 2
    assert "InputError: config.json: missing; download it again" in said


def test_a_terminal_sees_a_live_table(tmp_path: Path) -> None:
    write_ablation(tmp_path, {"design": "arms", "arms": [{}], "reference": OFF})
    (tmp_path / "break").write_text("base")  # Nothing to report: only the table is of interest.
    ours, theirs = pty.openpty()
    launcher = subprocess.Popen(
        [*COMMAND, "ablation.yaml", "--out", "runs"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"},
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # What a closed terminal answers.
        while chunk := os.read(ours, 4096):
            said += chunk
    os.close(ours)
    assert launcher.wait() == 2
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    assert re.search(r"base +0/1 .* 1 failed", text), text
    assert re.search(r"evaluate +0/4 .* 4 cancelled", text), text


def states_of(store: Store) -> set[str]:
    return {store.status(stage).state for stage in read_plan(store.plan_file).stages}


def test_sigterm_and_cancel_stop_a_sweep(tmp_path: Path, capsys: Any) -> None:
    write_ablation(tmp_path)
    store = Store(tmp_path / "runs" / "small")
    launcher = launch(tmp_path, step_s=0.5)
    wait_for(lambda: done(store) and "running" in states_of(store))
    assert status.main([str(store.directory), "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["launcher"] == "alive" and shown["expected_seconds"] > 0
    assert {"done", "running", "pending", "submitted"} >= {
        stage["state"] for stage in shown["stages"]
    }
    assert cancel.main([str(store.directory)]) == 0
    said, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 1 and "missing: base/think" in said
    states = states_of(store)
    assert "running" not in states and {"done", "cancelled"} <= states
    assert status.main([str(store.directory)]) == 1
    assert "launcher: none" in capsys.readouterr().out


def test_cancel_gives_up_stages_of_lost_machines_only_when_told(tmp_path: Path) -> None:
    file = write_ablation(tmp_path)
    store, plan = Store(tmp_path / "runs" / "small"), plan_of(file)
    first, second = list(plan.stages)[:2]
    write_plan(plan, store.plan_file)
    elsewhere = {**process.identity(), "host": "elsewhere"}
    dead = {**process.identity(), "boot": "before"}
    store.write_status(Status(stage=first, state="running", attempt=1, process=elsewhere))
    store.write_status(Status(stage=second, state="running", attempt=1, process=dead))
    assert status.main([str(store.directory)]) == 1
    assert cancel.main([str(store.directory)]) == 1
    assert store.status(first).state == "running" and store.status(second).state == "cancelled"
    assert cancel.main([str(store.directory), "--gone"]) == 0
    assert store.status(first).state == "cancelled"


def test_a_corrupt_status_stops_the_launch_and_is_shown(tmp_path: Path, capsys: Any) -> None:
    write_ablation(tmp_path)
    store, plan = Store(tmp_path / "runs" / "small"), plan_of(tmp_path / "ablation.yaml")
    stage = next(iter(plan.stages))
    store.folder(stage).mkdir(parents=True)
    (store.folder(stage) / "status.json").write_text('{"stage')
    launcher = launch(tmp_path)
    said, _ = launcher.communicate()
    assert launcher.returncode == 2
    assert "status.json: not a stage's status" in said and "delete the folder" in said
    assert status.main([str(store.directory)]) == 1
    assert f"unknown: {stage}" in capsys.readouterr().out


def test_commands_on_a_folder_without_a_sweep_are_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path, tmp_path / "file"):
        assert status.main([str(wrong)]) == 2
        assert cancel.main([str(wrong)]) == 2
    with pytest.raises(InputError, match="no sweep here"):
        collect(Store(tmp_path))


def test_images_are_those_of_the_questions_beside_them(tmp_path: Path) -> None:
    file = write_ablation(tmp_path, {"design": "arms", "arms": [{}], "reference": OFF})
    store = finish(tmp_path / "runs" / "small", plan_of(file), file)
    # As where the benchmark's data were changed, and its evaluations made anew.
    for image in store.directory.glob("stages/*/images/*.png"):
        image.write_bytes(fake_stages.PIXEL + image.name.encode())
    collect(store)
    images = list(store.results.glob("images/*.png"))
    assert images
    for image in images:
        assert image.read_bytes() == fake_stages.PIXEL + image.name.encode()


def test_a_damaged_line_of_a_finished_stage_is_bad_input(tmp_path: Path) -> None:
    file = write_ablation(tmp_path, {"design": "arms", "arms": [{}], "reference": OFF})
    store = finish(tmp_path / "runs" / "small", plan_of(file), file)
    evaluation = plan_of(file).runs[0].stages["evaluate"]
    with (store.folder(evaluation) / "items.jsonl").open("a") as items:
        items.write('{"item": \n')
    with pytest.raises(InputError, match=r"items.jsonl:61: not JSON; delete the folder"):
        collect(store)
    folder = store.folder(evaluation)
    (folder / "items.jsonl").write_text('{"item": 1}\n')
    lacking = f"items.jsonl: no suite, benchmark, attempt, score; delete the folder {folder} and"
    with pytest.raises(InputError, match=re.escape(lacking)):
        collect(store)
    (folder / "items.jsonl").unlink()
    with pytest.raises(InputError, match=r"items.jsonl: no such file; delete the folder"):
        collect(store)
    trained = store.folder(plan_of(file).runs[-1].stages["train"])
    (trained / "result.json").write_text('{"steps"')
    with pytest.raises(InputError, match=r"result.json: not a stage's result .*delete the folder"):
        collect(store)


def test_a_response_may_hold_line_separators_of_its_own(tmp_path: Path) -> None:
    file = write_ablation(tmp_path, {"design": "arms", "arms": [{}], "reference": OFF})
    store = finish(tmp_path / "runs" / "small", plan_of(file), file)
    evaluation = store.folder(plan_of(file).runs[0].stages["evaluate"])
    rows = [json.loads(line) for line in (evaluation / "items.jsonl").open(encoding="utf-8")]
    rows[0]["answer"] = "one\u2028two\x85three"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (evaluation / "items.jsonl").write_text("".join(lines), encoding="utf-8")
    collect(store)
    items = pd.read_parquet(store.directory / "results" / "items.parquet")
    assert (items["answer"] == rows[0]["answer"]).sum() == 1


OFF = {"curriculum": "off", "format": "off", "bonus": "off"}
