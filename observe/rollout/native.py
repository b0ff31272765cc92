"""The in-process sampler: prompts prefilled once per group, finished sequences leave the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from observe.model.batch import pack
from observe.model.policy import Policy
from observe.model.processor import Sample
from observe.rollout.engine import Completion, SamplingParams
from observe.rollout.memory import GroupMemory


class NativeEngine:
    """Samples from the policy's own weights, as they are at the time of the call."""

    def __init__(self, policy: Policy, *, batch_size: int = 256) -> None:
        self.policy = policy
        self.batch_size = batch_size
        """Completions decoded at a time."""

    @torch.inference_mode()
    def generate(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Completion]]:
        """See Engine.generate. Longer prompts are batched together, so little is padded."""
        training = self.policy.model.training
        self.policy.model.eval()
        try:
            return self._batched(samples, params, seeds, progress)
        finally:
            self.policy.model.train(training)

    def sync(self) -> None:
        """Nothing to do: it reads the policy's own weights."""

    def _batched(
        self,
        samples: Sequence[Sample],
        params: SamplingParams,
        seeds: Sequence[int],
        progress: Callable[[int, int], None] | None,
    ) -> list[list[Completion]]:
        per_batch = max(1, self.batch_size // params.n)
        order = sorted(range(len(samples)), key=lambda i: samples[i].length)
        results: list[list[Completion]] = [[] for _ in samples]
        for start in range(0, len(order), per_batch):
            chunk = order[start : start + per_batch]
            groups = self._generate([samples[i] for i in chunk], params, [seeds[i] for i in chunk])
            for i, group in zip(chunk, groups, strict=True):
                results[i] = group
            if progress:
                progress(min(start + per_batch, len(order)), len(order))
        return results

    def _generate(
        self, samples: Sequence[Sample], params: SamplingParams, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """Decode one batch. Rows N = prompts x n; B of them are still being written."""
        processor, model = self.policy.processor, self.policy.model
        device = model.device
        prompts = pack(samples, device=device)
        memory = GroupMemory(prompts.layout.prompts, params.n)
        hidden_SH = self._forward(
            inputs_embeds=self.policy.embed(prompts),
            position_ids=prompts.positions_31S,
            layout=prompts.layout,
            memory=memory,
        )
        last_P = prompts.layout.prompts.offsets[1:].long() - 1
        hidden_BH = hidden_SH[last_P].repeat_interleave(params.n, 0)
        next_position_P = torch.tensor([s.next_position for s in samples], device=device)
        position_B = next_position_P.repeat_interleave(params.n)
        uniform_NT = _uniforms(seeds, params).to(device) if params.temperature > 0 else None

        rows = len(samples) * params.n
        limit = params.max_new_tokens
        token_ids_NT = torch.zeros(rows, limit, dtype=torch.long, device=device)
        logprobs_NT = torch.zeros(rows, limit, device=device, dtype=_wide(hidden_BH))
        length_N = torch.full((rows,), limit, device=device)
        finished_N = torch.zeros(rows, dtype=torch.bool, device=device)
        row_B = torch.arange(rows, device=device)
        eos = torch.tensor(processor.eos_ids, device=device)
        banned = torch.tensor(processor.banned_ids, device=device)
        for step in range(limit):
            logits_BV = model.lm_head(hidden_BH)
            logits_BV = logits_BV.to(_wide(logits_BV)).index_fill_(1, banned, float("-inf"))
            uniform_B = uniform_NT[row_B, step] if uniform_NT is not None else None
            token_B = _choose(logits_BV, params, uniform_B)
            token_ids_NT[row_B, step] = token_B
            logprobs_NT[row_B, step] = _logprob(logits_BV, token_B, params.temperature)
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
            hidden_BH = self._forward(
                input_ids=token_B[None],
                position_ids=position_B.expand(3, 1, -1),
                memory=memory,
            )
            memory.advance()
            position_B = position_B + 1

        completions = []
        for tokens, logprobs, length, finished in zip(
            token_ids_NT.tolist(),
            logprobs_NT.tolist(),
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

    def _forward(self, **inputs: Any) -> Tensor:
        """Hidden states (S, H) of a packed row, or of one token of every row."""
        hidden_SH: Tensor = self.policy.model.model.language_model(
            **inputs,
            attention_mask={"full_attention": None, "sliding_attention": None},
            use_cache=False,
        ).last_hidden_state[0]
        return hidden_SH


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _logprob(logits_BV: Tensor, token_B: Tensor, temperature: float) -> Tensor:
    """Log-probability of the tokens at the temperature (1 when greedy), before top-k and top-p."""
    if temperature not in (0.0, 1.0):
        logits_BV = logits_BV / temperature
    return logits_BV.gather(1, token_B[:, None]).squeeze(1) - logits_BV.logsumexp(-1)


def _uniforms(seeds: Sequence[int], params: SamplingParams) -> Tensor:
    """One uniform number per token of every completion (N, T), from (seed, completion) alone."""
    draws = [
        np.random.Generator(np.random.Philox(key=[seed, j])).random(params.max_new_tokens)
        for seed in seeds
        for j in range(params.n)
    ]
    return torch.from_numpy(np.stack(draws))


def _choose(logits_BV: Tensor, params: SamplingParams, uniform_B: Tensor | None) -> Tensor:
    """The next token of each row: the most probable, or drawn by inverting the distribution."""
    if uniform_B is None:
        return logits_BV.argmax(-1)
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
