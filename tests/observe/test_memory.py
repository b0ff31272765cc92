"""What a run will need of memory, told before it begins."""

import dataclasses

import pytest
import torch
from conftest import SMALL
from small_runs import CONFIG, changed
from transformers import Qwen3VLConfig

from observe import memory
from observe.config import (
    DataConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    ParallelConfig,
    RolloutConfig,
)
from observe.glyphs import questions
from observe.glyphs.model import build_policy
from observe.memory import cache_elements, estimate, parameter_counts
from observe.model.logprobs import completion_logprobs
from observe.model.shapes import empty_model, shape
from observe.prompts import build_messages
from observe.run import prepare

LONG = changed(
    rollout=RolloutConfig(max_new_tokens=1024),
    prompts_per_step=24,
    data=DataConfig(size=24),
)
H200 = 139 * 2**30


def of(config=LONG, size="3b", **values):
    return estimate(shape(size), config, prompt_tokens=700, patches=2400, **values)


@pytest.mark.parametrize(
    ("size", "parameters", "vision"), [("3b", 3.75e9, 0.669e9), ("7b", 8.29e9, 0.677e9)]
)
def test_the_shapes_have_the_sizes_of_the_published_models(size, parameters, vision):
    model = empty_model(shape(size))
    assert model.device.type == "meta"
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=2e-3)
    assert sum(p.numel() for p in model.model.visual.parameters()) == pytest.approx(
        vision, rel=2e-3
    )


def test_what_is_trained_is_counted():
    everything, trained = parameter_counts(shape("3b"), CONFIG)
    assert trained == everything
    _, without_vision = parameter_counts(
        shape("3b"), changed(model=ModelConfig(freeze_vision=True))
    )
    assert everything - without_vision == pytest.approx(0.669e9, rel=2e-3)
    lora = changed(model=ModelConfig(lora=LoraConfig(rank=8, target_modules=("q_proj",))))
    _, adapter = parameter_counts(shape("3b"), lora)
    assert adapter == 36 * 8 * (2048 + 2048)


def test_full_training_in_float32_holds_16_bytes_per_parameter():
    made = of()
    parameters, _ = parameter_counts(shape("3b"), LONG)
    whole = made.steady["weights"] + made.steady["optimizer"] + made.training["gradients"]
    assert whole == 16 * parameters


def test_keys_and_values_are_those_of_the_grouped_heads():
    # 36 layers, 2 heads of 128, keys and values, 4 bytes: 73.7 kB per token.
    # A prompt's are held once for the 8 completions of its group.
    assert of().sampling["keys and values"] == 24 * (8 * 1024 + 696) * 73728


def test_heads_are_as_wide_as_a_model_states():
    text = {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8}
    model = Qwen3VLConfig(text_config={**text, "head_dim": 128, "num_hidden_layers": 36})
    assert cache_elements(model) == 2 * 8 * 128 * 36


def test_where_there_is_no_proc_all_of_the_memory_is_told(tmp_path, monkeypatch):
    told = memory.available_memory(torch.device("cpu")), memory.held_by_process()
    monkeypatch.setattr(memory, "PROC", tmp_path)  # As on macOS.
    assert memory.available_memory(torch.device("cpu")) >= told[0] - told[1]
    assert memory.held_by_process() > 0


@pytest.mark.parametrize(
    "cheaper",
    [
        {"model": ModelConfig(dtype="bfloat16")},
        {"model": ModelConfig(freeze_vision=True)},
        {"model": ModelConfig(lora=LoraConfig(rank=16))},
        {"micro_batch_tokens": 4096},
        {"model": ModelConfig(gradient_checkpointing=True)},
    ],
    ids=str,
)
def test_each_saving_saves(cheaper):
    assert of(changed(LONG, **cheaper)).total < of().total


def test_spreading_and_checkpointing_save_and_a_reference_costs():
    spread = changed(LONG, parallel=ParallelConfig(strategy="fsdp2"))
    assert of(spread, world_size=8).steady["optimizer"] == of().steady["optimizer"] // 8
    checkpointed = changed(LONG, model=ModelConfig(gradient_checkpointing=True))
    assert of(checkpointed).training["activations"] < of().training["activations"] / 10
    with_kl = changed(LONG, loss=LossConfig(kl_coefficient=0.1))
    assert of(with_kl).steady["reference"] == of().steady["weights"]
    with_both = changed(with_kl, model=ModelConfig(lora=LoraConfig(rank=16)))
    assert of(with_both).steady["reference"] == 0


def test_spread_weights_are_float32_unless_an_adapter_alone_is_trained():
    fsdp2 = ParallelConfig(strategy="fsdp2")
    spread = changed(LONG, parallel=fsdp2, model=ModelConfig(dtype="bfloat16"))
    everything = parameter_counts(shape("3b"), spread)[0]
    assert of(spread, world_size=8).steady["weights"] == 4 * everything // 8
    adapted = changed(spread, model=ModelConfig(dtype="bfloat16", lora=LoraConfig(rank=16)))
    everything = parameter_counts(shape("3b"), adapted)[0]
    assert of(adapted, world_size=8).steady["weights"] == 2 * everything // 8


def test_a_head_that_is_not_trained_needs_no_gradient():
    adapted = of(changed(LONG, model=ModelConfig(lora=LoraConfig(rank=16))))
    head = 4 * 151936 * 2048
    assert of().training["logits"] == adapted.training["logits"] + head


@pytest.mark.parametrize(
    ("values", "bytes_per_parameter"),
    [
        ({}, 4),
        ({"loss": LossConfig(kl_coefficient=0.1)}, 8),
        ({"model": ModelConfig(dtype="bfloat16")}, 6),
    ],
    ids=["float32", "with a reference", "with float32 copies"],
)
def test_what_a_process_holds_of_weights_is_not_counted_as_its_own(
    base, tmp_path, values, bytes_per_parameter
):
    made = prepare(changed(**values), tmp_path, model=base / "checkpoint", ladder=None)
    number = sum(p.numel() for p in made.policy.model.parameters())
    assert memory.held_by_weights(made) == bytes_per_parameter * number


def test_the_verdict_says_whether_it_fits_and_what_would_help():
    small = changed(LONG, model=ModelConfig(dtype="bfloat16", lora=LoraConfig(rank=16)))
    assert ": fits (" in of(small).verdict(H200)
    too_large = of(size="7b")
    assert "does not fit" in too_large.verdict(H200)
    assert "model.gradient_checkpointing" in too_large.verdict(H200)
    assert ": tight (" in too_large.verdict(int(too_large.total * 1.05))


@pytest.mark.parametrize(("width", "layers"), [(64, 2), (128, 4), (256, 3)])
def test_what_the_backward_pass_needs_is_estimated_within_15_percent(width, layers):
    policy = build_policy(dataclasses.replace(SMALL, hidden_size=width, layers=layers))
    samples = [
        policy.processor.sample(build_messages("think", q.text, (), 1), q.open_images())
        for q in questions("train", 4)
    ]
    completions = [[list(range(20, 84))] * 8] * 4
    config = changed(
        rollout=RolloutConfig(group_size=8, max_new_tokens=64),
        micro_batch_tokens=sum(s.length for s in samples) + 4 * 8 * 64,
    )
    estimated = estimate(
        policy.model.config,
        config,
        prompt_tokens=max(s.length for s in samples),
        patches=max(len(s.pixels_RD) for s in samples),
    ).training
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs_NT, _, _ = completion_logprobs(policy, samples, completions)
    measured = sum(kept.values())
    found = estimated["activations"] + estimated["vision"]
    print(f"width {width}, {layers} layers: {found / measured:.3f} of what is kept")
    assert logprobs_NT.requires_grad
    assert found == pytest.approx(measured, rel=0.15)
