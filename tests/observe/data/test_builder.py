"""A ladder from data sets with a real small model: rows to card and export, shards, kills."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from datasets import load_dataset
from PIL import Image, ImageDraw

from observe.config import BaseConfig
from observe.data.rungs import load_ladder
from observe.glyphs.model import build_policy
from observe.ladder import main

ROWS = 14
SETTINGS = [
    *("--ladder.samples", "2", "--ladder.max_new_tokens", "4", "--ladder.hardest_share", "1.0"),
    *("--chunk", "4"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_policy(BaseConfig(hidden_size=64, layers=1, tokenizer_texts=200)).save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows in MathVision's schema, one of them without a gold."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(ROWS):
        image = Image.new("RGB", (56, 56), "white")
        ImageDraw.Draw(image).rectangle((3 * i, 8, 3 * i + 9, 20 + 2 * i), fill="blue")
        image.save(folder / f"{i}.png")
        rows.append(
            {
                "id": str(i),
                "question": f"How many boxes | are at {i}?\n<image1>",
                "options": [],
                "answer": "" if i == 5 else "1",
                "level": 1,
                "subject": "counting",
                "image": f"{i}.png",
            }
        )
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(model, data, out, *more):
    return [
        *("--sources", f"mathvision={data}", "--model", str(model), "--out", str(out)),
        *SETTINGS,
        *more,
    ]


def run(monkeypatch, *given):
    monkeypatch.setattr("sys.argv", ["observe.ladder", *given])
    return main()


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    """The folder of a ladder that was built in one go."""
    out = tmp_path_factory.mktemp("built") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        assert run(patch, *arguments(model, data, out)) == 0
    return out


def test_from_rows_to_card_and_export(model, data, tmp_path, monkeypatch, capsys):
    out, exported = tmp_path / "out", tmp_path / "exported"
    given = arguments(model, data, out, "--export", str(exported))
    assert run(monkeypatch, *given) == 0
    assert "1 rows rejected" in capsys.readouterr().out
    out = out.rename(tmp_path / "moved")
    ladder = load_ladder(out)
    questions = ladder.questions()
    assert [q.id for q in questions] == [rung.question for rung in ladder.rungs]
    assert ladder.summary["counts"]["pool"] == ROWS - 1
    card = (out / "card.md").read_text()
    assert "| mathvision |" in card
    assert "| no_gold | no gold answer | 1 | 13 |" in card
    assert f"| **on the ladder** |  |  | {len(ladder.rungs)} |" in card
    assert "mathvision is also used to evaluate" in card
    assert (exported / "README.md").read_text() == card
    rows = load_dataset(str(exported), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["id"] == [q.id for q in questions]
    assert rows[0]["images"][0].size == (56, 56)
    assert rows[0]["licence"] == "MIT"
    assert rows["position"] == list(range(len(questions)))
    assert rows["difficulty"] == [rung.difficulty for rung in ladder.rungs]


def test_shards_come_to_the_same_ladder_and_a_merge_loads_no_model(
    model, data, whole, tmp_path, monkeypatch, capsys
):
    for shard in ("2/2", "1/2"):
        given = arguments(model, data, tmp_path / "parts", "--shard", shard)
        assert run(monkeypatch, *given) == 0
    assert "shard 1/2: 8 questions sampled" in capsys.readouterr().out
    assert not (tmp_path / "parts" / "ladder.jsonl").exists()
    monkeypatch.setattr("observe.model.policy.load_policy", None)
    assert run(monkeypatch, *arguments(model, data, tmp_path / "parts")) == 0
    for name in ("questions.jsonl", "samples.jsonl", "ladder.jsonl", "dropped.jsonl", "card.md"):
        assert (whole / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


def test_killed_in_the_middle_it_goes_on_and_ends_the_same(
    model, data, whole, tmp_path, monkeypatch
):
    out = tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "observe.ladder", *arguments(model, data, out)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    samples = out / "samples.jsonl"
    while process.poll() is None and not (samples.exists() and samples.stat().st_size > 2000):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = samples.read_bytes()
    assert run(monkeypatch, *arguments(model, data, out)) == 0
    kept = before[: before.rfind(b"\n") + 1].splitlines()
    expected = (whole / "samples.jsonl").read_bytes()
    assert samples.read_bytes() == expected
    assert kept[0] == expected.splitlines()[0]
    assert (out / "ladder.jsonl").read_bytes() == (whole / "ladder.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--shard", "3/2"], "--shard: expected K/N with 1 <= K <= N"),
        (["--shard", "half"], "--shard: expected K/N"),
        (["--chunk", "0"], "--chunk: expected at least 1"),
        (["--on_bad", "stop"], "no_gold"),
        (["--contaminated", "stop", "--against", "ITSELF"], "are asked there, too"),
        (["--ladder.samples", "0"], "--ladder.samples: expected 1 or more"),
    ],
)
def test_bad_input_ends_with_2(model, data, tmp_path, monkeypatch, capsys, more, words):
    more = [word.replace("ITSELF", str(data)) for word in more]
    assert run(monkeypatch, *arguments(model, data, tmp_path / "out", *more)) == 2
    assert words in capsys.readouterr().err


def test_without_a_place_for_questions_it_ends_with_2(model, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, "--model", str(model), "--out", str(tmp_path / "out")) == 2
    assert "--config or --sources: missing" in capsys.readouterr().err


def test_a_folder_in_use_is_not_exported_to(model, data, tmp_path, monkeypatch, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("dear")
    given = arguments(model, data, tmp_path / "out", "--export", str(tmp_path / "used"))
    assert run(monkeypatch, *given) == 2
    assert "holds thesis.txt" in capsys.readouterr().err
