"""Which engine answers, in training and for a model that stays as it is."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from observe.config import RolloutConfig, SamplerConfig
from observe.model.policy import Policy, load_policy
from observe.model.processor import Processor, PromptSize
from observe.rollout.batches import batches
from observe.rollout.endpoint import EndpointEngine, EndpointProcessor
from observe.rollout.engine import Engine
from observe.rollout.native import NativeEngine

_VLLM_SLICE = 4
"""vLLM is handed slices of so many times max_num_seqs completions."""


def make_engine(policy: Policy, config: RolloutConfig) -> Engine:
    """The engine that ``rollout.engine`` names, ready to sample from the policy.

    Raises InputError when vLLM is asked for and not installed, EngineError when it does not start.
    """
    if config.engine == "vllm":
        from observe.rollout.vllm import VllmEngine

        return VllmEngine(policy, config.vllm)
    if config.engine == "server":
        from observe.rollout.client import ServerEngine

        return ServerEngine(policy, config.vllm)
    return NativeEngine(policy)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """An engine, and what makes its prompts."""

    engine: Engine
    processor: Processor | EndpointProcessor
    slice_prompts: Callable[[int], int]
    """Prompts that are best handed over at a time, by the completions of each."""
    slice_image_tokens: int | None
    """Image tokens of these at most."""
    close: Callable[[], None] = field(default=lambda: None)
    """Give the engine's memory back."""

    def slices(self, sizes: Sequence[PromptSize], n: int) -> list[list[int]]:
        """Indices of the prompts in the parts in which they are best processed and handed over.

        With all of them at once, the pixels of a large benchmark would fill the memory.
        """
        return batches(sizes, prompts=self.slice_prompts(n), image_tokens=self.slice_image_tokens)


def open_sampler(model: str | Path, config: SamplerConfig) -> Sampler:
    """What answers for a model that stays as it is: a Hugging Face folder or Hub id.

    For an endpoint, ``model`` is not looked at. Raises InputError for a model that cannot be read,
    or vLLM that is not installed, EngineError for an engine that does not start.
    """
    if config.engine == "endpoint":
        return Sampler(
            engine=EndpointEngine(config.endpoint),
            processor=EndpointProcessor(),
            slice_prompts=lambda n: 2**31,
            slice_image_tokens=None,
        )
    if config.engine == "vllm":
        return _open_vllm(str(model), config)
    policy = load_policy(model, dtype=getattr(torch, config.dtype), adapter=config.adapter)
    if config.engine == "server":
        from observe.rollout.client import ServerEngine

        server = ServerEngine(policy, config.vllm)
        return _vllm_sampler(server, policy.processor, config, server.close)
    if torch.cuda.is_available():
        policy.model.to(torch.device("cuda"))
    return Sampler(
        engine=NativeEngine(
            policy,
            batch_size=config.batch_size,
            batch_image_tokens=config.batch_image_tokens,
            shrink=True,
        ),
        processor=policy.processor,
        slice_prompts=lambda n: max(1, config.batch_size // n),
        slice_image_tokens=config.batch_image_tokens,
    )


def _open_vllm(model: str, config: SamplerConfig) -> Sampler:
    from observe.rollout.vllm import FolderEngine

    if config.adapter is None and (Path(model) / "config.json").is_file():
        engine = FolderEngine(Path(model), config.vllm, dtype=config.dtype)
    else:
        # vLLM reads a folder: that of the model with its adapter merged.
        policy = load_policy(model, dtype=getattr(torch, config.dtype), adapter=config.adapter)
        with tempfile.TemporaryDirectory(prefix="observe-vllm-") as folder:
            policy.save(Path(folder))
            engine = FolderEngine(Path(folder), config.vllm, dtype=config.dtype)
    return _vllm_sampler(engine, engine.model.processor, config, engine.close)


def _vllm_sampler(
    engine: Any, processor: Processor, config: SamplerConfig, close: Callable[[], None]
) -> Sampler:
    return Sampler(
        engine=engine,
        processor=processor,
        slice_prompts=lambda n: max(1, _VLLM_SLICE * config.vllm.max_num_seqs // n),
        slice_image_tokens=_VLLM_SLICE * config.batch_image_tokens,
        close=close,
    )
