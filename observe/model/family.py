"""Model families: what the policy must know of an architecture, in one table.

Tokens, positions of still images, packing, log-probabilities, sampling, adapters, sharding and
checkpoints are the same for all of them. docs/models.md adds one.

Shapes: S tokens of a packed row, F image tokens among them, H width of the language model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen2_5
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3

from observe.errors import InputError
from observe.model import layers

Inputs = dict[str, Any]
"""Arguments of the language model's forward."""


def pooled(output: Any) -> Tensor:
    """(F, H): what the vision tower makes of its images."""
    return torch.cat(output.pooler_output)


def replace_placeholders(embeds_1SH: Tensor, is_image_1S: Tensor, features_FH: Tensor) -> Inputs:
    """The features stand in the place of the image placeholders' embeddings."""
    return {"inputs_embeds": embeds_1SH.masked_scatter(is_image_1S.unsqueeze(-1), features_FH)}


def with_deepstack(output: Any) -> Tensor:
    """(F, H + n H): the same, and beside it what n layers of the tower hand over (DeepStack)."""
    levels = [torch.cat(level) for level in output.deepstack_features]
    return torch.cat([pooled(output), *levels], dim=-1)


def replace_and_add(embeds_1SH: Tensor, is_image_1S: Tensor, features_FW: Tensor) -> Inputs:
    """The first H features replace; each further H are added behind one of the first layers."""
    first_FH, *levels = features_FW.split(embeds_1SH.shape[-1], dim=-1)
    return {
        **replace_placeholders(embeds_1SH, is_image_1S, first_FH),
        "visual_pos_masks": is_image_1S,
        "deepstack_visual_embeds": levels,
    }


@dataclass(frozen=True, kw_only=True)
class Family:
    """An architecture of transformers, with the parts ``model.visual`` and ``language_model``.

    Positions are M-RoPE's, as observe.model.processor makes them for still images.
    """

    model: type[Any]
    """The class that opens its folders."""
    layers: Mapping[type[nn.Module], type[nn.Module]]
    """transformers' classes -> ours; the language model's attention must be among them."""
    features: Callable[[Any], Tensor] = pooled
    """The tower's output (``get_image_features``) as one row per image token."""
    enter: Callable[[Tensor, Tensor, Tensor], Inputs] = replace_placeholders
    """Embeddings (1, S, H), where images are (1, S) and their features, as Inputs."""
    no_mask: Any = None
    """The ``attention_mask`` with which the language model makes none; our attention needs none."""


FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": Family(
        model=Qwen2_5_VLForConditionalGeneration,
        layers={
            qwen2_5.Qwen2_5_VLRMSNorm: layers.Qwen2_5RMSNorm,
            qwen2_5.Qwen2_5_VLAttention: layers.Qwen2_5Attention,
            qwen2_5.Qwen2_5_VLVisionAttention: layers.Qwen2_5VisionAttention,
        },
        no_mask={"full_attention": None, "sliding_attention": None},
    ),
    "qwen3_vl": Family(
        model=Qwen3VLForConditionalGeneration,
        layers={
            qwen3.Qwen3VLTextRMSNorm: layers.Qwen3RMSNorm,
            qwen3.Qwen3VLTextAttention: layers.Qwen3Attention,
            qwen3.Qwen3VLVisionAttention: layers.Qwen3VisionAttention,
        },
        features=with_deepstack,
        enter=replace_and_add,
    ),
}
"""By ``model_type``, as a model's config.json has it."""


def family_of(config: Any) -> Family:
    """The family of a model's config; InputError for one that is not in the table."""
    if config.model_type not in FAMILIES:
        raise InputError(
            f"a model of type {config.model_type}; the trainer knows {', '.join(FAMILIES)} "
            "(docs/models.md says how to add one)"
        )
    return FAMILIES[config.model_type]


def use_own_layers(model: Any) -> None:
    """Give a model's norms and attentions our classes, in place."""
    own = family_of(model.config).layers
    for module in model.modules():
        if type(module) in own:
            module.__class__ = own[type(module)]
