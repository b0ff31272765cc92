"""The comparison with lm-eval's own model: both answer the same items."""

import json

import pytest
import torch

from benchmarks.perf import lm_eval
from observe.config import BaseConfig
from observe.glyphs.model import build_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base") / "checkpoint"
    config = BaseConfig(hidden_size=32, layers=2, tokenizer_texts=200, vocab_size=400)
    build_policy(config).save(folder)
    return folder


def test_both_answer_the_same_items(folder, capsys):
    small = ["--items=6", "--max_new_tokens=6", "--repeats=1", "--batch_size=4", "--threads=1"]
    assert lm_eval.main(["--model", str(folder), *small, "--json"]) == 0
    ours, peer = json.loads(capsys.readouterr().out)["results"]
    assert (ours["engine"], peer["engine"]) == ("ours", "hf-multimodal")
    assert ours["items"] == peer["items"] == 6
    assert ours["equal"] == 1.0
    assert peer["ratio"] == 1.0
    assert ours["ratio"] * ours["seconds_per_item"] == pytest.approx(peer["seconds_per_item"])
    assert 0 < ours["response_tokens"] <= 6
