"""Which weights are trained, in which type, and what is computed once only."""

import dataclasses

import pytest
import torch
from small_runs import CONFIG, changed, run, untimed

from observe.config import LoraConfig, ModelConfig, OptimConfig
from observe.data.sources import load_questions
from observe.model.batch import pack
from observe.model.features import FeatureCache
from observe.model.policy import load_policy
from observe.model.trainable import trainable_policy
from observe.prompts import build_messages

BFLOAT16 = ModelConfig(dtype="bfloat16")
SHORT = changed(data=dataclasses.replace(CONFIG.data, size=16), eval_steps=())


def policy_of(config, base):
    return trainable_policy(config, base / "checkpoint", None, seed=0)


def weights(out):
    return load_policy(out / "checkpoint").model.state_dict()


def test_by_default_all_weights_are_trained_as_they_are(base):
    policy = policy_of(ModelConfig(), base)
    assert all(a is b for a, b in zip(policy.trained(), policy.model.parameters(), strict=True))
    assert policy.features is None


def test_a_frozen_tower_does_not_move_and_the_rest_does(base, tmp_path):
    run(changed(SHORT, model=ModelConfig(freeze_vision=True)), tmp_path, base)
    before, after = weights(base), weights(tmp_path)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("visual" in name for name in moved)


def test_what_is_remembered_of_pictures_changes_no_run(base, tmp_path):
    logs = []
    for limit in (0, 64):
        config = changed(SHORT, model=ModelConfig(freeze_vision=True, vision_cache_mb=limit))
        run(config, tmp_path / str(limit), base)
        logs.append(untimed(tmp_path / str(limit)))
    assert logs[0] == logs[1]


@pytest.mark.parametrize(
    "config", [ModelConfig(freeze_vision=True), ModelConfig(lora=LoraConfig(rank=2))]
)
def test_a_frozen_tower_sees_a_picture_once(base, config):
    policy, plain = policy_of(config, base), load_policy(base / "checkpoint")
    samples = [
        policy.processor.sample(build_messages("think", q.text, (), 1), q.open_images())
        for q in load_questions("glyphs", size=3, seed=0)
    ]
    both = pack([samples[0], samples[1], samples[0]])
    with torch.inference_mode():
        policy.inputs(both)
    assert (policy.features.hits, policy.features.misses) == (1, 2)
    again = pack([samples[2], samples[1]])
    found, expected = (p.inputs(again)["inputs_embeds"] for p in (policy, plain))
    torch.testing.assert_close(found, expected)
    assert (policy.features.hits, policy.features.misses) == (2, 3)
    assert not policy.image_features(again.pixels_RD, again.grid_I3).requires_grad


def test_a_full_cache_forgets_what_was_not_used_for_longest():
    seen = []

    def tower(pixels_RD, grid_I3):
        seen.append(pixels_RD[::4, 0].tolist())
        return pixels_RD.reshape(-1, 4, 8).mean(1).repeat(1, 2**14)

    cache = FeatureCache(limit_mb=1, merge=2)
    grid = torch.tensor([[1, 2, 2]])

    def look(value):
        features = cache.features(torch.full((4, 8), float(value)), grid, tower)
        assert features.unique().tolist() == [value]

    for value in (1, 2, 1, 3, 1, 2):
        look(value)
    assert seen == [[1.0], [2.0], [3.0], [2.0]]


def test_in_bfloat16_the_optimizer_steps_on_precise_copies(base):
    policy = policy_of(BFLOAT16, base)
    start = weights(base)
    assert all(p.dtype == torch.bfloat16 for p in policy.model.parameters())
    assert policy.model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in policy.trained())
    assert all(torch.equal(policy.weights()[name], start[name]) for name in policy.masters)
    name, master = next(iter(policy.masters.items()))
    before = policy.model.get_parameter(name).clone()
    for _ in range(2000):
        master.data.add_(1e-4 * master)
        policy.publish()
    grown = policy.model.get_parameter(name) / before
    torch.testing.assert_close(grown, torch.full_like(grown, 1.2214), rtol=0.02, atol=0)


def test_gradients_of_micro_batches_add_up_in_float32(base):
    policy = policy_of(BFLOAT16, base)
    name, master = next(iter(policy.masters.items()))
    weight = policy.model.get_parameter(name)
    for scale in (1.0, 2**-10):
        (weight.sum() * scale).backward()
    assert weight.grad is None
    assert master.grad.unique().tolist() == [1 + 2**-10]


def test_training_in_bfloat16_goes_on_exactly(base, tmp_path):
    config = changed(SHORT, model=BFLOAT16, optim=OptimConfig(lr=1e-4))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(config, whole, base)

    class Stopped(Exception):
        pass

    def stop(done, total, message):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run(config, parts, base, progress=stop)
    run(config, parts, base)
    assert untimed(parts) == untimed(whole)
    one, two = weights(whole), weights(parts)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(w, w.bfloat16().float()) for w in one.values())
