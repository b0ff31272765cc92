"""The supervised base: deterministic, learns, saved as a plain Hugging Face folder."""

import dataclasses
import itertools
import random

import pytest
import torch

from observe.base import PROMPT_SHARES, _collate, _loss, _pool, _schedule, stage, train_base
from observe.config import BaseConfig, to_mapping
from observe.errors import InputError
from observe.glyphs import GENERAL_FAMILIES, questions
from observe.glyphs.model import build_policy
from observe.glyphs.responses import response
from observe.model.policy import load_policy
from observe.prompts import SYSTEM_PROMPTS, build_messages

TINY = BaseConfig(
    hidden_size=32,
    layers=1,
    steps=6,
    batch_size=4,
    scenes=60,
    tokenizer_texts=60,
    warmup_steps=2,
)


def silent(done, total, message):
    pass


def weights(folder):
    return load_policy(folder).model.state_dict()


def test_equal_settings_make_the_same_model_bit_by_bit(tmp_path):
    train_base(TINY, tmp_path / "one", silent)
    torch.manual_seed(99)
    train_base(TINY, tmp_path / "two", silent)
    train_base(dataclasses.replace(TINY, seed=1), tmp_path / "other", silent)
    one, two, other = (weights(tmp_path / n / "checkpoint") for n in ("one", "two", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one if name in other)


def batch_of(policy, number=4):
    """Questions with responses of different lengths."""
    rng, pairs = random.Random(5), []
    for question in questions("train", number, seed=7):
        messages = build_messages("think", question.text, question.options, 1)
        sample = policy.processor.sample(messages, question.open_images())
        text = response(question, "think", TINY, rng)
        pairs.append((sample, [*policy.processor.encode(text), policy.processor.eos_ids[0]]))
    assert len({sample.length + len(target) for sample, target in pairs}) > 1
    return _collate(policy, pairs)


def test_it_learns(base):
    losses = []
    for policy in (load_policy(base / "checkpoint"), build_policy(TINY)):
        with torch.no_grad():
            losses.append(float(_loss(policy, batch_of(policy, 32))))
    assert losses[0] < 0.5 * losses[1]


def test_the_stage_reports_its_steps_and_writes_a_checkpoint(tmp_path):
    seen = []
    result = stage(to_mapping(TINY), tmp_path, {}, lambda *args: seen.append(args[:2]))
    assert result["steps"] == 6
    assert result["parameters"] == sum(
        t.numel() for t in load_policy(tmp_path / "checkpoint").model.parameters()
    )
    assert seen == [(i, 6) for i in range(1, 7)]


def test_the_stage_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match=r"base stage: step: unknown key; did you mean 'steps'"):
        stage({"step": 3}, tmp_path, {}, silent)


def test_only_responses_are_learned_from():
    policy = build_policy(TINY)
    batch = batch_of(policy)
    learned = batch.labels_BL != -100
    assert torch.equal(batch.labels_BL[learned], batch.token_ids_BL[learned])
    assert not (learned & (batch.mask_BL == 0)).any()
    for row, mask, tokens in zip(learned, batch.mask_BL, batch.token_ids_BL, strict=True):
        first = int(row.nonzero()[0])
        assert row[first : int(mask.sum())].all()
        assert policy.processor.decode(tokens[:first].tolist()).endswith("assistant\n")
        assert int(tokens[int(mask.sum()) - 1]) == policy.processor.eos_ids[0]


def test_padding_changes_no_loss():
    policy = build_policy(TINY)
    policy.model.double()
    batch = batch_of(policy)
    wider = dataclasses.replace(
        batch,
        token_ids_BL=torch.nn.functional.pad(batch.token_ids_BL, (0, 9), value=7),
        mask_BL=torch.nn.functional.pad(batch.mask_BL, (0, 9)),
        positions_3BL=torch.nn.functional.pad(batch.positions_3BL, (0, 9)),
        labels_BL=torch.nn.functional.pad(batch.labels_BL, (0, 9), value=-100),
    )
    with torch.no_grad():
        torch.testing.assert_close(_loss(policy, batch), _loss(policy, wider))


def test_every_batch_mixes_prompts_and_the_pool_mixes_abilities():
    assert set(PROMPT_SHARES) == set(SYSTEM_PROMPTS)
    assert sum(PROMPT_SHARES.values()) == pytest.approx(1.0)
    pool = _pool(BaseConfig(scenes=100))
    assert sum(question.family in GENERAL_FAMILIES for question in pool) == 30
    assert len({question.id for question in pool}) == len(pool) == 100
    assert all(question.id.startswith("train-") for question in pool)


def test_the_learning_rate_warms_up_and_decays_to_a_tenth():
    config = BaseConfig(steps=100, warmup_steps=10)
    rates = [_schedule(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.001)
