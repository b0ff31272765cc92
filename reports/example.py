"""Result tables of a made-up sweep with known effects: the table format by example.

`python -m reports.example DIR` writes `DIR/results/`; `python -m reports DIR` then reports it. The
tests plant effects here and ask the statistics for them back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jsonargparse import ArgumentParser
from PIL import Image, ImageDraw

SUITES = {"reasoning": ["count", "compare"], "general": ["colour", "existence"]}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A made-up sweep of two-level factors."""

    effects: dict[str, float] = field(
        default_factory=lambda: {
            "curriculum": 0.02,
            "format": 0.06,
            "bonus": 0.0,
            "dynamic_weights": 0.03,
        }
    )
    """factor -> what its "on" adds to the reasoning suite's score."""
    base: float = 0.55
    """The untrained base's probability of a correct answer."""
    trained: float = 0.65
    """The mean of the trained runs over the grid, on the reasoning suite."""
    run_sd: float = 0.01
    """Standard deviation between runs of one cell."""
    seeds: tuple[int, ...] = (0,)
    design: str = "full_factorial"
    """full_factorial or leave_one_out."""
    clusters: int = 60
    """Clusters of each benchmark, with four items each."""
    exact: bool = False
    """Scores are the probabilities themselves, so that estimates equal the planted effects."""
    variants: bool = True
    """Add a placebo and a second seed of the reference."""
    optional: bool = True
    """Write the optional tables too."""
    seed: int = 0


def cells(made: Made) -> list[dict[str, str]]:
    """Levels of each planned cell: the full grid, or the reference and one part off at a time."""
    names = list(made.effects)
    grid = [dict(zip(names, row, strict=True)) for row in product(("off", "on"), repeat=len(names))]
    if made.design == "leave_one_out":
        return [row for row in grid if list(row.values()).count("off") <= 1]
    return grid


def arm_name(levels: dict[str, str]) -> str:
    """The arm's name: its levels other than the control."""
    return "+".join(name for name, level in levels.items() if level == "on") or "control"


def write_example(directory: Path, made: Made | None = None) -> Path:
    """Write `directory/results/` and return `directory`."""
    made = made or Made()
    generator = np.random.default_rng(made.seed)
    folder = directory / "results"
    folder.mkdir(parents=True, exist_ok=True)
    runs = pd.DataFrame(_runs(made))
    questions = _questions(made)
    items = _items(made, runs, questions, generator)
    sweep = _sweep(made, runs)
    (folder / "sweep.json").write_text(json.dumps(sweep, indent=2), encoding="utf-8")
    runs.to_parquet(folder / "runs.parquet")
    items.to_parquet(folder / "items.parquet")
    if made.optional:
        _write_optional(made, folder, runs, items, questions, generator)
    return directory


def _runs(made: Made) -> list[dict[str, Any]]:
    rows = []
    planned = cells(made)
    entries = [(arm_name(x), seed, "cell", x) for x in planned for seed in made.seeds]
    if made.variants:
        on = dict.fromkeys(made.effects, "on")
        entries += [("placebo", 0, "variant", on), ("second_seed", 1000, "variant", on)]
    for arm, seed, kind, levels in entries:
        prompt = "observe" if levels.get("format") == "on" else "think"
        row = {"run": f"{arm}-{seed}", "arm": arm, "seed": seed, "kind": kind, "prompt": prompt}
        row |= levels | {"code": "1f2e3d4", "train_seconds": 55.0}
        row["train_bonus_share"] = 0.6 if levels.get("bonus") == "on" else 0.0
        row["train_weight_active_share"] = 0.7 if levels.get("dynamic_weights") == "on" else 0.0
        row["train_format_failure_share"] = 0.03
        rows.append(row)
    for prompt in ("think", "observe"):
        base: dict[str, Any] = {
            "run": f"base-{prompt}",
            "arm": f"base/{prompt}",
            "seed": 0,
            "kind": "base",
        }
        base |= {"prompt": prompt, "code": "1f2e3d4"} | dict.fromkeys(made.effects)
        rows.append(base)
    return rows


def _sweep(made: Made, runs: pd.DataFrame) -> dict[str, Any]:
    reference = dict.fromkeys(made.effects, "on")
    arm = arm_name(reference)
    flags = [{"arm": arm, "factor": "bonus", "mechanism": "bonus", "detail": "paid in no group"}]
    return {
        "name": "example",
        "design": made.design,
        "factors": {name: {"levels": ["off", "on"], "control": "off"} for name in made.effects},
        "reference": reference,
        "reference_arm": arm,
        "suites": SUITES,
        "planned_contrasts": [{"arm": arm, "against": "control"}],
        "resolution": None,
        "aliases": {},
        "cells": [
            {
                "arm": row["arm"],
                "seed": row["seed"],
                "levels": {name: row[name] for name in made.effects if row[name] is not None},
                "kind": row["kind"],
            }
            for row in runs.to_dict("records")
        ],
        "provenance": {
            "code": "1f2e3d4",
            "versions": {"torch": "2.13.0", "transformers": "5.0"},
            "machine": "2 cores, 8 GB",
            "command": "python -m reports.example",
            "base": {"model": "made up", "parameters": 1_000_000},
            "confidence": 0.95,
            "correction": "holm",
            "seconds": {"base": 240, "ladder": 60, "train": 990, "evaluate": 400},
        },
        "flags": flags if made.optional and made.effects.get("bonus") == 0 else [],
    }


def _questions(made: Made) -> pd.DataFrame:
    rows = []
    for names in SUITES.values():
        for benchmark in names:
            for index in range(made.clusters * 4):
                row: dict[str, Any] = {"benchmark": benchmark, "item": f"{benchmark}-{index:04d}"}
                row |= {"cluster": f"scene-{index // 4:03d}", "gold": str(index % 5)}
                row |= {
                    "question": f"How many circles are left of the square (scene {index // 4})?"
                }
                row |= {"options": None, "image": f"images/scene-{index // 4 % 12:03d}.png"}
                rows.append(row)
    return pd.DataFrame(rows)


def _expected(made: Made, row: dict[str, Any], suite: str) -> float:
    if suite == "general":
        return 0.70
    if row["kind"] == "base" or row["arm"] == "placebo":
        return made.base
    signs = [(1 if row[name] == "on" else -1) * size for name, size in made.effects.items()]
    return made.trained + sum(signs) / 2


def _items(
    made: Made, runs: pd.DataFrame, questions: pd.DataFrame, generator: np.random.Generator
) -> pd.DataFrame:
    """Items of a scene share how hard they are; runs share the item's luck, so they pair up."""
    tables = []
    owner = {name: suite for suite, names in SUITES.items() for name in names}
    suite = questions["benchmark"].map(owner)
    scene = pd.factorize(questions["benchmark"] + questions["cluster"])[0]
    hard = generator.normal(0, 0.08, scene.max() + 1)[scene]
    hard -= hard.mean()
    luck = generator.random(len(questions))
    difficulty = 1 - np.argsort(np.argsort(hard, kind="stable")) / len(questions)
    kind = np.where(np.arange(len(questions)) % 4 < 2, "how many", "which")
    for row in runs.to_dict("records"):
        shift = 0.0 if row["kind"] == "base" else generator.normal(0, made.run_sd)
        chance = suite.map({name: _expected(made, row, name) for name in SUITES}) + shift
        own = np.where(generator.random(len(luck)) < 0.6, luck, generator.random(len(luck)))
        score = chance if made.exact else (own < np.clip(chance + hard, 0, 1)).astype(float)
        observes = row["prompt"] == "observe"
        trained = row["kind"] != "base"
        tokens = generator.normal(46 - 8 * trained + 6 * observes, 6, len(luck)).clip(8, 96)
        table = {"run": row["run"], "suite": suite, "attempt": 0, "score": score}
        table |= {name: questions[name] for name in ("benchmark", "item", "cluster")}
        table |= {"condition": "normal", "score_untagged": score, "truncated": tokens > 90}
        table |= {"reason": np.where(score > 0.5, "equal", "different"), "answer": "3"}
        table |= {"format_ok": generator.random(len(luck)) < (0.97 if trained else 0.85)}
        faithful = np.clip(generator.normal(0.8 if trained else 0.7, 0.1, len(luck)), 0, 1)
        table |= {"faithful": faithful if observes else np.nan}
        table |= {"type": kind, "difficulty": difficulty}
        table |= {"response_tokens": tokens.round().astype(int), "seconds": tokens / 500}
        tables.append(pd.DataFrame(table))
    items = pd.concat(tables, ignore_index=True)
    return pd.concat([items, *_blind(made, items)], ignore_index=True) if made.optional else items


def _blind(made: Made, items: pd.DataFrame) -> list[pd.DataFrame]:
    """Some runs asked again without the image: what they know without it, and guess."""
    generator = np.random.default_rng(made.seed + 1)
    reference = arm_name(dict.fromkeys(made.effects, "on"))
    arms = ("base-think", "base-observe", "control-", f"{reference}-")
    asked = items[items["run"].str.startswith(arms)]
    found = []
    for condition, share in (("no_image", 0.5), ("shuffled_image", 0.4)):
        lucky = generator.random(len(asked)) < share
        found.append(asked.assign(condition=condition, score=asked["score"].where(lucky, 0.0)))
    return found


def _write_optional(
    made: Made,
    folder: Path,
    runs: pd.DataFrame,
    items: pd.DataFrame,
    questions: pd.DataFrame,
    generator: np.random.Generator,
) -> None:
    (folder / "images").mkdir(exist_ok=True)
    for index in range(12):
        _scene(folder / "images" / f"scene-{index:03d}.png", index)
    questions.drop(columns="cluster").to_parquet(folder / "questions.parquet")
    normal = items[items["condition"] == "normal"]
    _responses(normal, runs).to_parquet(folder / "responses.parquet")
    _curves(made, runs, generator).to_parquet(folder / "curves.parquet")
    _ladder(generator).to_parquet(folder / "ladder.parquet")
    trained = runs[runs["kind"] != "base"]
    stages = [("base-0", "base", None, 240.0), ("ladder-0", "ladder", None, 60.0)]
    stages += [(f"train-{row.run}", "train", row.arm, 55.0) for row in trained.itertuples()]
    stages += [(f"evaluate-{row.run}", "evaluate", row.arm, 20.0) for row in runs.itertuples()]
    table = pd.DataFrame(stages, columns=["stage", "kind", "arm", "seconds"])
    table = table.assign(state="done", gpu_hours=0.0, attempt=1)
    table.to_parquet(folder / "stages.parquet")
    configs: dict[str, Any] = {}
    for row in trained.to_dict("records"):
        config = {
            "prompt": row["prompt"],
            "seed": row["seed"],
            "reward": {"shuffled": row["arm"] == "placebo", "bonus": {"weight": 0.2}},
        }
        configs.setdefault(row["arm"], config)
    (folder / "configs.json").write_text(json.dumps(configs), encoding="utf-8")


def _scene(file: Path, index: int) -> None:
    image = Image.new("RGB", (112, 112), "white")
    draw = ImageDraw.Draw(image)
    for spot in range(2 + index % 4):
        x, y = 8 + 36 * (spot % 3), 8 + 36 * (spot // 3)
        colour = ["#d1495b", "#00798c", "#edae49", "#30638e"][(spot + index) % 4]
        draw.ellipse([x, y, x + 26, y + 26], fill=colour)
    draw.rectangle([78, 78, 104, 104], fill="#444444")
    image.save(file)


def _responses(items: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    prompts = runs.set_index("run")["prompt"]
    table = items[["run", "benchmark", "item", "attempt"]].copy()
    think = "<think>Two circles stand left of it, and one below: 2 + 1 = 3.</think>\n"
    observe = "<observe>There are three circles and a grey square.</observe>\n"
    answer = np.where(items["score"] > 0.5, "<answer>3</answer>", "<answer>4</answer>")
    opening = np.where(items["run"].map(prompts) == "observe", observe, "")
    table["response"] = [
        f"{first}{think}{last}" for first, last in zip(opening, answer, strict=True)
    ]
    return table


def _curves(made: Made, runs: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    steps = np.arange(1, 61)
    tables = []
    for row in runs[runs["kind"] != "base"].to_dict("records"):
        end = _expected(made, row, "reasoning")
        rise = made.base + (end - made.base) * (1 - np.exp(-steps / 20))
        series = {
            "rewards/accuracy/mean": rise + generator.normal(0, 0.03, 60),
            "reward": rise + 0.45 + generator.normal(0, 0.03, 60),
            "rewards/format/mean": 0.97 - 0.12 * np.exp(-steps / 8) + generator.normal(0, 0.01, 60),
            "completions/mean_length": 50 - steps / 6 + generator.normal(0, 1, 60),
            "frac_reward_zero_std": 0.2 + steps / 300 + generator.normal(0, 0.03, 60),
            "observe/difficulty": (steps if row.get("curriculum") == "on" else 30) / 60
            + generator.normal(0, 0.02, 60),
            "observe/weight_mean": 1 - 0.3 * steps / 60 + generator.normal(0, 0.02, 60),
            "entropy": 0.6 * np.exp(-steps / 60) + generator.normal(0, 0.01, 60),
        }
        for metric, value in series.items():
            table = {"run": row["run"], "step": steps, "samples": steps * 192, "metric": metric}
            tables.append(pd.DataFrame({**table, "tokens": steps * 8000, "value": value}))
        few = steps[9::10]
        table = {"run": row["run"], "step": few, "samples": few * 192, "metric": "eval/accuracy"}
        noise = generator.normal(0, 0.02, len(few))
        tables.append(pd.DataFrame({**table, "tokens": few * 8000, "value": rise[9::10] + noise}))
    return pd.concat(tables, ignore_index=True)


def _ladder(generator: np.random.Generator) -> pd.DataFrame:
    count = 1440
    difficulty = np.sort(generator.choice(np.arange(9) / 8, size=count))
    level = np.round(difficulty * 8).astype(int)
    position = np.argsort(np.argsort(level + generator.normal(0, 0.7, count)))
    families = np.array(["count", "compare", "sum", "position", "exist", "order"])
    return pd.DataFrame(
        {
            "question": [f"train-{index:05d}" for index in range(count)],
            "order_index": position,
            "difficulty": difficulty,
            "complexity": generator.normal(32 + 3 * level, 6).clip(6),
            "family": families[generator.integers(6, size=count)],
            "level": level,
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the example into the folder named on the command line."""
    parser = ArgumentParser(
        prog="python -m reports.example",
        description="Result tables of a made-up sweep with known effects: python -m reports DIR "
        "reports them.",
    )
    parser.add_argument("dir", type=Path, help="folder that gets results/")
    given = parser.parse_args(None if arguments is None else list(arguments))
    print(write_example(given.dir) / "results")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
