"""One training run on several processes, one per device, started by torchrun.

``torchrun --nproc_per_node 2 -m observe.train ... --parallel.strategy ddp``

Every rank follows the same curriculum and knows all completions and rewards of a step, so that
advantages, the loss's normaliser and the log are those of a single process. Sampling, scoring and
the gradient are shared out by whole groups. A rank that fails ends the job: torchrun stops the
others and shows its error.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from observe.config import ParallelConfig
from observe.errors import InputError

Item = TypeVar("Item")

_PATIENCE = timedelta(hours=2)
"""How long a rank waits for another; those of a dead rank are stopped by torchrun at once."""
_BUCKET_ELEMENTS = 16 * 2**20
"""Gradient elements that are summed over the ranks at a time."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """This process among those of the run; a single process needs no process group."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This rank's part of a sequence: contiguous, at most one longer than another rank's."""
        start, end = (len(items) * r // self.world_size for r in (self.rank, self.rank + 1))
        return items[start:end]

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The parts of all ranks put together again; they are pickled on the way."""
        if self.world_size == 1:
            return list(items)
        parts: list[list[Item] | None] = [None] * self.world_size
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part or []]

    def on_first(self, function: Callable[[], Item]) -> Item:
        """What ``function`` returns on rank 0, on every rank; the others do not call it."""
        if self.world_size == 1:
            return function()
        result = [function() if self.is_first else None]
        dist.broadcast_object_list(result, src=0)
        return result[0]  # type: ignore[return-value]

    def total(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over the ranks, in double precision."""
        if self.world_size == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals)
        return totals.tolist()

    def most(self, count: int) -> int:
        """The largest of the ranks' counts."""
        return max(self.gather([count]))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients over the ranks.

        Each rank holds the gradient of its partial sum of the loss, which is normalised by the
        whole step's count, so the sum is the gradient of the step. Every parameter takes part on
        every rank, also one whose rank had nothing to train on; a parameter that no rank has a
        gradient for keeps none, as in a single process.
        """
        if self.world_size == 1:
            return
        trained = list(parameters)
        anywhere = torch.tensor([float(p.grad is not None) for p in trained])
        dist.all_reduce(anywhere, op=dist.ReduceOp.MAX)
        gradients = []
        for parameter, has_gradient in zip(trained, anywhere.tolist(), strict=True):
            if has_gradient:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, summed in zip(bucket, flat.split(sizes), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def stop(self) -> None:
        """Leave the process group, when all ranks are done."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


def start(config: ParallelConfig, *, prompts_per_step: int) -> Parallel:
    """Join the processes that torchrun started, or run alone when there are none.

    Takes this rank's CUDA device where there is one. Raises InputError when the settings do not
    say how several processes are to work together, or there is not a question or a device for each.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local_rank >= (devices := torch.cuda.device_count()):
            raise InputError(
                f"{os.environ.get('LOCAL_WORLD_SIZE', local_rank + 1)} processes on this machine, "
                f"and {devices} CUDA devices; start as many processes as devices "
                "(resources.train.processes, --nproc_per_node), or show more of them "
                "(resources.train.gpus, CUDA_VISIBLE_DEVICES)"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if world_size == 1:
        return Parallel(device=device)
    if config.strategy == "none":
        raise InputError(
            f"parallel.strategy: none, yet {world_size} processes were started; "
            "expected ddp or fsdp2"
        )
    if prompts_per_step < world_size:
        raise InputError(
            f"prompts_per_step: {prompts_per_step} questions for {world_size} processes; "
            "each needs at least one"
        )
    if not dist.is_initialized():
        # Objects and counts travel by gloo, gradients of a CUDA device by NCCL.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    return Parallel(device=device, rank=dist.get_rank(), world_size=world_size)


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Gradients of one type together, as many as fit a bucket."""
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        full = sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET_ELEMENTS
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
