"""What a step costs: the split of its time, its memory, and the share of the device it uses."""

import resource
import sys
import time
from collections.abc import Sequence

import torch
from torch import nn

from observe.model.policy import Policy
from observe.model.processor import Sample

PEAK_BF16_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
"""Dense bf16 matrix products per second of a device, by a part of its name (makers' data sheets).

For float32 models half of it, the rate of TF32.
"""


class Clock:
    """Splits a step into laps; on a GPU it waits for the queued work before it reads the time."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._laps: dict[str, float] = {}
        self._last = 0.0

    def start(self) -> None:
        """Begin a step."""
        self._laps = {}
        self._last = self._now()

    def lap(self, name: str) -> None:
        """The time since the last lap, or the start, was spent on ``name``."""
        now = self._now()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def total(self) -> float:
        """Seconds of all laps since the start."""
        return sum(self._laps.values())

    def metrics(self) -> dict[str, float]:
        """``timing_s/<name>`` of every lap, and ``timing_s/step`` for their sum."""
        split = {f"timing_s/{name}": seconds for name, seconds in self._laps.items()}
        return {**split, "timing_s/step": self.total}

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def performance_metrics(
    policy: Policy,
    samples_P: Sequence[Sample],
    completion_tokens_P: Sequence[int],
    trained_P: Sequence[bool],
    seconds: float,
    *,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Tokens per second, memory, and on a known GPU the model FLOPs utilisation of one step.

    ``completion_tokens_P``: sampled tokens of each of the P groups; ``trained_P``: whether the
    group was trained on; ``dtype``: the type that is computed in, which spread weights need not
    have. ``perf/throughput`` counts the prompt once per completion, as trainers that forward it so
    do (num_tokens does too); the FLOPs count it once per group.
    """
    device = next(policy.model.parameters()).device
    metrics = {"perf/max_memory_gb": max_memory_gb(device)}
    peak = peak_flops(device, dtype)
    if peak is not None:
        flops = step_flops(policy.model, samples_P, completion_tokens_P, trained_P)
        metrics["perf/mfu"] = flops / seconds / peak
    return metrics


def mean_performance(ranks: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of several devices as one: the fullest memory, the mean utilisation."""
    metrics = {"perf/max_memory_gb": max(rank["perf/max_memory_gb"] for rank in ranks)}
    if all("perf/mfu" in rank for rank in ranks):
        metrics["perf/mfu"] = sum(rank["perf/mfu"] for rank in ranks) / len(ranks)
    return metrics


def step_flops(
    model: nn.Module,
    samples_P: Sequence[Sample],
    completion_tokens_P: Sequence[int],
    trained_P: Sequence[bool],
) -> float:
    """FLOPs that the products with the weights of a step need at least.

    With N parameters of the language model and its head, embedding left out, and V of the vision
    tower: 2 N per token and 2 V per patch of a forward pass, twice as much of a backward pass.
    Each prompt with its images once and each completion once, forward while sampling, forward and
    backward where trained on. Attention scores (a few percent at such lengths), recomputation and
    padding are not counted.
    """
    language = vision = 0
    for name, parameter in model.named_parameters():
        if ".visual." in name or name.startswith("visual."):
            vision += parameter.numel()
        elif "embed_tokens" not in name:
            language += parameter.numel()
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head.weight is model.get_input_embeddings().weight:  # type: ignore[operator]
        language += head.weight.numel()
    total = 0.0
    for sample, tokens, trained in zip(samples_P, completion_tokens_P, trained_P, strict=True):
        passes = 4 if trained else 1
        total += passes * 2.0 * language * (sample.length + tokens)
        total += passes * 2.0 * vision * sample.pixels_RD.shape[0]
    return total


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The device's rate of matrix products per second, or None when it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    rates = [rate for part, rate in PEAK_BF16_FLOPS.items() if part in name]
    if not rates:
        return None
    return rates[0] / 2 if dtype == torch.float32 else rates[0]


def max_memory_gb(device: torch.device) -> float:
    """Peak memory so far in 1e9 bytes: of the CUDA allocator, or resident, of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
