"""The policy: a model with its processor, loaded from and saved to a plain Hugging Face folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig

from observe.config import LoraConfig
from observe.errors import InputError
from observe.hub import local_model
from observe.model.batch import PackedBatch
from observe.model.family import Family, Inputs, family_of, use_own_layers
from observe.model.features import FeatureCache
from observe.model.processor import Processor

Result = TypeVar("Result")

ADAPTER_FOLDER = "adapter"
"""Where in a saved policy its adapter lies, beside the merged weights."""


@dataclass(frozen=True)
class Policy:
    """A model and the processor that belongs to it; see trainable_policy for the rest."""

    model: Any
    """Of one of the families that observe.model.family knows."""
    processor: Processor
    lora: LoraConfig | None = None
    """The adapter that is trained in place of all weights."""
    masters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    """The float32 copies, by name, that the optimizer steps on when the model is less precise."""
    features: FeatureCache | None = None
    """Remembers the image features of a frozen vision tower."""
    root: nn.Module | None = None
    """Gathers the outermost weights of a policy that is spread over several processes."""

    @property
    def family(self) -> Family:
        """What is particular to the model's architecture."""
        return family_of(self.model.config)

    def through(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """``function(self, ...)``, with gradients, also where the weights are spread."""
        if self.root is None:
            return function(self, *args, **kwargs)
        return self.root(lambda: function(self, *args, **kwargs))

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer steps on."""
        return list(self.masters.values()) or [
            p for p in self.model.parameters() if p.requires_grad
        ]

    @torch.no_grad()
    def publish(self) -> None:
        """Take over into the model what an optimizer step made of the float32 copies."""
        for name, master in self.masters.items():
            self.model.get_parameter(name).copy_(master)

    def weights(self) -> dict[str, Tensor]:
        """The weights of a plain model by name, tied ones once.

        An adapter is merged; where there are float32 copies, all weights are float32.
        """
        weights = {n: self.masters.get(n, p).detach() for n, p in self.model.named_parameters()}
        if self.lora:
            from observe.model.lora import merged

            return merged(weights, self.lora)
        if self.masters:
            weights = {name: weight.float() for name, weight in weights.items()}
        return weights

    def save(self, folder: Path) -> None:
        """Write a folder that the model's class in transformers opens.

        An adapter lies merged in it, and by itself in the folder ``adapter``.
        """
        self.model.save_pretrained(str(folder), state_dict=self.weights())
        self.processor.save(folder)
        if self.lora:
            from observe.model.lora import save_adapter

            adapter = {n: self.masters.get(n, p) for n, p in self.model.named_parameters()}
            save_adapter(folder / ADAPTER_FOLDER, adapter, self.lora)

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """With an adapter: the model as it was before training, for as long as this lasts."""
        if self.lora:
            from observe.model.lora import adapter_off

            with adapter_off(self.model):
                yield
        else:
            yield

    def image_features(self, pixels_RD: Tensor, grid_I3: Tensor) -> Tensor:
        """Features of images, a row per token in their order; a frozen tower's are remembered."""
        if self.features:
            return self.features.features(pixels_RD, grid_I3, self._tower)
        return self._tower(pixels_RD, grid_I3)

    def _nothing_seen(self) -> Tensor:
        """The tower's answer to an empty picture.

        Where the tower is spread over the ranks each must call it equally often, also for prompts
        without images.
        """
        vision: Any = self.model.config.vision_config
        side = vision.spatial_merge_size
        depth = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        device = self.model.device
        grid_13 = torch.tensor([[1, side, side]], device=device)
        return self._tower(torch.zeros(side * side, depth, device=device), grid_13).sum()

    def _tower(self, pixels_RD: Tensor, grid_I3: Tensor) -> Tensor:
        output = self.model.model.get_image_features(pixels_RD, grid_I3, return_dict=True)
        return self.family.features(output)

    def inputs(self, batch: PackedBatch) -> Inputs:
        """What the language model reads of a packed row; the vision tower runs once per image."""
        embeds_1SH = self.model.get_input_embeddings()(batch.token_ids_1S)
        if batch.pixels_RD.shape[0]:
            is_image_1S = batch.token_ids_1S == self.processor.image_pad_id
            features = self.image_features(batch.pixels_RD, batch.grid_I3)
            entered = self.family.enter(embeds_1SH, is_image_1S, features)
        else:
            if self.root is not None and self.features is None:
                embeds_1SH = embeds_1SH + 0.0 * self._nothing_seen()
            entered = {"inputs_embeds": embeds_1SH}
        return {**entered, "position_ids": batch.positions_31S, "layout": batch.layout}

    def hidden(self, **inputs: Any) -> Tensor:
        """Hidden states (S, H) behind the last layer, of a packed row (``inputs``).

        With a ``memory`` besides, it keeps the prompts' keys and values.
        """
        hidden_1SH: Tensor = self.model.model.language_model(
            **inputs, attention_mask=self.family.no_mask, use_cache=False
        ).last_hidden_state
        return hidden_1SH[0]

    def rotary(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (length, 1, D) that text is rotated by at each of these positions."""
        language: Any = self.model.model.language_model
        weight = language.embed_tokens.weight
        positions_31L = torch.arange(length, device=weight.device).expand(3, 1, -1)
        cos_1LD, sin_1LD = language.rotary_emb(weight, positions_31L)
        return cos_1LD.transpose(0, 1), sin_1LD.transpose(0, 1)

    def next_hidden(self, token_B: Tensor, cos_B1D: Tensor, sin_B1D: Tensor, memory: Any) -> Tensor:
        """Hidden states (B, H) of one new token of every sequence that ``memory`` knows.

        Without gradients. The layers' parts are called one by one: what else a forward pass
        prepares takes a small model as long as its products do.
        """
        language: Any = self.model.model.language_model
        hidden_1BH = language.embed_tokens(token_B[None])
        for layer in language.layers:
            normed_1BH = layer.input_layernorm(hidden_1BH)
            attended_1BH = layer.self_attn.step(normed_1BH, cos_B1D, sin_B1D, memory)
            hidden_1BH = hidden_1BH + attended_1BH
            hidden_1BH = hidden_1BH + layer.mlp(layer.post_attention_layernorm(hidden_1BH))
        memory.advance()
        hidden_BH: Tensor = language.norm(hidden_1BH)[0]
        return hidden_BH


def load_policy(
    path: str | Path, *, dtype: torch.dtype = torch.float32, adapter: str | Path | None = None
) -> Policy:
    """Load a policy from a Hugging Face folder or Hub id.

    ``adapter``: the folder of a LoRA adapter (peft) that is merged into the weights. Raises
    InputError when there is no readable model (missing, truncated or corrupt files), and for an
    adapter that is damaged or another model's.
    """
    path = local_model(path)
    processor = Processor.load(path)
    try:
        family = family_of(AutoConfig.from_pretrained(str(path)))
        model = family.model.from_pretrained(str(path), dtype=dtype, attn_implementation="sdpa")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise InputError(
            f"{path}: no readable model there ({error}); "
            "delete the folder to have it built again, or give another model.path"
        ) from None
    if adapter is not None:
        from observe.model.lora import merge_folder

        model = merge_folder(model, Path(adapter))
    # Loaded weights lie in the mapped file at odd addresses, where a product can differ in its last
    # bit from that of the same weights in memory; a resumed run must not differ.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    use_own_layers(model)
    return Policy(model, processor)
