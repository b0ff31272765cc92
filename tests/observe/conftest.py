"""Small policies that several tests start from."""

import pytest
import torch
from transformers.utils import logging

from observe.base import train_base
from observe.config import BaseConfig
from observe.glyphs.model import build_policy

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

torch.set_num_threads(1)
logging.disable_progress_bar()


@pytest.fixture(scope="session")
def untrained():
    """A small policy with random weights in double precision, not to be changed."""
    policy = build_policy(SMALL)
    policy.model.double().eval()
    return policy


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a small base model that answers in the right form now and then."""
    out = tmp_path_factory.mktemp("base")
    train_base(SMALL, out, lambda done, total, message: None)
    return out
