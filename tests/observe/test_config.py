"""The trainer's settings: what contradicts itself is refused, and they are cheap to load."""

import subprocess
import sys
from pathlib import Path

import pytest

from observe.config import TrainConfig
from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml, with_overrides


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval_steps": [0, -1]}, "eval_steps: expected 0 or more, got -1"),
        ({"data.size": 25, "prompts_per_step": 24}, "data.size: 25 is no multiple"),
        ({"data.selection": "raw", "data.order": "ladder"}, "data.order: ladder needs"),
        ({"data.selection": "raw", "data.order": "easy_to_hard"}, "data.order: easy_to_hard needs"),
        (
            {"loss.surrogate": "cispo", "loss.ratio": "sequence"},
            "loss.surrogate: cispo weights every token by its own ratio",
        ),
        ({"loss.kl_in": "reward"}, "loss.kl_in: reward has no effect"),
        ({"weighting.form": "vcrl"}, "weighting.form: vcrl has no effect"),
        (
            {"optim.minibatches_per_rollout": 5},
            "optim.minibatches_per_rollout: 5 does not divide prompts_per_step (24)",
        ),
        (
            {"reward.overlong.weight": 1.0, "reward.overlong.max_length": 129},
            "reward.overlong.max_length: 129 is never reached",
        ),
    ],
)
def test_settings_that_contradict_each_other_name_their_source(overrides, message):
    with pytest.raises(InputError) as caught:
        from_mapping(TrainConfig, with_overrides({}, overrides), source="b.yaml")
    assert str(caught.value).startswith(f"b.yaml: {message}")


@pytest.mark.parametrize(
    "key",
    [
        "data.size",
        "prompts_per_step",
        "micro_batch_tokens",
        "checkpoint_every",
        "checkpoint_keep",
        "data.max_prompt_tokens",
        "log_completions_every",
        "eval_size",
        "rollout.max_new_tokens",
    ],
)
@pytest.mark.parametrize("value", [0, -24])
def test_a_count_that_must_be_positive_is_checked_before_anything_runs(key, value):
    with pytest.raises(InputError) as caught:
        from_mapping(TrainConfig, with_overrides({}, {key: value}), source="b.yaml")
    assert str(caught.value) == f"b.yaml: {key}: expected at least 1, got {value}"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rollout.temperature", 0.0),
        ("rollout.temperature", float("nan")),
        ("rollout.top_p", 0.0),
        ("rollout.top_p", 1.5),
        ("rollout.top_k", -1),
        ("rollout.group_size", 1),
    ],
)
def test_sampling_that_cannot_teach_is_refused(key, value):
    with pytest.raises(InputError, match=rf"^b\.yaml: {key}: expected "):
        from_mapping(TrainConfig, with_overrides({}, {key: value}), source="b.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss.clip_low", -0.1),
        ("loss.clip_high", float("nan")),
        ("loss.kl_coefficient", -1.0),
        ("loss.entropy_coefficient", float("inf")),
        ("rollout.refill_rounds", -1),
        ("optim.updates_per_rollout", 0),
        ("optim.minibatches_per_rollout", 0),
        ("reward.overlong.weight", -1.0),
        ("reward.overlong.max_length", 0),
        ("reward.overlong.buffer_share", 0.0),
        ("weighting.threshold", 0.0),
        ("weighting.sigma", -1.8),
        ("reward.bonus.min_length_quantile", 1.5),
        ("optim.beta1", 1.0),
        ("optim.beta2", -0.1),
    ],
)
def test_a_number_outside_its_range_is_refused(key, value):
    with pytest.raises(InputError, match=rf"^b\.yaml: {key}: expected "):
        from_mapping(TrainConfig, with_overrides({}, {key: value}), source="b.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.max_bad_steps", -1),
        ("data.max_skipped_share", 1.0),
        ("data.max_skipped_share", -0.1),
    ],
)
def test_what_may_go_wrong_has_its_bounds(key, value):
    with pytest.raises(InputError, match=rf"^b\.yaml: {key}: expected .*{value}"):
        from_mapping(TrainConfig, with_overrides({}, {key: value}), source="b.yaml")


def test_the_recipe_in_the_repository_is_valid():
    recipe = Path(__file__).parents[2] / "recipes" / "glyphs.yaml"
    config = from_mapping(TrainConfig, load_yaml(recipe), source=str(recipe))
    assert config.model.path == config.data.source == "glyphs"


def test_loading_the_settings_loads_no_torch():
    code = (
        "import sys, observe.config; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
