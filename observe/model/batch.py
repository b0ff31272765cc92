"""Samples to batches: the one place where prompts are padded and pixels are put together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from observe.model.processor import Sample


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """B prompts padded on the left to length L, so that every continuation starts at column L."""

    token_ids_BL: Tensor
    mask_BL: Tensor
    """1 at real tokens, 0 at padding."""
    positions_3BL: Tensor
    next_position_B: Tensor
    """Position of the first token after each prompt."""
    pixels_RD: Tensor
    grid_I3: Tensor


def batch_prompts(samples: Sequence[Sample], *, pad_id: int) -> PromptBatch:
    """Pad prompts on the left; pixels are concatenated in the prompts' order."""
    length = max(sample.length for sample in samples)
    size = len(samples)
    token_ids = torch.full((size, length), pad_id)
    mask = torch.zeros(size, length, dtype=torch.long)
    positions = torch.zeros(3, size, length, dtype=torch.long)
    for i, sample in enumerate(samples):
        token_ids[i, length - sample.length :] = sample.token_ids_L
        mask[i, length - sample.length :] = 1
        positions[:, i, length - sample.length :] = sample.positions_3L
    with_images = [sample for sample in samples if sample.grid_I3.shape[0]]
    return PromptBatch(
        token_ids_BL=token_ids,
        mask_BL=mask,
        positions_3BL=positions,
        next_position_B=torch.tensor([sample.next_position for sample in samples]),
        pixels_RD=torch.cat([s.pixels_RD for s in with_images]) if with_images else torch.zeros(0),
        grid_I3=torch.cat([sample.grid_I3 for sample in samples]),
    )


def pad_completions(completions: Sequence[Sequence[int]], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Completions padded on the right: token ids (N, T) and mask (N, T), 1 at real tokens."""
    length = max(1, max(len(tokens) for tokens in completions))
    token_ids = torch.full((len(completions), length), pad_id)
    mask = torch.zeros(len(completions), length, dtype=torch.long)
    for i, tokens in enumerate(completions):
        token_ids[i, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[i, : len(tokens)] = 1
    return token_ids, mask
