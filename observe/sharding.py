"""FSDP2: weights, gradients and optimizer state spread over the ranks, a layer gathered at a time.

Sampling is different: ranks decode different numbers of tokens, and a gather per token would cost
more than the token. All weights are gathered once before sampling and given up after it, so a
device must hold the whole model in the type it computes in; gradients and optimizer state it need
not. A rollout server gets them from a copy in the first rank's main memory.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from observe.distributed import Parallel
from observe.model.policy import Policy
from observe.model.shapes import empty_model

OPTIMIZER_FOLDER = "optimizer"
"""Where in a checkpoint the optimizer's state lies when it was sharded."""


class _Root(nn.Module):
    """Runs any function of the model, its outermost weights gathered meanwhile."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def shard(policy: Policy, parallel: Parallel, *, dtype: torch.dtype) -> Policy:
    """Spread a policy over the ranks; alone it stays as it is.

    Decoder layers and vision blocks are gathered one by one, in ``dtype``; what is left
    (embeddings, norms, merger) together. Gradients are summed, not averaged: each rank's loss is
    its part of a sum. A vision tower that is not trained is left whole, because each rank calls it
    when it has a new picture.
    """
    if parallel.world_size == 1:
        return policy
    model = policy.model
    mesh = init_device_mesh(parallel.device.type, (parallel.world_size,))
    # What a layer is given has its precision already, and the tower's rotary angles a higher one.
    precision = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    if any(p.dtype == torch.float64 for p in model.parameters()):
        precision = MixedPrecisionPolicy()
    whole: set[nn.Parameter] = set()
    if policy.features:
        whole = set(model.model.visual.parameters())
        for parameter in whole:
            parameter.data = parameter.data.to(dtype)
    else:
        for block in model.model.visual.blocks:
            fully_shard(block, mesh=mesh, mp_policy=precision)
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    root = _Root(model)
    fully_shard(root, mesh=mesh, mp_policy=precision, ignored_params=whole)
    for module in _sharded(root):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # All that gloo can do.
    return dataclasses.replace(policy, root=root)


@contextmanager
def gathered(policy: Policy) -> Iterator[None]:
    """All weights whole on every rank, for sampling. Without gradients."""
    if policy.root is None:
        yield
        return
    modules = _sharded(policy.root)
    inner = modules[1:]
    with torch.no_grad():
        policy.root(lambda: None)
        for module in modules:
            module.unshard()
        for module in inner:
            module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in inner:
            module.set_reshard_after_forward(True, recurse=False)
        for module in modules:
            module.reshard()


def give_up(policy: Policy) -> None:
    """Spread the outermost weights again, which a pass without a backward one leaves gathered.

    Until then they stand where the optimizer's and a checkpoint's are looked for.
    """
    if isinstance(policy.root, FSDPModule):
        policy.root.reshard()


def snapshot(policy: Policy, parallel: Parallel) -> Policy:
    """A policy that rank 0 can save by itself: its weights gathered on the CPU.

    Every rank must call this; on the others it holds no gathered weights.
    """
    if policy.root is None:
        return policy
    weights = {}
    for name, parameter in policy.model.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if parallel.is_first:
            weights[name] = nn.Parameter(whole.detach().cpu(), requires_grad=False)
    return dataclasses.replace(policy, root=None, masters=weights)


def copy_for_server(policy: Policy, parallel: Parallel, *, dtype: torch.dtype) -> Policy | None:
    """A plain policy in the first rank's main memory, None on others; every rank must call this.

    Its weights are those that the spread policy computes with, an adapter merged.
    """
    copy = None
    if parallel.is_first:
        model = empty_model(policy.model.config).to_empty(device="cpu").to(dtype)
        model.tie_weights()
        copy = Policy(model, policy.processor)
    renew(copy, policy, parallel)
    return copy


@torch.no_grad()
def renew(copy: Policy | None, policy: Policy, parallel: Parallel) -> None:
    """Bring copy_for_server's weights up to the policy's; every rank must call this."""
    gathered_weights = snapshot(policy, parallel)
    if copy:
        for name, weight in gathered_weights.weights().items():
            copy.model.get_parameter(name).copy_(weight)


def save_optimizer(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, parallel: Parallel
) -> None:
    """Write the optimizer's state, each rank its own part; every rank must call this."""

    def clear() -> None:
        # A killed run may have left the parts of another number of ranks.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    parallel.on_first(clear)
    save(_state(policy, optimizer), checkpoint_id=folder, no_dist=parallel.world_size == 1)


def load_optimizer(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, parallel: Parallel
) -> None:
    """Read what save_optimizer wrote, on any number of ranks, sharded or not.

    A weight that no step had moved yet has no state there, and gets none.
    """
    saved = FileSystemReader(folder).read_metadata().state_dict_metadata
    names = _names(policy)
    for parameter in policy.trained():
        if f"{names[parameter]}.step" in saved:
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    load(_state(policy, optimizer), checkpoint_id=folder, no_dist=parallel.world_size == 1)


def spread_optimizer(
    policy: Policy, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Take over an optimizer state that was saved whole, by parameters in their order."""
    trained = policy.trained()
    for index, saved in state["state"].items():
        parameter = trained[index]
        optimizer.state[parameter] = {
            key: _like(parameter, value) if value.dim() else value for key, value in saved.items()
        }


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _state(policy: Policy, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name, which no world size changes."""
    names = _names(policy)
    return {
        f"{names[parameter]}.{key}": value
        for parameter in policy.trained()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _names(policy: Policy) -> dict[Tensor, str]:
    names: dict[Tensor, str] = {p: name for name, p in policy.model.named_parameters()}
    return names | {master: name for name, master in policy.masters.items()}


def _sharded(root: nn.Module) -> list[FSDPModule]:
    """The modules gathered at a time, the root first."""
    return [module for module in root.modules() if isinstance(module, FSDPModule)]
