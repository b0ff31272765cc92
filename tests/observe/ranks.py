"""What several processes do in the tests of observe.distributed; started by torchrun.

``torchrun --nproc_per_node 2 tests/observe/ranks.py gradients BASE OUT`` writes the gradients of
every case in ``CASES`` under every strategy to OUT; the test computes the same ones in a single
process.
"""

import contextlib
import sys
from pathlib import Path
from unittest import mock

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.tensor import DTensor

import observe.model.trainable
import observe.run
from observe.config import LossConfig, ModelConfig, OptimConfig, ParallelConfig
from observe.data.sources import load_questions
from observe.distributed import start
from observe.model.policy import Policy, load_policy
from observe.model.trainable import trainable_policy
from observe.rollout.engine import Completion
from observe.run import checkpoint, prepare, prompt_of
from observe.sharding import OPTIMIZER_FOLDER, give_up
from observe.update import divergence, update_policy

sys.path.insert(0, str(Path(__file__).parent))

from small_runs import changed

SIGNAL = torch.tensor(
    [[1.0, -0.5, -0.5, 0.0], [0.3, 0.3, -0.3, -0.3], [0.0] * 4, [-1.2, 0.4, 0.4, 0.4]]
)
FIRST_ALONE, SECOND_ALONE = SIGNAL.clone(), SIGNAL.clone()
FIRST_ALONE[2:] = 0
SECOND_ALONE[:2] = 0

STRATEGIES = ["ddp", "fsdp2"]
CASES = {
    "every group at once": ({}, SIGNAL),
    "a group at a time": ({"micro_batch_tokens": 150}, SIGNAL),
    "normalised by tokens": ({"loss": LossConfig(aggregation="token")}, SIGNAL),
    "rank 1 has no signal": ({"micro_batch_tokens": 150}, FIRST_ALONE),
    "rank 0 has no signal": ({"micro_batch_tokens": 150}, SECOND_ALONE),
    "with a KL term": ({"loss": LossConfig(kl_coefficient=0.5)}, SIGNAL),
}


def in_this(dtype):
    """load_policy, always in one precision."""
    return lambda path, **options: load_policy(path, dtype=dtype)


def step(base, out, strategy, values, advantages_PG, dtype):
    """One step of plain gradient descent: its gradient by parameter, and its metrics."""
    config = changed(
        optim=OptimConfig(lr=1.0, max_grad_norm=1e9),
        parallel=ParallelConfig(strategy=strategy),
        **values,
    )
    # Double precision is no setting of the trainer.
    with contextlib.ExitStack() as patches:
        for module in (observe.run, observe.model.trainable):
            patches.enter_context(mock.patch.object(module, "load_policy", in_this(dtype)))
        made = prepare(config, Path(out), model=Path(base) / "checkpoint", ladder=None)
    made.step = 1
    if made.reference:
        with torch.no_grad():
            for parameter in made.reference.model.parameters():
                parameter.mul_(1.02)
    made.optimizer = torch.optim.SGD(made.policy.model.parameters(), lr=1.0)
    before = weights(made)
    metrics = update_policy(made, *rollout(made.policy), advantages_PG)
    after = weights(made)
    return {name: before[name] - after[name] for name in before}, metrics, made.parallel


def rollout(policy):
    """Four questions, each with a group of four completions of unequal length."""
    questions = load_questions("glyphs", size=4, seed=0)
    groups = []
    for i, question in enumerate(questions):
        texts = [
            f"<think>so{' it is' * j * i}</think><answer>{question.gold}</answer>" for j in range(4)
        ]
        groups.append(
            [
                Completion(
                    token_ids=[*policy.processor.encode(text), policy.processor.eos_ids[0]],
                    text=text,
                    truncated=False,
                )
                for text in texts
            ]
        )
    return questions, groups


def weights(made):
    """The weights, put together where they are spread over the ranks."""
    named = made.policy.model.named_parameters()
    return {
        n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in named
    }


def gradients(base, out):
    torch.set_num_threads(1)
    found = {strategy: gradients_of(strategy, base, out) for strategy in STRATEGIES}
    parallel = start(ParallelConfig(strategy=STRATEGIES[0]), prompts_per_step=4)
    if parallel.is_first:
        torch.save(found, Path(out) / "gradients.pt")
    parallel.stop()


def gradients_of(strategy, base, out):
    found = {}
    for name, (values, advantages_PG) in CASES.items():
        for dtype in (torch.float64, torch.float32):
            gradient, metrics, parallel = step(base, out, strategy, values, advantages_PG, dtype)
            norms = parallel.gather([float(sum(g.norm() for g in gradient.values()))])
            assert len(set(norms)) == 1, f"{name}: the ranks took different steps, {norms}"
            found[name, dtype] = gradient, metrics
    # Of the four questions rank 1 has the last two.
    spoilt_PG = SIGNAL.clone()
    spoilt_PG[3, 0] = torch.nan
    change, metrics, parallel = step(base, out, strategy, {}, spoilt_PG, torch.float32)
    moved = any(bool(weight.any()) for weight in change.values())
    found["spoilt"] = parallel.gather([(metrics["observe/bad_step"], moved)])
    return found


def spread(base, out):
    """What weights in bfloat16 that are spread compute, and what of them a checkpoint keeps."""
    torch.set_num_threads(1)
    config = changed(
        model=ModelConfig(dtype="bfloat16"),
        loss=LossConfig(kl_coefficient=0.1, kl_in="reward"),
        parallel=ParallelConfig(strategy="fsdp2"),
    )
    start_at = Path(base) / "checkpoint"
    made = prepare(config, Path(out), model=start_at, ladder=None)
    whole = trainable_policy(config.model, start_at, None, seed=0)
    questions, groups = rollout(whole)
    picture = prompt_of(made, questions[0])
    seen = picture.pixels_RD, picture.grid_I3
    with torch.no_grad():
        features = [p.through(Policy.image_features, *seen) for p in (made.policy, whole)]
    give_up(made.policy)
    made.step = 1
    update_policy(made, questions, groups, SIGNAL)
    before = weights(made)
    # As in a step whose groups are all without signal.
    divergence(made, questions, groups)
    checkpoint(made, Path(out))
    if made.parallel.is_first:
        saved = load_policy(Path(out) / "checkpoint").model
        kept = FileSystemReader(Path(out) / "checkpoint" / OPTIMIZER_FOLDER).read_metadata()
        found = {
            "features": features,
            "same": {n: torch.equal(saved.get_parameter(n), w) for n, w in before.items()},
            "kept": sorted(kept.state_dict_metadata),
        }
        torch.save(found, Path(out) / "spread.pt")
    made.parallel.stop()


def fail():
    """Rank 1 meets an error while rank 0 waits for its part."""
    parallel = start(ParallelConfig(strategy="ddp"), prompts_per_step=2)
    if parallel.rank == 1:
        raise RuntimeError("the lamp is out")
    parallel.gather([1])


if __name__ == "__main__":
    command = {"fail": fail, "gradients": gradients, "spread": spread}[sys.argv[1]]
    record(command)(*sys.argv[2:])
