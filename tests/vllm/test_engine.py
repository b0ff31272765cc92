"""vLLM beside the trainer: it reads the same prompts and has the same weights, and says so."""

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image

from observe.config import RolloutConfig, VllmConfig
from observe.errors import EngineError, InputError
from observe.glyphs import questions
from observe.model.logprobs import completion_logprobs
from observe.prompts import build_messages
from observe.rollout.engine import SamplingParams
from observe.rollout.factory import make_engine
from observe.rollout.native import NativeEngine

pytest.importorskip("vllm", reason="no vLLM: make test-vllm sets it up")

from observe.rollout.prompt import prompt_from_sample  # noqa: E402
from observe.rollout.vllm import group_seed, named_weights  # noqa: E402

GREEDY = SamplingParams(max_new_tokens=48, temperature=0.0)
SAMPLED = SamplingParams(max_new_tokens=40, temperature=1.3, n=3)


def prompts(policy, number=8):
    """Small and large grids, and a prompt without an image."""
    asked = [*questions("validation", number), *questions("ood", number)][::2]
    samples = []
    for i, question in enumerate(asked[:number]):
        images = int(i != 2)
        messages = build_messages(
            ("think", "observe")[i % 2], question.text, question.options, images
        )
        samples.append(policy.processor.sample(messages, question.open_images() * images))
    return samples


def tokens(groups):
    return [[completion.token_ids for completion in group] for group in groups]


def largest_difference(policy, samples, groups, temperature):
    """Between the engine's log-probabilities and the trainer's, over all tokens."""
    with torch.no_grad():
        logprobs_NT, _, mask_NT = completion_logprobs(
            policy, samples, tokens(groups), temperature=temperature
        )
    flat = [completion for group in groups for completion in group]
    return max(
        float((torch.tensor(c.logprobs) - row[: len(c.logprobs)]).abs().max())
        for c, row in zip(flat, logprobs_NT, strict=True)
    )


def perturbed(policy, only=""):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if only in name:
                noise = torch.randn(weight.shape, generator=generator)
                weight += 0.2 * (weight.std() if weight.numel() > 1 else 1.0) * noise
    return policy


def test_greedy_is_that_of_the_native_engine(engine_of, trained):
    samples = prompts(trained, 16)
    expected = NativeEngine(trained).generate(samples, GREEDY, [0] * 16)
    found = engine_of(trained).generate(samples, GREEDY, [0] * 16)
    assert tokens(found) == tokens(expected)
    assert [g[0].text for g in found] == [g[0].text for g in expected]
    assert len({len(group[0].token_ids) for group in found}) > 2


def test_log_probabilities_are_the_trainer_s(engine_of, trained):
    samples = prompts(trained)
    for temperature in (1.0, 1.3):
        params = dataclasses.replace(SAMPLED, temperature=temperature)
        groups = engine_of(trained).generate(samples, params, range(8))
        assert largest_difference(trained, samples, groups, temperature) < 1e-4


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_images_of_any_size_and_mode_are_read_as_the_trainer_reads_them(engine_of, trained, mode):
    noise = np.random.default_rng(3).integers(0, 256, (53, 75, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    sample = trained.processor.sample(build_messages("think", "How many?", None, 1), [image])
    assert sample.grid_I3.tolist() != [[1, 53 // 8, 75 // 8]]
    groups = engine_of(trained).generate([sample], SAMPLED, [1])
    assert largest_difference(trained, [sample], groups, 1.3) < 1e-4


def test_after_an_optimizer_step_and_a_sync_it_samples_from_the_new_weights(engine_of, trained):
    samples = prompts(trained)
    engine = engine_of(trained)
    before = engine.generate(samples, GREEDY, [0] * 8)
    optimizer = torch.optim.AdamW(trained.model.parameters(), lr=3e-3)
    logprobs_NT, _, mask_NT = completion_logprobs(trained, samples, tokens(before))
    (logprobs_NT * mask_NT).sum().backward()
    optimizer.step()
    assert tokens(engine.generate(samples, GREEDY, [0] * 8)) == tokens(before)
    engine.sync()
    after = engine.generate(samples, GREEDY, [0] * 8)
    assert tokens(after) != tokens(before)
    assert tokens(after) == tokens(NativeEngine(trained).generate(samples, GREEDY, [0] * 8))


@pytest.mark.parametrize("part", ["visual", "embed_tokens", "self_attn", ".mlp.", "norm"])
def test_every_part_of_the_weights_arrives(engine_of, trained, part):
    samples = prompts(trained, 4)
    engine = engine_of(trained)
    perturbed(trained, part)
    stale = engine.generate(samples, SAMPLED, range(4))
    assert largest_difference(trained, samples, stale, 1.3) > 1e-3
    engine.sync()
    groups = engine.generate(samples, SAMPLED, range(4))
    assert largest_difference(trained, samples, groups, 1.3) < 1e-4


def test_weights_that_do_not_fit_are_refused_and_nothing_is_sampled_from_them(engine_of, trained):
    engine = engine_of(trained)
    weights = named_weights(trained)
    with pytest.raises(EngineError, match="1 of .* weights did not come.*norm"):
        engine.model.load_weights(
            [w for w in weights if w[0] != "model.language_model.norm.weight"]
        )
    prompt = prompt_from_sample(trained.processor, prompts(trained, 1)[0])
    with pytest.raises(EngineError, match="weights are gone"):
        engine.model.generate([prompt], GREEDY, [0])
    with pytest.raises(EngineError, match="unheard_of"):
        engine.model.load_weights([*weights, ("model.unheard_of.weight", torch.zeros(2))])
    # The engine hands all over by itself.
    found = engine.generate(prompts(trained), GREEDY, [0] * 8)
    assert tokens(found) == tokens(
        NativeEngine(trained).generate(prompts(trained), GREEDY, [0] * 8)
    )


@pytest.mark.parametrize("level", [1, 2])
def test_asleep_it_holds_no_cache_and_awake_it_goes_on(engine_of, trained, level):
    samples = prompts(trained)
    expected = tokens(engine_of(trained).generate(samples, SAMPLED, range(8)))
    engine = engine_of(trained, sleep_level=level)
    assert engine.model.cache_bytes() >= 0.2 * 2**30
    assert tokens(engine.generate(samples, SAMPLED, range(8))) == expected
    assert engine.model.cache_bytes() == 0
    assert tokens(engine.generate(samples, SAMPLED, range(8))) == expected
    perturbed(trained)
    engine.sync()
    assert engine.model.cache_bytes() == 0
    groups = engine.generate(samples, SAMPLED, range(8))
    assert largest_difference(trained, samples, groups, 1.3) < 1e-4
    engine.model.wake()


def test_end_tokens_of_both_kinds_end_a_completion_and_vision_tokens_never_come(
    engine_of, untrained
):
    params = SamplingParams(max_new_tokens=60, temperature=2.0, n=40)
    eos = set(untrained.processor.eos_ids)
    groups = engine_of(untrained).generate(prompts(untrained), params, range(8))
    completions = [completion for group in groups for completion in group]
    for completion in completions:
        assert not eos & set(completion.token_ids[:-1])
        assert completion.truncated == (completion.token_ids[-1] not in eos)
        assert completion.truncated <= (len(completion.token_ids) == 60)
        assert completion.text == untrained.processor.decode(completion.token_ids)
    sampled = {token for completion in completions for token in completion.token_ids}
    assert eos < sampled
    assert not sampled & set(untrained.processor.banned_ids)
    assert len(sampled) > 0.9 * len(untrained.processor.tokenizer)


def test_log_probabilities_are_left_out_where_they_would_be_others(engine_of, trained):
    samples = prompts(trained, 2)
    for limits in ({"top_p": 0.9}, {"top_k": 5}):
        params = dataclasses.replace(SAMPLED, **limits)
        groups = engine_of(trained).generate(samples, params, [1, 2])
        assert all(completion.logprobs is None for group in groups for completion in group)
    groups = engine_of(trained, logprobs=False).generate(samples, SAMPLED, [1, 2])
    assert all(completion.logprobs is None for group in groups for completion in group)


def test_a_prompt_that_reads_otherwise_is_an_error_that_names_the_first_difference(
    engine_of, trained
):
    engine, sample = engine_of(trained), prompts(trained, 1)[0]
    prompt = prompt_from_sample(trained.processor, sample)
    end = sample.token_ids_L.tolist().index(trained.processor.image_pad_id) + 9
    larger = dataclasses.replace(prompt, images=[sample.images[0].resize((96, 96))])
    message = f"{sample.length + 27} tokens for {sample.length}, the first difference at {end} "
    with pytest.raises(EngineError, match=message):
        engine.model.generate([larger], GREEDY, [0])


def test_prompts_beyond_the_limits_are_bad_input(engine_of, trained):
    engine, (sample, *_) = engine_of(trained, images_per_prompt=1), prompts(trained)
    length = engine.model.max_model_len
    with pytest.raises(InputError, match=rf"max_model_len: {length} tokens .* at least"):
        engine.generate([sample], dataclasses.replace(GREEDY, max_new_tokens=length), [0])
    image = sample.images[0]
    two = trained.processor.sample(build_messages("think", "Which?", None, 2), [image] * 2)
    with pytest.raises(InputError, match="images_per_prompt: 1, but a prompt has 2 images"):
        engine.generate([two], GREEDY, [0])


def test_vllm_does_not_compute_in_double_precision(trained):
    trained.model.double()
    with pytest.raises(InputError, match="torch.float64"):
        make_engine(trained, RolloutConfig(engine="vllm"))


def test_the_trainer_s_threads_and_random_states_are_left_alone(engine_of, trained):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    engine_of(trained).generate(prompts(trained, 2), SAMPLED, [1, 2])
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_groups_of_neighbouring_seeds_share_no_completion():
    """vLLM adds the completion's index to the seed."""
    seeds = {group_seed(seed) + j for seed in range(1000) for j in range(64)}
    assert len(seeds) == 64_000
    assert max(seeds) < 2**63


def test_the_settings_name_what_is_wrong():
    for changes in ({"gpu_memory_utilization": 1.5}, {"kv_cache_gb": 0.0}, {"max_num_seqs": 0}):
        (key,) = changes
        with pytest.raises(InputError, match=f"{key}: expected"):
            VllmConfig(**changes)
