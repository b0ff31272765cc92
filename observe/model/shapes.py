"""The shapes of Qwen2.5-VL-3B and 7B, for plans and estimates where no Hub is reached.

From the models' published config.json; nothing but numbers, so no weights are needed.
"""

from typing import Any, Literal

import torch
from transformers import Qwen2_5_VLConfig

from observe.model.family import family_of

_TEXT = {
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}


def shape(size: Literal["3b", "7b"]) -> Qwen2_5_VLConfig:
    """The config of Qwen2.5-VL of that size."""
    text = _TEXT[size]
    return Qwen2_5_VLConfig(
        text_config={
            **text,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "mrope_section": [16, 24, 24],
            },
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        tie_word_embeddings=bool(text["tie_word_embeddings"]),
    )


def empty_model(config: Any) -> Any:
    """A model of that config on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        model = family_of(config).model(config)
    model.tie_weights()
    return model
