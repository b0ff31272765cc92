"""Adapters: what is trained, what is saved, and what switching them off gives back."""

import dataclasses

import pytest
import torch
from conftest import SMALL
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_runs import CONFIG, changed, rows, run, untimed
from transformers import Qwen2_5_VLForConditionalGeneration

from observe.config import LoraConfig, LossConfig, ModelConfig
from observe.errors import InputError
from observe.glyphs.model import build_policy
from observe.model.lora import adapter_off, add_adapter, load_adapter, merged, save_adapter
from observe.model.policy import load_policy

LORA = LoraConfig(rank=4, alpha=8)


@pytest.fixture
def model():
    """A small model with an adapter that says something."""
    model = build_policy(SMALL).model
    add_adapter(model, LORA, seed=1)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=generator)
    return model.eval()


def logits(model):
    ids = torch.randint(20, 100, (1, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model(input_ids=ids, position_ids=torch.arange(9).expand(3, 1, 9)).logits


def test_a_new_adapter_changes_nothing_and_alone_is_trained():
    model = build_policy(SMALL).model
    before = logits(model)
    add_adapter(model, LORA, seed=1)
    assert torch.equal(logits(model), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = SMALL.layers * len(LORA.target_modules)
    assert len(trained) == 2 * layers
    assert all("language_model" in name and ".lora_" in name for name in trained)


def test_the_seed_alone_draws_an_adapter():
    def drawn(seed):
        model = build_policy(SMALL).model
        torch.rand(seed + 5)
        add_adapter(model, LORA, seed=seed)
        return torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_switched_off_the_model_is_the_one_before_training(model):
    changed_logits = logits(model)
    plain = logits(build_policy(SMALL).model)
    with adapter_off(model):
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), changed_logits)
    assert not torch.allclose(changed_logits, plain, atol=1e-2)
    assert all(p.requires_grad for n, p in model.named_parameters() if ".lora_" in n)


def test_merged_weights_are_those_of_a_plain_model_that_says_the_same(model):
    plain = build_policy(SMALL).model
    weights = merged(model.state_dict(), LORA)
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-4, atol=1e-5)


def test_peft_opens_a_saved_adapter(model, tmp_path):
    save_adapter(tmp_path, model.state_dict(), LORA)
    opened = PeftModel.from_pretrained(build_policy(SMALL).model, tmp_path)
    torch.testing.assert_close(logits(opened), logits(model))


def test_an_adapter_of_other_settings_is_refused(model, tmp_path):
    save_adapter(tmp_path / "adapter", model.state_dict(), LORA)
    other = build_policy(SMALL).model
    add_adapter(other, dataclasses.replace(LORA, rank=2), seed=1)
    with pytest.raises(InputError, match=r"adapter_model.*model\.lora"):
        load_adapter(other, tmp_path / "adapter")
    with pytest.raises(InputError, match="delete"):
        load_adapter(model, tmp_path)


def test_a_peft_folder_is_merged_when_a_policy_is_loaded(model, tmp_path):
    plain = build_policy(SMALL)
    plain.save(tmp_path / "plain")
    save_adapter(tmp_path / "adapter", model.state_dict(), LORA)
    policy = load_policy(tmp_path / "plain", adapter=tmp_path / "adapter")
    assert policy.model.state_dict().keys() == plain.model.state_dict().keys()
    torch.testing.assert_close(logits(policy.model), logits(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(policy.model), logits(plain.model), atol=1e-2)


def spoilt(folder, change):
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(change(weights), folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: dict(list(w.items())[1:]), "1 of its weights are missing"),
        (
            lambda w: {**w, "base_model.model.head.lora_A.weight": w[min(w)].clone()},
            "no layer of the model",
        ),
        (lambda w: {name: weight[:, :1].clone() for name, weight in w.items()}, "size mismatch"),
    ],
    ids=["lacking", "foreign", "of another shape"],
)
def test_an_adapter_of_another_model_is_refused(model, tmp_path, change, message):
    build_policy(SMALL).save(tmp_path / "plain")
    save_adapter(tmp_path / "adapter", model.state_dict(), LORA)
    spoilt(tmp_path / "adapter", change)
    with pytest.raises(InputError, match=rf"(?s)adapter: .*does not fit the model.*{message}"):
        load_policy(tmp_path / "plain", adapter=tmp_path / "adapter")
    with pytest.raises(InputError, match="not the folder of a peft adapter"):
        load_policy(tmp_path / "plain", adapter=tmp_path)


def test_target_modules_that_do_not_exist_are_named():
    with pytest.raises(InputError, match=r"model\.lora\.target_modules: w_proj"):
        add_adapter(
            build_policy(SMALL).model,
            dataclasses.replace(LORA, target_modules=("w_proj",)),
            seed=0,
        )


WITH_LORA = changed(
    model=ModelConfig(lora=dataclasses.replace(LORA, dropout=0.1)),
    loss=LossConfig(kl_coefficient=0.1),
    data=dataclasses.replace(CONFIG.data, size=16),
    eval_steps=(),
)


class Stopped(Exception):
    pass


def test_training_an_adapter_goes_on_exactly_and_leaves_a_plain_model(base, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(WITH_LORA, whole, base)

    def stop(done, total, message):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run(WITH_LORA, parts, base, progress=stop)
    run(WITH_LORA, parts, base)
    assert untimed(parts) == untimed(whole)
    one, two = (load_policy(out / "checkpoint").model.state_dict() for out in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)

    start = load_policy(base / "checkpoint").model
    moved = {
        name for name, weight in start.state_dict().items() if not torch.equal(weight, one[name])
    }
    assert moved
    assert all(name.split(".")[-2] in LORA.target_modules for name in moved)
    kl = [row["kl"] for row in rows(whole)]
    assert kl[0] == pytest.approx(0, abs=1e-7)
    assert all(value > 0 for value in kl[1:])

    final = Qwen2_5_VLForConditionalGeneration.from_pretrained(whole / "checkpoint").eval()
    adapted = PeftModel.from_pretrained(start, whole / "checkpoint" / "adapter").eval()
    torch.testing.assert_close(logits(final), logits(adapted), rtol=1e-4, atol=1e-5)
