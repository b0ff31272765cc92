"""Small policies that several tests start from."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from observe.base import train_base
from observe.config import BaseConfig
from observe.data.rungs import Ladder, Rung, save_ladder
from observe.data.sources import load_questions
from observe.glyphs.model import build_policy
from observe.model.policy import load_policy
from observe.rollout.engine import Completion

SMALL = BaseConfig(
    hidden_size=64,
    layers=2,
    look_steps=0,
    work_steps=0,
    steps=100,
    batch_size=16,
    lr=4e-3,
    warmup_steps=10,
    scenes=600,
    initializer_range=0.07,
    tokenizer_texts=400,
    verbose_share=0.0,
    malformed_share=0.2,
    short_share=0.1,
    short_share_hard=0.4,
)

sys.path.insert(0, str(Path(__file__).parent))

from small_runs import LONG, run  # noqa: E402

logging.disable_progress_bar()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """One thread, also in fixtures and behind a test whose stage took more: so bits are equal."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def untrained():
    """A small policy with random weights in double precision, not to be changed."""
    policy = build_policy(SMALL)
    policy.model.double().eval()
    return policy


@pytest.fixture(scope="session")
def base(once):
    """The folder of a small base model that answers in the right form now and then."""
    return once("base", lambda out: train_base(SMALL, out, lambda done, total, message: None))


@pytest.fixture(scope="session")
def undisturbed(base, once):
    """What one process makes of LONG."""
    return once("undisturbed", lambda out: run(LONG, out, base))


@pytest.fixture(scope="session")
def completions(base):
    """Four questions, each with a group of four; the rewards of the third do not differ."""
    questions = load_questions("glyphs", size=4, seed=0)
    policy = load_policy(base / "checkpoint")

    def made(text):
        ids = [*policy.processor.encode(text), policy.processor.eos_ids[0]]
        return Completion(token_ids=ids, text=text, truncated=False)

    groups = []
    for i, question in enumerate(questions):
        right = f"<think>so</think><answer>{question.gold}</answer>"
        texts = [right, f"<think>so it is</think><answer>{question.gold}</answer>", "none", right]
        texts[1 + i % 2] = f"The answer is {question.gold}."
        groups.append([made(text) for text in (texts if i != 2 else [right] * 4)])
    return questions, groups


@pytest.fixture(scope="session")
def ladder(tmp_path_factory):
    """A ladder of 60 questions whose difficulty is made up."""
    folder = tmp_path_factory.mktemp("ladder")
    pool = load_questions("glyphs", size=60, seed=0)
    rungs = []
    for i, question in enumerate(pool):
        right = i % 5
        rungs.append(
            Rung(
                question=question.id,
                family=question.family,
                difficulty=1 - right / 4,
                complexity=20.0 + i,
                prompts=("think", "observe") * 2,
                correct=tuple(j < right for j in range(4)),
                lengths=(20, 30, 20, 30),
                level=4 - right,
                order_index=0,
            )
        )
    rungs.sort(key=lambda rung: rung.level)
    rungs = [dataclasses.replace(rung, order_index=i) for i, rung in enumerate(rungs)]
    grid = {f"{i / 20:.2f}": 10.0 + i for i in range(21)}
    summary = {
        "origin": {"source": "glyphs", "split": "train", "pool": 60, "seed": 0},
        "correct_lengths": {"think": grid, "observe": {k: v + 100 for k, v in grid.items()}},
    }
    save_ladder(Ladder(rungs=tuple(rungs), dropped=(), summary=summary), folder)
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A file system of eight megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)
