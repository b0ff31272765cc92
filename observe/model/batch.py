"""Samples to batches: the one place where prompts and completions are packed and shared."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

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
    pixels_RD, grid_I3 = _images(samples)
    none = torch.zeros(0, dtype=torch.long)
    return PackedBatch(
        token_ids_1S=torch.cat(token_ids)[None].to(device),
        positions_31S=torch.cat(positions, dim=1)[:, None].to(device),
        pixels_RD=pixels_RD.to(device),
        grid_I3=grid_I3.to(device),
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


def _images(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Patches and grids of all images, in the samples' order."""
    pixels = [sample.pixels_RD for sample in samples if sample.grid_I3.shape[0]]
    grids = torch.cat([sample.grid_I3 for sample in samples])
    return torch.cat(pixels) if pixels else torch.zeros(0), grids


@dataclass(frozen=True, kw_only=True)
class PrefixedBatch:
    """Prompts in one packed row in which those that begin alike share their beginning."""

    batch: PackedBatch
    """The beginnings stand where ``pack`` has prompts, what follows where it has completions."""
    prompts: Segments
    """The prompts in the order they were given in, each with its beginning."""
    rows_T: Tensor
    """Row index of each of their tokens."""
    order: list[int]
    """The prompts in the order in which their own tokens stand in the row."""


def pack_sharing_prefixes(
    samples: Sequence[Sample],
    targets: Sequence[Sequence[int]] | None = None,
    *,
    image_pad_id: int,
    device: torch.device | None = None,
) -> PrefixedBatch:
    """Prompts, and behind each the tokens of its target (None: nothing), all but the last.

    What a prompt says before its first image, mostly a system prompt, goes through the model once
    for all that say the same; a token alone where there is no image. Prompts with an equal
    beginning come together in the row, whose order ``predictors_K`` and ``targets_K`` follow.
    """
    device = device or torch.device("cpu")
    given = [[] for _ in samples] if targets is None else targets
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, sample in enumerate(samples):
        images = (sample.token_ids_L == image_pad_id).nonzero()
        split = max(1, int(images[0])) if len(images) else 1
        groups.setdefault(tuple(sample.token_ids_L[:split].tolist()), []).append(i)
    starts = [len(prefix) for prefix in groups]
    token_ids = [torch.tensor(prefix) for prefix in groups]
    positions = [torch.arange(start).expand(3, -1) for start in starts]
    tails, first, at = [], 0, sum(starts)
    prompt_rows: list[Tensor] = [torch.empty(0)] * len(samples)
    predictors: list[Tensor] = []
    order = [i for members in groups.values() for i in members]
    for start, members in zip(starts, groups.values(), strict=True):
        for i in members:
            sample, target = samples[i], given[i]
            follows = torch.tensor(target[:-1], dtype=torch.long)
            token_ids += [sample.token_ids_L[start:], follows]
            steps = torch.arange(len(follows))
            positions.append(sample.positions_3L[:, start:])
            positions.append((sample.next_position + steps).expand(3, -1))
            length = sample.length - start
            tails.append(length + len(follows))
            prompt_rows[i] = torch.cat(
                [torch.arange(first, first + start), torch.arange(at, at + length)]
            )
            ahead = torch.cat([prompt_rows[i][-1:], at + length + steps])
            predictors.append(ahead[: len(target)])
            at += tails[-1]
        first += start
    counts = [len(members) for members in groups.values()]
    ends = list(accumulate(counts, initial=0))
    pixels_RD, grid_I3 = _images([samples[i] for i in order])
    batch = PackedBatch(
        token_ids_1S=torch.cat(token_ids)[None].to(device),
        positions_31S=torch.cat(positions, dim=1)[:, None].to(device),
        pixels_RD=pixels_RD.to(device),
        grid_I3=grid_I3.to(device),
        layout=Layout(
            prompts=Segments(starts, device=device),
            completions=Segments(tails, device=device),
            groups=Segments([sum(tails[a:b]) for a, b in pairwise(ends)], device=device),
        ),
        completion_lengths=[len(given[i]) for i in order],
        predictors_K=torch.cat(predictors).to(device),
        targets_K=torch.tensor([t for i in order for t in given[i]], dtype=torch.long).to(device),
    )
    return PrefixedBatch(
        batch=batch,
        prompts=Segments([sample.length for sample in samples], device=device),
        rows_T=torch.cat(prompt_rows).to(device),
        order=order,
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
