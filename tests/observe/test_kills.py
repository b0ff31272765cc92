"""A run killed at any moment goes on as if it had not been: bit for bit.

``KILLS=20 pytest -s tests/observe/test_kills.py`` (``make kills``) prints the table of as many.
"""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import time

import pytest
import torch
from small_runs import LONG, rows, run, untimed
from small_runs import LONG_STEPS as STEPS
from transformers import Qwen2_5_VLForConditionalGeneration

from observe.checkpoint import find_damage, latest_checkpoint, load_state

KILLS = int(os.environ.get("KILLS", "4"))


@pytest.fixture(scope="module")
def processes():
    """Starts trainings in processes of their own, the imports done once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["observe.train"])
    return context


def train_alone(out, base):
    torch.set_num_threads(1)
    run(LONG, out, base)


def started(processes, out, base):
    process = processes.Process(target=train_alone, args=(out, base))
    process.start()
    return process


def differences(one, two):
    """What of two finished runs is not the same bit for bit."""
    found = []
    if untimed(one) != untimed(two):
        found.append("metrics")
    for name in ("completions.jsonl", "warnings.jsonl"):
        if (one / name).read_bytes() != (two / name).read_bytes():
            found.append(name)
    first, second = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(out / "checkpoint").state_dict()
        for out in (one, two)
    )
    if not all(torch.equal(first[name], second[name]) for name in first):
        found.append("weights")
    first, second = (load_state(out / "checkpoint") for out in (one, two))
    if not equal({**first, "seconds": 0}, {**second, "seconds": 0}):
        found.append("optimizer and counters")
    return found


def equal(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def kill_while_writing(process, out, random_number):
    """Kill when the folder that is being written holds so many files, from none to all."""
    step, files = random_number.randint(0, STEPS - 1), random_number.randint(0, 9)
    new = out / "checkpoint.new"
    while process.is_alive():
        with contextlib.suppress(FileNotFoundError):
            if logged_steps(out) > step and len(os.listdir(new)) >= files:
                os.kill(process.pid, signal.SIGKILL)
                return


def kill_at_any_moment(process, out, seconds, random_number):
    """Kill somewhere in the step after a random one, or while it starts."""
    step = random_number.randint(min(logged_steps(out), STEPS - 1), STEPS - 1)
    while process.is_alive() and logged_steps(out) < step:
        time.sleep(0.01)
    process.join(random_number.uniform(0, seconds))
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)


def logged_steps(out):
    """Whole rows of steps in the log; step 0 is an evaluation."""
    log = out / "metrics.jsonl"
    return max(0, log.read_bytes().count(b"\n") - 1) if log.exists() else 0


@pytest.mark.long
def test_killed_at_any_moment_a_run_goes_on_bit_for_bit(processes, undisturbed, base, tmp_path):
    a_step = max(row["timing_s/step"] for row in rows(undisturbed)[1:])
    random_number = random.Random(0)
    out, continued = tmp_path / "run", tmp_path / "continued"
    kills = writing = 0
    print("\nkill  steps logged  on the disk               goes on from  differences")
    while kills < KILLS or writing < KILLS // 4:
        process = started(processes, out, base)
        if writing < KILLS // 4:
            with_what = "while writing"
            kill_while_writing(process, out, random_number)
        else:
            with_what = "any moment"
            kill_at_any_moment(process, out, a_step, random_number)
        process.join()
        if process.exitcode == 0:  # It came to its end first.
            shutil.rmtree(out)
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        begun = (out / "checkpoint.new").exists()
        writing += begun
        left = latest_checkpoint(out / "checkpoint")
        step = load_state(left)["step"] if left else 0
        logged = logged_steps(out)
        shutil.rmtree(continued, ignore_errors=True)
        if out.exists():
            shutil.copytree(out, continued)
        again = started(processes, continued, base)
        again.join()
        assert again.exitcode == 0
        found = differences(continued, undisturbed)
        state = "a checkpoint half written" if begun else "checkpoints whole"
        print(f"{kills:4}  {logged:12}  {state:25} {step:13}  {', '.join(found) or 'none'}")
        assert found == [], with_what
        assert find_damage(continued / "checkpoint") is None
        assert not (continued / "checkpoint.new").exists()
        if random_number.random() < 0.5:  # Else the same run is killed again.
            shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize(
    ("log", "left"),
    [("metrics.jsonl", 0.0), ("metrics.jsonl", 0.5), ("metrics.jsonl", 1.0)]
    + [("completions.jsonl", 0.5)],
)
def test_a_line_torn_by_the_kill_is_written_again(undisturbed, base, tmp_path, log, left):
    """``left``: the share of its last line, at 1 without the newline alone."""
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    # Killed in the last step, before its checkpoint.
    shutil.rmtree(out / "checkpoint")
    os.rename(out / f"checkpoint.step{STEPS - 1}", out / "checkpoint")
    data = (out / log).read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    (out / log).write_bytes(data[: last + int(left * (len(data) - last - 1))])
    run(LONG, out, base)
    assert differences(out, undisturbed) == []
    assert len(rows(out)) == STEPS + 1
