"""What a GRPO step takes here and with TRL, on the same work.

``python -m benchmarks.perf.grpo_step``. Both train the same random model on the same prompts and
images: a group of completions of forced length per prompt, random rewards, one optimizer step, no
KL term. They run in turn, in processes of their own, TRL in the environment of ``make perf-env``
and in the setting that was found to be its best: no gradient checkpointing, 48 completions at a
time, and the same settings of glibc's allocator that our trainer gives itself. How to read it:

- ``step``: seconds per step, the median, with the smallest and the largest;
- ``generate``: of it the sampling; ``other``: forward, backward, optimizer, images and the rest;
- ``tokens/s``: completion tokens of a step over its seconds;
- ``peak``: largest resident memory in megabytes (on a GPU, what the allocator held);
- ``ratio``: TRL's seconds over ours. Above 1, ours is faster;
- ``matmul``: the rate of the update's products with weights, as a share of what large square
  products reach on this device with these threads: the rest is attention, normalisation,
  activation functions and overhead.

On a GPU, three steps of the 3B shape at the paper's lengths: ``--device cuda --shape 3b --dtype
bfloat16 --gradient_checkpointing --image_tokens=[400] --new_tokens 1024 --steps 3 --warmup 1
--repeats 1 --peer_micro_batch 8``.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from benchmarks.perf.measure import NOT_INSTALLED
from benchmarks.perf.results import publish
from harness import machine
from harness.cli import run_command
from observe.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""What observe.allocator sets for our side, as environment variables for the other."""

OURS, TRL = "ours", "TRL"


def compare(settings: dict[str, Any], python: Path, repeats: int) -> dict[str, Any]:
    """Both trainers in turn at one number of image tokens."""
    from benchmarks.perf import grpo_model

    commands = {
        OURS: [sys.executable, "-m", "benchmarks.perf.grpo_ours"],
        TRL: [str(python), str(ROOT / "benchmarks" / "perf" / "grpo_peer.py")],
    }
    found: dict[str, list[dict[str, Any]]] = {OURS: [], TRL: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grpo_model.prepare(folder, settings)
        (folder / "settings.json").write_text(json.dumps(settings))
        for _ in range(repeats):
            for side, command in commands.items():
                if steps := _run(command, folder, settings["threads"], malloc=side == TRL):
                    found[side].append(steps)
    return _row(settings, found)


def _run(command: list[str], folder: Path, threads: int, *, malloc: bool) -> dict[str, Any] | None:
    """What one process wrote; None when its trainer is not installed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    if malloc:
        environment |= MALLOC
    try:
        run = subprocess.run(
            [*command, str(folder)], env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    if run.returncode == NOT_INSTALLED:
        return None
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{run.stderr}")
    steps: dict[str, Any] = json.loads((folder / "steps.json").read_text())
    return steps


def _row(settings: dict[str, Any], found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    row: dict[str, Any] = {
        key: settings[key]
        for key in ("image_tokens", "shape", "device", "dtype", "threads", "prompts", "group_size")
    }
    row |= {"new_tokens": settings["new_tokens"], "prompt_tokens": found[OURS][0]["prompt_tokens"]}
    tokens = settings["prompts"] * settings["group_size"] * settings["new_tokens"]
    ours = _side(found[OURS], tokens)
    last = found[OURS][-1]
    rate = last["matmul_flops"] / statistics.median(_all(found[OURS], "update"))
    ours |= {
        "process": statistics.median(_all(found[OURS], "process")),
        "update": statistics.median(_all(found[OURS], "update")),
        "matmul_share": rate / max(run["matmul_rate"] for run in found[OURS]),
        "matmul_gflops": max(run["matmul_rate"] for run in found[OURS]) / 1e9,
    }
    row[OURS] = ours
    if not found[TRL]:
        return {**row, "missing": "TRL is not installed: make perf-env"}
    if found[TRL][0]["prompt_tokens"] != row["prompt_tokens"]:
        raise RuntimeError(
            f"prompts differ: TRL has {found[TRL][0]['prompt_tokens']} tokens, "
            f"this trainer {row['prompt_tokens']}"
        )
    row["trl"] = _side(found[TRL], tokens)
    memory = "peak_gpu_mb" if settings["device"] == "cuda" else "peak_rss_mb"
    return row | {
        "ratio": row["trl"]["seconds"] / ours["seconds"],
        "memory_ratio": row["trl"][memory] / ours[memory],
    }


def _side(runs: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    seconds, generate = _all(runs, "seconds"), _all(runs, "generate")
    return {
        "seconds": statistics.median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "generate": statistics.median(generate),
        "other": statistics.median(s - g for s, g in zip(seconds, generate, strict=True)),
        "peak_rss_mb": max(run["peak_rss_mb"] for run in runs),
        "peak_gpu_mb": max((run["peak_gpu_mb"] or 0.0) for run in runs) or None,
        "tokens_per_second": tokens / statistics.median(seconds),
        "steps": len(seconds),
    }


def _all(runs: list[dict[str, Any]], key: str) -> list[float]:
    return [value for run in runs for value in run[key]]


def show(rows: Sequence[dict[str, Any]], described: dict[str, object]) -> None:
    """Print the table."""
    title = f"{described['cpu']}, {described['cores']} cores; seconds per step"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    columns = "image tokens,trainer,step,(range),generate,other,tokens/s,peak,ratio,matmul"
    for i, column in enumerate(columns.split(",")):
        table.add_column(column, justify="left" if i == 1 else "right")
    for row in rows:
        for side, key in ((OURS, OURS), (TRL, "trl")):
            if key not in row:
                table.add_row(str(row["image_tokens"]), side, row["missing"])
                continue
            one = row[key]
            low, high = one["seconds_range"]
            table.add_row(
                str(row["image_tokens"]),
                side,
                f"{one['seconds']:.3f}",
                f"{low:.3f}-{high:.3f}",
                f"{one['generate']:.3f}",
                f"{one['other']:.3f}",
                f"{one['tokens_per_second']:.0f}",
                f"{one['peak_gpu_mb'] or one['peak_rss_mb']:.0f}",
                f"{row['ratio']:.2f}" if side == TRL else "",
                f"{one['matmul_share']:.0%}" if side == OURS else "",
            )
    Console(width=120).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = ArgumentParser(
        prog="python -m benchmarks.perf.grpo_step",
        description="What a GRPO step takes with this trainer and with TRL, on the same work.",
    )
    parser.add_argument(
        "--image_tokens", type=list[int], default=[9, 100, 400], help="Squares: tokens of an image."
    )
    parser.add_argument("--steps", type=int, default=6, help="Steps that count, of a process.")
    parser.add_argument("--warmup", type=int, default=2, help="Steps before them.")
    parser.add_argument("--repeats", type=int, default=2, help="Processes of each trainer.")
    parser.add_argument("--prompts", type=int, default=24, help="Prompts of a step.")
    parser.add_argument("--group_size", type=int, default=8, help="Completions of a prompt.")
    parser.add_argument("--new_tokens", type=int, default=64, help="Tokens of a completion.")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="Threads of torch.")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda.")
    parser.add_argument("--shape", type=str, default="tiny", help="tiny, or 3b (Qwen2.5-VL-3B).")
    parser.add_argument("--dtype", type=str, default="float32", help="float32 or bfloat16.")
    parser.add_argument(
        "--micro_batch_tokens", type=int, default=8192, help="Tokens of our forward passes."
    )
    parser.add_argument(
        "--peer_micro_batch", type=int, default=48, help="Completions of TRL's forward passes."
    )
    parser.add_argument(
        "--gradient_checkpointing", action="store_true", help="On both sides (off: faster)."
    )
    parser.add_argument(
        "--python",
        type=str,
        default=".venv-perf/bin/python",
        help="Python of the peers' environment, made by make perf-env.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead.")
    options = parser.parse_args(arguments)

    def command() -> int:
        import torch

        if options.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "--device: cuda: torch finds no GPU here; run it where there is one, or without "
                "--device to measure on the CPU"
            )
        rows = []
        common = options.as_dict()
        for key in ("json", "python", "repeats"):
            common.pop(key)
        for image_tokens in common.pop("image_tokens"):
            settings = {**common, "image_tokens": image_tokens}
            rows.append(compare(settings, Path(options.python), options.repeats))
        return publish(rows, show, as_json=options.json)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
