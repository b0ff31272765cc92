"""The tiny policy: a real Qwen2.5-VL of a million parameters, all three M-RoPE axes in use."""

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from observe.config import BaseConfig
from observe.glyphs.scenes import CELL_PX
from observe.glyphs.tokenizer import build_tokenizer
from observe.model.layers import use_own_layers
from observe.model.policy import Policy
from observe.model.processor import Processor

PATCH_PX = 8
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

    heads, kv_heads, head_dim = 4, 2, config.hidden_size // 4
    model_config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": config.hidden_size,
            "intermediate_size": 3 * config.hidden_size,
            "num_hidden_layers": config.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 1024,
            "initializer_range": config.initializer_range,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_section": _rope_sections(head_dim // 2),
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": config.hidden_size,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 8 * PATCH_PX * MERGE,
            "fullatt_block_indexes": [1],
            "initializer_range": config.initializer_range,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(config.seed)
    model = Qwen2_5_VLForConditionalGeneration._from_config(
        model_config, attn_implementation="sdpa", dtype=torch.float32
    )
    use_own_layers(model)
    model.generation_config.eos_token_id = [token("<|im_end|>"), token("<|endoftext|>")]
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return Policy(model, Processor(tokenizer, image_processor))


def _rope_sections(half: int) -> list[int]:
    """Rotary frequencies split over time, height and width: a quarter, then halves of the rest."""
    time = half // 4
    height = (half - time) // 2
    return [time, height, half - time - height]
