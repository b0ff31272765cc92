"""Keys and values while sampling: a prompt's once per group, a completion's in a growing buffer."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from observe.model.attention import Segments

GROWTH = 64
"""Tokens by which the buffers of completions grow when they are full."""


class GroupMemory:
    """What the layers remember of P prompts and of up to G completions of each.

    Every completion has a place (p, g). Those that are still being written are the rows B; while
    all P x G are, rows and places are the same. One decoding step reads a prompt's keys and values
    once for all its completions: their queries, and the query heads that share a key-value head,
    stand together as the rows of one matrix product.

    Shapes: K key-value heads, R query heads for each of them, L tokens of the longest prompt,
    T tokens of the completions so far, D width of a head.
    """

    def __init__(self, prompts: Segments, group: int, rows_T: Tensor | None = None) -> None:
        self.prompts = prompts
        self.rows_T = rows_T
        """Where in the packed row the prompts' tokens lie; None where parts have read them."""
        self.bias_P11L = prompts.key_bias_B11W
        self.shape = (prompts.number, group)
        self.place_B: Tensor | None = None
        """Place p * G + g of each row; None when every place has its row, in order."""
        self._row_at: Tensor | None = None
        """The row at each place, and any row where there is none."""
        self.steps = 0
        self._prompts: list[tuple[Tensor, Tensor]] = []
        self._own: list[tuple[Tensor, Tensor]] = []

    def keep_prompts(self, layer: int, key_SKD: Tensor, value_SKD: Tensor) -> None:
        """Remember the prompts of a packed row; called layer by layer."""
        assert layer == len(self._prompts)
        assert self.rows_T is not None
        prompts = (x.index_select(0, self.rows_T) for x in (key_SKD, value_SKD))
        self._remember(*(self.prompts.pad(x).contiguous() for x in prompts))

    @classmethod
    def joined(cls, parts: Sequence["GroupMemory"]) -> "GroupMemory":
        """One memory of the prompts of all parts, in their order, before any completion.

        The parts are emptied on the way, lest keys and values lie there twice.
        """
        if len(parts) == 1:
            return parts[0]
        lengths = [length for part in parts for length in part.prompts.lengths]
        prompts = Segments(lengths, device=parts[0].prompts.device)
        memory = cls(prompts, parts[0].shape[1])
        for _ in range(len(parts[0]._prompts)):
            keys, values = zip(*(part._prompts.pop(0) for part in parts), strict=True)
            memory._remember(*(_stacked(x, prompts.width) for x in (keys, values)))
        return memory

    def _remember(self, key: Tensor, value: Tensor) -> None:
        self._prompts.append((key, value))
        heads, _, width = key.shape[1:]
        empty = key.new_empty(self.shape[0], heads, self.shape[1], 0, width)
        self._own.append((empty, empty))

    def attend(
        self, layer: int, query_BHD: Tensor, key_BKD: Tensor, value_BKD: Tensor, *, scale: float
    ) -> Tensor:
        """Add a token of every row, and attend from it to all that it may see: (B, H, D)."""
        prompts, group = self.shape
        rows, heads, width = query_BHD.shape
        kv_heads = key_BKD.shape[1]
        if self._own[layer][0].shape[3] == self.steps:
            self._own[layer] = tuple(_grown(x) for x in self._own[layer])  # type: ignore[assignment]
        own_key, own_value = self._own[layer]
        own_key[:, :, :, self.steps] = self._placed(key_BKD)
        own_value[:, :, :, self.steps] = self._placed(value_BKD)

        query = self._placed((query_BHD * scale).view(rows, kv_heads, -1, width))
        query_MRD = query.reshape(prompts * kv_heads * group, -1, width)
        per_group, per_row = prompts * kv_heads, prompts * kv_heads * group
        seen = self.steps + 1
        prompt_key, prompt_value = (x.flatten(0, 1) for x in self._prompts[layer])
        shared = torch.bmm(query_MRD.view(per_group, -1, width), prompt_key.mT)
        length = shared.shape[-1]
        if self.bias_P11L is not None:
            shared.view(prompts, kv_heads, -1, length).add_(self.bias_P11L)
        own = torch.bmm(query_MRD, own_key.view(per_row, -1, width)[:, :seen].mT)
        scores = torch.cat([shared.view(per_row, -1, length), own], dim=-1)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)
        out = torch.bmm(weights[..., length:], own_value.view(per_row, -1, width)[:, :seen])
        # Group and query heads collapse into the rows of one product, without a copy.
        folded = weights[..., :length].view(per_group, -1, length)
        out += torch.bmm(folded, prompt_value).view(out.shape)
        placed = out.view(prompts, kv_heads, group, -1, width).transpose(1, 2)
        rows_BHD = placed.reshape(prompts * group, heads, width)
        return rows_BHD if self.place_B is None else rows_BHD.index_select(0, self.place_B)

    def advance(self) -> None:
        """Every layer has seen the token."""
        self.steps += 1

    def keep_rows(self, keep: Tensor) -> None:
        """Go on with these of the rows; places are given up once a quarter of them are empty."""
        prompts, group = self.shape
        place_B = torch.arange(prompts * group, device=keep.device)
        place_B = (place_B if self.place_B is None else self.place_B).index_select(0, keep)
        prompt_B = place_B // group
        counts_P = torch.bincount(prompt_B, minlength=prompts)
        kept_P = counts_P.nonzero().squeeze(1)
        smaller = (len(kept_P), int(counts_P.max()))
        if smaller[0] * smaller[1] > 0.75 * prompts * group:
            self._give_places(place_B)
            return
        # The rows are in order, so a row's rank within its prompt is its new place there.
        before_P = counts_P.cumsum(0) - counts_P
        rank_B = torch.arange(len(place_B), device=keep.device) - before_P[prompt_B]
        new_prompt_B = torch.searchsorted(kept_P, prompt_B)
        source = torch.zeros(smaller, dtype=torch.long, device=keep.device)
        source[new_prompt_B, rank_B] = place_B % group
        for layer, own in enumerate(self._own):
            used = (x[:, :, :, : self.steps] for x in own)
            self._own[layer] = tuple(  # type: ignore[assignment]
                x[kept_P[:, None], :, source].transpose(1, 2).contiguous() for x in used
            )
            self._prompts[layer] = tuple(x[kept_P] for x in self._prompts[layer])  # type: ignore[assignment]
        if self.bias_P11L is not None:
            self.bias_P11L = self.bias_P11L[kept_P]
        self.shape = smaller
        full = smaller[0] * smaller[1] == len(place_B)
        self._give_places(None if full else new_prompt_B * smaller[1] + rank_B)

    def _give_places(self, place_B: Tensor | None) -> None:
        self.place_B, self._row_at = place_B, None
        if place_B is not None:
            row_B = torch.arange(len(place_B), device=place_B.device)
            places = place_B.new_zeros(self.shape[0] * self.shape[1])
            self._row_at = places.index_copy_(0, place_B, row_B)

    def _placed(self, x_BK: Tensor) -> Tensor:
        """Rows (B, K, ...) at their places (P, K, G, ...), any where there is none.

        What is computed at such a place is not read by any row.
        """
        if self._row_at is not None:
            x_BK = x_BK.index_select(0, self._row_at)
        return x_BK.view(*self.shape, *x_BK.shape[1:]).transpose(1, 2)


def _stacked(parts: Sequence[Tensor], length: int) -> Tensor:
    """Parts (P, K, L, D) one behind the other along P, zeros behind the shorter prompts."""
    return torch.cat([F.pad(x, (0, 0, 0, length - x.shape[2])) for x in parts])


def _grown(buffer: Tensor) -> Tensor:
    """The buffer with room for GROWTH more tokens; zeros, for what is empty is multiplied too."""
    room = buffer.new_zeros(*buffer.shape[:3], GROWTH, buffer.shape[4])
    return torch.cat([buffer, room], dim=3)
