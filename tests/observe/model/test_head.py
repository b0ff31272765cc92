"""The head: log-probabilities and entropies of chunks of tokens, never all logits at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from observe.model.logprobs import token_logprobs

TOKENS, VOCABULARY, WIDTH = 700, 300, 16
BANNED = (3, 299)


def inputs(dtype=torch.double):
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=random, dtype=torch.double).to(dtype)
    weight = torch.randn(VOCABULARY, WIDTH, generator=random, dtype=torch.double).to(dtype)
    targets = torch.randint(4, 299, (TOKENS,), generator=random)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain(hidden, weight, targets, temperature):
    logits = (hidden @ weight.T / temperature).index_fill(1, torch.tensor(BANNED), float("-inf"))
    logprobs = torch.log_softmax(logits, -1)
    entropy = -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0)).sum(-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 64, 699, 1000])
def test_values_and_gradients_are_the_plain_ones(chunk, temperature):
    hidden, weight, targets = inputs()
    weights = torch.randn(2, TOKENS, generator=torch.Generator().manual_seed(1)).double()
    results = []
    for function in (
        lambda: plain(hidden, weight, targets, temperature),
        lambda: token_logprobs(
            hidden,
            weight,
            targets,
            banned_ids=BANNED,
            temperature=temperature,
            entropy_grad=True,
            chunk=chunk,
        ),
    ):
        values = torch.stack(function())
        gradients = torch.autograd.grad((values * weights).sum(), (hidden, weight))
        results.append((values, *gradients))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_each_output_may_be_used_alone():
    hidden, weight, targets = inputs()
    for index in (0, 1):
        found = token_logprobs(
            hidden, weight, targets, banned_ids=BANNED, entropy_grad=True, chunk=100
        )[index]
        expected = plain(hidden, weight, targets, 1.0)[index]
        gradients = [torch.autograd.grad(x.sum(), (hidden, weight)) for x in (found, expected)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_entropy_has_no_gradient_unless_asked_for():
    logprobs, entropy = token_logprobs(*inputs(), banned_ids=BANNED)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_half_precision_is_widened_before_the_softmax():
    hidden, weight, targets = inputs(torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, weight, targets, banned_ids=BANNED)
    assert logprobs.dtype == entropy.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    expected, _ = plain(hidden.double(), weight.double(), targets, 1.0)
    torch.testing.assert_close(logprobs.double(), expected, rtol=0.02, atol=0.05)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // 4)
        return out


def test_no_tensor_is_as_large_as_all_logits():
    hidden, weight, targets = inputs(torch.float32)
    with LargestTensor() as largest:
        logprobs, entropy = token_logprobs(
            hidden, weight, targets, banned_ids=BANNED, entropy_grad=True, chunk=50
        )
        (logprobs.sum() + entropy.sum()).backward()
    assert largest.elements == max(50 * VOCABULARY, TOKENS * WIDTH)
    with LargestTensor() as largest:
        plain(hidden, weight, targets, 1.0)
    assert largest.elements == TOKENS * VOCABULARY


def test_no_tokens_give_a_differentiable_nothing():
    hidden, weight, _ = inputs()
    logprobs, _ = token_logprobs(hidden[:0], weight, torch.zeros(0, dtype=torch.long))
    logprobs.sum().backward()
    assert not weight.grad.any()


def test_a_head_that_is_not_trained_costs_no_gradient():
    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made.extend(x.shape for x in tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    for trained in (True, False):
        hidden, weight, targets = inputs()
        weight.requires_grad_(trained)
        logprobs, _ = token_logprobs(hidden, weight, targets, banned_ids=BANNED)
        made: list[torch.Size] = []
        with Shapes():
            logprobs.sum().backward()
        assert (weight.shape in made) == (weight.grad is not None) == trained
