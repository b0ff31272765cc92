"""Models from the Hub: downloaded once, verified, and read offline. The client is the real one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import COMMIT, serving
from sweeps import write_ablation

from observe.config import BaseConfig
from observe.hub import is_hub_id, is_pinned, split_revision

MODEL = f"lab/tiny@{COMMIT}"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from observe.glyphs.model import build_policy

    folder = tmp_path_factory.mktemp("model")
    small = BaseConfig(hidden_size=32, layers=1, tokenizer_texts=20)
    build_policy(small).save(folder)
    return folder


def python(cache: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python with a Hub cache of its own."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**own, "PYTHONPATH": str(ROOT), "HF_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
    )


def test_a_model_is_downloaded_once_verified_and_read_offline(tmp_path: Path, model: Path) -> None:
    file, cache = write_ablation(tmp_path, {"set": {"model.path": MODEL}}), tmp_path / "cache"
    with serving(model, "lab/tiny") as (address, asked):
        first = python(cache, "-m", "harness.prefetch", str(file), HF_ENDPOINT=address)
        assert first.returncode == 0, first.stdout + first.stderr
        assert f"ok      model {MODEL}: downloaded, " in first.stdout
        assert "files as the Hub states them" in first.stdout
        downloads = len(asked)
        again = python(cache, "-m", "harness.prefetch", str(file), HF_ENDPOINT=address)
        assert "was here" in again.stdout and len(asked) == downloads, "nothing is asked twice"
    script = f"""
from observe.model.policy import load_policy
print(sum(p.numel() for p in load_policy({MODEL!r}).model.parameters()))
"""
    offline = python(cache, "-c", script, HF_HUB_OFFLINE="1")
    assert int(offline.stdout.split()[-1]) > 1000, offline.stderr


def test_a_file_that_is_not_what_the_hub_states_is_named(tmp_path: Path, model: Path) -> None:
    file, cache = write_ablation(tmp_path, {"set": {"model.path": MODEL}}), tmp_path / "cache"
    with serving(model, "lab/tiny") as (address, _):
        assert python(
            cache, "-m", "harness.prefetch", str(file), HF_ENDPOINT=address
        ).returncode == 0  # fmt: skip
        (weights,) = cache.rglob("model.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.resolve().write_bytes(content)
        found = python(cache, "-m", "harness.prefetch", str(file), "--verify", HF_ENDPOINT=address)
    assert found.returncode == 1
    assert "MISSING" in found.stdout and "its content is not what the Hub states" in found.stdout


def test_without_a_network_it_says_what_is_missing(tmp_path: Path) -> None:
    file = write_ablation(tmp_path, {"set": {"model.path": MODEL}})
    # The client asks six times, half a minute apart in all.
    script = f"""
import time
from harness.prefetch import main
time.sleep = lambda seconds: None
raise SystemExit(main([{str(file)!r}]))
"""
    said = python(tmp_path / "cache", "-c", script, HF_ENDPOINT="http://127.0.0.1:9")
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert f"MISSING model {MODEL}: cannot be downloaded" in said.stdout


def test_a_model_that_is_not_in_the_cache_is_named_with_the_command(tmp_path: Path) -> None:
    script = f"""
from observe.errors import InputError
from observe.hub import local_model
try:
    local_model({MODEL!r})
except InputError as error:
    print(error)
"""
    said = python(tmp_path / "cache", "-c", script, HF_HUB_OFFLINE="1").stdout
    assert f"hf download lab/tiny --revision {COMMIT}" in said


def test_hub_ids() -> None:
    assert is_hub_id("Qwen/Qwen2.5-VL-3B-Instruct") and is_hub_id(MODEL)
    for path in ("/data/model", "./model", "glyphs", "a/b/c", "~/model"):
        assert not is_hub_id(path), path
    assert split_revision(MODEL) == ("lab/tiny", COMMIT)
    assert split_revision("lab/tiny") == ("lab/tiny", None)
    assert is_pinned(MODEL) and not is_pinned("lab/tiny") and not is_pinned("lab/tiny@main")
