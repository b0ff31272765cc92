"""Training: the logs, exact resume, learning, and the command."""

import dataclasses
import json
import shutil
import subprocess
import threading
import typing

import pytest
import torch
from small_runs import CONFIG, STEPS, changed, rows, run, silent, untimed
from transformers import Qwen2_5_VLForConditionalGeneration

from observe.checkpoint import latest_checkpoint, load_state
from observe.config import (
    BonusConfig,
    DataConfig,
    LadderConfig,
    LossConfig,
    OptimConfig,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
    WeightingConfig,
)
from observe.errors import InputError, TrainingFailed
from observe.mapping import from_mapping, load_yaml, to_mapping
from observe.model.policy import load_policy
from observe.run import prepare
from observe.train import main, stage, stop_if_hopeless


def weights(out):
    return load_policy(out / "checkpoint").model.state_dict()


def assert_same_run(one, two):
    assert untimed(one) == untimed(two)
    assert rows(one, "completions.jsonl") == rows(two, "completions.jsonl")
    first, second = weights(one), weights(two)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """An undisturbed run and its summary."""
    out = tmp_path_factory.mktemp("finished")
    return out, run(CONFIG, out, base)


def test_a_run_logs_every_step_and_leaves_a_plain_checkpoint(finished):
    out, summary = finished
    logged = rows(out)
    assert [row["step"] for row in logged] == list(range(STEPS + 1))
    assert [row["samples"] for row in logged] == [4 * i for i in range(STEPS + 1)]
    for row in logged[1:]:
        assert {
            "reward",
            "loss",
            "entropy",
            "grad_norm",
            "learning_rate",
            "num_tokens",
            "completions/mean_length",
            "rewards/accuracy/mean",
            "timing_s/gen",
            "timing_s/reward",
            "timing_s/forward_backward",
            "timing_s/optimizer",
            "timing_s/step",
            "perf/throughput",
            "perf/max_memory_gb",
            "observe/bad_step",
            "observe/weight_mean",
        } <= set(row)
    assert [row["step"] for row in logged if "eval/accuracy" in row] == [0, 3]
    assert [row["step"] for row in rows(out, "completions.jsonl")] == [1, 2, 4]
    assert len(rows(out, "completions.jsonl")[0]["completions"]) == 4
    assert rows(out, "warnings.jsonl") == summary["warnings"] == []
    Qwen2_5_VLForConditionalGeneration.from_pretrained(out / "checkpoint")
    assert summary["steps"] == STEPS
    assert summary["tokens"] == logged[-1]["num_tokens"]


def test_a_run_changes_the_policy(finished, base):
    before, after = weights(base), weights(finished[0])
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_finished_run_given_again_does_nothing(finished, base):
    out, summary = finished
    before = (out / "metrics.jsonl").read_bytes()
    again = run(CONFIG, out, base, progress=lambda *args: pytest.fail("trained again"))
    assert again == summary
    assert (out / "metrics.jsonl").read_bytes() == before


class Stopped(Exception):
    pass


@pytest.mark.parametrize("last", [1, 3])
def test_a_stopped_run_goes_on_as_if_undisturbed(finished, base, tmp_path, last):
    def stop(done, total, message):
        if done == last:
            raise Stopped

    with pytest.raises(Stopped):
        run(CONFIG, tmp_path, base, progress=stop)
    assert len(rows(tmp_path)) == last + 1
    resumed = run(CONFIG, tmp_path, base)
    assert_same_run(tmp_path, finished[0])
    assert resumed["tokens"] == finished[1]["tokens"]


def test_a_stopped_run_leaves_no_threads(base, tmp_path):
    def stop(done, total, message):
        raise Stopped

    # Its error keeps the run alive.
    with pytest.raises(Stopped):
        run(CONFIG, tmp_path, base, progress=stop)
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_evaluation_and_logging_change_no_weights(finished, base, tmp_path):
    run(changed(eval_steps=(), log_completions_every=99, checkpoint_every=99), tmp_path, base)
    first, second = weights(finished[0]), weights(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_is_another_run(finished, base, tmp_path, capsys):
    run(changed(seed=1, data=dataclasses.replace(CONFIG.data, size=4)), tmp_path, base)
    assert rows(tmp_path)[1]["reward"] != rows(finished[0])[1]["reward"]
    assert "WARNING: eval_steps: 3 left out, training ends after step 1" in capsys.readouterr().out


@pytest.fixture(scope="module")
def with_every_checkpoint(base, tmp_path_factory):
    """An undisturbed run whose last checkpoint but one is of the step before the last."""
    out = tmp_path_factory.mktemp("with_every_checkpoint")
    run(changed(checkpoint_every=1), out, base)
    return out


@pytest.mark.parametrize("name", ["trainer_state.pt", "model.safetensors", "tokenizer.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_gone_on_from(
    finished, with_every_checkpoint, base, tmp_path, caplog, name
):
    out = shutil.copytree(with_every_checkpoint, tmp_path / "out")
    damaged = out / "checkpoint" / name
    damaged.write_bytes(damaged.read_bytes()[:500])
    steps = []
    run(CONFIG, out, base, progress=lambda done, total, message: steps.append(done))
    assert steps == [STEPS]
    assert f"{out / 'checkpoint'}: damaged checkpoint ({name} has 500 bytes" in caplog.text
    assert_same_run(out, finished[0])


def test_where_no_checkpoint_is_whole_nothing_is_touched(base, tmp_path):
    run(changed(data=dataclasses.replace(CONFIG.data, size=4)), tmp_path, base)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    damaged = tmp_path / "checkpoint" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(InputError, match=f"{tmp_path / 'checkpoint'}.*delete"):
        run(CONFIG, tmp_path, base)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_too_many_steps_without_a_finite_gradient_end_the_training(base, tmp_path):
    endless = changed(
        reward=RewardConfig(accuracy=1e38, format="none"),
        loss=LossConfig(scale="none"),
        optim=OptimConfig(lr=1e-3, max_bad_steps=1),
        checkpoint_every=1,
        eval_steps=(),
    )
    for _ in range(2):  # Given again, it ends in the same way.
        with pytest.raises(TrainingFailed) as caught:
            run(endless, tmp_path, base)
        logged = rows(tmp_path)
        bad = [row["observe/bad_step"] for row in logged]
        assert bad[-2:] == [1, 1] and 1 not in bad[:-2]
        assert logged[-1]["grad_norm"] is None
        message = str(caught.value)
        assert message.startswith(f"{tmp_path}: step {len(logged)}: loss or gradient was NaN")
        assert f"the policy is that of step {len(logged) - 2}" in message
        assert [w["sickness"] for w in rows(tmp_path, "warnings.jsonl")] == ["nan_steps"]


def test_weights_that_leave_the_range_of_numbers_end_the_training(base, tmp_path):
    made = prepare(CONFIG, tmp_path, model=base / "checkpoint", ladder=None)
    stop_if_hopeless(made, tmp_path)
    made.policy.model.lm_head.weight.data[3, 5] = float("inf")
    with pytest.raises(TrainingFailed, match=r"step 0: it made weights infinite or NaN"):
        stop_if_hopeless(made, tmp_path)


def test_a_full_disk_ends_the_command_with_2_and_the_run_goes_on_when_it_has_room(
    capsys, finished, base, small_disk, tmp_path
):
    out = small_disk / "out"
    (tmp_path / "recipe.yaml").write_text(json.dumps(to_mapping(changed(checkpoint_every=1))))
    given = ("--config", tmp_path / "recipe.yaml", "--out", out, "--base", base)
    code, printed = command(capsys, *given)
    assert code == 2
    assert f"error: {out / 'checkpoint'}: the checkpoint of step " in printed.err
    assert "No space left on device" in printed.err and "MB are free there" in printed.err
    saved = load_state(latest_checkpoint(out / "checkpoint"))["step"]
    assert 1 <= saved < STEPS
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    assert command(capsys, *given)[0] == 0
    assert_same_run(out, finished[0])


def test_a_checkpoint_of_other_questions_is_refused(finished, base):
    out = finished[0]
    with pytest.raises(InputError, match=f"{out / 'checkpoint'}.*other questions"):
        run(changed(seed=5), out, base)


def test_a_run_on_a_ladder_climbs_it(base, ladder, tmp_path):
    data = DataConfig(size=12, selection="ladder", order="ladder")
    summary = run(changed(data=data, eval_steps=()), tmp_path, base, ladder=ladder)
    difficulty = [row["observe/difficulty"] for row in rows(tmp_path)]
    assert difficulty == sorted(difficulty)
    assert summary["mechanisms"]["curriculum"]["acted"] is True


def test_what_needs_a_ladder_says_so(base, tmp_path):
    with pytest.raises(InputError, match=r"data\.selection: ladder needs .*--ladder"):
        run(changed(data=DataConfig(size=20)), tmp_path, base)
    bonus = BonusConfig(weight=0.2, min_length_quantile=0.5)
    with pytest.raises(InputError, match=r"min_length_quantile needs .*--ladder"):
        run(changed(reward=RewardConfig(bonus=bonus)), tmp_path, base)
    assert list(tmp_path.iterdir()) == []


def test_the_stage_takes_its_model_from_what_it_consumes(finished, base, tmp_path):
    config = to_mapping(CONFIG)
    del config["model"]["base"], config["data"]["ladder"]
    summary = stage(config, tmp_path, {"model": base}, silent)
    assert_same_run(tmp_path, finished[0])
    assert {k: v for k, v in summary.items() if k != "seconds"} == {
        k: v for k, v in finished[1].items() if k != "seconds"
    }
    json.dumps(summary)


def test_a_summary_says_which_mechanism_acted(base, ladder, tmp_path):
    config = changed(
        data=DataConfig(size=12, selection="ladder", order="ladder"),
        reward=RewardConfig(bonus=BonusConfig(weight=0.2)),
        weighting=WeightingConfig(sigma=1.8),
        eval_steps=(),
    )
    mechanisms = run(config, tmp_path, base, ladder=ladder)["mechanisms"]
    logged = rows(tmp_path)
    assert mechanisms["bonus"]["share"] == pytest.approx(
        sum(row["observe/bonus_share"] for row in logged) / 3
    )
    assert all(mechanisms[name]["acted"] for name in mechanisms)


def test_switched_off_mechanisms_did_not_act(finished):
    mechanisms = finished[1]["mechanisms"]
    assert mechanisms["bonus"] == {"share": 0.0, "acted": False}
    assert mechanisms["dynamic_weights"] == {"active_share": 0.0, "acted": False}
    assert mechanisms["curriculum"]["acted"] is False


def test_training_learns_the_form_and_the_placebo_does_not(base, tmp_path):
    config = changed(
        data=DataConfig(size=20 * 6, selection="raw"),
        rollout=RolloutConfig(group_size=8, max_new_tokens=40),
        reward=RewardConfig(accuracy=0.0, format_weight=1.0),
        prompts_per_step=6,
        eval_steps=(),
        checkpoint_every=99,
    )
    gains = {}
    for shuffle in (False, True):
        out = tmp_path / str(shuffle)
        reward = dataclasses.replace(config.reward, shuffle=shuffle)
        run(changed(config, reward=reward), out, base)
        form = [row["rewards/format/mean"] for row in rows(out)]
        gains[shuffle] = sum(form[-5:]) / 5 - sum(form[:5]) / 5
    # The small base has the form in 7 of 10 completions, so that 0.3 is the most there is to gain.
    assert gains[False] > 0.1
    assert rows(tmp_path / "False", "warnings.jsonl") == []
    assert gains[True] < 0.5 * gains[False]


def command(capsys, *arguments):
    """Exit code and output of ``python -m observe.train`` with these arguments."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr()


def settings(cls, prefix=""):
    """The dotted name of every setting below a config class."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from settings(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_help_explains_every_setting(capsys):
    code, printed = command(capsys, "--help")
    assert code == 0
    entries = dict(
        (entry.split()[0], entry.split("(type:")[0].split()[2:])
        for entry in printed.out.split("\n  --")[1:]
    )
    for name in settings(TrainConfig):
        assert len(entries[name]) >= 2, name


def test_the_file_is_read_as_yaml_1_2_and_options_win_over_it(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "data: {size: 48, selection: raw}\noptim: {lr: 1e-5}\nreward: {bonus: {weight: 0.2}}\n"
    )
    code, printed = command(
        capsys,
        *("--config", tmp_path / "recipe.yaml", "--reward.bonus.min_length", 9),
        *("--data", '{"size": 72}', "--eval_steps", "[1, 2]", "--print_config"),
    )
    assert code == 0
    (tmp_path / "printed.yaml").write_text(printed.out)
    resolved = from_mapping(TrainConfig, load_yaml(tmp_path / "printed.yaml"), source="printed")
    assert resolved == TrainConfig(
        data=DataConfig(size=72, selection="raw"),
        optim=OptimConfig(lr=1e-5),
        reward=RewardConfig(bonus=BonusConfig(weight=0.2, min_length=9)),
        eval_steps=(1, 2),
    )


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("propmts_per_step: 4\n", "recipe.yaml: propmts_per_step: unknown key; did you mean"),
        ("reward: {format: on}\n", "recipe.yaml: reward.format: expected one of none, think"),
        ("prompts_per_step: many\n", "recipe.yaml: prompts_per_step: expected int, got 'many'"),
        ("prompts_per_step: 7\n", "recipe.yaml: data.size: "),
        ("data: {selection: raw, order: ladder}\n", "recipe.yaml: data.order: ladder needs"),
        ("prompt: [\n", "recipe.yaml: not valid YAML: "),
        ("- prompt\n", "recipe.yaml: the file: expected a mapping"),
        ("", "recipe.yaml: the file: expected a mapping"),
        ("prompt: think\n", "--base: model.path glyphs needs"),
    ],
)
def test_a_bad_file_is_named_and_nothing_is_written(capsys, tmp_path, recipe, message):
    (tmp_path / "recipe.yaml").write_text(recipe)
    code, printed = command(capsys, "--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    assert code == 2
    assert message in printed.err
    assert not (tmp_path / "out").exists()


def test_questions_lie_beside_the_file_that_names_them(capsys, base, tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {source: asked.jsonl, selection: raw}\n")
    code, printed = command(
        capsys,
        *("--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--base", base),
    )
    assert code == 2
    assert f"{tmp_path / 'asked.jsonl'}: no such file" in printed.err


def test_questions_that_an_option_names_lie_where_the_command_is_given(
    capsys, base, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "recipes" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text("data: {source: beside.jsonl, selection: raw}\n")
    options = ("--data.source", "asked.jsonl", "--base", base, "--out", "out")
    code, printed = command(capsys, "--config", recipe, *options)
    assert code == 2
    assert "error: asked.jsonl: no such file" in printed.err


def test_the_ladder_may_be_named_in_the_file(capsys, base, ladder, tmp_path):
    shutil.copytree(ladder, tmp_path / "ladder")
    data = DataConfig(
        size=12, selection="ladder", order="ladder", ladder=LadderConfig(path="ladder")
    )
    config = to_mapping(changed(data=data, eval_steps=()))
    (tmp_path / "recipe.yaml").write_text(json.dumps(config))
    out = tmp_path / "out"
    code, printed = command(
        capsys, "--config", tmp_path / "recipe.yaml", "--out", out, "--base", base
    )
    assert code == 0, printed.err
    difficulty = [row["observe/difficulty"] for row in rows(out)]
    assert difficulty and difficulty == sorted(difficulty)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts_per_stp", "4"], "--prompts_per_stp"),
        (["--rollout.top_k", "many"], "rollout.top_k"),
        (["--rollout.top_k", "-1"], "options: rollout.top_k: expected at least 0, got -1"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--out", "{tmp}/out", "--base", "{tmp}/nowhere"], "nowhere/checkpoint: no readable"),
        ([], "--out: missing"),
    ],
)
def test_a_bad_option_is_named(capsys, tmp_path, arguments, message):
    code, printed = command(capsys, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 2
    assert message in printed.err


def test_the_command_trains(capsys, finished, base, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(to_mapping(CONFIG)))
    code, printed = command(
        capsys,
        *("--config", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--base", base),
    )
    assert code == 0
    assert "5 steps" in printed.out
    assert_same_run(tmp_path / "out", finished[0])
