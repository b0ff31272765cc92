"""Evaluations of a tiny model through lm-eval, and the rows they write."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch

from benchmarks.config import EvaluateConfig
from benchmarks.docs import PLACEHOLDER, fingerprint, mean_of_judged, text, to_dataset, to_question
from benchmarks.evaluate import judge, main, read_suites, stage
from benchmarks.model import EngineLM
from observe.config import BaseConfig
from observe.errors import InputError
from observe.glyphs import questions
from observe.glyphs.model import build_policy
from observe.mapping import from_mapping
from observe.prompts import SYSTEM_PROMPTS, build_messages
from observe.rollout.engine import Completion

NAN = float("nan")
ITEM_FIELDS = {
    *("suite", "benchmark", "item", "cluster", "attempt", "score", "score_untagged", "condition"),
    *("reason", "answer", "format_ok", "faithful", "response_tokens", "truncated", "seconds"),
    *("type", "level", "difficulty"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A stage folder with an untrained model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = BaseConfig(hidden_size=32, layers=2, tokenizer_texts=200, vocab_size=400)
    build_policy(config).save(folder / "checkpoint")
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluate(base, out, **config):
    out.mkdir()
    calls = []
    result = stage(
        {"prompt": "observe", "max_new_tokens": 6, "limit": 3, "images": 2, **config},
        out,
        {"model": base},
        lambda done, total, message: calls.append((done, total)),
    )
    assert calls[-1][0] == calls[-1][1] > 0
    return result


def test_an_evaluation_writes_every_item_once_per_suite(base, tmp_path):
    out = tmp_path / "out"
    result = evaluate(base, out)
    suites = read_suites()
    items = read(out / "items.jsonl")
    assert all(set(item) == ITEM_FIELDS for item in items)
    assert Counter((i["suite"], i["benchmark"]) for i in items) == {
        (suite, name): 3 for suite, names in suites.items() for name in names
    }
    assert len({(i["suite"], i["benchmark"], i["item"]) for i in items}) == len(items)
    assert {i["condition"] for i in items} == {"normal"}
    assert all(1 <= i["response_tokens"] <= 6 for i in items)

    key = ("benchmark", "item")
    asked = {tuple(i[k] for k in key) for i in items}
    for name in ("responses", "questions"):
        assert {tuple(row[k] for k in key) for row in read(out / f"{name}.jsonl")} == asked
    kept = [q["image"] for q in read(out / "questions.jsonl") if q["image"]]
    assert len(kept) == 2 * len({i["benchmark"] for i in items})
    assert all((out / image).read_bytes().startswith(b"\x89PNG") for image in kept)

    assert set(result["suites"]) == set(suites)
    assert result["benchmarks"]["glyphs_ood"]["items"] == 3
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["system_prompt"] == SYSTEM_PROMPTS["observe"]
    assert set(protocol["data"]) == set(result["benchmarks"])
    assert protocol["hash"] == result["protocol"]


def test_evaluating_again_gives_the_same_and_another_prompt_another_protocol(base, tmp_path):
    config = {"suites": [], "tasks": ["glyphs_reading"]}
    first = evaluate(base, tmp_path / "a", **config)
    again = evaluate(base, tmp_path / "b", **config)
    other = evaluate(base, tmp_path / "c", **config, prompt="plain")
    rows = [
        [{**row, "seconds": 0} for row in read(tmp_path / run / "items.jsonl")] for run in "abc"
    ]
    assert rows[0] == rows[1]
    assert first["protocol"] == again["protocol"] != other["protocol"]
    assert set(first["suites"]) == {"tasks"}
    assert {row["format_ok"] for row in rows[2]} == {None}


def test_lm_eval_asks_with_the_prompts_of_training():
    (question,) = questions("general", 2, families=["exists", "colour"])[1:]
    assert question.options
    doc = to_dataset([question])["test"][0]
    lm = EngineLM(None, None, max_new_tokens=1, progress=lambda *_: None)
    history = [
        {"role": "system", "content": SYSTEM_PROMPTS["think"]},
        {"role": "user", "content": text(doc)},
    ]
    expected = build_messages("think", question.text, question.options, 1)
    assert json.loads(lm.apply_chat_template(history)) == expected


def test_only_leading_placeholders_are_images():
    lm = EngineLM(None, None, max_new_tokens=1, progress=lambda *_: None)
    content = f"{PLACEHOLDER}{PLACEHOLDER}What is {PLACEHOLDER}?"
    ((message),) = json.loads(lm.apply_chat_template([{"role": "user", "content": content}]))
    assert message["content"] == [
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": f"What is {PLACEHOLDER}?"},
    ]


def test_questions_survive_the_dataset():
    asked = questions("reasoning", 7)
    docs = list(to_dataset(asked)["test"])
    for question, doc in zip(asked, docs, strict=True):
        back = to_question(doc)
        assert (back.id, back.gold, back.options) == (question.id, question.gold, question.options)
        assert (back.cluster, back.observation) == (question.cluster, question.observation)
        assert back.images[0].tobytes() == question.open_images()[0].tobytes()
    assert fingerprint(docs) == fingerprint(docs)
    assert fingerprint(docs) != fingerprint(docs[:-1])
    assert fingerprint(docs) != fingerprint([*docs[:-1], {**docs[-1], "gold": "other"}])


def test_items_are_judged_with_and_without_tags():
    asked = questions("reasoning", 1, families=["count"])
    (doc,) = to_dataset(asked)["test"]
    gold, seen = doc["gold"], doc["observation"]
    responses = [
        f"<observe>{seen}</observe><think>so</think><answer>{gold}</answer>",
        f"<think>so {gold}",
        f"<observe>{seen}</observe><think>{gold}</think><answer>no</answer>",
    ]
    samples = {
        "counting": [{"doc_id": n, "doc": doc} for n in range(len(responses))],
        "broken": [{"doc_id": 0, "doc": {**doc, "gold": "many"}}],
    }
    completions = {
        ("counting", n): Completion(token_ids=[1] * (n + 1), text=response, truncated=n == 1)
        for n, response in enumerate(responses)
    }
    completions["broken", 0] = completions["counting", 0]
    rows = judge(samples, completions, "observe", seconds=8.0)
    counting = rows["counting"]
    assert [row["score"] for row in counting] == [1, 0, 0]
    assert [row["score_untagged"] for row in counting] == [1, 1, 1]
    assert [row["format_ok"] for row in counting] == [True, False, True]
    assert [row["faithful"] for row in counting] == [1.0, None, 1.0]
    assert [row["response_tokens"] for row in counting] == [1, 2, 3]
    assert [row["truncated"] for row in counting] == [False, True, False]
    assert {row["seconds"] for row in counting} == {2.0}
    assert counting[0]["answer"] == gold and counting[0]["reason"] == "tag/integer: equal"
    assert rows["broken"][0]["score"] is None
    assert rows["broken"][0]["reason"] == "tag/integer: gold is not a number"


def test_unjudged_items_are_left_out_of_a_mean():
    assert mean_of_judged([1.0, NAN, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert mean_of_judged([NAN]) != mean_of_judged([NAN])


@pytest.mark.parametrize(
    ("config", "inputs", "message"),
    [
        ({"model": "m", "suites": ["riddles"]}, {}, "no suite 'riddles'; known: reasoning"),
        ({"model": "m", "suites": []}, {}, "nothing to run"),
        ({"suites": ["general"]}, {}, "model: missing"),
        ({"model": "m", "promt": "think"}, {}, "did you mean 'prompt'"),
        ({"model": "m", "prompt": "poem"}, {}, "expected one of plain, think, observe"),
    ],
)
def test_bad_settings_are_named(config, inputs, message, tmp_path):
    with pytest.raises(InputError, match=message):
        stage(config, tmp_path, inputs, lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_benchmark_is_named_before_anything_is_written(base, tmp_path):
    with pytest.raises(InputError, match="no benchmark 'riddle'; known: glyphs_arithmetic"):
        stage({"suites": [], "tasks": ["riddle"]}, tmp_path, {"model": base}, lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_the_command(base, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--limit", "2", "--max_new_tokens", "4"]
    model = ["--model", str(base / "checkpoint")]
    assert main([*arguments, *model, "--tasks", "glyphs_reading,glyphs_ood"]) == 0
    assert "glyphs_ood" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(result["benchmarks"]) == {"glyphs_reading", "glyphs_ood"}
    assert main([*arguments, "--model", str(tmp_path / "nothing"), "--suite", "general"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_the_settings_and_the_command_line_are_light():
    code = (
        "import sys, benchmarks.config, benchmarks.evaluate;"
        "print([m for m in ('torch', 'transformers', 'lm_eval') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_settings_from_an_ablation_file():
    mapping = {"suites": ["reasoning"], "prompt": "observe"}
    config = from_mapping(EvaluateConfig, mapping, source="x.yaml")
    assert config.suites == ("reasoning",) and config.limit is None
