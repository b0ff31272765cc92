"""The policy: a Qwen2.5-VL model with its processor, loaded from and saved to a plain HF folder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from observe.errors import InputError
from observe.model.batch import PackedBatch
from observe.model.layers import use_own_layers
from observe.model.processor import Processor


@dataclass(frozen=True)
class Policy:
    """A model and the processor that belongs to it."""

    model: Qwen2_5_VLForConditionalGeneration
    processor: Processor

    def save(self, folder: Path) -> None:
        """Write a folder that ``Qwen2_5_VLForConditionalGeneration.from_pretrained`` opens."""
        self.model.save_pretrained(str(folder))
        self.processor.save(folder)

    def embed(self, batch: PackedBatch) -> Tensor:
        """Input embeddings (1, S, H) of a packed row; the vision tower runs once per image."""
        embeds_1SH = self.model.get_input_embeddings()(batch.token_ids_1S)
        if batch.pixels_RD.shape[0]:
            features = self.model.model.get_image_features(
                batch.pixels_RD, batch.grid_I3, return_dict=True
            )
            is_image_1S = batch.token_ids_1S == self.processor.image_pad_id
            embeds_1SH = embeds_1SH.masked_scatter(
                is_image_1S.unsqueeze(-1), torch.cat(features.pooler_output)
            )
        return embeds_1SH


def load_policy(path: str | Path, *, dtype: torch.dtype = torch.float32) -> Policy:
    """Load a policy from a Hugging Face folder or Hub id.

    Raises InputError when there is no readable model (missing, truncated or corrupt files).
    """
    processor = Processor.load(path)
    try:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            str(path), dtype=dtype, attn_implementation="sdpa"
        )
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise InputError(
            f"{path}: no readable Qwen2.5-VL model there ({error}); "
            "delete the folder to have it built again, or give another model.path"
        ) from None
    # Loaded weights lie in the mapped file at odd addresses, where a product can differ in its last
    # bit from that of the same weights in memory; a resumed run must not differ.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    use_own_layers(model)
    return Policy(model, processor)
