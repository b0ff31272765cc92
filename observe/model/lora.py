"""Low-rank adapters (LoRA, arXiv 2106.09685): a few weights are trained, the rest stays as it is.

The adapter's matrices are kept in float32 whatever the model's type, so small steps are not lost.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import PeftConfig as PeftBaseConfig
from peft import PeftModel, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from observe.config import LoraConfig
from observe.errors import InputError

_ADAPTER = "default"
_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What peft puts before the names in an adapter's file."""


def add_adapter(model: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Put an adapter beside the language model's linear layers; it alone stays trainable.

    A new adapter changes nothing: its second matrix is 0. ``seed`` draws the first. Raises
    InputError when no layer has one of the names in ``config.target_modules``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(_peft(config), model, adapter_name=_ADAPTER)
        except ValueError as error:
            raise InputError(
                f"model.lora.target_modules: {', '.join(config.target_modules)}: {error}"
            ) from None
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before training, for as long as the context lasts."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(weights: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """The state dict of a model with an adapter as that of a plain model.

    W + alpha / rank * B A, added up in float32 (float64 for such a model) and rounded to W's type.
    """
    plain = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        prefix = name.removesuffix(".base_layer.weight")
        if prefix != name:
            first = weights[f"{prefix}.lora_A.{_ADAPTER}.weight"]
            second = weights[f"{prefix}.lora_B.{_ADAPTER}.weight"]
            scale = config.alpha / (config.rank or 1)
            precise = torch.promote_types(weight.dtype, first.dtype)
            change = scale * (second.to(precise) @ first.to(precise))
            weight = (weight.to(precise) + change).to(weight.dtype)
        plain[name.replace(".base_layer.", ".")] = weight
    return plain


def save_adapter(folder: Path, weights: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Write a folder that ``peft.PeftModel.from_pretrained`` puts on the model trained from."""
    folder.mkdir(parents=True, exist_ok=True)
    _peft(config).save_pretrained(str(folder))
    adapter = {
        _PREFIX + name.replace(f".{_ADAPTER}.", "."): weight.detach().contiguous().cpu()
        for name, weight in weights.items()
        if ".lora_" in name
    }
    save_file(adapter, folder / _FILE, metadata={"format": "pt"})


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Read back what save_adapter wrote; InputError when it is missing, damaged or another's."""
    own = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    try:
        saved = load_file(folder / _FILE)
        for name, parameter in own.items():
            parameter.data.copy_(saved[_PREFIX + name.replace(f".{_ADAPTER}.", ".")])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{folder / _FILE}: no adapter with these model.lora settings ({error}); "
            f"go on with the settings it was trained with, or delete {folder.parent}"
        ) from None


def merge_folder(model: nn.Module, folder: Path) -> Any:
    """The model with a peft adapter merged into its weights, in place.

    Raises InputError when the folder holds no adapter, or one that is not this model's.
    """
    if not (folder / "adapter_config.json").is_file():
        raise InputError(
            f"adapter: {folder}: not the folder of a peft adapter (no adapter_config.json)"
        )
    try:
        wrapped = PeftModel(model, PeftBaseConfig.from_pretrained(str(folder)))
        weights = load_peft_weights(str(folder), device="cpu")
        loaded: Any = set_peft_model_state_dict(wrapped, weights)
        missing = [name for name in loaded.missing_keys if ".lora_" in name]
        if missing or loaded.unexpected_keys:
            raise ValueError(
                f"{len(missing)} of its weights are missing, "
                f"{len(loaded.unexpected_keys)} belong to no layer of the model"
            )
        return wrapped.merge_and_unload(safe_merge=True)
    except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"adapter: {folder}: does not fit the model ({error})") from None


def _peft(config: LoraConfig) -> PeftConfig:
    return PeftConfig(
        r=config.rank or 1,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=rf".*language_model.*\.({'|'.join(config.target_modules)})",
        task_type="CAUSAL_LM",
    )
