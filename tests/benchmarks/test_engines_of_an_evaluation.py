"""The same items answered by other engines, and by a model with an adapter."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "observe"))

from openai_server import MODEL, serving  # noqa: E402

from benchmarks.agreement import agreement  # noqa: E402
from benchmarks.evaluate import main, stage  # noqa: E402
from observe.config import BaseConfig, LoraConfig  # noqa: E402
from observe.errors import EngineError  # noqa: E402
from observe.glyphs.model import build_policy  # noqa: E402
from observe.model.lora import add_adapter, save_adapter  # noqa: E402
from observe.model.policy import load_policy  # noqa: E402

CONFIG = {
    "suites": [],
    "tasks": ["glyphs_reading", "glyphs_ood"],
    "max_new_tokens": 8,
    "limit": 6,
    "images": 0,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A stage folder with an untrained model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = BaseConfig(hidden_size=32, layers=2, tokenizer_texts=200, vocab_size=400)
    build_policy(config).save(folder / "checkpoint")
    return folder


@pytest.fixture
def server(base):
    with serving(load_policy(base / "checkpoint")) as server:
        yield server


def endpoint(server, **settings):
    return {
        "engine": "endpoint",
        "endpoint": {"url": server.url, "model": MODEL, "backoff_s": 0.001, **settings},
    }


def evaluate(out, inputs, **changes):
    out.mkdir(exist_ok=True)
    return stage({**CONFIG, **changes}, out, inputs, lambda *_: None)


def test_an_endpoint_with_our_model_gives_our_results(base, server, tmp_path):
    evaluate(tmp_path / "native", {"model": base})
    evaluate(tmp_path / "endpoint", {}, **endpoint(server))
    found = agreement(tmp_path / "native", tmp_path / "endpoint")
    assert found["all"]["items"] == 12
    assert found["all"]["identical_response"] == found["all"]["identical_verdict"] == 1.0
    assert found["differences"]["engine"] == ["native", "endpoint"]
    assert len(server.bodies) == 12


def test_when_an_endpoint_fails_its_answers_are_kept(server, tmp_path):
    settings = endpoint(server, concurrency=1, retries=1)
    server.troubles = []
    answer, answered = server.answer, []

    def failing(*request):
        answered.append(request)
        return answer(*request) if len(answered) <= 5 else (503, {}, {})

    server.answer = failing
    with pytest.raises(EngineError, match="what was answered is kept"):
        evaluate(tmp_path, {}, **settings)
    server.answer = answer
    assert evaluate(tmp_path, {}, **settings)["answers"] == {"asked": 7, "kept": 5, "damaged": 0}
    assert len(server.bodies) == 12
    assert len({json.dumps(body) for body in server.bodies}) == 12


def test_an_adapter_is_merged_into_the_model(base, tmp_path):
    lora = LoraConfig(rank=4, alpha=64)
    policy = load_policy(base / "checkpoint")
    add_adapter(policy.model, lora, seed=1)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(
                parameter, 0, 0.3, generator=torch.Generator().manual_seed(len(name))
            )
    save_adapter(tmp_path / "adapter", policy.model.state_dict(), lora)
    plain = load_policy(base / "checkpoint", adapter=tmp_path / "adapter")
    plain.save(tmp_path / "merged")
    with_adapter = ["--model", str(base / "checkpoint"), "--adapter", str(tmp_path / "adapter")]
    for name, model in {
        "adapter": with_adapter,
        "merged": ["--model", str(tmp_path / "merged")],
        "plain": ["--model", str(base / "checkpoint")],
    }.items():
        command = ["--out", str(tmp_path / name), "--tasks", "glyphs_reading", "--limit", "6"]
        assert main([*command, *model, "--max_new_tokens", "8"]) == 0
    same = agreement(tmp_path / "adapter", tmp_path / "merged")
    assert same["all"]["identical_response"] == 1.0
    assert agreement(tmp_path / "adapter", tmp_path / "plain")["all"]["identical_response"] < 1


def test_the_command_takes_an_endpoint(server, tmp_path, capsys):
    command = ["--out", str(tmp_path), "--tasks", "glyphs_ood", "--limit", "3"]
    command += ["--max_new_tokens", "4", "--engine", "endpoint", "--endpoint.model", MODEL]
    assert main([*command, "--endpoint.url", server.url]) == 0
    said = capsys.readouterr().out
    assert "of 3: 3 cut off at the length limit; 3 without the tags asked for" in said
    assert main(command) == 2
    assert "endpoint needs endpoint.url" in capsys.readouterr().err
