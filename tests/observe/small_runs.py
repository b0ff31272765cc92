"""Trainings of seconds, and how to read what they leave."""

import dataclasses
import json

from observe.config import DataConfig, OptimConfig, RolloutConfig, TrainConfig
from observe.train import train

CONFIG = TrainConfig(
    data=DataConfig(size=20, selection="raw"),
    rollout=RolloutConfig(group_size=4, max_new_tokens=40),
    optim=OptimConfig(lr=1e-3, warmup_steps=2),
    prompts_per_step=4,
    eval_steps=(0, 3),
    eval_size=6,
    checkpoint_every=2,
    log_completions_every=2,
)
STEPS = 5
LONG = dataclasses.replace(
    CONFIG,
    data=dataclasses.replace(CONFIG.data, size=24),
    checkpoint_every=1,
    log_completions_every=1,
)
"""Six steps, each with its checkpoint and its completions."""
LONG_STEPS = 6


def silent(done, total, message):
    pass


def changed(config=CONFIG, **values):
    return dataclasses.replace(config, **values)


def run(config, out, base, progress=silent, ladder=None):
    out.mkdir(exist_ok=True)
    return train(config, out, model=base / "checkpoint", ladder=ladder, progress=progress)


def rows(out, name="metrics.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def untimed(out):
    return [
        {k: v for k, v in row.items() if not k.startswith(("timing_s/", "perf/"))}
        for row in rows(out)
    ]
