"""Evaluations of a tiny model through lm-eval, and the rows they write."""

import gc
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import tables
from benchmarks.answers import FILE, AnswerStore
from benchmarks.config import EvaluateConfig
from benchmarks.docs import (
    PLACEHOLDER,
    fingerprint,
    images,
    mean_of_judged,
    text,
    to_dataset,
    to_question,
)
from benchmarks.evaluate import TASKS, main, read_suites, stage
from benchmarks.judging import judge
from benchmarks.model import EngineLM
from benchmarks.registry import read_registry
from observe.config import BaseConfig, SamplerConfig
from observe.errors import InputError
from observe.glyphs import questions
from observe.glyphs.model import build_policy
from observe.mapping import from_mapping
from observe.prompts import SYSTEM_PROMPTS, build_messages
from observe.rollout.engine import Completion, SamplingParams

NAN = float("nan")
FIXTURES = Path(__file__).parent / "fixtures"
GREEDY = SamplingParams(max_new_tokens=1, temperature=0.0)
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
    suites = {name: read_suites()[name] for name in ("reasoning", "general")}
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
    lm = EngineLM(None, None, params=GREEDY, progress=lambda *_: None)
    history = [
        {"role": "system", "content": SYSTEM_PROMPTS["think"]},
        {"role": "user", "content": text(doc)},
    ]
    expected = build_messages("think", question.text, question.options, 1)
    assert json.loads(lm.apply_chat_template(history)) == expected


def test_only_leading_placeholders_are_images():
    lm = EngineLM(None, None, params=GREEDY, progress=lambda *_: None)
    content = f"{PLACEHOLDER}{PLACEHOLDER}What is {PLACEHOLDER}?"
    ((message),) = json.loads(lm.apply_chat_template([{"role": "user", "content": content}]))
    assert message["content"] == [
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": f"What is {PLACEHOLDER}?"},
    ]


@pytest.mark.parametrize("asks", ["loglikelihood", "loglikelihood_rolling"])
def test_a_task_that_scores_likelihoods_is_named(asks):
    lm = EngineLM(None, None, params=GREEDY, progress=lambda *_: None)
    with pytest.raises(InputError, match="hellaswag: output_type must be generate_until"):
        getattr(lm, asks)([SimpleNamespace(task_name="hellaswag")])


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
        ("counting", n): [Completion(token_ids=[1] * (n + 1), text=response, truncated=n == 1)]
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
        ({"engine": "endpoint"}, {}, "engine: endpoint needs endpoint.url and endpoint.model"),
        (
            {"engine": "endpoint", "endpoint": {"url": "http://x/v1", "model": "m"}},
            {"model": Path("trained")},
            "not with the one that was trained",
        ),
        ({"model": "m", "batch_size": 0}, {}, "batch_size: expected at least 1"),
        ({"model": "m", "promt": "think"}, {}, "did you mean 'prompt'"),
        ({"model": "m", "prompt": "poem"}, {}, "expected one of plain, think, observe"),
        ({"model": "m", "samples": 2}, {}, "samples: more than one needs a temperature"),
        ({"model": "m", "top_p": 0.0}, {}, "top_p: expected above 0"),
        ({"model": "m", "limit": 0}, {}, "limit: expected at least 1, or null for all"),
        ({"model": "m", "max_new_tokens": 0}, {}, "max_new_tokens: expected at least 1"),
        ({"model": "m", "controls": ["blind"]}, {}, "no_image, shuffled_image, rotations"),
    ],
)
def test_bad_settings_are_named(config, inputs, message, tmp_path):
    with pytest.raises(InputError, match=message):
        stage(config, tmp_path, inputs, lambda *_: None)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_benchmark_is_named_before_anything_is_written(base, tmp_path):
    with pytest.raises(InputError, match="no benchmark 'riddle'; known: .*glyphs_arithmetic"):
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


PUBLIC = {"suites": [], "data_dir": str(FIXTURES), "limit": None}


def test_public_benchmarks_run_from_local_files(base, tmp_path):
    tasks = list(read_registry())
    out = tmp_path / "out"
    result = evaluate(base, out, **PUBLIC, tasks=tasks)
    assert set(result["benchmarks"]) == set(tasks)
    for name, means in result["benchmarks"].items():
        lines = (FIXTURES / f"{name}.jsonl").read_text().splitlines()
        assert means["items"] == len(lines) and means["skipped"] == 0
        assert means["items_of_benchmark"] == read_registry()[name].items
    protocol = json.loads((out / "protocol.json").read_text())
    assert protocol["data"]["chartqa"]["metric"] == "relaxed"
    assert protocol["data"]["mmstar"]["source"] == "local"
    details = result["details"]
    assert set(details["mathverse"]["types"]) == {"Text Dominant", "Vision Only"}
    assert set(details["hallusionbench"]["groups"]) == {"question", "figure"}
    assert set(details["pope"]["yes_no"]) == {"precision", "recall", "f1", "yes_share"}
    assert details["wemath"]["wemath"]["problems"] == 1
    clusters = {i["item"]: i["cluster"] for i in read(out / "items.jsonl")}
    assert clusters["validation_Art_1"] != clusters["validation_Math_3"]


def test_controls_and_samples_are_columns_of_the_items(base, tmp_path):
    out = tmp_path / "out"
    settings = {"samples": 3, "temperature": 1.0, "tasks": ["mmbench", "glyphs_perception"]}
    controls = ["no_image", "shuffled_image", "rotations"]
    result = evaluate(base, out, **{**PUBLIC, **settings, "limit": 3}, controls=controls)
    items = read(out / "items.jsonl")
    counts = Counter((i["benchmark"], i["condition"]) for i in items)
    assert counts["mmbench", "normal"] == counts["mmbench", "no_image"] == 9
    assert counts["mmbench", "rotation_1"] == 6 and counts["mmbench", "rotation_2"] == 3
    assert counts["glyphs_perception", "shuffled_image"] == 9
    assert {i["attempt"] for i in items} == {0, 1, 2}
    keys = [(i["benchmark"], i["condition"], i["item"], i["attempt"]) for i in items]
    assert len(set(keys)) == len(keys)
    normal = [
        (i["benchmark"], i["item"], i["attempt"]) for i in items if i["condition"] == "normal"
    ]
    rows = read(out / "responses.jsonl")
    assert [(r["benchmark"], r["item"], r["attempt"]) for r in rows] == normal
    assert len({row["response"] for row in rows}) > 6
    others = read(out / "control_responses.jsonl")
    assert len(others) == len(items) - len(rows)
    found = result["details"]["mmbench"]
    assert set(found["attempts"]["pass@k"]) == {1, 2, 3}
    assert set(found["controls"]) == {*controls[:2], "rotation_1", "rotation_2", "circular"}
    assert found["controls"]["circular"]["items"] == 2
    assert result["benchmarks"]["mmbench"]["items"] == 3


def test_a_draw_depends_on_its_item_alone(base, tmp_path):
    settings = {**PUBLIC, "samples": 2, "temperature": 1.0}
    evaluate(base, tmp_path / "a", **settings, tasks=["mme"])
    evaluate(base, tmp_path / "b", **settings, tasks=["pope", "mme"])
    evaluate(base, tmp_path / "c", **settings, tasks=["mme"], seed=1)
    a, b, c = (
        [r["response"] for r in read(tmp_path / run / "responses.jsonl") if r["benchmark"] == "mme"]
        for run in "abc"
    )
    assert a == b != c


def test_controls_are_asked_as_lm_eval_asks(base):
    """Requests made here and lm-eval's own, of the same rows, are the same."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from benchmarks.controls import requests

    asked = []

    class Listening(EngineLM):
        tokenizer_name = "none"

        def chat_template(self, chat_template=False):
            return ""

        def generate_until(self, requests):
            asked.extend(requests)
            return [""] * len(requests)

    lm = Listening(None, None, params=GREEDY, progress=lambda *_: None)
    lm_eval.simple_evaluate(
        model=lm,
        tasks=["mmmu"],
        task_manager=TaskManager(
            include_path=str(TASKS), include_defaults=False, metadata={"data_dir": str(FIXTURES)}
        ),
        system_instruction="Answer.",
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        bootstrap_iters=0,
    )
    docs = [request.doc for request in asked]
    ours = requests(lm, {"mmmu": docs}, "Answer.", {"until": []})
    for mine, other in zip(ours, sorted(asked, key=lambda r: r.doc_id), strict=True):
        assert mine.args[0] == other.args[0]
        assert (mine.task_name, mine.doc_id) == (other.task_name, other.doc_id)
        pixels = [[i.tobytes() for i in request.args[2]["visual"]] for request in (mine, other)]
        assert pixels[0] == pixels[1] and len(pixels[0]) == len(images(mine.doc))


def test_only_the_images_of_a_slice_are_in_memory(base, tmp_path):
    from benchmarks.controls import requests
    from observe.rollout.factory import open_sampler

    def alive():
        gc.collect()
        return sum(issubclass(type(one), Image.Image) for one in gc.get_objects())

    docs = list(to_dataset(list(questions("reasoning", 20)))["test"])
    assert all(doc["images"] for doc in docs)
    sampler = open_sampler(base / "checkpoint", SamplerConfig(batch_size=2))
    store = AnswerStore(tmp_path / FILE, {})
    before, seen = alive(), []
    lm = EngineLM(
        sampler, store, params=GREEDY, progress=lambda done, *_: seen.append((done, alive()))
    )
    lm.generate_until(requests(lm, {"task": docs}, "Answer.", {"until": []}))
    assert [done for done, _ in seen] == list(range(0, 21, 2))
    assert max(number for _, number in seen) - before <= 2 * max(len(d["images"]) for d in docs)
    store.close()


def test_bad_items_stop_an_evaluation_before_its_model_is_loaded(tmp_path):
    (tmp_path / "mme.jsonl").write_text('{"question": "Why?"}\n')
    settings = {"model": "nowhere", "suites": [], "tasks": ["mme"], "data_dir": str(tmp_path)}
    with pytest.raises(InputError, match="mme: .*1 skipped .field."):
        stage(settings, tmp_path / "out", {}, lambda *_: None)


def test_bad_items_can_be_left_out(base, tmp_path):
    (tmp_path / "images").symlink_to(FIXTURES / "images")
    rows = (FIXTURES / "mme.jsonl").read_text() + '{"question": "Why?"}\n'
    (tmp_path / "mme.jsonl").write_text(rows.replace("images/b.png", "b.png"))
    (tmp_path / "b.png").write_bytes((FIXTURES / "images" / "b.png").read_bytes())
    settings = {"suites": [], "tasks": ["mme"], "data_dir": str(tmp_path), "on_bad_item": "skip"}
    result = evaluate(base, tmp_path / "out", **settings)
    assert result["benchmarks"]["mme"]["skipped"] == 1
    (skipped,) = read(tmp_path / "out" / "skipped.jsonl")
    assert skipped["benchmark"] == "mme" and skipped["reason"] == "field"


def test_tables_of_an_earlier_evaluation_do_not_stay(tmp_path):
    for name in ("skipped", "control_responses"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    tables.write_skipped(tmp_path, {})
    tables.write_controls(tmp_path, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_two_results_are_compared_only_if_asked_the_same_way(base, tmp_path, capsys):
    config = {"suites": [], "tasks": ["glyphs_reading"]}
    for run, more in {
        "a": {},
        "b": {"tasks": ["glyphs_reading", "glyphs_ood"]},
        "c": {"prompt": "plain"},
        "d": {"limit": 2},
    }.items():
        evaluate(base, tmp_path / run, **{**config, **more})
    compare = lambda other: main(["--compare", str(tmp_path / "a"), str(tmp_path / other)])  # noqa: E731
    assert compare("b") == 0
    said = capsys.readouterr().out
    assert "warning: data.glyphs_ood" in said
    assert "glyphs_reading                3" in said and "1.0000" in said
    for other, key in (("c", "system_prompt"), ("d", "limit")):
        assert compare(other) == 1
        said = capsys.readouterr().out
        assert f"  {key}: " in said and "cannot be compared" in said and "A wins" not in said
    path = tmp_path / "b" / "protocol.json"
    path.write_text(path.read_text().replace("float32", "bfloat16"))
    assert compare("b") == 2
    assert "its hash does not hold" in capsys.readouterr().err
    assert compare("nowhere") == 2


def test_the_registry_is_listed(capsys):
    assert main(["--list"]) == 0
    assert "We-Math/We-Math" in capsys.readouterr().out


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
