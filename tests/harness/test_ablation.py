"""The ablation file: what it says, and what is said about mistakes in it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sweeps import plan_of, write_ablation

from harness import plan as plan_command
from harness import sweep as sweep_command
from harness.ablation_file import load_ablation, parse_override, to_plain
from harness.store import write_yaml
from observe.errors import InputError

ROOT = Path(__file__).parents[2]


def test_level_names_are_words(tmp_path: Path) -> None:
    file = write_ablation(tmp_path)
    (tmp_path / "levels.yaml").write_text(
        """
name: levels
recipe: recipe.yaml
factors:
  group: {control: 4, levels: {4: {}, 8: {rollout.group_size: 8}}}
  shuffle: {control: false, levels: {false: , true: {reward.shuffle: true}}}
  heat: {control: off, levels: {off: {}, on: {rollout.temperature: 2}}}
design: leave_one_out
reference: {group: 8, shuffle: true, heat: on}
exclude: [{group: 4}]
""",
        encoding="utf-8",
    )
    ablation, _ = load_ablation(tmp_path / "levels.yaml")
    assert list(ablation.factors["group"].levels) == ["4", "8"]
    assert ablation.reference == {"group": "8", "shuffle": "true", "heat": "on"}
    assert ablation.exclude == ({"group": "4"},)
    run = plan_of(tmp_path / "levels.yaml").runs[1]
    assert run.config["rollout"]["temperature"] == 2.0 and run.config["reward"]["shuffle"]
    assert file.exists()


def test_settings_come_from_recipe_file_factors_and_variant_in_this_order(tmp_path: Path) -> None:
    changes = {"set": {"rollout.group_size": 6, "optim.lr": 0.5}}
    plan = plan_of(write_ablation(tmp_path, changes), {"optim.lr": 0.25, "evaluate.limit": 7})
    placebo = next(run for run in plan.runs if run.arm == "placebo")
    assert placebo.config["data"]["size"] == 48
    assert placebo.config["rollout"]["group_size"] == 6
    assert placebo.config["optim"]["lr"] == 0.25
    assert placebo.config["reward"]["shuffle"] is True
    assert plan.stages[placebo.stages["evaluate"]].config["limit"] == 7


def test_the_resolved_file_makes_the_same_plan(tmp_path: Path) -> None:
    file = write_ablation(tmp_path, {"set": {"optim.lr": 0.5}})
    ablation, _ = load_ablation(file, {"seeds": [3, 4], "data.size": 24})
    elsewhere = tmp_path / "elsewhere"
    write_yaml(elsewhere / "sweep.yaml", to_plain(ablation))
    assert plan_of(elsewhere / "sweep.yaml") == plan_of(file, {"seeds": [3, 4], "data.size": 24})


def test_overrides_are_yaml() -> None:
    assert parse_override("data.size=24") == ("data.size", 24)
    assert parse_override("seeds=[1, 2]") == ("seeds", [1, 2])
    assert parse_override("reference.format=on") == ("reference.format", "on")
    assert parse_override("weighting.sigma=null") == ("weighting.sigma", None)


FORMAT_ON = "factors.format.levels.on"
FRACTION = {"design": "fractional_factorial", "resolution": "III"}
MANY: dict[str, Any] = {
    "factors": {f"f{i}": {"control": "off", "levels": {"off": {}, "on": {}}} for i in range(17)},
    "reference": {f"f{i}": "on" for i in range(17)},
}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"set": {"optim.lr": float("nan")}}, "set: optim.lr: expected a finite number, got nan"),
    ({"set": {"optim.lr": -1.0}}, "set: optim.lr: expected at least 0"),
    ({"set": {"model.base.steps": 0}}, "set: model.base.steps: expected at least 1"),
    ({"set": {"data.ladder.samples": 0}}, "set: data.ladder.samples: expected 1 or more"),
    (
        {"set": {"data.ladder.sampler.vllm.max_num_seqs": 0}},
        "set: data.ladder.sampler.vllm.max_num_seqs: expected a number above 0",
    ),
    ({"set": {"data.ladder.pool": 47}}, "data.ladder.pool: 47 questions to start from, fewer than"),
    ({"evaluate.batch_size": 0}, "evaluate.batch_size: expected at least 1"),
    ({"evaluate.limit": 0}, "evaluate.limit: expected at least 1, or null"),
    ({"evaluate.suites": []}, "evaluate.suites: nothing to run"),
    ({"evaluate.tasks": ["riddle"]}, "evaluate.tasks: no benchmark 'riddle'; known: ai2d"),
    ({"factor": {}}, "factor: unknown key; did you mean 'factors'?"),
    (
        {"design": "fractional"},
        "design: expected one of full_factorial, fractional_factorial, leave_one_out",
    ),
    ({"name": "a/b"}, "name: 'a/b' is no folder name"),
    ({"seeds": "0"}, "seeds: expected tuple[int, ...], got '0'"),
    ({"seeds": [0, 0]}, "seeds: expected different integers"),
    ({"seeds": [0.5]}, "seeds[0]: expected int, got 0.5"),
    ({"recipe": "glyph"}, "recipe: 'glyph' is neither a named recipe"),
    ({"recipe": "missing.yaml"}, "recipe: 'missing.yaml' is neither a named recipe"),
    ({"reference.format": "maybe"}, "reference.format: unknown level 'maybe'; levels: off, on"),
    ({"reference.colour": "on"}, "reference: unknown factor 'colour'; factors: curriculum"),
    ({"reference": {"format": "on"}}, "reference: no level for curriculum, bonus"),
    ({"factors.format.control": "none"}, "factors.format.control: unknown level 'none'"),
    ({"factors.format.levels": {"off": {}}}, "factors.format.levels: at least two levels"),
    ({"factors": {}}, "factors: at least one factor is needed"),
    ({"factors.arm": {"control": "a", "levels": {"a": {}, "b": {}}}}, "factors.arm: a column"),
    (
        {FORMAT_ON: {"reward.fromat": "observe"}},
        f"{FORMAT_ON}: reward.fromat: unknown key; did you mean 'format'?",
    ),
    ({FORMAT_ON: {"prompt": "see"}}, f"{FORMAT_ON}: prompt: expected one of plain, think, observe"),
    ({FORMAT_ON: {"rollout.top_p": "x"}}, f"{FORMAT_ON}: rollout.top_p: expected float, got 'x'"),
    ({FORMAT_ON: {"prompt": "think", "reward.format": "think"}}, f"{FORMAT_ON}: the same settings"),
    ({FORMAT_ON: {"seed": 3}}, f"{FORMAT_ON}.seed: the seed is no setting of an arm; use 'seeds'"),
    (
        {FORMAT_ON: {"reward": {"format": "observe"}}},
        f"{FORMAT_ON}.reward: expected a single value; write dotted keys (reward.format)",
    ),
    (
        {"factors.bonus.levels.on": {"reward.format": "none"}},
        "factors.bonus.levels.on: reward.format is also set by factor 'format'",
    ),
    ({"arms": [{}]}, "arms: list the arms here with design arms, and only with it"),
    ({"design": "arms"}, "arms: list the arms here with design arms, and only with it"),
    ({"exclude": [{"format": "x"}]}, "exclude[0].format: unknown level 'x'"),
    ({"design": "fractional_factorial"}, "resolution: give III, IV or V with design fractional"),
    ({"resolution": "IV"}, "resolution: give III, IV or V with design fractional"),
    ({"resolution": "VI"}, "resolution: expected one of III, IV, V, got 'VI'"),
    ({"design": "zip"}, "vary: list factors here with the designs product and zip"),
    ({"design": "zip", "vary": ["sigma"]}, "vary[0]: unknown factor 'sigma'"),
    ({"design": "zip", "vary": ["bonus", "bonus"]}, "vary: a factor is listed twice"),
    (
        {**FRACTION, "factors.bonus.levels.max": {"reward.bonus.weight": 9.0}},
        "factors.bonus.levels: a fractional_factorial needs two levels, not 3",
    ),
    (
        {**FRACTION, "factors.bonus.when": {"format": "on"}},
        "factors.bonus.when: a condition would break the balance",
    ),
    ({"factors.bonus.when": {"sigma": "on"}}, "factors.bonus.when: unknown factor 'sigma'"),
    ({"factors.bonus.when": {"format": "off"}}, "reference.bonus: its condition does not hold"),
    (
        {"factors.bonus.when": {"format": "on"}, "factors.format.when": {"bonus": "on"}},
        "factors: conditions go in a circle: when of",
    ),
    (
        {"exclude": [{"bonus": "off"}]},
        "factors.bonus: has one level alone in the planned arms; mend exclude",
    ),
    (
        {"exclude": [{"bonus": "on", "format": "off"}, {"bonus": "off", "format": "on"}]},
        "factors: what format does cannot be told from what bonus does",
    ),
    ({"exclude": [{}]}, "exclude[0]: names no level"),
    ({"exclude": [{"format": "on"}]}, "reference: arm 'curriculum+format+bonus' is not among"),
    ({"variants.placebo": {"sets": {}}}, "variants.placebo.sets: unknown key; did you mean 'set'?"),
    ({"variants.placebo.set": {"x": 1}}, "variants.placebo.set: x: unknown key"),
    ({"variants.control": {"seeds": [5]}}, "variants.control: an arm of the design has this name"),
    ({"evaluate.suites": ["reason"]}, "evaluate.suites: unknown suite 'reason'; suites: reasoning"),
    ({"evaluate.limits": 3}, "evaluate.limits: unknown key; did you mean 'limit'?"),
    ({"evaluate.prompt": "think"}, "evaluate.prompt: each arm is evaluated with its own prompt"),
    ({"resources.train.cpus": 0}, "resources.train.cpus: expected 1 or more, got 0"),
    ({"resources.trian": {}}, "resources.trian: unknown key; did you mean 'train'?"),
    ({"report.confidence": 95}, "report.confidence: expected a number from 0.5 to below 1, got 95"),
    (
        {"report.planned_contrasts": [{"arm": "format", "against": "base"}]},
        "report.planned_contrasts[0].against: unknown arm 'base'; arms: control, bonus, format",
    ),
    ({"set": {"model.path": "./models/none"}}, "set: model.path: './models/none' not found"),
    ({"set": {"data.source": "none.jsonl"}}, "set: data.source: 'none.jsonl' not found"),
    ({"set": {"data.source": "broken.jsonl"}}, "broken.jsonl:2: not a JSON object"),
    ({"set": {"data.source": "lost.jsonl"}}, "lost.jsonl:1: images: 'a.png' not found"),
    ({"set": {"data.source": "nul.jsonl"}}, "nul.jsonl:1: images: '\\x00' not found"),
    ({"set": {"data.source": "number.jsonl"}}, "number.jsonl:1: images: expected a list of files"),
    ({"set": {"data.source": "binary.jsonl"}}, "binary.jsonl: not a JSONL file"),
    ({"set": {"data.source": "."}}, " is a folder; expected a JSONL file"),
    ({"set": {"model.path": "lost.jsonl"}}, "lost.jsonl is a file; expected a Hugging Face folder"),
    ({"set": {"model.path": "~nobody-here/x"}}, "model.path: '~nobody-here/x' is no path"),
    ({"set": {"model.path": "x" * 5000}}, " is no path"),
    ({"set": {"data.ladder.path": "odd"}}, "odd: no ladder there"),
    ({"set": {"optim.lr": 10**400}}, "set: optim.lr: expected a finite number"),
    ({"evaluate.data_dir": 5}, "evaluate.data_dir: expected str"),
    ({"seeds": [2**63]}, "arm control: seed: expected an integer of 64 bits"),
    ({"name": "a" * 101}, "is no folder name; use up to 100"),
    ({"factors.bonus.levels.": {"reward.bonus.weight": 9.0}}, "bonus.levels: '' is no name"),
    ({"factors.bonus.levels.a\nb": {"reward.bonus.weight": 9.0}}, "levels: 'a\\nb' is no name"),
    ({"factors.bonus.levels.\x1b[1m": {"reward.bonus.weight": 9.0}}, "'\\x1b[1m' is no name"),
    (MANY, "design: 131072 combinations of levels, more than 100000; use fractional_factorial"),
    ({**MANY, **FRACTION}, "factors: 17 are too many for a fractional_factorial"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_mistakes_are_said_with_file_key_and_remedy_and_nothing_is_written(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "broken.jsonl").write_text('{"id": "1"}\n{"id": \n')
    (tmp_path / "nul.jsonl").write_text('{"id": "1", "images": ["\\u0000"]}\n')
    (tmp_path / "number.jsonl").write_text('{"id": "1", "images": 5}\n')
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "ladder.jsonl").write_text("")
    (tmp_path / "odd" / "summary.json").write_text("[]")
    (tmp_path / "lost.jsonl").write_text('{"id": "1", "images": ["a.png"]}\n')
    file = write_ablation(tmp_path, changes)
    assert sweep_command.main([str(file), "--out", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert message in said, said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert str(tmp_path) in said
    assert not (tmp_path / "runs").exists()


def test_a_hub_id_is_taken_as_it_is(tmp_path: Path) -> None:
    plan = plan_of(write_ablation(tmp_path, {"set": {"model.path": "Qwen/Qwen2.5-VL-3B-Instruct"}}))
    assert plan.runs[-1].config["model"]["path"] == "Qwen/Qwen2.5-VL-3B-Instruct"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "missing.yaml: no such file"),
        (["{file}", "--seeds", "a,b"], "--seeds a,b: expected integers with commas"),
        (["{file}", "--set", "data.size"], "--set data.size: expected key=value"),
        (["{file}", "--set", "data.size=[1"], "--set data.size=[1: not valid YAML"),
        (["{file}", "--set", "data.size=x"], "set: data.size: expected int, got 'x'"),
        (["{file}", "--jobs", "0"], "--jobs 0: expected 1 or more"),
        (["{broken}"], "broken.yaml: not valid YAML"),
        (["{list}"], "list.yaml: expected a mapping"),
    ],
)
def test_mistakes_on_the_command_line_are_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "broken.yaml").write_text("name: [1\n")
    (tmp_path / "list.yaml").write_text("[1]\n")
    names = {"file": write_ablation(tmp_path), "broken": tmp_path / "broken.yaml"}
    names["list"] = tmp_path / "list.yaml"
    filled = [argument.format(**names) for argument in arguments]
    assert plan_command.main([*filled, "--out", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_is_no_folder_for_sweeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    (tmp_path / "file").write_text("")
    file = write_ablation(tmp_path)
    assert sweep_command.main([str(file), "--out", str(tmp_path / out)]) == 2
    assert "cannot be written (Not a directory)" in capsys.readouterr().err


def test_the_plan_is_printed_as_differences_with_its_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_ablation(tmp_path)
    assert plan_command.main([str(file), "--seeds", "0,1,2", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "  8 arms x 3 seeds + 4 variant runs = 28 trainings; 30 evaluations, with the" in said
    assert " untrained base under 2 prompts\n" in said
    assert "curriculum+format        bonus off\n" in said
    assert "placebo                  reward.shuffle False -> True\n" in said
    assert "again                    seed 0 -> 1000\n" in said
    assert "train       28, 0 done; 30 min each (from resources)" in said
    # 28 trainings of half an hour, 30 evaluations, base and ladder of an hour, two at a time.
    assert "expected: about 24.0 h on this machine" in said


def test_planning_watching_and_stopping_load_no_heavy_packages() -> None:
    code = """
import sys
import harness.plan, harness.status, harness.cancel, harness.dispatch, harness.sweep
import harness.gc, harness.doctor, harness.prefetch, harness.ranks
harness.plan.main([sys.argv[1]])
assert harness.status.main(["nowhere"]) == harness.cancel.main(["nowhere"]) == 2
heavy = {"torch", "transformers", "pandas", "numpy", "pyarrow", "lm_eval", "submitit", "optuna"}
heavy &= set(sys.modules)
assert not heavy, heavy
"""
    file = ROOT / "ablations" / "full.yaml"
    run = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert "16 arms x 1 seed + 4 variant runs" in run.stdout


@pytest.mark.parametrize("name", ["full", "smoke"])
def test_the_shipped_ablations_can_be_planned(name: str) -> None:
    plan = plan_of(ROOT / "ablations" / f"{name}.yaml")
    assert plan.reference_arm == "curriculum+format+bonus+dynamic_weights"
    assert {run.prompt for run in plan.runs if run.kind == "base"} == {"think", "observe"}
    assert sum(run.kind == "cell" for run in plan.runs) == {"full": 16, "smoke": 5}[name]


@pytest.mark.parametrize(
    ("name", "reference", "arms"),
    [("algorithms", "control", 6), ("weighting", "weights=observe_r1", 5)],
)
def test_the_shipped_ablations_of_one_factor_can_be_planned(name, reference, arms) -> None:
    plan = plan_of(ROOT / "ablations" / f"{name}.yaml")
    assert plan.reference_arm == reference
    assert sum(run.kind == "cell" for run in plan.runs) == 3 * arms


def test_a_bad_override_of_the_whole_file_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set: expected a mapping"):
        load_ablation(write_ablation(tmp_path, {"set": [1]}), {"data.size": 3})
