"""From cells to stages: what is shared, and what a stage's identity hangs on."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from sweeps import plan_of, stages, write_ablation

from harness import graph
from harness import plan as plan_command
from harness import sweep as sweep_command
from harness.graph import read_plan, stage_id, write_plan
from observe.errors import InputError


def ids(folder: Path, changes: dict | None = None, kind: str | None = None) -> set[str]:
    plan = plan_of(write_ablation(folder, changes))
    return {s.id for s in plan.stages.values() if kind is None or s.kind == kind}


def test_equal_stages_are_planned_once(tmp_path: Path) -> None:
    plan = plan_of(write_ablation(tmp_path))
    kinds = [stage.kind for stage in plan.stages.values()]
    assert {kind: kinds.count(kind) for kind in graph.KINDS} == {
        "base": 1,
        "ladder": 1,
        "train": 10,
        "evaluate": 12,
    }
    assert len(plan.runs) == 12
    assert [run.arm for run in plan.runs if run.kind == "base"] == ["base/think", "base/observe"]


def test_a_stage_comes_after_what_it_consumes(tmp_path: Path) -> None:
    seen: set[str] = set()
    for stage in plan_of(write_ablation(tmp_path)).stages.values():
        assert set(stage.consumes.values()) <= seen
        assert re.fullmatch(rf"{stage.kind}-[0-9a-f]{{16}}", stage.id)
        seen.add(stage.id)


def test_every_arm_is_evaluated_under_its_own_prompt(tmp_path: Path) -> None:
    plan = plan_of(write_ablation(tmp_path))
    for run in plan.runs:
        evaluation = plan.stages[run.stages["evaluate"]]
        assert evaluation.config["prompt"] == run.prompt
        if run.kind != "base":
            assert evaluation.consumes == {"model": run.stages["train"]}
            assert plan.stages[run.stages["train"]].config["prompt"] == run.prompt
        else:
            assert evaluation.consumes == {"model": run.stages["base"]}


def test_training_does_not_carry_the_settings_of_what_it_consumes(tmp_path: Path) -> None:
    plan = plan_of(write_ablation(tmp_path))
    for stage in plan.stages.values():
        if stage.kind == "train":
            assert "base" not in stage.config["model"] and "ladder" not in stage.config["data"]
            assert set(stage.consumes) == {"model", "ladder"}


def test_a_ladder_is_built_only_where_it_is_used(tmp_path: Path) -> None:
    selected = {
        "factors.curriculum.levels": {
            "off": {"data.selection": "raw"},
            "on": {"data.selection": "ladder", "data.order": "ladder"},
        }
    }
    plan = plan_of(write_ablation(tmp_path, selected))
    for run in plan.runs:
        if run.config is not None:
            assert ("ladder" in run.stages) == (run.levels["curriculum"] == "on")
    lengths = {**selected, "set": {"reward.bonus.min_length_quantile": 0.25}}
    for run in plan_of(write_ablation(tmp_path, lengths)).runs:
        if run.config is not None:
            assert ("ladder" in run.stages) == (
                "on" in (run.levels["curriculum"], run.levels["bonus"])
            )


def test_identity_is_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    base = dataclasses.replace(graph.KINDS["base"], version=1)
    monkeypatch.setitem(graph.KINDS, "base", base)
    assert stage_id("base", {"seed": 0, "lr": 1e-3, "name": "é"}, {}, 2) == "base-12c22d52e7af4c85"
    same = stage_id("base", {"name": "é", "lr": 0.001, "seed": 0}, {}, 2)
    assert same == "base-12c22d52e7af4c85", "the order of keys does not count"


def test_identity_hangs_on_config_inputs_version_and_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = {
        stage_id("train", {"seed": 0}, {"model": "base-1"}, 1),
        stage_id("train", {"seed": 1}, {"model": "base-1"}, 1),
        stage_id("train", {"seed": 0}, {"model": "base-2"}, 1),
        stage_id("train", {"seed": 0}, {"ladder": "base-1"}, 1),
        stage_id("train", {"seed": 0}, {"model": "base-1"}, 2),
        stage_id("evaluate", {"seed": 0}, {"model": "base-1"}, 1),
    }
    train = graph.KINDS["train"]
    monkeypatch.setitem(graph.KINDS, "train", dataclasses.replace(train, version=99))
    made.add(stage_id("train", {"seed": 0}, {"model": "base-1"}, 1))
    assert len(made) == 7


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, set()),
        ({"name": "renamed"}, set()),
        ({"resources.train.mem_gb": 9}, set()),
        ({"resources.train.hours": 9}, set()),
        ({"report.confidence": 0.9}, set()),
        ({"variants": {}}, set()),
        ({"set": {"log_wandb": "observe", "checkpoint_every": 7}}, set()),
        ({"evaluate.limit": 5}, {"evaluate"}),
        ({"resources.evaluate.cpus": 2}, {"evaluate"}),
        ({"seeds": [5]}, {"train", "evaluate"}),
        ({"set": {"optim.lr": 1e-4}}, {"train", "evaluate"}),
        ({"set": {"data.ladder.pool": 100}}, {"ladder", "train", "evaluate"}),
        ({"set": {"model.base.steps": 5}}, {"base", "ladder", "train", "evaluate"}),
        ({"resources.base.cpus": 1}, {"base", "ladder", "train", "evaluate"}),
    ],
)
def test_a_change_reaches_exactly_what_depends_on_it(
    tmp_path: Path, changes: dict, changed: set[str]
) -> None:
    only_cells = {"variants": {}}
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    for kind in graph.KINDS:
        old, new = ids(before, only_cells, kind), ids(after, {**only_cells, **changes}, kind)
        if kind in changed:
            bases = 2 if kind == "evaluate" and "base" not in changed else 0
            assert len(old & new) <= bases
            assert old != new
        else:
            assert old == new


def external(folder: Path) -> Path:
    """An ablation on a model and questions of one's own."""
    model, data = folder / "model", folder / "data"
    model.mkdir(parents=True)
    data.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    (data / "image.png").write_bytes(b"png")
    (data / "questions.jsonl").write_text(json.dumps({"id": "1", "images": ["image.png"]}) + "\n")
    changes = {"set": {"model.path": "model", "data.source": "data/questions.jsonl"}}
    return write_ablation(folder, changes)


def test_models_and_questions_count_by_content_not_by_place(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    file = external(here)
    shutil.copytree(here, there)
    plan = plan_of(file)
    assert list(plan.stages) == list(plan_of(there / file.name).stages)
    assert not any(stage.kind == "base" for stage in plan.stages.values())
    ladder = next(stage for stage in plan.stages.values() if stage.kind == "ladder")
    assert ladder.consumes == {} and ladder.config["model"] == str(here / "model")
    assert ladder.config["source"] == str(here / "data" / "questions.jsonl")
    base = next(run for run in plan.runs if run.kind == "base")
    assert plan.stages[base.stages["evaluate"]].config["model"] == str(here / "model")


def test_questions_may_hold_line_separators(tmp_path: Path) -> None:
    file = external(tmp_path)
    line = json.dumps({"id": "1", "text": "one\u2028two\x85", "images": []}, ensure_ascii=False)
    (tmp_path / "data" / "questions.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert plan_of(file).stages


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("model/model.safetensors", b"other"),
        ("model/config.json", b"{ }"),
        ("model/new.json", b"{}"),
        ("data/questions.jsonl", b'{"id": "2", "images": ["image.png"]}\n'),
        ("data/image.png", b"another"),
    ],
)
def test_changed_files_are_other_stages(tmp_path: Path, path: str, content: bytes) -> None:
    file = external(tmp_path)
    before = set(plan_of(file).stages)
    (tmp_path / path).write_bytes(content)
    after = set(plan_of(file).stages)
    trained = {id for id in before if id.startswith("train")}
    assert trained and not trained & after


def test_benchmark_data_belong_to_an_evaluation_by_content(tmp_path: Path) -> None:
    rows = tmp_path / "data" / "mme.jsonl"
    rows.parent.mkdir()
    rows.write_text("{}\n")
    file = write_ablation(tmp_path, {"evaluate.data_dir": "data"})
    before = plan_of(file).stages
    rows.rename(rows.with_name("pope.jsonl"))
    moved = plan_of(file).stages
    changed = {id for id in before if id not in moved}
    assert changed == {id for id in before if id.startswith("evaluate")}
    rows.write_text("{ }\n")
    rows.with_name("pope.jsonl").unlink()
    assert set(plan_of(file).stages).isdisjoint(changed)
    with pytest.raises(InputError, match="evaluate.data_dir: no folder"):
        plan_of(write_ablation(tmp_path, {"evaluate.data_dir": "nowhere"}))


def test_large_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from observe import fingerprint

    monkeypatch.setattr(fingerprint, "LARGE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = external(tmp_path / "sweep")
    before = list(plan_of(file).stages)
    remembered = tmp_path / "cache" / "observe-ablations" / "fingerprints.json"
    assert str(tmp_path / "sweep" / "model" / "model.safetensors") in remembered.read_text()
    assert list(plan_of(file).stages) == before
    (tmp_path / "sweep" / "model" / "model.safetensors").write_bytes(b"changed")
    assert list(plan_of(file).stages) != before


def test_arms_that_start_from_other_models_have_bases_of_their_own(tmp_path: Path) -> None:
    longer = {"control": "short", "levels": {"short": {}, "long": {"model.base.steps": 99}}}
    changes = {
        "factors": {"base_steps": longer},
        "reference": {"base_steps": "short"},
        "variants": {},
    }
    plan = plan_of(write_ablation(tmp_path, changes))
    bases = [run for run in plan.runs if run.kind == "base"]
    assert bases[0].arm == "base/think"
    assert re.fullmatch(r"base/think/[0-9a-f]{8}", bases[1].arm)
    assert len({stage.id for stage in plan.stages.values() if stage.kind == "base"}) == 2


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of(write_ablation(tmp_path))
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    content = json.loads((tmp_path / "plan.json").read_text())
    assert {"arm", "seed", "levels", "stages"} <= set(content["cells"][0])
    assert {"kind", "config", "consumes"} <= set(content["stages"][0])


def test_a_cell_is_written_as_what_it_changes(tmp_path: Path) -> None:
    plan = plan_of(write_ablation(tmp_path))
    write_plan(plan, tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    cells = {cell["arm"]: cell["config"] for cell in content["cells"]}
    assert cells["bonus"] == {"reward.bonus.weight": 0.2} and cells["base/think"] is None
    assert read_plan(tmp_path / "plan.json").runs == plan.runs


def test_a_damaged_plan_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sweep here"):
        read_plan(tmp_path / "plan.json")
    write_plan(stages(("a", {}, [])), tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="not a plan"):
        read_plan(tmp_path / "plan.json")


def test_settings_that_contradict_each_other_name_the_arm(tmp_path: Path) -> None:
    changes = {
        "factors.selection": {
            "control": "raw",
            "levels": {"raw": {"data.selection": "raw"}, "ladder": {"data.selection": "ladder"}},
        },
        "reference.selection": "ladder",
        "set": {"data.selection": "raw"},
    }
    with pytest.raises(InputError, match="arm curriculum: data.order: ladder needs data.selection"):
        plan_of(write_ablation(tmp_path, changes))
    allowed = {**changes, "exclude": [{"selection": "raw", "curriculum": "on"}]}
    assert len({run.arm for run in plan_of(write_ablation(tmp_path, allowed)).runs}) == 12 + 4


def test_the_plan_says_what_the_design_cannot_tell_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fraction = {"design": "fractional_factorial", "resolution": "III"}
    assert plan_command.main([str(write_ablation(tmp_path, fraction))]) == 0
    printed = capsys.readouterr().out
    assert "4 of 8 combinations; effects that cannot be told apart:" in printed
    assert "  curriculum = format:bonus\n" in printed
    assert "WARNING" not in printed


def test_the_plan_warns_of_arms_that_differ_in_more_than_one_thing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "design": "zip",
        "vary": ["format", "bonus"],
        "variants.placebo.set": {"reward.shuffle": True, "optim.lr": 1e-3},
    }
    assert plan_command.main([str(write_ablation(tmp_path, changes))]) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("WARNING")] == [
        "WARNING: what format does cannot be told from what bonus does",
        "WARNING: what bonus does cannot be told from what format does",
        "WARNING: placebo differs from the reference in 2 settings at once: "
        "reward.shuffle, optim.lr",
        "WARNING: curriculum differs from the reference in 2 factors at once: format, bonus",
    ]


def test_the_plan_warns_of_a_variant_that_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_ablation(tmp_path, {"variants": {"nothing": {}, "again": {"seeds": [0]}}})
    assert plan_command.main([str(file)]) == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert [line.split(" is the")[0] for line in warned] == ["WARNING: nothing", "WARNING: again"]
    assert plan_command.main([str(file), "--seeds", "1"]) == 0
    warned = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert [line.split(" is the")[0] for line in warned] == ["WARNING: nothing"]


def test_the_plan_warns_of_evaluations_that_training_ends_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_ablation(tmp_path, {"set": {"prompts_per_step": 12, "eval_steps": [0, 4, 5, 9]}})
    assert plan_command.main([str(file)]) == 0
    assert (
        "WARNING: eval_steps: 5, 9 left out, training ends after step 4" in capsys.readouterr().out
    )
    assert plan_command.main([str(file), "--set", "data.size=120"]) == 0
    assert "WARNING" not in capsys.readouterr().out


def ready_ladder(folder: Path) -> Path:
    """A ladder of one question, as observe.ladder leaves it."""
    folder.mkdir()
    (folder / "ladder.jsonl").write_text('{"question": "q0"}\n')
    (folder / "summary.json").write_text('{"correct_lengths": {"think": null}, "origin": {}}')
    return folder


def test_a_ladder_that_is_ready_is_no_stage_and_counts_by_its_content(tmp_path: Path) -> None:
    ladder = ready_ladder(tmp_path / "ladder")
    settings = {"set": {"data.ladder.path": "ladder"}}
    plan = plan_of(write_ablation(tmp_path, settings))
    assert not [stage for stage in plan.stages.values() if stage.kind == "ladder"]
    train = next(stage for stage in plan.stages.values() if stage.kind == "train")
    assert train.config["data"]["ladder"] == {"path": str(ladder)}
    assert set(train.consumes) == {"model"}
    before = ids(tmp_path, settings, "train")
    shutil.copytree(ladder, tmp_path / "copy")
    assert ids(tmp_path, {"set": {"data.ladder.path": "copy"}}, "train") == before
    (ladder / "ladder.jsonl").write_text('{"question": "q1"}\n')
    assert not ids(tmp_path, settings, "train") & before
    (ladder / "summary.json").unlink()
    with pytest.raises(InputError, match="no ladder there"):
        ids(tmp_path, settings)


def test_what_a_ladder_is_built_with_does_not_hang_on_how_it_may_be_given(tmp_path: Path) -> None:
    for stage in plan_of(write_ablation(tmp_path)).stages.values():
        if stage.kind == "ladder":
            assert "path" not in stage.config["ladder"]


def test_the_number_of_processes_is_part_of_a_trainings_identity(tmp_path: Path) -> None:
    spread = {"set": {"parallel.strategy": "ddp"}}
    one = ids(tmp_path, spread)
    two = ids(tmp_path, {**spread, "resources.train": {"processes": 2, "hours": 0.5}})
    both = ids(tmp_path, {**spread, "resources.train": {"nodes": 2, "hours": 0.5}})
    assert {id.partition("-")[0] for id in one - two} == {"train", "evaluate"}
    assert two == both, "where the processes are changes nothing"
    assert one == ids(tmp_path, {**spread, "resources.train": {"processes": 1, "hours": 0.5}})


@pytest.mark.parametrize(
    ("resources", "settings", "message"),
    [
        ({"processes": 2}, {}, "2 processes, yet parallel.strategy is none"),
        ({"processes": 64}, {"parallel.strategy": "ddp"}, "64 processes for 24 questions a step"),
        ({"processes": 3, "gpus": 8}, {}, "resources.train.processes: 8 GPUs for 3 processes"),
        ({"nodes": 0}, {}, "resources.train.nodes: expected 1 or more"),
    ],
)
def test_processes_that_cannot_share_the_work_are_refused(
    tmp_path: Path, resources: dict, settings: dict, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        plan_of(write_ablation(tmp_path, {"resources.train": resources, "set": settings}))


def test_only_training_shares_its_work_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"resources.evaluate.processes: only train"):
        plan_of(write_ablation(tmp_path, {"resources.evaluate": {"processes": 2}}))


ABLATIONS = Path(__file__).parents[2] / "ablations"


@pytest.mark.parametrize(
    ("name", "trainings", "evaluations"),
    [("observe_r1_3b", 30, 32), ("observe_r1_7b", 30, 32), ("observe_r1_3b_lora", 6, 8)],
)
def test_the_papers_ablation_is_planned_before_its_data_are_there(
    name: str, trainings: int, evaluations: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(ABLATIONS / f"{name}.yaml")
    assert plan_command.main([file]) == 0
    said = capsys.readouterr().out
    assert f"train {trainings:>8}, 0 done" in said and f"evaluate {evaluations:>5}, 0 done" in said
    assert "MISSING: data.source: " in said and "MISSING: data.ladder.path: " in said
    assert sweep_command.main([file]) == 2, "it does not begin without them"
    assert "data.source: " in capsys.readouterr().err


def test_the_papers_ablation_can_be_planned_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    full = ["--set", "design=full_factorial", "resolution=null"]
    assert plan_command.main([str(ABLATIONS / "observe_r1_3b.yaml"), *full]) == 0
    said = capsys.readouterr().out
    assert "16 arms x 3 seeds + 6 variant runs = 54 trainings" in said
    # The released code's baseline is a cell of the full design: equal runs are made once.
    assert f"train {51:>8}, 0 done" in said
