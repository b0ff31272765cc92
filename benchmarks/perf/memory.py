"""What a training says it needs of memory, and what it took: ``python -m benchmarks.perf.memory``.

Small random models of the world's architecture sample and take two gradient steps, each in a
process of its own. ``estimated`` is the line that a run prints before its first step
(observe.memory), ``measured`` the process's peak: resident memory, or on a GPU what torch's
allocator took. ``ratio`` is the estimate over the measurement. The models are shaped so that
different parts weigh most.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from benchmarks.perf.results import publish
from harness.cli import run_command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A model and a pass of the trainer."""

    name: str
    hidden_size: int
    layers: int
    tokens: int
    """Most tokens in a pass (``micro_batch_tokens``)."""
    kl: float = 0.0
    """Above 0, the reference model lies in memory too."""
    prompts: int = 12
    """Prompts of the step; each has GROUP completions."""


CASES = (
    Case(name="activations", hidden_size=128, layers=4, tokens=16384),
    Case(name="weights, optimizer", hidden_size=768, layers=6, tokens=1024, kl=0.01, prompts=2),
    Case(name="activations, deeper", hidden_size=192, layers=8, tokens=8192),
)
GROUP, NEW_TOKENS = 8, 150


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Two steps of the case in this process: bytes estimated and measured, and the largest part."""
    import torch

    from observe.config import (
        BaseConfig,
        DataConfig,
        LossConfig,
        RolloutConfig,
        TrainConfig,
    )
    from observe.glyphs.model import build_policy
    from observe.groups import sample_groups
    from observe.memory import estimate, held_by_process
    from observe.performance import max_memory_gb
    from observe.run import prepare, prompt_of
    from observe.update import update_policy

    base = BaseConfig(hidden_size=case.hidden_size, layers=case.layers, tokenizer_texts=400)
    build_policy(base).save(folder / "model")
    config = TrainConfig(
        data=DataConfig(size=2 * case.prompts, selection="raw"),
        rollout=RolloutConfig(group_size=GROUP, max_new_tokens=NEW_TOKENS),
        loss=LossConfig(kl_coefficient=case.kl),
        prompts_per_step=case.prompts,
        micro_batch_tokens=case.tokens,
        eval_steps=(),
    )
    run = prepare(config, folder, model=folder / "model", ladder=None)
    run.step = 1
    chosen = [run.questions[i] for i in run.curriculum.next_batch(case.prompts)]
    samples = [prompt_of(run, question) for question in chosen]
    models = [run.policy, *([run.reference] if run.reference else [])]
    weights = sum(p.nbytes for policy in models for p in policy.model.parameters())
    on_gpu = run.parallel.device.type == "cuda"
    expected = estimate(
        run.policy.model.config,
        config,
        prompt_tokens=max(sample.length for sample in samples),
        patches=max(len(sample.pixels_RD) for sample in samples),
        process=0 if on_gpu else max(0, held_by_process() - weights),
    )
    groups = sample_groups(run, chosen)
    advantages_PG = torch.randn(case.prompts, GROUP, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # The optimizer's state is there from the second step on.
        update_policy(run, chosen, groups, advantages_PG)
    parts = expected.steady | expected.training
    return {
        "parameters": sum(p.numel() for p in run.policy.model.parameters()),
        "estimated_mb": expected.total / 1e6,
        "measured_mb": max_memory_gb(run.parallel.device) * 1e3,
        "parts_mb": {name: size / 1e6 for name, size in parts.items() if size},
        "completion_tokens": sum(len(c.token_ids) for g in groups for c in g)
        / case.prompts
        / GROUP,
    }


def compare(cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    """The rows of the table."""
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "benchmarks.perf.memory",
                "--measure",
                case.name,
                folder,
            ]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(told.stdout.splitlines()[-1])
        row["ratio"] = row["estimated_mb"] / row["measured_mb"]
        rows.append({**dataclasses.asdict(case), **row})
    return rows


def show(rows: Sequence[dict[str, Any]], described: dict[str, object]) -> None:
    """The rows for people."""
    table = Table(title=" | ".join(map(str, described.values())))
    for heading in ("largest part", "parameters", "tokens", "estimated, MB", "measured", "ratio"):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['parameters'] / 1e6:.1f}M",
            str(row["tokens"]),
            f"{row['estimated_mb']:.0f}",
            f"{row['measured_mb']:.0f}",
            f"{row['ratio']:.2f}",
        )
    Console(width=120).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = ArgumentParser(
        prog="python -m benchmarks.perf.memory",
        description="What a training says it will need of memory, and what it took.",
    )
    parser.add_argument("--cases", type=int, default=len(CASES), help="The first so many cases.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead.")
    parser.add_argument(
        "--measure", nargs=2, default=None, help="A case's name and a folder: what it does inside."
    )
    options = parser.parse_args(arguments)

    def command() -> int:
        if options.measure:
            name, folder = options.measure
            (case,) = [case for case in CASES if case.name == name]
            print(json.dumps(measure(case, Path(folder))))
            return 0
        return publish(compare(CASES[: options.cases]), show, as_json=options.json)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
