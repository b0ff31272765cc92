"""The gradient of a step is the same however it is batched.

``pytest -s`` on this file prints the table: each way to compute the gradient of one GRPO step, and
the largest difference from a plain one, relative to the gradient, in double and single precision.
"""

import pytest
import torch
from dense import dense_logprobs

from observe import grpo
from observe.config import BaseConfig
from observe.glyphs import questions
from observe.glyphs.model import build_policy
from observe.model import logprobs as head
from observe.model.batch import micro_batches
from observe.model.logprobs import completion_logprobs
from observe.prompts import build_messages

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
CASES = [
    ("qwen2_5_vl", torch.float64),
    ("qwen2_5_vl", torch.float32),
    ("qwen3_vl", torch.float64),
]
LENGTHS = ((4, 1, 9, 3), (2, 2, 2, 2), (1, 7), (5, 0, 12, 30))
TEMPERATURE = 0.8


class Step:
    """Prompts with 0 to 2 images, groups of 2 and 4 completions of 0 to 30 tokens, advantages."""

    def __init__(self, family, dtype):
        config = BaseConfig(family=family, hidden_size=64, layers=2, tokenizer_texts=200)
        self.policy = build_policy(config)
        self.policy.model.to(dtype)
        self.samples = []
        for i, question in enumerate(questions("ood", len(LENGTHS), seed=1)):
            messages = build_messages(("think", "plain")[i % 2], question.text, (), i % 3)
            images = question.open_images() * (i % 3)
            self.samples.append(self.policy.processor.sample(messages, images))
        random = torch.Generator().manual_seed(0)
        banned = set(self.policy.processor.banned_ids)
        allowed = [i for i in range(len(self.policy.processor.tokenizer)) if i not in banned]
        self.completions = [
            [
                [allowed[i] for i in torch.randint(len(allowed), (n,), generator=random).tolist()]
                for n in lengths
            ]
            for lengths in LENGTHS
        ]
        self.advantages = [torch.randn(len(group), generator=random) for group in LENGTHS]
        self.tokens = sum(map(sum, LENGTHS))

    def loss(self, samples, completions, advantages):
        """The share of some groups in the step's loss."""
        logprobs_NT, _, mask_NT = completion_logprobs(
            self.policy, samples, completions, temperature=TEMPERATURE
        )
        return grpo.policy_loss(
            logprobs_NT,
            logprobs_NT.detach(),
            torch.cat(advantages),
            mask_NT,
            normalizer=self.tokens,
        ).loss

    def gradient(self, *passes):
        """What passes of (sample, completions, advantages) add up to."""
        self.policy.model.zero_grad()
        for chosen in passes:
            self.loss(*(list(part) for part in zip(*chosen, strict=True))).backward()
        return self.collected()

    def collected(self):
        return {n: p.grad.clone() for n, p in self.policy.model.named_parameters()}

    def groups(self):
        return list(zip(self.samples, self.completions, self.advantages, strict=True))


def plain(step, side):
    """REINFORCE from the formula, each completion behind its own prompt, all padded."""
    step.policy.model.zero_grad()
    logprobs_NT, _ = dense_logprobs(
        step.policy, step.samples, step.completions, temperature=TEMPERATURE, side=side
    )
    advantages_N = torch.cat(step.advantages).to(logprobs_NT.dtype)
    (-(logprobs_NT.sum(1) * advantages_N).sum() / step.tokens).backward()
    return step.collected()


def micro_batched(tokens):
    def gradient(step):
        lengths = [[len(c) for c in group] for group in step.completions]
        prompts = [sample.length for sample in step.samples]
        batches = micro_batches(prompts, lengths, tokens=tokens)
        return step.gradient(
            *(
                [
                    (
                        step.samples[i],
                        [step.completions[i][j] for j in members],
                        step.advantages[i][members],
                    )
                    for i, members in batch
                ]
                for batch in batches
            )
        )

    return gradient


def mixed(step):
    return step.gradient(
        [
            (sample, completions[::-1], advantages.flip(0))
            for sample, completions, advantages in step.groups()[::-1]
        ]
    )


def unshared(step):
    return step.gradient(
        [
            (sample, [tokens], advantages[j : j + 1])
            for sample, completions, advantages in step.groups()
            for j, tokens in enumerate(completions)
        ]
    )


def checkpointed(step):
    step.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    step.policy.model.train()
    try:
        return step.gradient(step.groups())
    finally:
        step.policy.model.gradient_checkpointing_disable()


def chunked(size):
    def gradient(step):
        limits = head.CHUNK_LOGITS, head.MIN_CHUNK
        head.CHUNK_LOGITS, head.MIN_CHUNK = 1, size
        try:
            return step.gradient(step.groups())
        finally:
            head.CHUNK_LOGITS, head.MIN_CHUNK = limits

    return gradient


WAYS = {
    "padded on the right": lambda step: plain(step, "right"),
    "packed, prompts shared": lambda step: step.gradient(step.groups()),
    "one group per pass": lambda step: step.gradient(*([group] for group in step.groups())),
    "one completion per pass": micro_batched(1),
    "passes of up to 150 tokens": micro_batched(150),
    "another order": mixed,
    "packed, prompts not shared": unshared,
    "gradient checkpointing": checkpointed,
    "head 1 token at a time": chunked(1),
    "head 7 tokens at a time": chunked(7),
}


@pytest.fixture(scope="module", params=CASES, ids=str)
def step(request):
    family, dtype = request.param
    made = Step(family, dtype)
    made.expected = plain(made, "left")
    made.dtype = dtype
    print(f"\n{family}, {dtype}: largest difference from a plain gradient, relative")
    return made


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_does_not_depend_on(step, way):
    found = WAYS[way](step)
    total = torch.stack([g.norm() for g in step.expected.values()]).norm()
    differences = {
        name: float((found[name] - g).norm() / torch.maximum(g.norm(), 1e-3 * total))
        for name, g in step.expected.items()
    }
    worst = max(differences, key=differences.get)
    print(f"{way:<28} {differences[worst]:.1e}  ({worst})")
    assert differences[worst] <= TOLERANCE[step.dtype]


def test_it_would_notice_a_wrong_one(step):
    step.policy.model.zero_grad()
    swapped = [step.completions[i] for i in (3, 1, 2, 0)]
    step.loss(step.samples, swapped, step.advantages).backward()
    found = step.collected()
    total = torch.stack([g.norm() for g in step.expected.values()]).norm()
    difference = torch.stack([(found[n] - g).norm() for n, g in step.expected.items()]).norm()
    assert difference > 0.1 * total
