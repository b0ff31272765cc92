"""Settings of an evaluation. Light on purpose: the planner resolves many of these."""

import math
from dataclasses import dataclass
from typing import Literal

from observe.config import Prompt, SamplerConfig
from observe.errors import InputError

OnBadItem = Literal["stop", "skip"]
Control = Literal["no_image", "shuffled_image", "rotations"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(SamplerConfig):
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
    data_dir: str | None = None
    """Local files of public benchmarks: a folder with NAME/ or NAME.jsonl for each, or
    NAME=FOLDER,...; null takes them from the Hub's cache."""
    on_bad_item: OnBadItem = "stop"
    """What an item without a readable image, options or gold does: stop before anything is asked,
    or be left out, counted, and named in skipped.jsonl."""
    controls: tuple[Control, ...] = ()
    """Ask again without the images, with those of another item, with options at every letter."""
    samples: int = 1
    """Responses per item; more than one needs a temperature."""
    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Share of the probability that tokens are drawn from; 1 keeps all of them."""
    seed: int = 0
    """Of the draws at a temperature above 0."""
    max_new_tokens: int = 128
    """Longest response in tokens; a longer one is truncated and scored as it is."""
    images: int = 60
    """Items per benchmark whose image is kept beside the results, for the report."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, least in (("samples", 1), ("max_new_tokens", 1), ("images", 0)):
            if getattr(self, key) < least:
                raise InputError(f"{key}: expected at least {least}, got {getattr(self, key)}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit: expected at least 1, or null for all, got {self.limit}")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature: expected 0 or more, got {self.temperature}")
        if self.samples > 1 and self.temperature == 0:
            raise InputError("samples: more than one needs a temperature above 0")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected above 0, up to 1, got {self.top_p}")
        if not self.suites and not self.tasks:
            raise InputError("suites: nothing to run; name a suite or a benchmark")


def names(text: str) -> tuple[str, ...]:
    """The names in a list that is separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
