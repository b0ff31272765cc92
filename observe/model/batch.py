"""Samples to batches: the one place where prompts and completions are packed and shared."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from observe.model.attention import Layout, Segments
from observe.model.processor import Sample


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """P prompts and N completions of them in one row of S tokens, nothing padded.

    All prompts come first, then all completions in the order of their prompts, each without its
    last token, which predicts nothing. Completions may be of any length, also empty, and prompts
    may have any number of them.
    """

    token_ids_1S: Tensor
    positions_31S: Tensor
    """Rotary positions (time, height, width); a completion goes on where its prompt ends."""
    pixels_RD: Tensor
    """Patches of all images, in the prompts' order (R may be 0)."""
    grid_I3: Tensor
    layout: Layout
    """Which tokens attend to which."""
    completion_lengths: list[int]
    """Tokens of each of the N completions, the last one included."""
    predictors_K: Tensor
    """Row index of the token that predicts each of the K tokens of all completions."""
    targets_K: Tensor
    """Those K tokens, completion by completion."""

    @cached_property
    def mask_NT(self) -> Tensor:
        """1 at the tokens of the completions, 0 behind their ends; T is at least 1."""
        lengths_N = torch.tensor(self.completion_lengths, device=self.targets_K.device)
        width = max(1, *self.completion_lengths)
        return (torch.arange(width, device=lengths_N.device) < lengths_N[:, None]).long()

    def per_completion(self, values_K: Tensor) -> Tensor:
        """Values of the K tokens as (N, T), zero behind the ends."""
        empty_NT = values_K.new_zeros(self.mask_NT.shape)
        return empty_NT.masked_scatter(self.mask_NT.bool(), values_K)


def pack(
    samples: Sequence[Sample],
    completions: Sequence[Sequence[Sequence[int]]] | None = None,
    *,
    device: torch.device | None = None,
) -> PackedBatch:
    """Prompts and, per prompt, the token lists of its completions (None: prompts alone)."""
    groups = [[] for _ in samples] if completions is None else completions
    device = device or torch.device("cpu")
    prompt_lengths = [sample.length for sample in samples]
    lengths = [len(tokens) for group in groups for tokens in group]
    forwarded = [max(0, length - 1) for length in lengths]
    token_ids = [sample.token_ids_L for sample in samples]
    positions = [sample.positions_3L for sample in samples]
    predictors: list[Tensor] = []
    targets: list[int] = []
    last, at = -1, sum(prompt_lengths)
    for sample, group in zip(samples, groups, strict=True):
        last += sample.length
        tokens = torch.tensor(
            [t for completion in group for t in completion[:-1]], dtype=torch.long
        )
        token_ids.append(tokens)
        for completion in group:
            if not completion:
                continue
            steps = torch.arange(len(completion) - 1)
            positions.append((sample.next_position + steps).expand(3, -1))
            predictors.append(torch.tensor([last]))
            predictors.append(at + steps)
            targets.extend(completion)
            at += len(completion) - 1
    with_images = [sample for sample in samples if sample.grid_I3.shape[0]]
    none = torch.zeros(0, dtype=torch.long)
    return PackedBatch(
        token_ids_1S=torch.cat(token_ids)[None].to(device),
        positions_31S=torch.cat(positions, dim=1)[:, None].to(device),
        pixels_RD=(
            torch.cat([s.pixels_RD for s in with_images]) if with_images else torch.zeros(0)
        ).to(device),
        grid_I3=torch.cat([sample.grid_I3 for sample in samples]).to(device),
        layout=Layout(
            prompts=Segments(prompt_lengths, device=device),
            completions=Segments(forwarded, device=device),
            groups=Segments(
                [sum(max(0, len(c) - 1) for c in group) for group in groups], device=device
            ),
        ),
        completion_lengths=lengths,
        predictors_K=torch.cat([*predictors, none]).to(device),
        targets_K=torch.tensor(targets, dtype=torch.long).to(device),
    )


MicroBatch = list[tuple[int, list[int]]]
"""Groups of a forward pass: the index of each, and the indices of its completions."""


def micro_batches(
    prompt_lengths: Sequence[int], completion_lengths: Sequence[Sequence[int]], *, tokens: int
) -> list[MicroBatch]:
    """Split groups into forward passes of at most ``tokens`` tokens, prompts and completions.

    Groups whose longest completions are of like length come together, and longer ones first, so
    that a lack of memory shows at once. A group that is too large alone is split, and its prompt
    forwarded in each part; a single completion is never split. Empty groups are left out.
    """
    order = sorted(
        (i for i in range(len(prompt_lengths)) if len(completion_lengths[i])),
        key=lambda i: (-max(completion_lengths[i]), i),
    )
    batches: list[MicroBatch] = []
    room = 0
    for i in order:
        whole = prompt_lengths[i] + sum(completion_lengths[i])
        if whole <= room:
            batches[-1].append((i, list(range(len(completion_lengths[i])))))
            room -= whole
            continue
        part: list[int] = []
        for j, length in enumerate(completion_lengths[i]):
            if not part or length > room:
                part, room = [], tokens - prompt_lengths[i]
                batches.append([(i, part)])
            part.append(j)
            room -= length
    return batches
