"""A model's layers with the attention of packed rows, and with less memory traffic.

Each class stands before one of transformers', whose parameters and names it keeps; the modules of a
loaded model are given these classes (observe.model.family). Results stay what they are too, so
checkpoints, adapters, sharding and gradient checkpointing do not notice; the norm alone differs: it
computes in double precision where the model does.

Shapes: S tokens of a packed row, H heads of a kind, D width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3

from observe.model.attention import shared_prompt_attention


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in at least single precision; its gradient in few passes."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Same shape and precision as the argument."""
        if not torch.is_grad_enabled():
            return _norm(hidden_states, self.weight, self.variance_epsilon)[0]
        normed: Tensor = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
        return normed


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        grad = grad.to(scale.dtype)
        normed = x * scale
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        pull = grad * weight
        along = torch.linalg.vecdot(pull, normed).unsqueeze(-1).div_(x.shape[-1])
        return pull.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), grad_weight, None


class Attention(nn.Module):
    """Attention of the language model.

    With a ``layout`` the row is packed (observe.model.attention), and a ``memory`` besides keeps
    the prompts' keys and values, with which ``step`` goes on. Without it is transformers' own.
    """

    # Of transformers' class, whose own types differ from family to family.
    layer_idx: Any
    head_dim: int
    scaling: float
    q_proj: Any
    k_proj: Any
    v_proj: Any
    o_proj: Any

    def heads(self, hidden_1SW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (S, heads, D), not yet rotated."""
        shape = (hidden_1SW.shape[1], -1, self.head_dim)
        query, key, value = (
            project(hidden_1SW).view(shape) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        return query, key, value

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Hidden states (1, S, width) to the same shape."""
        layout, memory = kwargs.pop("layout", None), kwargs.pop("memory", None)
        if layout is None:
            return super().forward(hidden_states, *args, **kwargs)
        cos, sin = (half[0, :, None] for half in kwargs["position_embeddings"])
        query, key, value = self.heads(hidden_states)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        out = shared_prompt_attention(query, key, value, layout, scale=self.scaling)
        if memory is not None:
            memory.keep_prompts(self.layer_idx, key, value)
        return self.o_proj(out.flatten(1)[None]), None

    def step(self, hidden_1BW: Tensor, cos_B1D: Tensor, sin_B1D: Tensor, memory: Any) -> Tensor:
        """A new token of every sequence that ``memory`` knows: (1, B, width) to the same shape."""
        query, key, value = self.heads(hidden_1BW)
        query, key = rotate(query, cos_B1D, sin_B1D), rotate(key, cos_B1D, sin_B1D)
        out = memory.attend(self.layer_idx, query, key, value, scale=self.scaling)
        return self.o_proj(out.flatten(1)[None])


def rotate(x_SHD: Tensor, cos_S1D: Tensor, sin_S1D: Tensor) -> Tensor:
    """Rotary embedding: each pair (x[i], x[i + D/2]) turned by the angle of its position.

    cos and sin repeat themselves in their second half.
    """
    if not torch.is_grad_enabled():
        return _turn(x_SHD, cos_S1D, sin_S1D, 1)
    rotated: Tensor = _Rotate.apply(x_SHD, cos_S1D, sin_S1D)
    return rotated


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sense: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sense)
    out[..., half:].addcmul_(x[..., :half], sin[..., :half], value=sense)
    return out


class VisionAttention(nn.Module):
    """Attention within windows or images: segments of equal length go through it together."""

    num_heads: int
    scaling: float
    qkv: Any
    proj: Any

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Hidden states (S, width) to the same shape; cu_seqlens (B + 1) bounds the segments."""
        assert position_embeddings is not None
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1))
        wide = torch.promote_types(qkv.dtype, torch.float32)
        cos, sin = (half.unsqueeze(1).to(wide) for half in position_embeddings)
        query, key = (rotate(qkv[:, i].to(wide), cos, sin).to(qkv.dtype) for i in (0, 1))
        tensors = (query, key, qkv[:, 2])
        places = _places_by_length(cu_seqlens)
        if len(places) == 1:
            ((length, _),) = places
            out = self._segments(tensors, length)
        else:
            parts = [
                self._segments([x.index_select(0, where) for x in tensors], length)
                for length, where in places
            ]
            back = torch.cat([where for _, where in places]).argsort()
            out = torch.cat(parts).index_select(0, back)
        attended: Tensor = self.proj(out.flatten(1))
        return attended

    def _segments(self, tensors: Sequence[Tensor], length: int) -> Tensor:
        """Attention (S, H, D) within segments that all have this length."""
        query, key, value = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in tensors)
        out = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return out.transpose(1, 2).flatten(0, 1)


def _places_by_length(cu_seqlens: Tensor) -> list[tuple[int, Tensor]]:
    """For each length that segments have, the row indices of all segments of that length."""
    starts = cu_seqlens[:-1].long()
    lengths = cu_seqlens.diff()
    return [
        (size, (starts[lengths == size, None] + torch.arange(size, device=starts.device)).flatten())
        for size in lengths.unique().tolist()
    ]


class Qwen2_5RMSNorm(RMSNorm, qwen2_5.Qwen2_5_VLRMSNorm):
    """Qwen2.5-VL's norm, of language and vision."""


class Qwen2_5Attention(Attention, qwen2_5.Qwen2_5_VLAttention):
    """Qwen2.5-VL's attention."""


class Qwen2_5VisionAttention(VisionAttention, qwen2_5.Qwen2_5_VLVisionAttention):
    """The attention of Qwen2.5-VL's tower, mostly within windows."""


class Qwen3RMSNorm(RMSNorm, qwen3.Qwen3VLTextRMSNorm):
    """Qwen3-VL's norm of the language model; its tower has layer norms."""


class Qwen3Attention(Attention, qwen3.Qwen3VLTextAttention):
    """Qwen3-VL's attention: each head's queries and keys are normed before they are rotated."""

    def heads(self, hidden_1SW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (S, heads, D), not yet rotated."""
        query, key, value = super().heads(hidden_1SW)
        return self.q_norm(query), self.k_norm(key), value


class Qwen3VisionAttention(VisionAttention, qwen3.Qwen3VLVisionAttention):
    """The attention of Qwen3-VL's tower, within whole images."""
