"""Settings of an evaluation. Light on purpose: the planner resolves many of these."""

from dataclasses import dataclass
from typing import Literal

from observe.config import Prompt


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation of one model (``python -m benchmarks.evaluate``)."""

    model: str | None = None
    """Hugging Face folder or Hub id; null takes the model that an earlier stage made."""
    prompt: Prompt = "think"
    """System prompt: plain, think, or observe."""
    suites: tuple[str, ...] = ("reasoning", "general")
    """Suites of benchmarks/suites.yaml; each is scored as the plain mean of its benchmarks."""
    tasks: tuple[str, ...] = ()
    """Benchmarks to run besides the suites; they form the suite ``tasks``."""
    limit: int | None = None
    """Items per benchmark, the first ones; null takes all."""
    max_new_tokens: int = 128
    """Longest response in tokens; a longer one is truncated and scored as it is."""
    batch_size: int = 256
    """Responses decoded at a time; changes memory and speed (and floating-point rounding)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the weights."""
    images: int = 60
    """Items per benchmark whose image is kept beside the results, for the report."""
