"""Log-probabilities of completions, the prompt's work done once per group.

Prompts and completions go through the language model in one packed row (observe.model.batch), in
which the completions of a group attend to one copy of their prompt. The gradient is that of
forwarding every completion behind its own copy.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from observe.model.batch import pack
from observe.model.policy import Policy
from observe.model.processor import Sample

CHUNK_LOGITS = 2**21
"""Logits held at a time: as many tokens as share these, but at least MIN_CHUNK."""
MIN_CHUNK = 256
"""Fewer tokens at a time would make the products with the head too thin."""


def completion_logprobs(
    policy: Policy,
    samples: Sequence[Sample],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    temperature: float = 1.0,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and entropies of sampled tokens under the policy.

    ``completions`` holds, per prompt, any number of token lists; N in all, T tokens the longest.
    Logits are divided by ``temperature`` and the tokens that sampling bans are masked, so these
    are the probabilities that were sampled from, before top-p and top-k. Returns (logprobs_NT,
    entropy_NT, mask_NT), the entropies with gradient only when ``entropy_grad``.
    """
    batch = pack(samples, completions, device=policy.model.device)
    hidden_SH = policy.hidden(**policy.inputs(batch))
    logprobs_K, entropy_K = token_logprobs(
        hidden_SH.index_select(0, batch.predictors_K),
        policy.model.lm_head.weight,
        batch.targets_K,
        banned_ids=policy.processor.banned_ids,
        temperature=temperature,
        entropy_grad=entropy_grad,
    )
    return batch.per_completion(logprobs_K), batch.per_completion(entropy_K), batch.mask_NT


def token_logprobs(
    hidden_KH: Tensor,
    weight_VH: Tensor,
    targets_K: Tensor,
    *,
    banned_ids: Sequence[int] = (),
    temperature: float = 1.0,
    entropy_grad: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, from hidden states.

    The logits are ``hidden @ weight.T / temperature`` with ``banned_ids`` at -inf, taken ``chunk``
    tokens at a time in at least single precision, and made again in the backward pass: the (K, V)
    logits never exist. The entropy is differentiable when ``entropy_grad``. Returns (K,), (K,).
    """
    chunk = chunk or max(MIN_CHUNK, CHUNK_LOGITS // weight_VH.shape[0])
    banned = torch.tensor(list(banned_ids), dtype=torch.long, device=hidden_KH.device)
    logprobs_K, entropy_K = _TokenLogprobs.apply(
        hidden_KH, weight_VH, targets_K, banned, temperature, chunk
    )
    return logprobs_K, entropy_K if entropy_grad else entropy_K.detach()


class _TokenLogprobs(torch.autograd.Function):
    """See token_logprobs. With z the logits: d logprob = onehot - p, d entropy = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KH: Tensor,
        weight_VH: Tensor,
        targets_K: Tensor,
        banned: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden_KH.dtype, torch.float32)
        logprobs_K, entropy_K, lse_K = (
            torch.empty(targets_K.shape, dtype=wide, device=hidden_KH.device) for _ in range(3)
        )
        for rows in _chunks(len(targets_K), chunk):
            logits_CV = _logits(hidden_KH[rows], weight_VH, banned, temperature)
            torch.logsumexp(logits_CV, -1, out=lse_K[rows])
            chosen_C = logits_CV.gather(1, targets_K[rows, None]).squeeze(1)
            torch.sub(chosen_C, lse_K[rows], out=logprobs_K[rows])
            p_CV = (logits_CV - lse_K[rows, None]).exp_()
            # A banned token adds 0 to the mean logit, not 0 x -inf.
            mean_C = p_CV.mul_(logits_CV.index_fill_(1, banned, 0.0)).sum(-1)
            torch.sub(lse_K[rows], mean_C, out=entropy_K[rows])
        ctx.save_for_backward(hidden_KH, weight_VH, targets_K, banned, lse_K, entropy_K)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.set_materialize_grads(False)
        return logprobs_K, entropy_K

    @staticmethod
    def backward(
        ctx: Any, grad_K: Tensor | None, grad_entropy_K: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        hidden_KH, weight_VH, targets_K, banned, lse_K, entropy_K = ctx.saved_tensors
        grad_hidden_KH = torch.empty_like(hidden_KH)
        # A head that is not trained, as beneath adapters, is spared its product and its memory.
        grad_weight_VH = None
        if ctx.needs_input_grad[1]:
            grad_weight_VH = torch.zeros_like(weight_VH, dtype=lse_K.dtype)
        for rows in _chunks(len(targets_K), ctx.chunk):
            logits_CV = _logits(hidden_KH[rows], weight_VH, banned, ctx.temperature)
            log_p_CV = logits_CV.sub_(lse_K[rows, None])
            p_CV = log_p_CV.exp()
            if grad_entropy_K is None:
                assert grad_K is not None
                grad_CV = p_CV.mul_(-grad_K[rows, None])
            else:
                log_p_CV.index_fill_(1, banned, 0.0)
                pull_CV = log_p_CV.add_(entropy_K[rows, None]).mul_(grad_entropy_K[rows, None])
                if grad_K is not None:
                    pull_CV.add_(grad_K[rows, None])
                grad_CV = p_CV.mul_(pull_CV.neg_())
            if grad_K is not None:
                grad_CV.scatter_add_(1, targets_K[rows, None], grad_K[rows, None])
            grad_CV = grad_CV.div_(ctx.temperature).to(hidden_KH.dtype)
            torch.mm(grad_CV, weight_VH, out=grad_hidden_KH[rows])
            if grad_weight_VH is None:
                continue
            if grad_weight_VH.dtype == grad_CV.dtype:
                grad_weight_VH.addmm_(grad_CV.T, hidden_KH[rows])
            else:
                grad_weight_VH += grad_CV.T @ hidden_KH[rows]
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_KH, grad_weight_VH, None, None, None, None


def _chunks(number: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, number, size)]


def _logits(hidden_CH: Tensor, weight_VH: Tensor, banned: Tensor, temperature: float) -> Tensor:
    """Logits (C, V) at the temperature, in at least single precision, the banned ones at -inf."""
    logits_CV = hidden_CH @ weight_VH.T
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if temperature != 1.0:
        logits_CV.div_(temperature)
    return logits_CV.index_fill_(1, banned, float("-inf"))
