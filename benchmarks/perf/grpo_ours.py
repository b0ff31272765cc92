"""One run of this trainer for grpo_step.py: ``python -m benchmarks.perf.grpo_ours FOLDER``.

Reads FOLDER/settings.json, builds the model, and writes FOLDER/steps.json. A step is what training
does: images are opened and processed, a group is sampled per prompt, rewards (random) become
advantages, and the policy is updated.
"""

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.perf import grpo_model
from observe import grpo
from observe.allocator import keep_freed_memory
from observe.config import ModelConfig, OptimConfig, RolloutConfig, TrainConfig
from observe.data.curriculum import ShuffledOrder
from observe.data.question import Question
from observe.distributed import Parallel
from observe.model.policy import Policy
from observe.model.processor import Sample
from observe.prefetch import Prompts
from observe.rollout.engine import SamplingParams
from observe.rollout.native import NativeEngine
from observe.run import Run
from observe.update import update_policy


def main(folder: Path) -> int:
    """Train for some steps and write what they took."""
    settings = json.loads((folder / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    keep_freed_memory()
    cuda, dtype = settings["device"] == "cuda", getattr(torch, settings["dtype"])
    policy = grpo_model.build(settings["shape"], dtype=dtype, device=settings["device"])
    if settings["gradient_checkpointing"]:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.processor.eos_ids = []  # The length is forced.
    config = TrainConfig(
        model=ModelConfig(gradient_checkpointing=settings["gradient_checkpointing"]),
        rollout=RolloutConfig(
            group_size=settings["group_size"], max_new_tokens=settings["new_tokens"]
        ),
        optim=OptimConfig(lr=1e-6),
        micro_batch_tokens=settings["micro_batch_tokens"],
    )
    questions = [
        Question(id=str(i), text=text, gold="", answer_type="text", images=(Path(image),))
        for i, (text, image) in enumerate(zip(settings["texts"], settings["images"], strict=True))
    ]
    run = Run(
        config=config,
        parallel=Parallel(device=torch.device(settings["device"])),
        policy=policy,
        reference=None,
        engine=NativeEngine(policy),
        optimizer=torch.optim.AdamW(policy.model.parameters(), lr=config.optim.lr),
        curriculum=ShuffledOrder([question.id for question in questions], seed=0),
        questions={question.id: question for question in questions},
        reward=config.reward,
        prompts=Prompts(partial(_prompt, policy), threads=0),
        validation=[],
    )
    rewards = torch.Generator().manual_seed(0)
    rows = [_step(run, questions, rewards, cuda) for _ in range(_total(settings))]
    rows = rows[settings["warmup"] :]
    written = {
        "seconds": [sum(row.values()) for row in rows],
        **{key: [row[key] for row in rows] for key in rows[0]},
        "prompt_tokens": sorted({run.prompts.get(q).length for q in questions}),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
        "matmul_flops": _update_flops(run, settings),
        "matmul_rate": _matmul_rate(settings["device"], dtype),
    }
    (folder / "steps.json").write_text(json.dumps(written))
    return 0


def _prompt(policy: Policy, question: Question) -> Sample:
    return policy.processor.sample(grpo_model.messages(question.text), question.open_images())


def _total(settings: dict[str, Any]) -> int:
    return int(settings["steps"] + settings["warmup"])


def _step(
    run: Run, questions: list[Question], rewards: torch.Generator, cuda: bool
) -> dict[str, float]:
    """One training step, and the seconds of its parts."""
    rollout = run.config.rollout
    marks = [time.perf_counter()]

    def mark() -> None:
        if cuda:
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    run.step += 1
    run.prompts.expect([])
    samples = [run.prompts.get(question) for question in questions]
    mark()
    params = SamplingParams(max_new_tokens=rollout.max_new_tokens, n=rollout.group_size)
    seeds = [1000 * run.step + i for i in range(len(questions))]
    groups = NativeEngine(run.policy).generate(samples, params, seeds)
    mark()
    rewards_PG = torch.rand(len(questions), rollout.group_size, generator=rewards)
    update_policy(run, questions, groups, grpo.group_advantages(rewards_PG))
    mark()
    names = ("process", "generate", "update")
    return dict(zip(names, (b - a for a, b in zip(marks, marks[1:], strict=False)), strict=True))


def _update_flops(run: Run, settings: dict[str, Any]) -> float:
    """Floating-point operations of the update's matrix products with weights, attention left out:
    six for each weight and token that goes through it (forward, and twice that backward)."""
    model = run.policy.model
    number = sum(p.numel() for p in model.model.language_model.layers.parameters())
    vision = sum(p.numel() for p in model.model.visual.parameters())
    head = model.lm_head.weight.numel()
    written = settings["prompts"] * settings["group_size"] * settings["new_tokens"]
    samples = [run.prompts.get(question) for question in run.questions.values()]
    prompts = sum(sample.length for sample in samples)
    patches = sum(len(sample.pixels_RD) for sample in samples)
    return 6.0 * (number * (prompts + written) + head * written + vision * patches)


def _matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Operations per second of large square matrix products, the best of some."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        product = left @ right
        float(product[0, 0])
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
