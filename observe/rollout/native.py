"""The in-process sampler: prompts prefilled once per group, finished sequences leave the batch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from observe.model.batch import batch_prompts
from observe.model.policy import Policy
from observe.model.processor import Sample
from observe.rollout.engine import Completion, SamplingParams

_COMPACT_BELOW = 0.75
"""Drop finished rows from the cache once fewer than this share of its rows is unfinished."""


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
        """Decode one batch. Rows N = prompts x n; B of them are still in the cache."""
        processor, language_model = self.policy.processor, self.policy.model.model.language_model
        prompts = batch_prompts(samples, pad_id=processor.tokenizer.pad_token_id)
        cache = DynamicCache(config=self.policy.model.config.get_text_config())
        hidden = language_model(
            inputs_embeds=self.policy.embed(prompts),
            attention_mask=prompts.mask_BL,
            position_ids=prompts.positions_3BL,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        if params.n > 1:
            cache.batch_repeat_interleave(params.n)
        hidden_BH = hidden.repeat_interleave(params.n, 0)
        mask_BL = prompts.mask_BL.repeat_interleave(params.n, 0)
        position_B = prompts.next_position_B.repeat_interleave(params.n)
        uniform_NT = _uniforms(seeds, params) if params.temperature > 0 else None

        rows = len(samples) * params.n
        token_ids_NT = torch.zeros(rows, params.max_new_tokens, dtype=torch.long)
        length_N = torch.full((rows,), params.max_new_tokens)
        finished_N = torch.zeros(rows, dtype=torch.bool)
        row_B = torch.arange(rows)
        eos = torch.tensor(processor.eos_ids)
        banned = torch.tensor(processor.banned_ids)
        for step in range(params.max_new_tokens):
            logits_BV = self.policy.model.lm_head(hidden_BH).float()
            logits_BV.index_fill_(1, banned, float("-inf"))
            uniform_B = uniform_NT[row_B, step] if uniform_NT is not None else None
            token_B = _choose(logits_BV, params, uniform_B)
            token_ids_NT[row_B, step] = token_B
            ended_B = torch.isin(token_B, eos) & ~finished_N[row_B]
            length_N[row_B[ended_B]] = step + 1
            finished_N[row_B[ended_B]] = True
            active_B = ~finished_N[row_B]
            active = int(active_B.sum())
            if active == 0 or step + 1 == params.max_new_tokens:
                break
            if active < _COMPACT_BELOW * len(row_B):
                keep = active_B.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                row_B, token_B, mask_BL = row_B[keep], token_B[keep], mask_BL[keep]
                position_B = position_B[keep]
            mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(row_B), 1)], dim=1)
            hidden_BH = language_model(
                input_ids=token_B[:, None],
                attention_mask=mask_BL,
                position_ids=position_B[None, :, None].expand(3, -1, -1),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            position_B = position_B + 1

        completions = []
        for row in range(rows):
            tokens = token_ids_NT[row, : int(length_N[row])].tolist()
            completions.append(
                Completion(
                    token_ids=tokens,
                    text=processor.decode(tokens),
                    truncated=not bool(finished_N[row]),
                )
            )
        return [completions[i * params.n : (i + 1) * params.n] for i in range(len(samples))]


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
