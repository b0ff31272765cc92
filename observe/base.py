"""The supervised base model of the embedded world: ``python -m observe.base --out DIR``.

Trained to a middling skill with habits that reinforcement has to mend (see glyphs/responses.py).
"""

import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from observe.model.batch import pack_sharing_prefixes
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


_Pair = tuple[Sample, list[int]]
"""A prompt, and the tokens of a response to it."""


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
    losses = []
    threads = torch.get_num_threads()
    # Halves of a batch side by side are faster than both threads on every product.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
        for step, batch in enumerate(_course(policy, pool, config, rng)):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak_lr"] * _schedule(step, config)
            losses.append(_backward(policy, batch, workers, threads))
            torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            progress(step + 1, config.steps, f"loss {losses[-1]:.3f}")
    policy.model.eval()
    policy.save(out / "checkpoint")
    return {
        "steps": config.steps,
        "loss": sum(losses[-20:]) / len(losses[-20:]),
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "seconds": time.perf_counter() - started,
    }


def _course(
    policy: Policy, pool: Sequence[Question], config: BaseConfig, rng: random.Random
) -> Iterator[list[_Pair]]:
    """The batch of every step: observations, then careful responses, then some with habits."""
    look, work, full = (
        _batches(policy, pool, config, rng, target) for target in (_look, _work, _answer)
    )
    for step in range(config.steps):
        if step < config.look_steps and rng.random() < LOOK_SHARE:
            yield next(look)
        else:
            yield next(work if step < config.look_steps + config.work_steps else full)


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
) -> Iterator[list[_Pair]]:
    """Endless batches of random questions with the prompt and response that ``target`` gives.

    Drawn many batches at a time and sorted by length within, so that attention pads little.
    """
    processor = policy.processor
    samples: dict[tuple[str, str], Sample] = {}
    while True:
        pairs: list[_Pair] = []
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
        yield from chunks


def _backward(
    policy: Policy, batch: Sequence[_Pair], workers: ThreadPoolExecutor, parts: int
) -> float:
    """Set the gradients of the batch's mean loss, each worker on its part; returns the loss.

    The parts' gradients are added in their order, so that equal settings give equal bits.
    """
    normalizer = sum(sum(_weights(policy, target)) for _, target in batch)
    parameters = list(policy.model.parameters())

    def gradients(part: Sequence[_Pair]) -> tuple[float, Sequence[Tensor]]:
        loss = _loss(policy, part) / normalizer
        return float(loss.detach()), torch.autograd.grad(loss, parameters)

    shares = [share for i in range(parts) if (share := batch[i::parts])]
    losses, found = zip(*workers.map(gradients, shares), strict=True)
    for parameter, first, *others in zip(parameters, *found, strict=True):
        parameter.grad = sum(others, first)
    return sum(losses)


def _loss(policy: Policy, pairs: Sequence[_Pair]) -> Tensor:
    """Weighted cross-entropies of the responses' tokens, summed up.

    The system prompts go through the model once for all pairs that have the same.
    """
    row = pack_sharing_prefixes(
        [sample for sample, _ in pairs],
        [target for _, target in pairs],
        image_pad_id=policy.processor.image_pad_id,
    )
    hidden_SH = policy.hidden(**policy.inputs(row.batch))
    logits_KV = policy.model.lm_head(hidden_SH.index_select(0, row.batch.predictors_K))
    losses_K = torch.nn.functional.cross_entropy(logits_KV, row.batch.targets_K, reduction="none")
    weights = [weight for i in row.order for weight in _weights(policy, pairs[i][1])]
    return (losses_K * torch.tensor(weights)).sum()


def _weights(policy: Policy, target: Sequence[int]) -> list[float]:
    """Of a response in the loss, token by token; an observation weighs less beside its answer."""
    opened, closed = (
        int(policy.processor.tokenizer.convert_tokens_to_ids(tag))  # type: ignore[arg-type]
        for tag in ("<observe>", "</observe>")
    )
    weights = [1.0] * len(target)
    if opened in target and target[-2] != closed:
        start = target.index(opened)
        end = target.index(closed) if closed in target else len(target)
        weights[start:end] = [OBSERVATION_WEIGHT] * (end - start)
    return weights


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
