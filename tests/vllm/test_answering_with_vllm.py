"""vLLM as what answers for a model that stays as it is: the tests of the other engines, and a real
evaluation."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="no vLLM: make test-vllm sets it up")

from test_answering import (  # noqa: E402, F401
    test_an_answer_ends_by_itself_or_is_cut_off,
    test_answers_come_in_the_order_of_their_prompts_whatever_else_is_asked,
    test_each_answer_is_told_once_as_soon_as_it_is_there,
    test_equal_seeds_give_equal_answers_and_others_differ,
    test_greedy_answers_are_those_of_the_policy,
    test_nothing_to_answer,
    test_several_greedy_answers_are_the_same_one,
    test_slices_hold_every_prompt_once,
)

from observe.config import SamplerConfig  # noqa: E402
from observe.rollout.factory import _vllm_sampler  # noqa: E402


@pytest.fixture
def sampler(engine_of, trained):
    """The one vLLM of the process, as open_sampler would give it."""
    engine = engine_of(trained)
    return _vllm_sampler(engine, trained.processor, SamplerConfig(), engine.close)


def evaluate(base, out, *arguments):
    command = [sys.executable, "-m", "benchmarks.evaluate", "--model", str(base / "checkpoint")]
    command += ["--out", str(out), "--tasks", "glyphs_reading", "--limit", "24"]
    command += ["--max_new_tokens", "32", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "result.json").read_text())


def agrees_with_the_native_one(base, folder, engine, *arguments):
    """Evaluate with either, with the other one twice: the second time nothing is asked."""
    from benchmarks.agreement import agreement

    arguments = ["--engine", engine, "--vllm.kv_cache_gb", "0.25", *arguments]
    evaluate(base, folder / "native")
    first = evaluate(base, folder / engine, *arguments)
    again = evaluate(base, folder / engine, *arguments)
    assert first["answers"]["asked"] == again["answers"]["kept"] == 24
    found = agreement(folder / "native", folder / engine)
    assert found["all"]["identical_response"] == 1.0
    assert found["differences"]["engine"] == ["native", engine]


def test_an_evaluation_with_vllm_agrees_with_the_native_one(base, tmp_path):
    agrees_with_the_native_one(base, tmp_path, "vllm", "--vllm.images_per_prompt", "1")


def test_an_evaluation_with_a_rollout_server_agrees_with_the_native_one(base, tmp_path):
    agrees_with_the_native_one(base, tmp_path, "server", "--vllm.start_timeout_s", "240")
