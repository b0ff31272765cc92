"""The padded way to forward prompts and completions: a reference, nothing shared or packed."""

import torch


def padded(policy, rows, side="left"):
    """Rows (sample, completion) as the keyword arguments of the model's forward, padded."""
    lengths = [sample.length + len(tokens) for sample, tokens in rows]
    shape = (len(rows), max(lengths))
    token_ids = torch.full(shape, policy.processor.tokenizer.pad_token_id)
    mask = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(3, *shape, dtype=torch.long)
    for i, (sample, tokens) in enumerate(rows):
        where = slice(0, lengths[i]) if side == "right" else slice(shape[1] - lengths[i], None)
        following = sample.next_position + torch.arange(len(tokens))
        token_ids[i, where] = torch.cat([sample.token_ids_L, torch.tensor(tokens).long()])
        mask[i, where] = 1
        positions[:, i, where] = torch.cat([sample.positions_3L, following.expand(3, -1)], 1)
    inputs = {"input_ids": token_ids, "attention_mask": mask, "position_ids": positions}
    with_images = [sample for sample, _ in rows if len(sample.grid_I3)]
    if with_images:
        inputs["pixel_values"] = torch.cat([sample.pixels_RD for sample in with_images])
        inputs["image_grid_thw"] = torch.cat([sample.grid_I3 for sample in with_images])
    return inputs


def dense_logprobs(policy, samples, completions, *, temperature=1.0, side="left"):
    """What completion_logprobs returns, every completion behind its own copy of the prompt.

    Returns (logprobs_NT, entropy_NT), both with gradient, zero behind the ends.
    """
    rows = [(s, c) for s, group in zip(samples, completions, strict=True) for c in group]
    inputs = padded(policy, rows, side)
    logits = policy.model(**inputs, use_cache=False).logits / temperature
    banned = torch.tensor(policy.processor.banned_ids)
    all_logprobs = torch.log_softmax(logits.index_fill(-1, banned, float("-inf")), -1)
    width = max(1, *(len(tokens) for _, tokens in rows))
    logprobs, entropies = [], []
    for i, (sample, tokens) in enumerate(rows):
        start = 0 if side == "right" else logits.shape[1] - sample.length - len(tokens)
        ends = slice(start + sample.length - 1, start + sample.length + len(tokens) - 1)
        own_TV = all_logprobs[i, ends]
        chosen_T = own_TV.gather(1, torch.tensor(tokens).long()[:, None])[:, 0]
        entropy_T = -(own_TV.exp() * own_TV.masked_fill(own_TV.isneginf(), 0)).sum(-1)
        logprobs.append(torch.nn.functional.pad(chosen_T, (0, width - len(tokens))))
        entropies.append(torch.nn.functional.pad(entropy_T, (0, width - len(tokens))))
    return torch.stack(logprobs), torch.stack(entropies)
