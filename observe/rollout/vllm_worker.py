"""What is added to vLLM's workers: strict loading of new weights, and sleep on a CPU.

vLLM mixes WorkerExtension into its worker class and calls its methods by name in each worker.
"""

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"


class WorkerExtension:
    """Methods of a worker; ``self`` is vLLM's Worker."""

    model_runner: Any
    vllm_config: Any

    def observe_load(self, source: str | list[tuple[str, Tensor]]) -> int:
        """Replace all weights by those of a safetensors file or a list of (name, tensor).

        Names are those of Transformers, which the model maps to its own. Layers are restored to
        the state before their weights were packed for the device's kernels, loaded, and packed
        again: writing into the parameters alone would leave packed copies (on a CPU: all matrices)
        as they were. Returns the number of parameters; raises RuntimeError when any is missing.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        model = self.model_runner.get_model()
        names = {name for name, _ in model.named_parameters()}
        weights = list(load_file(source).items()) if isinstance(source, str) else list(source)
        if self.model_runner.device.type == "cpu" and HEAD not in dict(weights):
            # Tied to the embedding, but packed by itself: it would stay as it was.
            weights += [(HEAD, weight) for name, weight in weights if name.endswith(EMBEDDING)]
        with set_current_vllm_config(self.vllm_config), torch.device(self.model_runner.device):
            initialize_layerwise_reload(model)
            loaded = model.load_weights(weights)
            finalize_layerwise_reload(model, self.vllm_config.model_config)
        missing = sorted(names - loaded)
        if missing:
            raise RuntimeError(
                f"{len(missing)} of {len(names)} weights did not come, the first: {missing[0]}"
            )
        return len(names)

    def observe_release_cache(self) -> int:
        """Give the key-value cache's memory back; returns how many bytes that were."""
        storages = self._cache_storages()
        size = sum(storage.nbytes() for storage in storages)
        self._cache_sizes = [storage.nbytes() for storage in storages]
        for storage in storages:
            storage.resize_(0)
        return size

    def observe_restore_cache(self) -> None:
        """Allocate the released cache again, zeroed: stale bits could be NaN."""
        for storage, size in zip(self._cache_storages(), self._cache_sizes, strict=True):
            storage.resize_(size)
            torch.empty(0, dtype=torch.uint8).set_(storage).zero_()

    def observe_cache_bytes(self) -> int:
        """Size of the key-value cache as it is now."""
        return sum(storage.nbytes() for storage in self._cache_storages())

    def _cache_storages(self) -> list[torch.UntypedStorage]:
        """The cache's memory, layers that share a piece counted once."""
        storages = [tensor.untyped_storage() for tensor in self.model_runner.kv_caches]
        return list({storage._cdata: storage for storage in storages}.values())
