"""Two processes, really started by torchrun, take the step that one process takes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from hypothesis import given
from hypothesis import strategies as st
from ranks import CASES, STRATEGIES, step
from small_runs import LONG, changed, rows, run, untimed
from transformers import Qwen2_5_VLForConditionalGeneration

from observe.config import ParallelConfig, RewardConfig
from observe.data.question import Question
from observe.distributed import Parallel, start
from observe.errors import InputError
from observe.glyphs.model import build_policy
from observe.mapping import to_mapping
from observe.rewards import compute_rewards, concatenate
from observe.run import prepare
from observe.sharding import load_optimizer, save_optimizer

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}


def torchrun(*command, check=True):
    """Run a command on two processes."""
    done = subprocess.run(
        [*TORCHRUN, *map(str, command)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout
    return done


@pytest.fixture(scope="module")
def gradients(base, once):
    """Strategy -> what two processes found."""
    out = once("gradients", lambda out: torchrun(HERE / "ranks.py", "gradients", base, out))
    return torch.load(out / "gradients.pt")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_two_processes_is_that_of_one(
    gradients, base, tmp_path, case, dtype, tolerance
):
    expected, metrics, _ = step(base, tmp_path, "none", *CASES[case], dtype)
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    assert norm > 1e-3
    for strategy in STRATEGIES:
        found, found_metrics = gradients[strategy][case, dtype]
        off = max(float((found[n] - expected[n]).norm() / norm) for n in expected)
        print(f"{strategy}, {case}, {dtype}: {off:.1e}")
        assert off <= tolerance, strategy
        assert found_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-7), strategy


@pytest.mark.long
def test_it_is_so_for_another_family_of_models(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    out.mkdir()
    build_policy(dataclasses.replace(SMALL, family="qwen3_vl")).save(base / "checkpoint")
    torchrun(HERE / "ranks.py", "gradients", base, out)
    for strategy, gradients in torch.load(out / "gradients.pt").items():
        for case in ("every group at once", "rank 1 has no signal"):
            expected, _, _ = step(base, out, "none", *CASES[case], torch.float64)
            found, _ = gradients[case, torch.float64]
            assert any("deepstack" in name for name in found)
            norm = torch.stack([g.norm() for g in expected.values()]).norm()
            assert norm > 1e-3
            apart = max(float((found[n] - expected[n]).norm() / norm) for n in expected)
            assert apart <= 1e-9, strategy


def test_a_step_that_is_not_finite_on_one_process_is_left_out_on_both(gradients):
    for strategy in STRATEGIES:
        assert gradients[strategy]["spoilt"] == [(1.0, False)] * 2, strategy


class Stopped(Exception):
    pass


def test_spread_weights_compute_and_are_kept_as_whole_ones(base, tmp_path):
    torchrun(HERE / "ranks.py", "spread", base, tmp_path)
    found = torch.load(tmp_path / "spread.pt")
    assert torch.equal(*found["features"])
    # A pass without gradients comes before the checkpoint, which rounds nothing for it.
    assert all(found["same"].values()), [n for n, same in found["same"].items() if not same]
    assert {name.rsplit(".", 1)[0] for name in found["kept"]} == set(found["same"])


@pytest.mark.parametrize("moved", [True, False])
def test_an_optimizer_that_has_taken_no_step_yet_is_kept_too(base, tmp_path, moved):
    alone = Parallel(device=torch.device("cpu"))
    before, after = (
        prepare(changed(), tmp_path, model=base / "checkpoint", ladder=None) for _ in range(2)
    )
    first = before.policy.trained()[0]
    if moved:
        first.grad = torch.ones_like(first)
        before.optimizer.step()
    save_optimizer(tmp_path / "optimizer", before.policy, before.optimizer, alone)
    load_optimizer(tmp_path / "optimizer", after.policy, after.optimizer, alone)
    assert len(after.optimizer.state) == moved
    for found in after.optimizer.state.values():
        for key, value in before.optimizer.state[first].items():
            assert torch.equal(found[key], value)


@pytest.mark.long
def test_a_run_goes_on_with_two_processes_and_again_with_one(undisturbed, base, tmp_path):
    # Under ddp a checkpoint is a single process's; under fsdp2 it has to be put together.
    def stop(done, total, message):
        if done == 2:
            raise Stopped

    config = changed(LONG, parallel=ParallelConfig(strategy="fsdp2"))
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        run(config, out, base, progress=stop)
    said = end_when(config, base, out, logged=3)
    assert "SIGKILL" in said
    logged = len(rows(out)) - 1
    assert 3 <= logged < 6
    summary = run(config, out, base)
    assert summary["tokens"] == rows(undisturbed)[-1]["num_tokens"]
    assert rows(out, "completions.jsonl") == rows(undisturbed, "completions.jsonl")
    for found, expected in zip(untimed(out), untimed(undisturbed), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    Qwen2_5_VLForConditionalGeneration.from_pretrained(out / "checkpoint")


def end_when(config, base, out, *, logged):
    """Train on two processes, kill one when so many steps are logged; what torchrun says."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(json.dumps(to_mapping(config)))
    command = [*TORCHRUN, "-m", "observe.train", "--config", recipe, "--out", out, "--base", base]
    with (out / "log.txt").open("w") as log:
        launcher = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while len(rows(out)) <= logged:
        assert launcher.poll() is None, (out / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(second_rank(launcher.pid), signal.SIGKILL)
    assert launcher.wait(timeout=60) != 0
    return (out / "log.txt").read_text()


def second_rank(launcher):
    """The process id of rank 1 among the children of torchrun."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no rank 1 among {children}")


def test_the_first_error_ends_the_job_and_is_shown():
    started = time.monotonic()
    done = torchrun(HERE / "ranks.py", "fail", check=False)
    assert done.returncode != 0
    assert "RuntimeError: the lamp is out" in done.stdout
    assert time.monotonic() - started < 100


def test_several_processes_need_a_strategy_and_a_question_each(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(InputError, match=r"parallel\.strategy: none, yet 8 processes.*ddp"):
        start(ParallelConfig(), prompts_per_step=24)
    with pytest.raises(InputError, match="prompts_per_step: 4 questions for 8 processes"):
        start(ParallelConfig(strategy="ddp"), prompts_per_step=4)


def test_several_processes_need_a_device_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"2 processes on this machine, and 1 CUDA devices"):
        start(ParallelConfig(strategy="ddp"), prompts_per_step=4)


@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_even_and_together_everything(items, world_size):
    shares = [
        Parallel(device=torch.device("cpu"), rank=rank, world_size=world_size).share(range(items))
        for rank in range(world_size)
    ]
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_rewards_judged_in_parts_are_those_judged_at_once():
    asked = [Question(id=str(i), text="?", gold=str(i), answer_type="integer") for i in range(3)]
    texts = [["<think>a</think><answer>1</answer>", "2"]] * 3
    lengths_PG = torch.tensor([[3, 4]] * 3)
    whole = compute_rewards(texts, lengths_PG, asked, RewardConfig())
    parts = [
        compute_rewards(texts[rows], lengths_PG[rows], asked[rows], RewardConfig())
        for rows in (slice(0, 2), slice(2, 3))
    ]
    joined = concatenate(parts)
    for spec in dataclasses.fields(whole):
        one, two = getattr(whole, spec.name), getattr(joined, spec.name)
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
