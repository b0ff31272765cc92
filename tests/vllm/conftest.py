"""One vLLM in the process for all tests, on the world's model in its real width.

The trainer's own small test models have heads of 16 channels, for which vLLM has no attention on
a CPU.
"""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from observe.base import train_base
from observe.config import BaseConfig, VllmConfig
from observe.glyphs.model import build_policy
from observe.model.policy import load_policy
from observe.rollout.vllm import VllmEngine

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "observe"), str(TESTS / "observe" / "rollout")]
pytest.register_assert_rewrite("test_engines", "test_answering")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small():
    """Settings of a base that is trained in seconds."""
    return BaseConfig(
        hidden_size=128,
        layers=2,
        look_steps=0,
        work_steps=0,
        steps=80,
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


@pytest.fixture(scope="session")
def base(small, tmp_path_factory):
    """The folder of a base model that has learned the form of an answer."""
    out = tmp_path_factory.mktemp("base")
    train_base(small, out, lambda done, total, message: None)
    return out


@pytest.fixture
def trained(base):
    """The base as a policy, a new one for each test."""
    return load_policy(base / "checkpoint")


@pytest.fixture(scope="session")
def untrained(small):
    """A policy with random weights, not to be changed."""
    policy = build_policy(small)
    policy.model.eval()
    return policy


@pytest.fixture(scope="session")
def shared_engine(untrained):
    """The one vLLM of the process; tests take it through engine_of."""
    return VllmEngine(untrained, VllmConfig(kv_cache_gb=0.25, images_per_prompt=2))


@pytest.fixture
def engine_of(shared_engine):
    """The engine of a policy: weights handed over, settings changed for the test alone."""
    config = shared_engine.model.config

    def engine_of(policy, **changes):
        shared_engine.policy = policy
        shared_engine.model.config = dataclasses.replace(config, **changes)
        shared_engine.sync()
        return shared_engine

    yield engine_of
    shared_engine.model.config = config
