"""The policy that a run trains: which of its weights, in which type, with an adapter or without."""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from observe.config import ModelConfig
from observe.model.features import FeatureCache
from observe.model.policy import ADAPTER_FOLDER, Policy, load_policy


def trainable_policy(
    config: ModelConfig,
    source: Path | str,
    saved: Path | None,
    *,
    seed: int,
    device: torch.device | None = None,
    sharded: bool = False,
) -> Policy:
    """The policy as training starts from ``source`` or goes on from the checkpoint ``saved``.

    With an adapter the weights beneath it always come from ``source``: a checkpoint holds them
    merged, which rounds. In bfloat16 the optimizer steps on float32 copies of the trained weights
    (``Policy.masters``), because a step of 1e-6 is lost in bfloat16's eight bits; checkpoints hold
    those copies, so that a resumed run goes on exactly. What is to be ``sharded`` stays in float32:
    there each layer's copy in the lower precision is made when it is gathered.
    """
    lora = config.lora if config.lora.rank is not None else None
    dtype = getattr(torch, config.dtype)
    policy = load_policy(source if lora or not saved else saved)
    model = policy.model
    model.to(device)
    if config.freeze_vision:
        model.model.visual.requires_grad_(False)
    masters = {}
    if lora:
        # peft takes seconds to import, which a run without an adapter need not wait for.
        from observe.model.lora import add_adapter, load_adapter

        _cast(model, dtype)
        add_adapter(model, lora, seed=seed)
        if saved:
            load_adapter(model, saved / ADAPTER_FOLDER)
    elif dtype != torch.float32 and not sharded:
        masters = {n: nn.Parameter(p.data) for n, p in model.named_parameters() if p.requires_grad}
        _cast(model, dtype)
        for name, master in masters.items():
            model.get_parameter(name).register_post_accumulate_grad_hook(
                functools.partial(_hand_over, master)
            )
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    features = None
    if lora or config.freeze_vision:
        merge = policy.processor.image_processor.merge_size
        features = FeatureCache(limit_mb=config.vision_cache_mb, merge=merge)
    return Policy(model, policy.processor, lora=lora, masters=masters, features=features)


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """The parameters alone: the rotary frequencies, a buffer, stay as precise as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _hand_over(master: nn.Parameter, parameter: Tensor) -> None:
    """Add a weight's gradient to that of its float32 copy, where the micro-batches add up."""
    assert parameter.grad is not None
    gradient = parameter.grad.to(master.dtype)
    master.grad = gradient if master.grad is None else master.grad.add_(gradient)
    parameter.grad = None
