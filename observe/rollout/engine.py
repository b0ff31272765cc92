"""What every rollout engine offers: completions of prompts, reproducible one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from observe.model.processor import Sample


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How completions are drawn."""

    max_new_tokens: int
    """Longest completion in tokens, the end token included."""
    temperature: float = 1.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """1 keeps all tokens."""
    top_k: int = 0
    """0 keeps all tokens."""
    n: int = 1
    """Completions per prompt."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One completion of a prompt."""

    token_ids: list[int]
    """Sampled tokens, the end token included when it was reached."""
    text: str
    """Their text without special tokens."""
    truncated: bool
    """The length limit came before an end token."""
    logprobs: list[float] | None = None
    """Log-probability of each token at the sampling temperature, before top-p and top-k; None when
    the engine does not tell."""
    counted: int | None = None
    """Number of tokens, from an engine that does not tell which they are."""

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""
        return len(self.token_ids) if self.counted is None else self.counted


Finished: TypeAlias = Callable[[dict[int, list[Completion]]], None]
"""Is told the completions of some prompts, by the prompts' indices, as soon as they are there."""


class Engine(Protocol):
    """Draws completions.

    Completion j of a prompt depends on the weights, the prompt, the parameters and (seed, j)
    alone, not on what else is in the batch (up to floating-point rounding).
    """

    def generate(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """``params.n`` completions of each sample; ``seeds`` holds one integer per sample."""
        ...

    def sync(self) -> None:
        """Sample from the policy's weights as they are now; called after each change of them."""
        ...
