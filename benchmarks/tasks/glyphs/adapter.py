"""The embedded world as lm-eval datasets."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from datasets import Dataset

from benchmarks.docs import to_dataset
from observe.glyphs import questions


def load(
    split: str, size: int, families: Sequence[str] | None = None, seed: int = 0, **_: Any
) -> dict[str, Dataset]:
    """`custom_dataset`: `size` questions of a split of the world, its families in turn."""
    return _load(split, size, None if families is None else tuple(families), seed)


# A worker process evaluates many arms on the same questions; rendering them takes seconds.
@lru_cache(maxsize=16)
def _load(split: str, size: int, families: tuple[str, ...] | None, seed: int) -> dict[str, Dataset]:
    return to_dataset(questions(split, size, seed=seed, families=families))
