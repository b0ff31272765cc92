"""Log-probabilities of completions, the prompt's work done once per group.

The prompt (vision tower and language model) is forwarded once per group with gradients into a
key-value cache, which is repeated for the group's completions. The gradient is that of forwarding
every completion behind its own copy of the prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from observe.model.batch import batch_prompts, pad_completions
from observe.model.policy import Policy
from observe.model.processor import Sample


def completion_logprobs(
    policy: Policy,
    samples: Sequence[Sample],
    completions: Sequence[Sequence[Sequence[int]]],
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and entropies of sampled tokens under the policy.

    ``completions`` holds, per prompt, the same number G of token lists; N = len(samples) * G.
    Logits are divided by ``temperature`` and the tokens that sampling bans are masked, so these
    are the probabilities that were sampled from, before top-p and top-k. Returns (logprobs_NT,
    entropy_NT, mask_NT), the entropies without gradient.
    """
    group = len(completions[0])
    pad_id = policy.processor.tokenizer.pad_token_id
    prompts = batch_prompts(samples, pad_id=pad_id)
    flat = [tokens for group_tokens in completions for tokens in group_tokens]
    token_ids_NT, mask_NT = pad_completions(flat, pad_id=pad_id)

    cache = DynamicCache(config=policy.model.config.get_text_config())
    prompt_hidden = policy.model.model.language_model(
        inputs_embeds=policy.embed(prompts),
        attention_mask=prompts.mask_BL,
        position_ids=prompts.positions_3BL,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    last_NH = prompt_hidden[:, -1].repeat_interleave(group, 0)
    hidden_NTH = last_NH.unsqueeze(1)
    if token_ids_NT.shape[1] > 1:
        cache.batch_repeat_interleave(group)
        steps = torch.arange(token_ids_NT.shape[1] - 1)
        positions_NT = prompts.next_position_B.repeat_interleave(group)[:, None] + steps
        completion_hidden = policy.model.model.language_model(
            input_ids=token_ids_NT[:, :-1],
            attention_mask=torch.cat(
                [prompts.mask_BL.repeat_interleave(group, 0), mask_NT[:, :-1]], dim=1
            ),
            position_ids=positions_NT.expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        hidden_NTH = torch.cat([hidden_NTH, completion_hidden], dim=1)

    scored = mask_NT.bool()
    logits_KV = policy.model.lm_head(hidden_NTH[scored])
    logits_KV = logits_KV.to(torch.promote_types(logits_KV.dtype, torch.float32)) / temperature
    banned = torch.tensor(policy.processor.banned_ids)
    logits_KV = logits_KV.index_fill(1, banned, float("-inf"))
    all_KV = torch.log_softmax(logits_KV, dim=-1)
    logprobs_K = all_KV.gather(1, token_ids_NT[scored].unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        entropy_K = -(all_KV.exp() * all_KV.nan_to_num(neginf=0.0)).sum(-1)
    empty = torch.zeros(token_ids_NT.shape, dtype=logprobs_K.dtype)
    return (
        empty.masked_scatter(scored, logprobs_K),
        empty.masked_scatter(scored, entropy_K),
        mask_NT,
    )
