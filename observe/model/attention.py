"""Attention of a packed row in which completions share their prompt.

A row holds whole prompts and whole completions one behind the other, without padding. Its attention
has three parts: (a) every prompt, causally with itself; (b) every completion, causally with itself;
(c) the completions of a group with their prompt, whose keys and values are read once for all of
them. Softmax over the union of the keys of (b) and (c) is had from the two by their log-sum-exp.

Backwards, the gradient of each part follows from the merged output and the merged log-sum-exp,
because the probability of a key under the union is exp(score - merged log-sum-exp); so every part
runs the usual backward kernel, and no probability is ever stored.

Shapes: S tokens of a packed row, B segments, W the longest of them, H query heads, K key-value
heads (H is a multiple of K), D width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class Segments:
    """Segments that lie one behind the other in a packed axis, and their padded form."""

    def __init__(self, lengths: Sequence[int], *, device: torch.device) -> None:
        self.lengths = list(lengths)
        self.number = len(self.lengths)
        self.tokens = sum(self.lengths)
        self.width = max(self.lengths, default=0)
        self.device = device

    @cached_property
    def lengths_B(self) -> Tensor:
        """Tokens of each segment."""
        return torch.tensor(self.lengths, device=self.device)

    @cached_property
    def offsets(self) -> Tensor:
        """Where each segment begins, and where the last one ends (B + 1), 32-bit."""
        return F.pad(self.lengths_B.cumsum(0), (1, 0)).to(torch.int32)

    @cached_property
    def slots_S(self) -> Tensor | None:
        """Place of each token in the flattened padded form; None when nothing is padded."""
        if self.number * self.width == self.tokens:
            return None
        return self.real_BW.flatten().nonzero().squeeze(1)

    @cached_property
    def real_BW(self) -> Tensor:
        """True at tokens, False at padding."""
        return torch.arange(self.width, device=self.device) < self.lengths_B[:, None]

    @cached_property
    def key_bias_B11W(self) -> Tensor | None:
        """0 at tokens and -inf at padding, to be added to scores; None when nothing is padded."""
        if self.slots_S is None:
            return None
        bias_BW = torch.zeros(self.number, self.width, device=self.device)
        return bias_BW.masked_fill(~self.real_BW, float("-inf"))[:, None, None]

    def pad(self, x_SHD: Tensor) -> Tensor:
        """To (B, H, W, D), zeros at padding; a view when nothing is padded."""
        if self.slots_S is not None:
            padded = x_SHD.new_zeros(self.number * self.width, *x_SHD.shape[1:])
            x_SHD = padded.index_copy_(0, self.slots_S, x_SHD)
        return x_SHD.unflatten(0, (self.number, self.width)).transpose(1, 2)

    def pack(self, x_BHWD: Tensor) -> Tensor:
        """From the padded form back to (S, H, D)."""
        x_SHD = x_BHWD.transpose(1, 2).flatten(0, 1)
        return x_SHD if self.slots_S is None else x_SHD.index_select(0, self.slots_S)


@dataclass(frozen=True)
class Layout:
    """A packed row: all prompts, then all completions in the order of their prompts."""

    prompts: Segments
    completions: Segments
    """What of each completion is forwarded: all but its last token."""
    groups: Segments
    """The same tokens, one segment per prompt."""


class _SharedPromptAttention(torch.autograd.Function):
    """The attention of a packed row, as the module describes it."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float
    ) -> Tensor:
        at = layout.prompts.tokens
        out_SHD = torch.empty_like(query)
        lse_SH = torch.empty(query.shape[:2], dtype=_wide(query), device=query.device)
        prompts = (key[:at], value[:at])
        out_SHD[:at], lse_SH[:at] = _attend(
            query[:at], *prompts, layout.prompts, layout.prompts, scale, causal=True
        )
        if layout.completions.tokens:
            own, own_lse = _attend(
                query[at:],
                key[at:],
                value[at:],
                layout.completions,
                layout.completions,
                scale,
                causal=True,
            )
            shared, shared_lse = _attend(
                query[at:], *prompts, layout.groups, layout.prompts, scale, causal=False
            )
            own_share = torch.sigmoid(own_lse - shared_lse).to(query.dtype).unsqueeze(-1)
            torch.lerp(shared, own, own_share, out=out_SHD[at:])
            torch.logaddexp(own_lse, shared_lse, out=lse_SH[at:])
        ctx.save_for_backward(query, key, value, out_SHD, lse_SH)
        ctx.layout, ctx.scale = layout, scale
        return out_SHD

    @staticmethod
    def backward(ctx: Any, grad_SHD: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        layout, scale, at = ctx.layout, ctx.scale, ctx.layout.prompts.tokens
        grads = [torch.empty_like(x) for x in (query, key, value)]

        def part(row: slice, keys: slice, rows: Segments, of: Segments, causal: bool) -> Any:
            saved = (query[row], key[keys], value[keys], out[row], lse[row])
            return _attend_backward(grad_SHD[row], *saved, rows, of, scale, causal=causal)

        head, tail = slice(0, at), slice(at, None)
        own = part(head, head, layout.prompts, layout.prompts, True)
        for grad, found in zip(grads, own, strict=True):
            grad[head] = found
        if layout.completions.tokens:
            own = part(tail, tail, layout.completions, layout.completions, True)
            for grad, found in zip(grads, own, strict=True):
                grad[tail] = found
            shared = part(tail, head, layout.groups, layout.prompts, False)
            for grad, found, row in zip(grads, shared, (tail, head, head), strict=True):
                grad[row] += found
        return (*grads, None, None)


def shared_prompt_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, *, scale: float
) -> Tensor:
    """Attention of a packed row: queries (S, H, D), keys and values (S, K, D), output (S, H, D)."""
    out: Tensor = _SharedPromptAttention.apply(query, key, value, layout, scale)
    return out


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Segments,
    of: Segments,
    scale: float,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Every segment of ``rows`` attends to its segment of ``of``.

    Returns the output (S, H, D) and the log-sum-exp of the scores (S, H).
    """
    if _has_varlen(query):
        out, lse_HS, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            rows.offsets,
            of.offsets,
            rows.width,
            of.width,
            0.0,
            causal,
            False,
            scale=scale,
        )
        return out, lse_HS.transpose(0, 1)
    padded = (rows.pad(query), of.pad(key), of.pad(value))
    # Causal, padding behind a segment is out of its sight.
    bias = None if causal else of.key_bias_B11W
    bias = bias if bias is None else bias.to(query.dtype)
    if _fused(query):
        out_BHWD, lse_BHW = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *padded, 0.0, causal, attn_mask=bias, scale=scale
        )
    else:
        out_BHWD, lse_BHW = _dense(*padded, bias, causal, scale)
    return rows.pack(out_BHWD), rows.pack(lse_BHW.unsqueeze(-1)).squeeze(-1)


def _attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: Segments,
    of: Segments,
    scale: float,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, given output and log-sum-exp over all their keys."""
    if _has_varlen(query):
        unused = torch.empty(0, dtype=torch.uint64, device=query.device)
        return torch.ops.aten._flash_attention_backward(
            grad.contiguous(),
            query,
            key,
            value,
            out,
            lse.transpose(0, 1).contiguous(),
            rows.offsets,
            of.offsets,
            rows.width,
            of.width,
            0.0,
            causal,
            unused,
            unused,
            scale=scale,
        )
    padded = (rows.pad(grad), rows.pad(query), of.pad(key), of.pad(value), rows.pad(out))
    lse_BHW = rows.pad(lse.unsqueeze(-1)).squeeze(-1)
    bias = None if causal else of.key_bias_B11W
    bias = bias if bias is None else bias.to(query.dtype)
    if _fused(query):
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *padded, lse_BHW, 0.0, causal, attn_mask=bias, scale=scale
        )
    else:
        found = _dense_backward(*padded, lse_BHW, bias, causal, scale)
    return rows.pack(found[0]), of.pack(found[1]), of.pack(found[2])


def _has_varlen(query: Tensor) -> bool:
    """Whether the device has a kernel for segments of unequal length."""
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)


def _fused(query: Tensor) -> bool:
    """Whether the device has a kernel for padded segments that also returns the log-sum-exp."""
    return query.device.type == "cpu"


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Scores (B, K, H / K, W, W'), the query heads beside the key-value head they share."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    scores = (grouped @ key.unsqueeze(2).mT).to(_wide(query)) * scale
    if bias is not None:
        scores = scores + bias.unsqueeze(2)
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores


def _dense(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The kernel in plain tensor operations, for devices and precisions without a fused one."""
    scores = _scores(query, key, bias, causal, scale)
    lse = scores.logsumexp(-1)
    out = (scores - lse.unsqueeze(-1)).exp().to(query.dtype) @ value.unsqueeze(2)
    return out.flatten(1, 2), lse.flatten(1, 2)


def _dense_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward kernel in plain tensor operations."""
    heads = (key.shape[1], -1)
    grad, out, lse = (x.unflatten(1, heads) for x in (grad, out, lse))
    scores = _scores(query, key, bias, causal, scale)
    probability = (scores - lse.unsqueeze(-1)).exp().to(query.dtype)
    pull = grad @ value.unsqueeze(2).mT - (grad * out).sum(-1, keepdim=True)
    grad_scores = probability * pull * scale
    grad_query = (grad_scores @ key.unsqueeze(2)).flatten(1, 2)
    grad_key = (grad_scores.mT @ query.unflatten(1, heads)).sum(2)
    return grad_query, grad_key, (probability.mT @ grad).sum(2)
