"""The models, images and prompts that grpo_step.py measures on."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from observe.model.family import use_own_layers
from observe.model.policy import Policy
from observe.model.processor import VISION_TOKENS, Processor

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_TOKENS)
VOCABULARY = 270
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role[0] }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>a\n{% endif %}"
)

SHAPES: dict[str, dict[str, Any]] = {
    # About 1.1 million parameters, images of 8-pixel patches.
    "tiny": {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "layers": 4,
        "heads": 4,
        "kv_heads": 2,
        "mrope_section": [4, 6, 6],
        "tie": True,
        "depth": 3,
        "vision_hidden": 64,
        "vision_intermediate": 192,
        "vision_heads": 4,
        "full_attention": [1],
        "patch": 8,
    },
    # Qwen2.5-VL-3B, as its published config.json gives it.
    "3b": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "layers": 36,
        "heads": 16,
        "kv_heads": 2,
        "mrope_section": [16, 24, 24],
        "tie": True,
        "depth": 32,
        "vision_hidden": 1280,
        "vision_intermediate": 3420,
        "vision_heads": 16,
        "full_attention": [7, 15, 23, 31],
        "patch": 14,
    },
}


def build(shape: str, *, dtype: torch.dtype, device: str) -> Policy:
    """A policy of the given shape with random weights, always the same ones."""
    numbers = SHAPES[shape]
    tokenizer = _tokenizer()
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL}  # type: ignore[arg-type]
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": numbers["vocab_size"],
            "hidden_size": numbers["hidden_size"],
            "intermediate_size": numbers["intermediate_size"],
            "num_hidden_layers": numbers["layers"],
            "num_attention_heads": numbers["heads"],
            "num_key_value_heads": numbers["kv_heads"],
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": numbers["mrope_section"],
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": numbers["tie"],
        },
        vision_config={
            "depth": numbers["depth"],
            "hidden_size": numbers["vision_hidden"],
            "intermediate_size": numbers["vision_intermediate"],
            "num_heads": numbers["vision_heads"],
            "out_hidden_size": numbers["hidden_size"],
            "patch_size": numbers["patch"],
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 8 * numbers["patch"],
            "fullatt_block_indexes": numbers["full_attention"],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=numbers["tie"],
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(
            config, attn_implementation="sdpa", dtype=dtype
        )
    use_own_layers(model)
    pixels = 2 * int(numbers["patch"])
    images = Qwen2VLImageProcessorPil(
        patch_size=numbers["patch"],
        merge_size=2,
        size={"shortest_edge": pixels**2, "longest_edge": (64 * pixels) ** 2},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return Policy(model, Processor(tokenizer, images))


def pictures(number: int, image_tokens: int, patch: int, *, seed: int) -> list[Image.Image]:
    """Square pictures of noise that the vision tower turns into that many tokens each."""
    side = round(image_tokens**0.5) * 2 * patch
    draw = np.random.default_rng(seed)
    shape = (side, side, 3)
    return [Image.fromarray(draw.integers(0, 255, shape, dtype=np.uint8)) for _ in range(number)]


def messages(text: str) -> list[dict[str, object]]:
    """A chat with one image."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def prepare(folder: Path, settings: dict[str, Any]) -> None:
    """Leave model, images and prompts in the folder, for both trainers; completes the settings."""
    policy = build(settings["shape"], dtype=getattr(torch, settings["dtype"]), device="cpu")
    policy.save(folder)
    drawn = pictures(
        settings["prompts"], settings["image_tokens"], SHAPES[settings["shape"]]["patch"], seed=0
    )
    settings["images"] = [str(folder / f"{i}.png") for i in range(len(drawn))]
    for path, picture in zip(settings["images"], drawn, strict=True):
        picture.save(path)
    settings["texts"] = [f"Count the dots: {i:04d}" for i in range(len(drawn))]
    end = policy.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    settings["suppressed"] = [*policy.processor.banned_ids, end]


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and special tokens, and as many unused entries as fill the vocabulary."""
    entries = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    entries += [f"<|unused_{i}|>" for i in range(VOCABULARY - len(entries))]
    backend = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(entries)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *VISION_TOKENS],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
