"""The supervised base: deterministic, learns, saved as a plain Hugging Face folder."""

import dataclasses
import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from observe.base import (
    EARLY_HABITS,
    GENERAL_SHARE,
    OBSERVATION_WEIGHT,
    PROMPT_SHARES,
    _answer,
    _backward,
    _batches,
    _look,
    _loss,
    _pool,
    _schedule,
    _weights,
    _work,
    stage,
    train_base,
)
from observe.config import EMBEDDED, BaseConfig
from observe.data.sources import load_questions
from observe.errors import InputError
from observe.glyphs import GENERAL_FAMILIES, questions
from observe.glyphs.model import build_policy
from observe.glyphs.responses import response
from observe.mapping import to_mapping
from observe.model.policy import load_policy
from observe.prompts import SYSTEM_PROMPTS, build_messages
from observe.rewards import format_valid

TINY = BaseConfig(
    hidden_size=32,
    layers=1,
    look_steps=2,
    work_steps=2,
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


def pairs_of(policy, number=4, prompts=("think",)):
    """Questions with responses of different lengths, under the prompts in turn."""
    rng, pairs = random.Random(5), []
    for i, question in enumerate(questions("train", number, seed=7)):
        prompt = prompts[i % len(prompts)]
        messages = build_messages(prompt, question.text, question.options, 1)
        sample = policy.processor.sample(messages, question.open_images())
        text = response(question, prompt, TINY, rng)
        pairs.append((sample, [*policy.processor.encode(text), policy.processor.eos_ids[0]]))
    assert len({sample.length + len(target) for sample, target in pairs}) > 1
    return pairs


def test_it_learns(base):
    losses = []
    for policy in (load_policy(base / "checkpoint"), build_policy(TINY)):
        with torch.no_grad():
            losses.append(float(_loss(policy, pairs_of(policy, 32))))
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


def test_the_loss_is_the_cross_entropy_of_the_responses_as_transformers_has_it():
    policy = build_policy(TINY)
    policy.model.double()
    pairs = pairs_of(policy, 6, prompts=("think", "observe", "direct"))
    expected = 0.0
    for sample, target in pairs:
        logits = policy.model(
            input_ids=torch.cat([sample.token_ids_L, torch.tensor(target)])[None],
            pixel_values=sample.pixels_RD.double(),
            image_grid_thw=sample.grid_I3,
            mm_token_type_ids=None,
            position_ids=torch.cat(
                [
                    sample.positions_3L,
                    (sample.next_position + torch.arange(len(target))).expand(3, -1),
                ],
                dim=1,
            )[:, None],
        ).logits[0]
        losses = torch.nn.functional.cross_entropy(
            logits[sample.length - 1 : -1], torch.tensor(target), reduction="none"
        )
        expected += float((losses * torch.tensor(_weights(policy, target))).sum().detach())
    with torch.no_grad():
        assert float(_loss(policy, pairs)) == pytest.approx(expected, rel=1e-9)


def test_an_observation_weighs_less_beside_its_answer_and_fully_alone():
    policy = build_policy(TINY)
    end = policy.processor.eos_ids[0]
    alone = [*policy.processor.encode("<observe>red</observe>"), end]
    assert _weights(policy, alone) == [1.0] * len(alone)
    seen = policy.processor.encode("<observe>red")
    rest = policy.processor.encode("</observe><think>red</think><answer>3</answer>")
    weights = _weights(policy, [*seen, *rest, end])
    assert weights == [OBSERVATION_WEIGHT] * len(seen) + [1.0] * (len(rest) + 1)


def test_workers_share_a_batch_and_its_gradient_stays_what_it_is():
    policy = build_policy(TINY)
    policy.model.double()
    pairs = pairs_of(policy, 5, prompts=("think", "observe"))
    normalizer = sum(sum(_weights(policy, target)) for _, target in pairs)
    expected_loss = _loss(policy, pairs) / normalizer
    expected_loss.backward()
    expected = [parameter.grad for parameter in policy.model.parameters()]
    for parts in (1, 2, 3, 8):
        with ThreadPoolExecutor(2) as workers:
            loss = _backward(policy, pairs, workers, parts)
        assert loss == pytest.approx(float(expected_loss.detach()), rel=1e-9)
        for parameter, gradient in zip(policy.model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_every_batch_mixes_prompts_and_the_pool_mixes_abilities():
    assert set(PROMPT_SHARES) == set(SYSTEM_PROMPTS)
    assert sum(PROMPT_SHARES.values()) == pytest.approx(1.0)
    pool = _pool(BaseConfig(scenes=100))
    general = sum(question.family in GENERAL_FAMILIES for question in pool)
    assert general == pytest.approx(100 * GENERAL_SHARE, abs=1)
    assert 0 < general < 50
    assert len({question.id for question in pool}) == len(pool) == 100
    assert all(question.id.startswith("train-") for question in pool)


def test_the_pool_shares_no_question_with_reinforcement():
    pool = _pool(BaseConfig(scenes=600))
    trained_on = load_questions(EMBEDDED, split="train", size=600, seed=0)
    assert not {q.id for q in pool} & {q.id for q in trained_on}
    assert not {asked(q) for q in pool} & {asked(q) for q in trained_on}


def asked(question):
    """What the policy is shown: the picture and the text."""
    return question.open_images()[0].tobytes(), question.text


def responses_of(policy, target):
    """A batch of prompts and responses as text."""
    pool = _pool(TINY)
    texts = [
        (policy.processor.decode(sample.token_ids_L.tolist()), policy.processor.decode(tokens[:-1]))
        for sample, tokens in next(_batches(policy, pool, TINY, random.Random(3), target))
    ]
    return pool, texts


def test_a_look_is_the_observation_alone_under_the_prompt_that_asks_for_one():
    pool, texts = responses_of(build_policy(TINY), _look)
    observations = {f"<observe>{question.observation}</observe>" for question in pool}
    assert len(texts) == TINY.batch_size
    for prompt, text in texts:
        assert SYSTEM_PROMPTS["observe"] in prompt
        assert text in observations


def is_careful(question, prompt, text):
    return (
        prompt in ("think", "observe")
        and format_valid(text, prompt)
        and text.endswith(f"<answer>{question.gold}</answer>")
        and all(step in text for step in question.metadata["working"])
    )


def test_careful_work_is_careful_but_for_a_share_that_has_its_habits_already():
    rng = random.Random(0)
    config = dataclasses.replace(TINY, malformed_share=1.0, short_share_hard=1.0)
    worked = [(question, *_work(question, config, rng)) for question in questions("train", 700)]
    careless = sum(not is_careful(*one) for one in worked) / len(worked)
    assert careless == pytest.approx(EARLY_HABITS, abs=0.05)


def test_an_answer_comes_under_any_prompt():
    rng = random.Random(0)
    (question,) = questions("train", 1)
    given = [_answer(question, TINY, rng) for _ in range(200)]
    assert {prompt for prompt, _ in given} == set(PROMPT_SHARES)
    assert all(question.gold in text for _, text in given)


def test_the_learning_rate_warms_up_and_decays_to_a_tenth():
    config = BaseConfig(steps=100, warmup_steps=10)
    rates = [_schedule(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.001)
