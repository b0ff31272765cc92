"""Stage functions that take milliseconds and do what a test wants to see handled.

What a stage does stands in its config under ``do``; every start leaves a line in ``starts``.
"""

import fcntl
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from observe.errors import InputError

Progress = Callable[[int, int, str], None]

LR = 1e-6
"""The trainer's default learning rate; skill grows with it."""


def stage(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """Do what ``config["do"]`` says."""
    if "RANK" in os.environ:
        return _rank(config, out, progress)
    with (out / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    starts = len((out / "starts").read_text().splitlines())
    print(f"start {starts}")
    do = config.get("do", "succeed")
    if do == "raise":
        raise ValueError("a mistake of the stage")
    if do == "exit":
        sys.exit("the stage leaves")
    if do == "bad_input":
        raise InputError("questions.jsonl:3: gold: missing; add it")
    if do == "die" or (do == "die_once" and starts == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "die_with_child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (out / "child").write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "sleep":
        for step in range(int(config["seconds"] * 100)):
            progress(step, int(config["seconds"] * 100), "asleep")
            time.sleep(0.01)
    if do == "wait_once" and starts == 1:
        time.sleep(300)
    if do == "log":
        logger = logging.getLogger("fake")
        if not logger.handlers:  # As libraries do: once per process, on the stderr of that moment.
            logger.addHandler(logging.StreamHandler())
            logger.propagate = False
        logger.warning("logged %d", config["i"])
        subprocess.run([sys.executable, "-c", f"print('from a child {config['i']}')"], check=True)
    if do == "stubborn":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(60)
    if do == "unwritable":
        return {"value": object()}
    consumed = {role: json.loads((p / "result.json").read_text()) for role, p in inputs.items()}
    return {
        "config": config,
        "roles": sorted(consumed),
        "threads": os.environ["OMP_NUM_THREADS"],
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _rank(config: dict[str, Any], out: Path, progress: Progress) -> dict[str, Any]:
    """One of several processes: it waits for the others, then does what the config says."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with (out / f"starts.{rank}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    starts = len((out / f"starts.{rank}").read_text().splitlines())
    while sum(1 for _ in out.glob("starts.*")) < world:
        time.sleep(0.01)
    if config.get("tells") == rank:
        progress(0, 2, "here")
        time.sleep(config["tells_s"])
    if config.get("leaves") == rank:
        os._exit(3)
    if config.get("dies_slowly") == rank and starts == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(2.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if config.get("fails") == rank:
        raise ValueError("the lamp is out")
    if config.get("bad_input") == rank:
        raise InputError("questions.jsonl:3: gold: missing; add it")
    if config.get("dies") == rank and starts == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.get("waits") and starts == 1:
        time.sleep(60)
    progress(1, 2, f"said by {rank}")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
    return {name: os.environ[name] for name in names} | {"port": int(os.environ["MASTER_PORT"])}


def effect(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """Sleep for ``seconds``, then take effect: a line in ``effect``; two at once: ``overlap``."""
    _started(out)
    for folder in inputs.values():
        assert (folder / "effect").read_text() == "effect\n"
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            (out / "overlap").touch()
        time.sleep(config["seconds"])
        with (out / "effect").open("a") as file:
            file.write("effect\n")
    return {}


def base(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """A base model of no weights."""
    _started(out)
    if "base" in _broken():
        raise InputError("config.json: missing; download it again")
    (out / "checkpoint").mkdir(exist_ok=True)
    _work(progress)
    return {"seconds": 0.1}


def ladder(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """Ten questions in order."""
    _started(out)
    assert (inputs["model"] / "checkpoint").is_dir()
    rows = [
        {
            "question": f"q{i}",
            "order_index": i,
            "difficulty": i / 10,
            "complexity": float(i),
            "family": "count",
            "level": i // 5,
            "correct": [True],
        }
        for i in range(10)
    ]
    _write(out / "ladder.jsonl", rows)
    _work(progress)
    return {"counts": {"kept": 10}, "seconds": 0.1}


def train(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """A skill that follows from the config."""
    _started(out)
    if "train" in _broken() and config["prompt"] == "think":
        raise ValueError("broken")
    assert (inputs["model"] / "checkpoint").is_dir()
    weight, seed = config["reward"]["bonus"]["weight"], config["seed"]
    skill = (
        0.5 + 0.2 * (config["prompt"] == "observe") + 0.1 * (config["data"]["order"] != "shuffled")
    )
    skill += 0.01 * (seed % 7) + 0.05 * math.log10(config["optim"]["lr"] / LR)
    (out / "checkpoint").mkdir(exist_ok=True)
    (out / "checkpoint" / "skill.json").write_text(json.dumps(skill))
    rows = []
    for step in range(1, 5):
        rows.append(
            {
                "step": step,
                "samples": 8 * step,
                "num_tokens": 100 * step,
                "reward": skill * step / 4,
                "length": 100 * config["optim"]["lr"] ** 0.5,
                "note": "text",
                "timing_s/step": time.time() % 1,
            }
        )
        _write(out / "metrics.jsonl", rows)
        progress(step, 4, "working")
        time.sleep(float(os.environ.get("FAKE_STEP_S", "0")))
    return {
        "steps": 4,
        "seconds": time.time() % 1,
        "final_reward": skill,
        "mechanisms": {
            "curriculum": {"acted": config["data"]["order"] != "shuffled"},
            "format": {"acted": True, "failure_share": 0.1},
            "bonus": {"acted": False, "share": 0.0 if weight else None},
            "dynamic_weights": {
                "acted": config["weighting"]["sigma"] is not None,
                "active_share": 1,
            },
        },
    }


def evaluate(
    config: dict[str, Any], out: Path, inputs: dict[str, Path], progress: Progress
) -> dict[str, Any]:
    """Forty items in two suites; an image for the first."""
    _started(out)
    checkpoint = inputs["model"] / "checkpoint" / "skill.json"
    skill = json.loads(checkpoint.read_text()) if checkpoint.exists() else 0.4
    items, responses, questions = [], [], []
    for suite, benchmark in (("reasoning", "iid"), ("reasoning", "ood"), ("general", "names")):
        for i in range(20):
            score = int((i * 7 % 20) / 20 < skill)
            key = {"benchmark": benchmark, "item": f"{benchmark}-{i}"}
            items.append(
                {
                    "suite": suite,
                    **key,
                    "cluster": f"scene-{i // 2}",
                    "attempt": 0,
                    "score": score,
                    "score_untagged": score,
                    "format_ok": True,
                    "truncated": False,
                    "response_tokens": 10 + i,
                    "seconds": time.time() % 1,
                }
            )
            responses.append({**key, "attempt": 0, "response": f"<answer>{i}</answer>"})
            image = f"images/{benchmark}-{i}.png" if i == 0 else None
            questions.append({**key, "question": "?", "options": [], "gold": "1", "image": image})
        (out / "images").mkdir(exist_ok=True)
        (out / "images" / f"{benchmark}-0.png").write_bytes(PIXEL)
    _write(out / "items.jsonl", items)
    _write(out / "responses.jsonl", responses)
    _write(out / "questions.jsonl", questions)
    _work(progress)
    return {"items": len(items)}


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    + "1f15c4890000000d49444154789c63f8"
    "ffff3f0005fe02fea735819d0000000049454e44ae426082"
)
"""A PNG of one pixel."""


def _broken() -> str:
    """What the file ``break`` in the launcher's folder names."""
    return Path("break").read_text() if Path("break").exists() else ""


def _started(out: Path) -> None:
    with (out / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")


def _work(progress: Progress) -> None:
    for step in range(4):
        progress(step, 4, "working")
        time.sleep(float(os.environ.get("FAKE_STEP_S", "0")))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
