"""What a run will need of a device's memory, from the model's config alone, and whether it fits.

Counted: weights, float32 copies, gradients, optimizer state, what the backward pass keeps of the
forward one, the sampler's keys and values, and logits. Not counted: fragmentation, and what the
allocator keeps; hence the margin between "fits" and "tight".
"""

import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from observe.config import LoraConfig, TrainConfig
from observe.model.logprobs import CHUNK_LOGITS, MIN_CHUNK
from observe.model.shapes import empty_model
from observe.run import Run, process

TIGHT = 0.85
"""Share of the memory beyond which what is not counted may no longer fit."""
PROC = Path("/proc")
"""Where Linux tells of processes and memory; macOS has none."""
CUDA_CONTEXT = 600 * 2**20
"""Bytes that a CUDA process holds before the first tensor, about."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one device."""

    steady: dict[str, int]
    """Held all the time, by what it is."""
    training: dict[str, int]
    """Held in a forward and backward pass besides."""
    sampling: dict[str, int]
    """Held while completions are sampled besides; not at the same time."""

    @property
    def total(self) -> int:
        """The peak."""
        passing = max(sum(self.training.values()), sum(self.sampling.values()))
        return sum(self.steady.values()) + passing

    def verdict(self, available: int) -> str:
        """One line: fits, tight or does not fit ``available`` bytes, and the largest parts."""
        word = "fits" if self.total <= TIGHT * available else "tight"
        if self.total > available:
            word = "does not fit"
        busier = max((self.training, self.sampling), key=lambda part: sum(part.values()))
        parts = sorted((self.steady | busier).items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {_gb(size)}" for name, size in parts if size)
        line = f"memory: {_gb(self.total)} of {_gb(available)}: {word} ({told})"
        if word != "fits":
            line += f"; {_REMEDIES[parts[0][0]]}"
        return line


_REMEDIES = {
    "process": "give the process more memory",
    "weights": "model.dtype bfloat16 halves the weights",
    "float32 copies": "model.lora.rank trains few weights; parallel.strategy fsdp2 spreads them",
    "gradients": "model.lora.rank trains few weights; parallel.strategy fsdp2 spreads them",
    "optimizer": "model.lora.rank trains few weights; parallel.strategy fsdp2 spreads them",
    "reference": "with model.lora.rank the policy without its adapter is the reference",
    "activations": "a smaller micro_batch_tokens, or model.gradient_checkpointing",
    "vision": "model.freeze_vision keeps nothing of the tower; or a smaller micro_batch_tokens",
    "logits": "fewer completions at a time",
    "keys and values": "fewer completions at a time (more processes share them out), or a smaller "
    "rollout.max_new_tokens",
    "gathered weights": "model.dtype bfloat16 halves the weights",
    "vLLM": "a smaller rollout.vllm.gpu_memory_utilization, or rollout.vllm.sleep_level 2, which "
    "gives the memory back while training",
}


def estimate(
    model: Any,
    config: TrainConfig,
    *,
    prompt_tokens: int,
    patches: int,
    world_size: int = 1,
    decoded_at_once: int = 256,
    process: int = 0,
    device: int = 0,
) -> MemoryEstimate:
    """What training a model of this config needs on one of its devices.

    ``prompt_tokens`` and ``patches`` are those of a long prompt, ``process`` what the process holds
    without the model, ``device`` the memory of the device, of which vLLM takes its share.
    Completions are taken to be as long as they may be.
    """
    text: Any = model.get_text_config()
    vision: Any = model.vision_config
    lora = config.model.lora
    width = 4 if config.model.dtype == "float32" else 2
    spread = world_size if config.parallel.strategy == "fsdp2" else 1
    weights, trained = parameter_counts(model, config)
    copies = 4 * trained if width == 2 and lora.rank is None else 0
    has_reference = config.loss.kl_coefficient and lora.rank is None

    group = config.rollout.group_size
    new_tokens = config.rollout.max_new_tokens
    whole = prompt_tokens + group * new_tokens
    own = -(-config.prompts_per_step // world_size)
    tokens = min(config.micro_batch_tokens, own * whole)
    prompts = -(-tokens // whole)
    layers, per_layer = text.num_hidden_layers, _layer_elements(text)
    kept = layers * per_layer
    if config.model.gradient_checkpointing:
        kept = layers * text.hidden_size + per_layer
    kept += 2 * text.hidden_size
    seen = 0 if config.model.freeze_vision or lora.rank else prompts * patches
    rows = max(MIN_CHUNK, CHUNK_LOGITS // text.vocab_size)

    decoded = min(decoded_at_once, own * group)
    sampling = {
        # A prompt's are kept once for its group.
        "keys and values": width
        * decoded
        * (prompt_tokens // group + new_tokens)
        * cache_elements(model),
        "logits": 3 * 8 * decoded * text.vocab_size,
    }
    vllm = {}
    if config.rollout.engine != "native":
        sampling = {}
    if config.rollout.engine == "vllm":
        held, cache = config.rollout.vllm, config.rollout.vllm.kv_cache_gb
        share = held.gpu_memory_utilization * device
        size = int(width * weights + cache * 2**30 if cache else share)
        if held.sleep_level:
            sampling = {"vLLM": size}
        else:
            vllm = {"vLLM": size}
    if spread > 1 and config.rollout.engine == "native":
        sampling["gathered weights"] = width * weights
    # While training a layer at a time, and the next one, and what belongs to no layer.
    layer = _layer_parameters(text)
    outermost = text.vocab_size * text.hidden_size * (1 if model.tie_word_embeddings else 2)
    gathered = width * (2 * layer + outermost) if spread > 1 else 0
    return MemoryEstimate(
        steady={
            "process": process,
            # What is spread keeps float32, but for weights that only adapters change.
            "weights": (width if lora.rank or spread == 1 else 4) * weights // spread,
            "float32 copies": 0 if spread > 1 else copies,
            "optimizer": 8 * trained // spread,
            "reference": int(bool(has_reference)) * width * weights // spread,
            **vllm,
        },
        training={
            "gradients": 4 * trained // spread,
            "gathered weights": gathered,
            "activations": width * tokens * kept,
            "vision": width * seen * _vision_elements(vision, config.model.gradient_checkpointing),
            # Logits, their log-softmax and its gradient, in float32, and so the gradient of a head
            # that is trained, before it is added to the others.
            "logits": 4 * text.vocab_size * (3 * rows + (0 if lora.rank else text.hidden_size)),
        },
        sampling=sampling,
    )


def memory_needed(run: Run, *, looked_at: int = 8) -> str:
    """One line: what the run will need of the device's memory, and whether it fits.

    The longest of the first ``looked_at`` prompts stands for all.
    """
    samples = [process(run, question) for question in list(run.questions.values())[:looked_at]]
    on_gpu = run.parallel.device.type == "cuda"
    available = available_memory(run.parallel.device)
    needed = estimate(
        run.policy.model.config,
        run.config,
        prompt_tokens=max(sample.length for sample in samples),
        patches=max(len(sample.pixels_RD) for sample in samples),
        world_size=run.parallel.world_size,
        process=CUDA_CONTEXT if on_gpu else max(0, held_by_process() - held_by_weights(run)),
        device=available,
    )
    return needed.verdict(available)


def held_by_weights(run: Run) -> int:
    """Bytes of this process's weights, float32 copies and reference, as they are before a step."""
    policies = [run.policy]
    if run.reference and run.reference is not run.policy:
        policies.append(run.reference)
    held = [
        p for policy in policies for p in (*policy.model.parameters(), *policy.masters.values())
    ]
    return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in held)


def parameter_counts(model: Any, config: TrainConfig) -> tuple[int, int]:
    """Parameters in all, and those that are trained under these settings."""
    named = dict(empty_model(model).named_parameters())
    weights = sum(p.numel() for p in named.values())
    if config.model.lora.rank is not None:
        trained = _adapter_parameters(named, config.model.lora)
        return weights + trained, trained
    frozen = config.model.freeze_vision
    trained = sum(p.numel() for n, p in named.items() if not (frozen and ".visual." in n))
    return weights, trained


def cache_elements(model: Any) -> int:
    """Elements of keys and values per token of a model of this config."""
    text = model.get_text_config()
    return 2 * text.num_key_value_heads * _head(text) * text.num_hidden_layers


def available_memory(device: torch.device) -> int:
    """Bytes that a run on this device may use: all of a GPU, what is free of the main memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
    except FileNotFoundError:  # macOS, which does not tell how much of it is free.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 + held_by_process()
    raise OSError(f"{PROC / 'meminfo'}: no line MemAvailable")


def held_by_process() -> int:
    """Bytes of main memory that this process holds; on macOS the most it has held."""
    try:
        resident = int((PROC / "self" / "statm").read_text().split()[1])
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident * resource.getpagesize()


def _adapter_parameters(named: dict[str, torch.nn.Parameter], lora: LoraConfig) -> int:
    return sum(
        (lora.rank or 0) * sum(parameter.shape)
        for name, parameter in named.items()
        if "language_model" in name
        and name.endswith(".weight")
        and name.split(".")[-2] in lora.target_modules
    )


def _head(text: Any) -> int:
    """Width of an attention head; some families state one that does not follow from the rest."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _attention_width(text: Any) -> int:
    """Queries, keys, values and the output of attention of one token."""
    return 2 * (text.num_attention_heads + text.num_key_value_heads) * _head(text)


def _layer_parameters(text: Any) -> int:
    """Parameters of one decoder layer, norms and biases left out."""
    attention = _attention_width(text)
    return text.hidden_size * (attention + 3 * text.intermediate_size)


def _layer_elements(text: Any) -> int:
    """Elements per token that the backward pass of a decoder layer needs.

    Input and output of both norms; queries, keys, values and the output of attention; both
    projections of the MLP, the activation and the product.
    """
    attention = _attention_width(text)
    return 4 * text.hidden_size + attention + 4 * text.intermediate_size


def _vision_elements(vision: Any, checkpointed: bool) -> int:
    """The same per patch for the whole vision tower, with the patch itself and the merger."""
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or int(vision.mlp_ratio * width)
    block = 8 * width + 4 * inner
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    blocks = vision.depth * (width if checkpointed else block)
    return blocks + pixels + 4 * width


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.0f} MB"
