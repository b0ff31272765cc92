"""GRPO with vLLM as the sampler, from the command line, as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("vllm", reason="no vLLM: make test-vllm sets it up")

STEPS = 4
OPTIONS = {
    "data.size": 4 * STEPS,
    "data.selection": "raw",
    "prompts_per_step": 4,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 40,
    "rollout.engine": "vllm",
    "rollout.vllm.kv_cache_gb": 0.25,
    "rollout.vllm.sleep_level": 1,
    "loss.importance_sampling": "token",
    "optim.lr": 1e-3,
    "eval_steps": f"[0,{STEPS}]",
    "eval_size": 6,
    "checkpoint_every": 1,
}


def start(base, out, *launcher, **changes):
    options = [f"--{key}={value}" for key, value in {**OPTIONS, **changes}.items()]
    command = [sys.executable, "-m", *launcher, "observe.train"]
    files = ["--base", str(base), "--out", str(out)]
    return subprocess.Popen([*command, *files, *options], stderr=subprocess.PIPE, text=True)


def rows(out):
    """The metrics that do not measure time."""
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(("timing_s/", "perf/"))}
        for line in lines
    ]


def finish(process):
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors


@pytest.mark.timeout(600)
def test_a_training_with_vllm_learns_from_its_samples_and_goes_on_where_it_was_killed(
    base, tmp_path
):
    finish(start(base, tmp_path / "whole"))
    whole = rows(tmp_path / "whole")
    assert [row["step"] for row in whole] == list(range(STEPS + 1))
    steps = whole[1:]
    assert max(row["grad_norm"] for row in steps) > 0
    for row in steps:
        if "sampling/sampling_logp_difference/max" in row:
            assert row["sampling/sampling_logp_difference/max"] < 1e-3
            assert abs(row["sampling/importance_sampling_ratio/mean"] - 1) < 1e-3
    assert any("sampling/sampling_logp_difference/mean" in row for row in steps)

    killed = start(base, tmp_path / "killed")
    while killed.poll() is None and len(rows(tmp_path / "killed")) < 3:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert len(rows(tmp_path / "killed")) <= STEPS
    finish(start(base, tmp_path / "killed"))
    assert rows(tmp_path / "killed") == whole


@pytest.mark.timeout(600)
def test_one_server_samples_for_two_processes_that_spread_the_weights(base, tmp_path):
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    changes = {"rollout.engine": "server", "parallel.strategy": "fsdp2"}
    finish(start(base, tmp_path, *launcher, **changes))
    found = rows(tmp_path)
    assert [row["step"] for row in found] == list(range(STEPS + 1))
    assert max(row["grad_norm"] for row in found[1:]) > 0
    # With the weights of the step before, the last ones would be far off at this learning rate.
    key = "sampling/sampling_logp_difference/max"
    differences = [row[key] for row in found if key in row]
    assert len(differences) > 1 and max(differences) < 1e-3
