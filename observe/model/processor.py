"""Text and images to model inputs: one ``Sample`` owns a prompt's tokens, positions and pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from observe.errors import InputError
from observe.hub import local_model

IMAGE_PAD = "<|image_pad|>"
VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt as the model reads it; nothing of it is ever truncated.

    Shapes: L tokens, R patch rows over all images, I images.
    """

    token_ids_L: Tensor
    """Token ids with image placeholders expanded."""
    positions_3L: Tensor
    """Rotary positions (time, height, width) of every token."""
    pixels_RD: Tensor
    """Patches of all images, in the processor's merged-window order (R may be 0)."""
    grid_I3: Tensor
    """Patch grid (time, height, width) of each image."""
    images: Sequence[Image.Image] = ()
    """The images as they were given, for engines that process them themselves."""
    messages: tuple[dict[str, Any], ...] = ()
    """The chat as it was given, for engines with a template of their own."""

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.token_ids_L.shape[0]

    @property
    def next_position(self) -> int:
        """Position of the first generated token: beyond the largest of all three axes."""
        return int(self.positions_3L.max()) + 1


@dataclass(frozen=True, kw_only=True)
class PromptSize:
    """What a prompt costs."""

    length: int
    """Tokens, those of its images included."""
    image_tokens: int
    """Tokens of its images."""


class Processor:
    """Tokenizer and image processor of a Hugging Face folder.

    Composed here rather than loaded as Qwen's own processor, which needs torchvision for its video
    part.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, image_processor: Qwen2VLImageProcessorPil
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    @classmethod
    def load(cls, folder: str | Path) -> "Processor":
        """Load from a folder or a Hub id; InputError when files are missing or damaged."""
        folder = local_model(folder)
        try:
            return cls(
                AutoTokenizer.from_pretrained(str(folder)),
                Qwen2VLImageProcessorPil.from_pretrained(str(folder)),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder}: no readable tokenizer and image processor there ({error}); "
                "delete the folder to have it built again, or give another model.path"
            ) from None

    def save(self, folder: Path) -> None:
        """Write tokenizer and processor files into a Hugging Face folder."""
        self.tokenizer.save_pretrained(str(folder))
        self.image_processor.save_pretrained(str(folder))

    @property
    def name(self) -> str:
        """Where the tokenizer was loaded from."""
        return str(self.tokenizer.name_or_path)

    @property
    def chat_template(self) -> str:
        """The template that messages are rendered with."""
        return str(self.tokenizer.chat_template)

    @cached_property
    def image_pad_id(self) -> int:
        """Id of the image placeholder token."""
        return int(self.tokenizer.convert_tokens_to_ids(IMAGE_PAD))  # type: ignore[arg-type]

    @cached_property
    def banned_ids(self) -> list[int]:
        """Ids the policy must never sample: a placeholder without an image breaks the forward."""
        known = self.tokenizer.get_vocab()
        return [known[token] for token in VISION_TOKENS if token in known]

    @cached_property
    def eos_ids(self) -> list[int]:
        """Ids that end a completion."""
        known = self.tokenizer.get_vocab()
        return [known[token] for token in ("<|im_end|>", "<|endoftext|>") if token in known]

    def sample(self, messages: list[dict[str, Any]], images: Sequence[Image.Image]) -> Sample:
        """A chat and its images as a Sample; raises InputError when their numbers differ."""
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(str(text), add_special_tokens=False)["input_ids"]
        placeholders = ids.count(self.image_pad_id)
        if placeholders != len(images):
            raise InputError(f"{placeholders} image placeholders for {len(images)} images")
        images = tuple(images)
        if images:
            features = self.image_processor(images=list(images), return_tensors="np")
            pixels = torch.from_numpy(np.asarray(features["pixel_values"], dtype=np.float32))
            grid = torch.from_numpy(np.asarray(features["image_grid_thw"], dtype=np.int64))
        else:
            pixels, grid = torch.zeros(0, 0), torch.zeros(0, 3, dtype=torch.long)
        merge = self.image_processor.merge_size
        counts = iter((grid.prod(-1) // merge**2).tolist())
        expanded: list[int] = []
        for token in ids:
            expanded.extend([token] * next(counts) if token == self.image_pad_id else [token])
        token_ids = torch.tensor(expanded)
        return Sample(
            token_ids_L=token_ids,
            positions_3L=rope_positions(token_ids, grid, self.image_pad_id, merge),
            pixels_RD=pixels,
            grid_I3=grid,
            images=images,
            messages=tuple(messages),
        )

    def prompt_length(self, messages: list[dict[str, Any]], images: Sequence[Image.Image]) -> int:
        """Tokens of the Sample that `sample` would make, its pixels left alone."""
        return self.prompt_size(messages, images).length

    def prompt_size(
        self, messages: list[dict[str, Any]], images: Sequence[Image.Image]
    ) -> PromptSize:
        """As prompt_length, with how many of these tokens are of images."""
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(str(text), add_special_tokens=False)["input_ids"]
        patches = sum(
            self.image_processor.get_number_of_image_patches(image.height, image.width)
            for image in images
        )
        image_tokens = patches // self.image_processor.merge_size**2
        return PromptSize(length=len(ids) - len(images) + image_tokens, image_tokens=image_tokens)

    def unexpanded(self, sample: Sample) -> list[int]:
        """The sample's token ids with a single placeholder for each of its images."""
        merge = self.image_processor.merge_size
        counts = iter((sample.grid_I3.prod(-1) // merge**2).tolist())
        ids, index = [], 0
        expanded = sample.token_ids_L.tolist()
        while index < len(expanded):
            ids.append(expanded[index])
            index += next(counts) if expanded[index] == self.image_pad_id else 1
        return ids

    def fitted_images(self, sample: Sample) -> list[Image.Image]:
        """The sample's images in RGB at the very size that their patches were cut from.

        Another processor has nothing left to resize then, so that its pixels are the same whatever
        its way of interpolating.
        """
        patch = self.image_processor.patch_size
        fitted = []
        for image, (_, rows, columns) in zip(sample.images, sample.grid_I3.tolist(), strict=True):
            image, size = image.convert("RGB"), (columns * patch, rows * patch)
            fitted.append(
                image if image.size == size else image.resize(size, self.image_processor.resample)
            )
        return fitted

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, no special tokens added."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def rope_positions(token_ids_L: Tensor, grid_I3: Tensor, image_pad_id: int, merge: int) -> Tensor:
    """M-RoPE positions (3, L) of a sequence with still images.

    Text advances all three axes by one. An image that starts at p has time p, height p + row and
    width p + column on its merged grid; the text after it goes on at p + max(rows, columns). Equal
    to Qwen2.5-VL's get_rope_index.
    """
    positions = torch.empty(3, token_ids_L.shape[0], dtype=torch.long)
    places = (token_ids_L == image_pad_id).nonzero().flatten().tolist()
    at, index, seen = 0, 0, 0
    for rows, columns in (grid_I3[:, 1:] // merge).tolist():
        start, span = places[seen], rows * columns
        positions[:, index:start] = torch.arange(at, at + start - index)
        at += start - index
        image = positions[:, start : start + span]
        image[0] = at
        image[1] = torch.arange(at, at + rows).repeat_interleave(columns)
        image[2] = torch.arange(at, at + columns).repeat(rows)
        at, index, seen = at + max(rows, columns), start + span, seen + span
    positions[:, index:] = torch.arange(at, at + token_ids_L.shape[0] - index)
    return positions
