"""Shared-prompt log-probabilities and gradients against one plain forward per completion."""

import pytest
import torch

from observe.glyphs import questions
from observe.model.logprobs import completion_logprobs
from observe.prompts import build_messages

GROUP = 3


@pytest.fixture(scope="module")
def prompts(untrained):
    processor = untrained.processor
    samples = []
    for i, question in enumerate(questions("ood", 3, seed=1)):
        messages = build_messages(("think", "observe", "plain")[i], question.text, (), i % 3)
        samples.append(processor.sample(messages, question.open_images() * (i % 3)))
    assert len({sample.length for sample in samples}) == 3
    return samples


@pytest.fixture(scope="module")
def completions(untrained):
    generator = torch.Generator().manual_seed(0)
    allowed = sorted(
        set(range(len(untrained.processor.tokenizer))) - set(untrained.processor.banned_ids)
    )

    def draw(length):
        return [
            allowed[i] for i in torch.randint(len(allowed), (length,), generator=generator).tolist()
        ]

    return [[draw(length) for length in group] for group in ((4, 1, 9), (2, 2, 2), (1, 7, 3))]


def plain_logprobs(policy, sample, tokens, temperature):
    """Prompt and completion in one row through the whole model, nothing shared or padded."""
    following = sample.next_position + torch.arange(len(tokens))
    with_images = {"pixel_values": sample.pixels_RD, "image_grid_thw": sample.grid_I3}
    logits = policy.model(
        input_ids=torch.cat([sample.token_ids_L, torch.tensor(tokens)])[None],
        position_ids=torch.cat([sample.positions_3L, following.expand(3, -1)], 1)[:, None],
        use_cache=False,
        **(with_images if len(sample.grid_I3) else {}),
    ).logits[0, sample.length - 1 : -1]
    logits = logits / temperature
    logits[:, policy.processor.banned_ids] = float("-inf")
    return torch.log_softmax(logits, -1)


def gradients(policy, loss):
    policy.model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, expected):
    """Equal up to rounding in double precision."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= 1e-9 * gradient.norm(), name


def weights(completions):
    """A different weight for every token, so that no token's gradient can hide another's."""
    longest = max(len(tokens) for group in completions for tokens in group)
    number = sum(map(len, completions))
    return torch.rand(number, longest, generator=torch.Generator().manual_seed(1)).double() - 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_gradients_are_those_of_a_plain_forward(
    untrained, prompts, completions, temperature
):
    w_NT = weights(completions)
    logprobs_NT, entropy_NT, mask_NT = completion_logprobs(
        untrained, prompts, completions, temperature=temperature
    )
    shared = gradients(untrained, (logprobs_NT * w_NT * mask_NT).sum())

    loss, row = torch.zeros((), dtype=torch.double), 0
    for sample, group in zip(prompts, completions, strict=True):
        for tokens in group:
            all_TV = plain_logprobs(untrained, sample, tokens, temperature)
            chosen_T = all_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            entropy_T = torch.distributions.Categorical(logits=all_TV).entropy()
            length = len(tokens)
            assert mask_NT[row].tolist() == [1] * length + [0] * (mask_NT.shape[1] - length)
            torch.testing.assert_close(logprobs_NT[row, :length], chosen_T, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(entropy_NT[row, :length], entropy_T, rtol=1e-9, atol=1e-11)
            loss = loss + (chosen_T * w_NT[row, :length]).sum()
            row += 1
    plain = gradients(untrained, loss)

    assert any(name.startswith("model.visual") for name in plain)
    assert_same_gradients(shared, plain)


def test_the_batch_of_a_prompt_changes_nothing(untrained, prompts, completions):
    w_NT = weights(completions)
    together, _, mask_NT = completion_logprobs(untrained, prompts, completions)
    expected = gradients(untrained, (together * w_NT * mask_NT).sum())
    total = {}
    for i in (2, 0, 1):
        alone, _, mask = completion_logprobs(untrained, [prompts[i]], [completions[i]])
        rows = slice(GROUP * i, GROUP * (i + 1))
        length = alone.shape[1]
        torch.testing.assert_close(alone, together[rows, :length], rtol=1e-9, atol=1e-11)
        found = gradients(untrained, (alone * w_NT[rows, :length] * mask).sum())
        for name, gradient in found.items():
            total[name] = total.get(name, 0) + gradient
    assert_same_gradients(total, expected)


def test_probabilities_of_the_tokens_that_can_be_sampled_sum_to_one(untrained, prompts):
    vocabulary = range(len(untrained.processor.tokenizer))
    one_token = [[[token] for token in vocabulary]]
    with torch.no_grad():
        logprobs, _, _ = completion_logprobs(untrained, prompts[:1], one_token, temperature=0.8)
    assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-9)
    assert torch.isneginf(logprobs[untrained.processor.banned_ids]).all()


def test_entropy_carries_no_gradient(untrained, prompts, completions):
    _, entropy_NT, _ = completion_logprobs(untrained, prompts, completions)
    assert not entropy_NT.requires_grad
    assert (entropy_NT >= 0).all()
