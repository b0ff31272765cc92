"""Keys and values while sampling: a prompt's once per group, a completion's in a growing buffer."""

import torch
from torch import Tensor

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

    def __init__(self, prompts: Segments, group: int) -> None:
        self.prompts = prompts
        self.bias_P11L = prompts.key_bias_B11W
        self.shape = (prompts.number, group)
        self.place_B: Tensor | None = None
        """Place p * G + g of each row; None when every place has its row, in order."""
        self.steps = 0
        self._prompts: list[tuple[Tensor, Tensor]] = []
        self._own: list[tuple[Tensor, Tensor]] = []

    def keep_prompts(self, layer: int, key_SKD: Tensor, value_SKD: Tensor) -> None:
        """Remember the prompts of a packed row; called layer by layer."""
        assert layer == len(self._prompts)
        key, value = (self.prompts.pad(x).contiguous() for x in (key_SKD, value_SKD))
        self._prompts.append((key, value))
        heads, _, width = key.shape[1:]
        empty = key.new_empty(self.shape[0], heads, self.shape[1], 0, width)
        self._own.append((empty, empty))

    def attend(
        self, layer: int, query_BHD: Tensor, key_BKD: Tensor, value_BKD: Tensor, *, scale: float
    ) -> Tensor:
        """Add a token of every row, and attend from it to all that it may see: (B, H, D)."""
        prompts, group = self.shape
        kv_heads, width = key_BKD.shape[1:]
        if self._own[layer][0].shape[3] == self.steps:
            self._own[layer] = tuple(_grown(x) for x in self._own[layer])  # type: ignore[assignment]
        own_key, own_value = self._own[layer]
        own_key[:, :, :, self.steps] = self._placed(key_BKD)
        own_value[:, :, :, self.steps] = self._placed(value_BKD)

        query = self._placed((query_BHD * scale).unflatten(1, (kv_heads, -1)))
        query_MRD = query.flatten(0, 2)
        per_group, per_row = prompts * kv_heads, prompts * kv_heads * group
        seen = self.steps + 1
        prompt_key, prompt_value = (x.flatten(0, 1) for x in self._prompts[layer])
        shared = torch.bmm(query_MRD.view(per_group, -1, width), prompt_key.mT)
        if self.bias_P11L is not None:
            bias = self.bias_P11L.to(shared.dtype)
            shared = (shared.unflatten(0, (prompts, kv_heads)) + bias).flatten(0, 1)
        own = torch.bmm(query_MRD, own_key.flatten(0, 2)[:, :seen].mT)
        length = shared.shape[-1]
        scores = torch.cat([shared.view(per_row, -1, length), own], dim=-1)
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.softmax(scores, dim=-1, dtype=wide).to(scores.dtype)
        out = torch.bmm(weights[..., length:], own_value.flatten(0, 2)[:, :seen])
        # Group and query heads collapse into the rows of one product, without a copy.
        folded = weights[..., :length].view(per_group, -1, length)
        out += torch.bmm(folded, prompt_value).view(out.shape)
        placed = out.view(prompts, kv_heads, group, -1, width).transpose(1, 2)
        rows_BHD = placed.reshape(prompts * group, -1, width)
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
            self.place_B = place_B
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
        self.place_B = None if full else new_prompt_B * smaller[1] + rank_B

    def _placed(self, x_BK: Tensor) -> Tensor:
        """Rows (B, K, ...) at their places (P, K, G, ...), zeros where there is none."""
        prompts, group = self.shape
        if self.place_B is not None:
            empty = x_BK.new_zeros(prompts * group, *x_BK.shape[1:])
            x_BK = empty.index_copy_(0, self.place_B, x_BK)
        return x_BK.unflatten(0, (prompts, group)).transpose(1, 2)


def _grown(buffer: Tensor) -> Tensor:
    """The buffer with room for GROWTH more tokens; zeros, for what is empty is multiplied too."""
    room = buffer.new_zeros(*buffer.shape[:3], GROWTH, buffer.shape[4])
    return torch.cat([buffer, room], dim=3)
