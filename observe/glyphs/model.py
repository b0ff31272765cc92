"""The tiny policy: a real Qwen2.5-VL or Qwen3-VL of a million parameters."""

from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from observe.config import BaseConfig
from observe.glyphs.scenes import CELL_PX
from observe.glyphs.tokenizer import build_tokenizer
from observe.model.family import family_of, use_own_layers
from observe.model.policy import Policy
from observe.model.processor import Processor

PATCH_PX = 8
HEADS = 4
MERGE = 2
"""Patches are merged 2 x 2, so that one image token covers one cell of the grid."""


def build_policy(config: BaseConfig) -> Policy:
    """A new policy with weights drawn from ``config.seed``; nothing is learned yet."""
    tokenizer = build_tokenizer(config)
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH_PX,
        merge_size=MERGE,
        size={"shortest_edge": CELL_PX**2, "longest_edge": (16 * CELL_PX) ** 2},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )

    def token(text: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(text))  # type: ignore[arg-type]

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": 3 * config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "max_position_embeddings": 1024,
        "initializer_range": config.initializer_range,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        "tie_word_embeddings": True,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": config.hidden_size,
        "patch_size": PATCH_PX,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "initializer_range": config.initializer_range,
    }
    model_config = _CONFIGS[config.family](
        text,
        vision,
        config.rope_theta,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(config.seed)
    model = family_of(model_config).model._from_config(
        model_config, attn_implementation="sdpa", dtype=torch.float32
    )
    use_own_layers(model)
    model.generation_config.eos_token_id = [token("<|im_end|>"), token("<|endoftext|>")]
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return Policy(model, Processor(tokenizer, image_processor))


def _qwen2_5_vl(
    text: dict[str, Any], vision: dict[str, Any], theta: float, **tokens: Any
) -> Qwen2_5_VLConfig:
    """Frequencies split over time, height and width: a quarter, then halves of the rest."""
    half = text["hidden_size"] // HEADS // 2
    time = half // 4
    height = (half - time) // 2
    windows = {"window_size": 8 * PATCH_PX * MERGE, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLConfig(
        text_config=text | _rope(theta, [time, height, half - time - height]),
        vision_config=vision | windows,
        **tokens,
    )


def _qwen3_vl(
    text: dict[str, Any], vision: dict[str, Any], theta: float, **tokens: Any
) -> Qwen3VLConfig:
    """Frequencies by turns for time, height and width; the tower's first layer is handed over."""
    head = text["hidden_size"] // HEADS
    third = head // 2 // 3
    rope = _rope(theta, [head // 2 - 2 * third, third, third])
    rope["rope_parameters"]["mrope_interleaved"] = True
    return Qwen3VLConfig(
        text_config=text | rope | {"head_dim": head},
        vision_config=vision | {"num_position_embeddings": 16**2, "deepstack_visual_indexes": [0]},
        **tokens,
    )


def _rope(theta: float, sections: list[int]) -> dict[str, dict[str, Any]]:
    parameters = {"rope_type": "default", "rope_theta": theta, "mrope_section": sections}
    return {"rope_parameters": parameters}


_CONFIGS = {"qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl}
