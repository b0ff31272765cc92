"""The in-process sampler: prompts prefilled once per group, finished sequences leave the batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from observe.model.batch import pack_sharing_prefixes
from observe.model.policy import Policy
from observe.model.processor import PromptSize, Sample
from observe.rollout.batches import batches
from observe.rollout.engine import Completion, Finished, SamplingParams
from observe.rollout.memory import GroupMemory

PREFILL_TOKENS = 24_576
"""Most tokens of prompts that are read in one forward, unless one prompt alone has more: what that
takes grows with them, and larger matrices are no faster."""


class NativeEngine:
    """Samples from the policy's own weights, as they are at the time of the call."""

    def __init__(
        self,
        policy: Policy,
        *,
        batch_size: int = 256,
        batch_image_tokens: int | None = None,
        shrink: bool = False,
    ) -> None:
        self.policy = policy
        self.batch_size = batch_size
        """Completions decoded at a time."""
        self.batch_image_tokens = batch_image_tokens
        """Most image tokens that a batch of prompts may have; None sets no bound."""
        self.shrink = shrink
        """Where memory runs out, go on with half the batch, and keep to that."""

    @torch.inference_mode()
    def generate(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished | None = None,
    ) -> list[list[Completion]]:
        """See Engine.generate. Longer prompts are batched together, so little is padded."""
        training = self.policy.model.training
        self.policy.model.eval()
        try:
            return self._batched(samples, params, seeds, finished)
        finally:
            self.policy.model.train(training)

    def sync(self) -> None:
        """Nothing to do: it reads the policy's own weights."""

    def _batched(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        finished: Finished | None,
    ) -> list[list[Completion]]:
        sizes = [self._size(sample) for sample in samples]
        results: list[list[Completion]] = [[] for _ in samples]
        waiting = self._batches(sizes, list(range(len(samples))), params)
        while waiting:
            chunk = waiting.pop(0)
            try:
                groups = self._generate(
                    [samples[i] for i in chunk], params, [seeds[i] for i in chunk]
                )
            except torch.OutOfMemoryError:
                if not self.shrink or len(chunk) == 1:
                    raise
                groups = None
            if groups is None:  # Outside of the handler, whose traceback holds the tensors.
                self._halve(sizes, chunk, params)
                waiting = self._batches(sizes, [i for c in [chunk, *waiting] for i in c], params)
                continue
            for i, group in zip(chunk, groups, strict=True):
                results[i] = group
            if finished:
                finished(dict(zip(chunk, groups, strict=True)))
        return results

    def _batches(
        self, sizes: Sequence[PromptSize], indices: Sequence[int], params: SamplingParams
    ) -> list[list[int]]:
        parts = batches(
            [sizes[i] for i in indices],
            prompts=max(1, self.batch_size // params.n),
            image_tokens=self.batch_image_tokens,
        )
        return [[indices[i] for i in part] for part in parts]

    def _halve(
        self, sizes: Sequence[PromptSize], chunk: Sequence[int], params: SamplingParams
    ) -> None:
        """Set the bounds to half of what a batch had that was too large."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.batch_size = max(params.n, len(chunk) // 2 * params.n)
        images = sum(sizes[i].image_tokens for i in chunk)
        if images:
            self.batch_image_tokens = max(1, images // 2)

    def _size(self, sample: Sample) -> PromptSize:
        merge = self.policy.processor.image_processor.merge_size
        patches = int(sample.grid_I3.prod(-1).sum())
        return PromptSize(length=sample.length, image_tokens=patches // merge**2)

    def _generate(
        self, samples: Sequence[Sample], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Decode one batch. Rows N = prompts x n; B of them are still being written."""
        processor, model = self.policy.processor, self.policy.model
        device = model.device
        hidden_PH, memory = self._read(samples, params.n)
        hidden_BH = hidden_PH.repeat_interleave(params.n, 0)
        next_position_P = torch.tensor([s.next_position for s in samples], device=device)
        position_B = next_position_P.repeat_interleave(params.n)
        uniform_TN = _uniforms(seeds, params).to(device) if params.temperature > 0 else None
        rows = len(samples) * params.n
        limit = params.max_new_tokens
        cos_L1D, sin_L1D = self.policy.rotary(int(next_position_P.max()) + limit)
        token_ids_TN = torch.zeros(limit, rows, dtype=torch.long, device=device)
        logprobs_TN = torch.zeros(limit, rows, device=device, dtype=_wide(hidden_BH))
        length_N = torch.full((rows,), limit, device=device)
        finished_N = torch.zeros(rows, dtype=torch.bool, device=device)
        row_B = torch.arange(rows, device=device)
        eos = torch.tensor(processor.eos_ids, device=device)
        banned = torch.tensor(processor.banned_ids, device=device)
        for step in range(limit):
            logits_BV = model.lm_head(hidden_BH)
            logits_BV = logits_BV.to(_wide(logits_BV)).index_fill_(1, banned, float("-inf"))
            uniform_B = None if uniform_TN is None else uniform_TN[step].index_select(0, row_B)
            token_B = _choose(logits_BV, params, uniform_B)
            token_ids_TN[step].index_copy_(0, row_B, token_B)
            logprob_B = _logprob(logits_BV, token_B, params.temperature)
            logprobs_TN[step].index_copy_(0, row_B, logprob_B)
            ended_B = torch.isin(token_B, eos)
            if ended_B.any():
                ended_N = row_B[ended_B]
                length_N[ended_N] = step + 1
                finished_N[ended_N] = True
                keep = (~ended_B).nonzero().squeeze(1)
                if not len(keep):
                    break
                row_B, token_B, position_B = row_B[keep], token_B[keep], position_B[keep]
                memory.keep_rows(keep)
            if step + 1 == limit:
                break
            cos_B1D, sin_B1D = (x.index_select(0, position_B) for x in (cos_L1D, sin_L1D))
            hidden_BH = self.policy.next_hidden(token_B, cos_B1D, sin_B1D, memory)
            position_B = position_B + 1

        completions = []
        for tokens, logprobs, length, finished in zip(
            token_ids_TN.T.tolist(),
            logprobs_TN.T.tolist(),
            length_N.tolist(),
            finished_N.tolist(),
            strict=True,
        ):
            completions.append(
                Completion(
                    token_ids=tokens[:length],
                    text=processor.decode(tokens[:length]),
                    truncated=not finished,
                    logprobs=logprobs[:length],
                )
            )
        return [completions[i * params.n : (i + 1) * params.n] for i in range(len(samples))]

    def _read(self, samples: Sequence[Sample], group: int) -> tuple[Tensor, GroupMemory]:
        """Hidden states (P, H) behind the prompts' last tokens, and what the layers remember."""
        hidden, memories = [], []
        for part in _parts(samples):
            row = pack_sharing_prefixes(
                part,
                image_pad_id=self.policy.processor.image_pad_id,
                device=self.policy.model.device,
            )
            memory = GroupMemory(row.prompts, group, row.rows_T)
            hidden_SH = self.policy.hidden(**self.policy.inputs(row.batch), memory=memory)
            hidden.append(hidden_SH[row.rows_T[row.prompts.offsets[1:].long() - 1]])
            memories.append(memory)
        return torch.cat(hidden), GroupMemory.joined(memories)


def _parts(samples: Sequence[Sample]) -> list[list[Sample]]:
    parts: list[list[Sample]] = []
    tokens = 0
    for sample in samples:
        tokens += sample.length
        if not parts or tokens > PREFILL_TOKENS:
            parts.append([])
            tokens = sample.length
        parts[-1].append(sample)
    return parts


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _logprob(logits_BV: Tensor, token_B: Tensor, temperature: float) -> Tensor:
    """Log-probability of the tokens at the temperature (1 when greedy), before top-k and top-p."""
    if temperature not in (0.0, 1.0):
        logits_BV = logits_BV / temperature
    return logits_BV.gather(1, token_B[:, None]).squeeze(1) - logits_BV.logsumexp(-1)


def _uniforms(seeds: Sequence[int], params: SamplingParams) -> Tensor:
    """One uniform number per token of every completion (T, N), from (seed, completion) alone."""
    draws = [
        np.random.Generator(np.random.Philox(key=[seed, j])).random(params.max_new_tokens)
        for seed in seeds
        for j in range(params.n)
    ]
    return torch.from_numpy(np.stack(draws, axis=1))


def _choose(logits_BV: Tensor, params: SamplingParams, uniform_B: Tensor | None) -> Tensor:
    """The next token of each row: the most probable, or drawn by inverting the distribution."""
    if uniform_B is None:
        return logits_BV.argmax(-1)
    if params.temperature != 1.0:
        logits_BV = logits_BV / params.temperature
    if params.top_k:
        kth = logits_BV.topk(min(params.top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth, float("-inf"))
    if params.top_p < 1:
        ordered, indices = logits_BV.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        ordered = ordered.masked_fill(before >= params.top_p, float("-inf"))
        logits_BV = torch.empty_like(logits_BV).scatter(1, indices, ordered)
    cumulative_BV = logits_BV.double().softmax(-1).cumsum(-1)
    target_B1 = (uniform_B * cumulative_BV[:, -1]).unsqueeze(1)
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)
