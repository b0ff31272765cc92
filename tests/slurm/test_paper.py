"""The paper's files on a real Slurm, from the base model to the report, with other sizes alone."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cluster import steps_on_this_node

from harness import slurm
from harness.ablation_file import load_ablation, parse_override
from harness.store import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper_scale.md").read_text(encoding="utf-8")
REFERENCE = "curriculum+format+bonus+dynamic_weights"
ALONE = "arms=[{curriculum: on, format: on, bonus: on, dynamic_weights: on}]"
TWO_PROCESSES = ["resources.train.processes=2"]
STEPS = 4
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="no vLLM: make test-vllm sets it up"
)


def words(name: str) -> list[str]:
    """Settings of docs/paper_scale.md: SIZES, TWO_ARMS, VLLM_SIZES."""
    (text,) = re.findall(rf'^{name}="(.*?)"', PAGE, flags=re.M | re.S)
    return text.replace("\\\n", " ").split()


def start(out: Path, file: str, settings: Sequence[str]) -> "subprocess.Popen[str]":
    """The page's command with one of its two arms; the sweep comes to lie in ``out``."""
    profile = out / "here.yaml"
    profile.write_text(re.findall(r'^echo "(.*)" > here.yaml$', PAGE, flags=re.M)[0])
    every = [*words("SIZES"), *words("TWO_ARMS"), ALONE, *settings]
    command = [sys.executable, "-m", "harness.sweep", str(ROOT / "ablations" / f"{file}.yaml")]
    options = ["--out", str(out), "--executor", "slurm", "--profile", str(profile)]
    return subprocess.Popen(
        [*command, *options, "--seeds", "0", "--set", *every],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(sweep: "subprocess.Popen[str]", out: Path) -> None:
    said, _ = sweep.communicate()
    logs = "".join(log.read_text()[-2000:] for log in out.glob("*/stages/*/log.txt"))
    assert sweep.returncode == 0, said + logs


def check(folder: Path) -> Path:
    """There is a report of the arm and of its base; the folder of the training."""
    runs = pd.read_parquet(folder / "results" / "runs.parquet")
    assert set(runs["arm"]) == {REFERENCE, "base/observe"}
    items = pd.read_parquet(folder / "results" / "items.parquet")
    assert set(items["run"]) == set(runs["run"])
    assert (folder / "report" / "index.html").stat().st_size > 100_000
    (training,) = (folder / "stages").glob("train-*")
    assert rows(training)[-1]["step"] == STEPS
    assert max(row["grad_norm"] for row in rows(training)) > 0.01
    return training


def rows(training: Path) -> list[dict[str, Any]]:
    """The metrics that do not measure time."""
    file = training / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("timing_s/", "perf/"))}
        for line in lines
        if line.endswith("\n")
    ]


def flat(mapping: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(mapping, dict) or not mapping:
        return {prefix[:-1]: mapping}
    return {
        k: v for name, value in mapping.items() for k, v in flat(value, f"{prefix}{name}.").items()
    }


@pytest.mark.parametrize("file", ["observe_r1_3b", "observe_r1_3b_lora"])
def test_sizes_data_and_model_are_all_that_is_replaced(file: str) -> None:
    path = ROOT / "ablations" / f"{file}.yaml"
    settings = dict(map(parse_override, [*words("SIZES"), *words("VLLM_SIZES")]))
    _, whole = load_ablation(path, absent=[])
    _, small = load_ablation(path, settings, absent=[])
    before, after = flat(whole), flat(small)
    assert {key for key in after if before[key] != after[key]} <= set(settings)
    trained = {key for key in settings if not key.startswith(("resources.", "evaluate."))}
    assert all(
        key.startswith(("model.path", "model.base", "data.source", "data.ladder.path"))
        or isinstance(after[key], (int, float))
        for key in trained
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, slurm: None) -> Path:
    """The folder of the 3B file's sweep, two processes for a training."""
    out = tmp_path_factory.mktemp("undisturbed")
    finish(start(out, "observe_r1_3b", TWO_PROCESSES), out)
    return out / "observe_r1_3b"


@pytest.mark.timeout(900)
def test_the_3b_file_on_two_processes(undisturbed: Path) -> None:
    config = (check(undisturbed) / "config.yaml").read_text()
    assert "fsdp2" in config and "bfloat16" in config and "engine: native" in config


@pytest.mark.timeout(600)
def test_a_training_goes_on_bit_for_bit_after_a_kill_a_preemption_and_a_time_limit(
    undisturbed: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "observe_r1_3b")
    share(undisturbed, store.directory, "base", "ladder", "evaluate")
    sweep = start(tmp_path, "observe_r1_3b", TWO_PROCESSES)
    try:
        wait_for(sweep, lambda: list(store.directory.glob("stages/train-*/status.json")))
        (training,) = store.directory.glob("stages/train-*")
        wait_for(sweep, lambda: rows(training))
        os.kill(ranks_of(training)[1], signal.SIGKILL)

        wait_for(
            sweep, lambda: store.status(training.name).attempt == 2 and len(rows(training)) > 1
        )
        job = str(store.status(training.name).job)
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
        start_again(sweep, job)

        wait_for(sweep, lambda: len(rows(training)) > 2 and len(ranks_of(training)) == 2)
        for rank in ranks_of(training).values():
            os.kill(rank, signal.SIGSTOP)  # It hangs, and its time passes.
        subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=1"], check=True)
        start_again(sweep, job, "TimeLimit=10")
        finish(sweep, tmp_path)
    finally:
        sweep.kill()
    # The attempt that was killed, and the second, which was queued again twice.
    assert sorted(os.listdir(training / "ranks")) == ["1.0", "2.0", "2.1", "2.2"]
    (twin,) = (undisturbed / "stages").glob(training.name)
    assert rows(training) == rows(twin) and len(rows(training)) == STEPS
    weights = [stage / "checkpoint" / "model.safetensors" for stage in (training, twin)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def share(done: Path, sweep: Path, *kinds: str) -> None:
    """Spare a sweep the stages of these kinds that another has."""
    for kind in kinds:
        for stage in (done / "stages").glob(f"{kind}-*"):
            shutil.copytree(stage, sweep / "stages" / stage.name)


def wait_for(
    sweep: "subprocess.Popen[str]", condition: Callable[[], object], timeout_s: float = 180.0
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.05)


def ranks_of(training: Path) -> dict[int, int]:
    """Rank -> process id, of the processes of a training that live."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "harness.ranks" in words and any(str(training) in word for word in words):
                environment = (process / "environ").read_bytes().decode(errors="replace")
                rank = dict(line.partition("=")[::2] for line in environment.split("\0"))["RANK"]
                found[int(rank)] = int(process.name)
    return found


def start_again(sweep: "subprocess.Popen[str]", job: str, *changes: str) -> None:
    """Spare the two minutes that Slurm makes a job wait which is queued again."""
    wait_for(sweep, lambda: (slurm.queue() or {})[job].state == "PENDING")
    wait_for(sweep, lambda: not steps_on_this_node(job))
    subprocess.run(["scontrol", "update", f"JobId={job}", *changes, "StartTime=now"], check=True)


@needs_vllm
@pytest.mark.timeout(900)
def test_from_the_base_to_the_report_with_vllm(tmp_path: Path) -> None:
    """As a server for two processes, and in the one process of the recipe with adapters."""
    server, adapters = tmp_path / "server", tmp_path / "adapters"
    for out in (server, adapters):
        out.mkdir()
    settings = [*words("VLLM_SIZES"), *TWO_PROCESSES, "rollout.engine=server"]
    finish(start(server, "observe_r1_3b", settings), server)
    share(server / "observe_r1_3b", adapters / "observe_r1_3b_lora", "base", "ladder")
    finish(start(adapters, "observe_r1_3b_lora", words("VLLM_SIZES")), adapters)
    for folder in (server / "observe_r1_3b", adapters / "observe_r1_3b_lora"):
        metrics = rows(check(folder))
        assert any("sampling/sampling_logp_difference/max" in row for row in metrics)
