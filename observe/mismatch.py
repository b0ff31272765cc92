"""How far the sampler's probabilities are from the trainer's for the same weights and tokens."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from observe.rollout.engine import Completion


def sampling_logprobs(completions: Sequence[Completion], like_NT: Tensor) -> Tensor | None:
    """The engine's log-probabilities, padded with 0 to the shape, type and device of ``like_NT``.

    None when any completion comes without.
    """
    padded_NT = torch.zeros_like(like_NT, requires_grad=False)
    for row, completion in enumerate(completions):
        if completion.logprobs is None:
            return None
        padded_NT[row, : len(completion.logprobs)] = torch.tensor(
            completion.logprobs, dtype=like_NT.dtype
        )
    return padded_NT


class Mismatch:
    """Gathers the differences of a step, micro-batch by micro-batch."""

    def __init__(self, level: Literal["none", "token", "sequence"]) -> None:
        self.level = level
        """Ratios are those of tokens, unless whole sequences are weighted."""
        self._difference: list[Tensor] = []
        self._log_ratio: list[Tensor] = []

    def add(self, logprobs_NT: Tensor, sampling_logprobs_NT: Tensor, mask_NT: Tensor) -> None:
        """Count the tokens under the mask."""
        mask_NT = mask_NT.to(torch.bool)
        difference_NT = (logprobs_NT.detach() - sampling_logprobs_NT).masked_fill(~mask_NT, 0.0)
        self._difference.append(difference_NT[mask_NT].abs())
        whole = self.level == "sequence"
        self._log_ratio.append(difference_NT.sum(-1) if whole else difference_NT[mask_NT])

    def metrics(
        self, gather: Callable[[Sequence[Tensor]], list[Tensor]] = list
    ) -> dict[str, float]:
        """Under TRL's names: absolute difference of log-probabilities per token, and the ratio of
        the probabilities before it is cut off. Empty when nothing was added.

        ``gather`` puts together what several processes have added; each of them must call this.
        """
        differences = gather([part.cpu() for part in self._difference])
        log_ratios = gather([part.cpu() for part in self._log_ratio])
        if not differences:
            return {}
        difference, ratio = torch.cat(differences), torch.cat(log_ratios).exp()
        return {
            "sampling/sampling_logp_difference/mean": float(difference.mean()),
            "sampling/sampling_logp_difference/max": float(difference.max()),
            "sampling/importance_sampling_ratio/min": float(ratio.min()),
            "sampling/importance_sampling_ratio/mean": float(ratio.mean()),
            "sampling/importance_sampling_ratio/max": float(ratio.max()),
        }
