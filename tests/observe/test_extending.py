"""What docs/extending.md and docs/models.md tell a reader to write, as it stands there, works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dense import dense_logprobs
from PIL import Image
from small_runs import rows
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from harness.ablation_file import load_ablation
from harness.graph import make_plan
from observe.config import DataConfig, RolloutConfig, TrainConfig
from observe.glyphs import questions
from observe.model import family
from observe.model.logprobs import completion_logprobs
from observe.model.policy import load_policy
from observe.prompts import build_messages
from observe.rollout.engine import SamplingParams
from observe.rollout.native import NativeEngine
from observe.train import train

ROOT = Path(__file__).parents[2]


def block(page, section, language):
    """The one block of that language in a section of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (part,) = [p for p in re.split("^## ", text, flags=re.M) if p.startswith(section)]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", part, flags=re.M | re.S)
    return found


@pytest.fixture
def patched(tmp_path):
    """Packages of this repository, changed by a patch: runs a Python command there."""
    code = tmp_path / "code"
    for name in ("observe", "benchmarks"):
        unwanted = shutil.ignore_patterns("__pycache__", "perf")
        shutil.copytree(ROOT / name, code / name, ignore=unwanted)

    def patched(patch, *command):
        apply = ["git", "apply", "--verbose", "-"]
        applied = subprocess.run(apply, input=patch, cwd=code, capture_output=True, text=True)
        assert applied.returncode == 0, applied.stderr
        run = subprocess.run(
            [sys.executable, *command],
            cwd=code,
            env={**os.environ, "PYTHONPATH": str(code)},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    return patched


def test_the_factor(tmp_path):
    file = tmp_path / "heat.yaml"
    file.write_text(block("extending.md", "A factor", "yaml"))
    ablation, start = load_ablation(file)
    plan = make_plan(ablation, start, str(file))
    found = {
        (run.config["rollout"]["temperature"], run.config["weighting"]["sigma"], run.seed)
        for run in plan.runs
        if run.kind == "cell"
    }
    assert found == {(t, s, seed) for t in (0.7, 1.0, 1.3) for s in (None, 1.8) for seed in (0, 1)}


def test_the_reward(base, tmp_path, patched):
    script = (
        "import sys; from observe.rewards import repetition; from observe.train import main; "
        "assert repetition('a a a a a') == 0.5; sys.exit(main(sys.argv[1:]))"
    )
    options = {
        "base": base,
        "out": tmp_path / "out",
        "reward.repetition_weight": 50.0,
        "data.size": 4,
        "data.selection": "raw",
        "prompts_per_step": 4,
        "rollout.group_size": 4,
        "rollout.max_new_tokens": 40,
        "eval_steps": "[]",
    }
    given = [f"--{key}={value}" for key, value in options.items()]
    patched(block("extending.md", "A reward", "diff"), "-c", script, *given)
    (row,) = rows(tmp_path / "out")
    parts = ("accuracy", "format", "bonus", "overlong", "repetition")
    assert row["reward"] == pytest.approx(sum(row[f"rewards/{part}/mean"] for part in parts))


def test_the_benchmark(base, tmp_path, patched):
    data, out = tmp_path / "plants", tmp_path / "out"
    data.mkdir()
    lines = block("extending.md", "A benchmark", "json")
    (data / "items.jsonl").write_text(lines)
    for i, row in enumerate(map(json.loads, lines.splitlines())):
        Image.new("RGB", (32, 24), (0, 90 + 90 * i, 0)).save(data / row["image"])
    asked = ["--suite=ours", f"--data-dir=plants={data}", f"--out={out}", "--max_new_tokens=8"]
    command = ("-m", "benchmarks.evaluate", f"--model={base / 'checkpoint'}", *asked)
    patched(block("extending.md", "A benchmark", "diff"), *command)
    items = rows(out, "items.jsonl")
    assert [(item["suite"], item["benchmark"], item["item"]) for item in items] == [
        ("ours", "plants", "p1"),
        ("ours", "plants", "p2"),
    ]


@pytest.fixture
def qwen2(untrained, tmp_path, monkeypatch):
    """The folder of a small random Qwen2-VL, while its family is known."""
    monkeypatch.setitem(family.FAMILIES, "qwen2_vl", None)
    exec(block("models.md", "Adding one", "python"), dict(vars(family)))
    known = untrained.model.config
    of_text, of_vision = known.text_config, known.vision_config
    text = {
        **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": of_text.vocab_size},
        **{"rope_parameters": of_text.rope_parameters, "pad_token_id": of_text.pad_token_id},
        **{"bos_token_id": of_text.bos_token_id, "eos_token_id": of_text.eos_token_id},
        **{"initializer_range": 0.07, "max_position_embeddings": 1024},
    }
    vision = {
        **{"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        **{"patch_size": of_vision.patch_size, "initializer_range": 0.07},
    }
    tokens = {
        name: getattr(known, name)
        for name in ("image_token_id", "video_token_id", "vision_start_token_id")
    }
    torch.manual_seed(0)
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
    model = Qwen2VLForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "qwen2")
    untrained.processor.save(tmp_path / "qwen2")
    return tmp_path / "qwen2"


def test_the_model(qwen2, tmp_path):
    """It samples and computes what transformers' own does, and is trained."""
    policy = load_policy(qwen2, dtype=torch.float64)
    policy.model.eval()
    samples = [
        policy.processor.sample(build_messages("think", q.text, (), 1), q.open_images())
        for q in questions("ood", 2, seed=3)
    ]
    params = SamplingParams(max_new_tokens=10, n=3)
    groups = NativeEngine(policy).generate(samples, params, [1, 2])
    tokens = [[completion.token_ids for completion in group] for group in groups]
    theirs = Qwen2VLForConditionalGeneration.from_pretrained(qwen2, dtype=torch.float64)
    plain = SimpleNamespace(model=theirs, processor=policy.processor)
    packed_NT, _, mask_NT = completion_logprobs(policy, samples, tokens)
    expected_NT, _ = dense_logprobs(plain, samples, tokens)
    expected_NT = expected_NT * mask_NT
    torch.testing.assert_close(packed_NT, expected_NT, rtol=0, atol=2e-5)
    pull_NT = torch.randn(packed_NT.shape, generator=torch.Generator().manual_seed(0))
    for logprobs_NT in (packed_NT, expected_NT):
        (logprobs_NT * pull_NT).sum().backward()
    for (name, ours), expected in zip(
        policy.model.named_parameters(), theirs.parameters(), strict=True
    ):
        assert (ours.grad - expected.grad).norm() <= 1e-3 * expected.grad.norm(), name

    config = TrainConfig(
        data=DataConfig(size=4, selection="raw"),
        rollout=RolloutConfig(group_size=4, max_new_tokens=16),
        prompts_per_step=4,
        eval_steps=(),
    )
    (tmp_path / "out").mkdir()
    train(config, tmp_path / "out", model=qwen2, ladder=None, progress=lambda *told: None)
    assert [row["step"] for row in rows(tmp_path / "out")] == [1]
    Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "out" / "checkpoint")
