"""The supervised base model of the embedded world: ``python -m observe.base --out DIR``.

Trained to a middling skill with habits that reinforcement has to mend (see glyphs/responses.py).
"""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from torch import Tensor

from observe.allocator import keep_freed_memory
from observe.cli import exit_code, print_progress
from observe.config import BaseConfig
from observe.data.question import Question
from observe.glyphs.model import build_policy
from observe.glyphs.questions import GENERAL_FAMILIES, REASONING_FAMILIES, questions
from observe.glyphs.responses import response
from observe.mapping import from_mapping
from observe.model.policy import Policy
from observe.model.processor import Sample
from observe.muon import Muon
from observe.prompts import build_messages

PROMPT_SHARES = {"plain": 0.1, "direct": 0.1, "think": 0.4, "observe": 0.4}
GENERAL_SHARE = 0.25
"""Share of the general families among the training questions."""
POOL_SEED = 10**6
"""Seeds from here on belong to supervised training: it and reinforcement share no picture."""
OBSERVATION_WEIGHT = 0.25
"""Weight of an observation's tokens in the loss: they are many, and soon right."""
LOOK_SHARE = 0.85
"""Share of the first steps that are spent on observations alone."""
EARLY_HABITS = 0.25
"""Share of the careful steps' responses that have the habits of the last steps."""
BUCKET_BATCHES = 8
"""Batches drawn and sorted by length at a time."""


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """B question-response pairs padded on the right to length L."""

    token_ids_BL: Tensor
    mask_BL: Tensor
    positions_3BL: Tensor
    labels_BL: Tensor
    weights_BL: Tensor
    pixels_RD: Tensor
    grid_I3: Tensor


def train_base(
    config: BaseConfig, out: Path, progress: Callable[[int, int, str], None] = print_progress
) -> dict[str, Any]:
    """Train the base model and save it as ``out/checkpoint``; deterministic from its config.

    Returns the loss of the last steps and the seconds it took.
    """
    started = time.perf_counter()
    keep_freed_memory()
    policy = build_policy(config)
    policy.model.train()
    optimizers = _optimizers(policy, config)
    pool = _pool(config)
    rng = random.Random(f"{config.seed}/base")
    look, work, full = (
        _batches(policy, pool, config, rng, target) for target in (_look, _work, _answer)
    )
    losses = []
    for step in range(config.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * _schedule(step, config)
        if step < config.look_steps and rng.random() < LOOK_SHARE:
            batch = next(look)
        else:
            batch = next(work if step < config.look_steps + config.work_steps else full)
        loss = _loss(policy, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        progress(step + 1, config.steps, f"loss {losses[-1]:.3f}")
    policy.model.eval()
    policy.save(out / "checkpoint")
    return {
        "steps": config.steps,
        "loss": sum(losses[-20:]) / len(losses[-20:]),
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "seconds": time.perf_counter() - started,
    }


def _optimizers(policy: Policy, config: BaseConfig) -> list[torch.optim.Optimizer]:
    """Muon for the hidden layers' matrices, AdamW for the rest; perception begins sooner so."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in policy.model.named_parameters():
        is_hidden = parameter.ndim == 2 and "embed" not in name
        (matrices if is_hidden else others).append(parameter)
    return [
        Muon(
            [{"params": matrices, "peak_lr": config.matrix_lr}],
            lr=config.matrix_lr,
            weight_decay=0.01,
        ),
        torch.optim.AdamW(
            [{"params": others, "peak_lr": config.lr}], betas=(0.9, 0.98), weight_decay=0.01
        ),
    ]


def _schedule(step: int, config: BaseConfig) -> float:
    """Linear warm-up, then cosine decay to a tenth."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    rest = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.55 + 0.45 * math.cos(math.pi * rest)


def _pool(config: BaseConfig) -> list[Question]:
    """Training questions, general and reasoning families mixed."""
    general = round(config.scenes * GENERAL_SHARE)
    return [
        *questions(
            "train", general, seed=POOL_SEED + config.seed, families=tuple(GENERAL_FAMILIES)
        ),
        *questions(
            "train",
            config.scenes - general,
            seed=POOL_SEED + config.seed,
            families=tuple(REASONING_FAMILIES),
        ),
    ]


def _answer(question: Question, config: BaseConfig, rng: random.Random) -> tuple[str, str]:
    """A random prompt, and a response under it with a random habit."""
    prompt = rng.choices(list(PROMPT_SHARES), list(PROMPT_SHARES.values()))[0]
    return prompt, response(question, prompt, config, rng)


def _work(question: Question, config: BaseConfig, rng: random.Random) -> tuple[str, str]:
    """Mostly a careful response under the think or the observe prompt.

    Some have their habits already: what is first met in the last steps is written at random.
    """
    if rng.random() < EARLY_HABITS:
        return _answer(question, config, rng)
    careful = replace(
        config, verbose_share=0.0, malformed_share=0.0, short_share=0.0, short_share_hard=0.0
    )
    prompt = rng.choice(("think", "observe"))
    return prompt, response(question, prompt, careful, rng)


def _look(question: Question, config: BaseConfig, rng: random.Random) -> tuple[str, str]:
    """The observation alone, under the prompt that asks for one."""
    return "observe", f"<observe>{question.observation}</observe>"


def _batches(
    policy: Policy,
    pool: Sequence[Question],
    config: BaseConfig,
    rng: random.Random,
    target: Callable[[Question, BaseConfig, random.Random], tuple[str, str]],
) -> Iterator[_Batch]:
    """Endless batches of random questions with the prompt and response that ``target`` gives.

    Drawn many batches at a time and sorted by length within, so that little is padded.
    """
    processor = policy.processor
    samples: dict[tuple[str, str], Sample] = {}
    while True:
        pairs: list[tuple[Sample, list[int]]] = []
        for question in rng.sample(pool, min(len(pool), config.batch_size * BUCKET_BATCHES)):
            prompt, text = target(question, config, rng)
            if (question.id, prompt) not in samples:
                messages = build_messages(prompt, question.text, question.options, 1)
                sample = processor.sample(messages, question.open_images())
                samples[question.id, prompt] = sample
            sample = samples[question.id, prompt]
            pairs.append((sample, [*processor.encode(text), processor.eos_ids[0]]))
        pairs.sort(key=lambda pair: pair[0].length + len(pair[1]))
        chunks = [pairs[i : i + config.batch_size] for i in range(0, len(pairs), config.batch_size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield _collate(policy, chunk)


def _collate(policy: Policy, pairs: Sequence[tuple[Sample, list[int]]]) -> _Batch:
    """Pad prompt-response pairs on the right."""
    processor = policy.processor
    samples, targets = [sample for sample, _ in pairs], [target for _, target in pairs]
    lengths = [s.length + len(t) for s, t in zip(samples, targets, strict=True)]
    shape = (len(samples), max(lengths))
    token_ids = torch.full(shape, processor.tokenizer.pad_token_id)
    mask, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    positions, weights = torch.zeros(3, *shape, dtype=torch.long), torch.ones(shape)
    opened, closed = (
        int(processor.tokenizer.convert_tokens_to_ids(tag))  # type: ignore[arg-type]
        for tag in ("<observe>", "</observe>")
    )
    for i, (sample, target) in enumerate(zip(samples, targets, strict=True)):
        answer = torch.tensor(target)
        token_ids[i, : lengths[i]] = torch.cat([sample.token_ids_L, answer])
        mask[i, : lengths[i]] = 1
        labels[i, sample.length : lengths[i]] = answer
        if opened in target and target[-2] != closed:
            end = target.index(closed) if closed in target else len(target)
            start, end = sample.length + target.index(opened), sample.length + end
            weights[i, start:end] = OBSERVATION_WEIGHT
        positions[:, i, : sample.length] = sample.positions_3L
        positions[:, i, sample.length : lengths[i]] = sample.next_position + torch.arange(
            len(target)
        )
    return _Batch(
        token_ids_BL=token_ids,
        mask_BL=mask,
        positions_3BL=positions,
        labels_BL=labels,
        weights_BL=weights,
        pixels_RD=torch.cat([s.pixels_RD for s in samples]),
        grid_I3=torch.cat([s.grid_I3 for s in samples]),
    )


def _loss(policy: Policy, batch: _Batch) -> Tensor:
    """Cross-entropy of the response tokens, those of an observation weighing less."""
    hidden_BLH = policy.model.model(
        input_ids=batch.token_ids_BL,
        attention_mask=batch.mask_BL,
        position_ids=batch.positions_3BL,
        pixel_values=batch.pixels_RD,
        image_grid_thw=batch.grid_I3,
        use_cache=False,
    ).last_hidden_state
    predicts_BL = batch.labels_BL[:, 1:] != -100
    logits_KV = policy.model.lm_head(hidden_BLH[:, :-1][predicts_BL])
    losses_K = torch.nn.functional.cross_entropy(
        logits_KV, batch.labels_BL[:, 1:][predicts_BL], reduction="none"
    )
    weights_K = batch.weights_BL[:, 1:][predicts_BL]
    return (losses_K * weights_K).sum() / weights_K.sum()


def stage(
    config: dict[str, Any],
    out: Path,
    inputs: dict[str, Path],
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """The harness's stage ``base``; consumes nothing, writes ``checkpoint/``."""
    return train_base(from_mapping(BaseConfig, config, source="base stage"), out, progress)


def main(base: BaseConfig, out: Path) -> None:
    """Train the base model of the embedded world.

    Args:
        base: Its settings.
        out: Folder to write ``checkpoint/`` into.
    """
    result = train_base(base, out)
    print(f"{out / 'checkpoint'}: {result['parameters']:,} parameters, {result['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: auto_cli(main)))
