"""The comparison of a GRPO step: the parts add up, and an absent peer is named."""

import json

import pytest
import torch

from benchmarks.perf import grpo_step


@pytest.mark.long
def test_it_measures_this_trainer_and_names_an_absent_peer(capsys, tmp_path):
    small = ["--prompts=2", "--group_size=2", "--new_tokens=4", "--steps=2", "--warmup=0"]
    arguments = [*small, "--image_tokens=[4, 9]", "--repeats=1", "--threads=1", "--json"]
    assert grpo_step.main([*arguments, "--python", str(tmp_path / "python")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["machine"]["cores"] >= 1
    assert [row["image_tokens"] for row in printed["results"]] == [4, 9]
    for row in printed["results"]:
        ours = row["ours"]
        assert row["missing"] == "TRL is not installed: make perf-env"
        assert row["prompt_tokens"] == [30 + row["image_tokens"]]
        assert ours["steps"] == 2
        assert 0 < ours["generate"] < ours["seconds_range"][1]
        assert ours["tokens_per_second"] == pytest.approx(2 * 2 * 4 / ours["seconds"])
        assert ours["peak_rss_mb"] > 100
        assert ours["matmul_share"] > 0


def test_its_ratio_is_the_peer_s_time_over_ours():
    run = {"seconds": [2.0, 3.0], "generate": [1.0, 1.0], "peak_rss_mb": 100.0, "peak_gpu_mb": None}
    run |= {"prompt_tokens": [39]}
    ours = run | {"process": [0.1, 0.1], "update": [1.0, 1.0]}
    ours |= {"matmul_flops": 4e9, "matmul_rate": 8e9}
    settings = dict.fromkeys(
        ["image_tokens", "shape", "device", "dtype", "threads", "prompts", "group_size"], 1
    ) | {"new_tokens": 64}
    slow = run | {"seconds": [6.0, 9.0], "peak_rss_mb": 300.0}
    row = grpo_step._row(settings, {"ours": [ours], "TRL": [slow]})
    assert row["ratio"] == 3
    assert row["memory_ratio"] == 3
    assert row["ours"]["matmul_share"] == 0.5
    assert row["trl"]["other"] == pytest.approx(6.5)
    with pytest.raises(RuntimeError, match="prompts differ"):
        grpo_step._row(settings, {"ours": [ours], "TRL": [slow | {"prompt_tokens": [40]}]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_before_it_makes_a_model_for_one(capsys):
    assert grpo_step.main(["--device=cuda", "--shape=3b", "--dtype=bfloat16"]) == 2
    assert "--device: cuda: torch finds no GPU here" in capsys.readouterr().err
