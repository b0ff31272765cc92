"""The item store: what was answered is found again, whatever happened to the file."""

import dataclasses
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.answers import FILE, Answer, AnswerStore, Key, digest, image_digest
from benchmarks.evaluate import stage
from observe.config import BaseConfig
from observe.errors import InputError
from observe.glyphs import questions
from observe.glyphs.model import build_policy
from observe.prompts import build_messages
from observe.rollout.engine import SamplingParams
from observe.rollout.native import NativeEngine

SETTINGS = {"model": "0123", "engine": "native", "generation": {"temperature": 0.0}}
KEY = Key(task="t", task_hash="h", item="1", attempt=0, prompt="p", image="i")


def key(item, **changes):
    return dataclasses.replace(KEY, item=item, **changes)


def answer(text="<answer>é\n3</answer>", **changes):
    return Answer(**{"text": text, "tokens": 5, "truncated": False, "seconds": 0.5, **changes})


def filled(path, number=3):
    store = AnswerStore(path, SETTINGS)
    store.add({key("0"): answer()})
    store.add({key(str(i)): answer(f"{i}") for i in range(1, number)})
    store.close()
    return path.read_bytes()


def opened(path, settings=SETTINGS):
    store = AnswerStore(path, settings)
    store.close()
    return store


def test_answers_are_found_again_by_all_that_they_depend_on(tmp_path):
    filled(tmp_path / FILE)
    store = opened(tmp_path / FILE)
    assert len(store) == 3 and store.damaged == 0
    assert store.get(key("0")) == answer()
    for name in ("task", "task_hash", "prompt", "image"):
        assert store.get(key("0", **{name: "other"})) is None
    assert store.get(key("0", attempt=1)) is None
    for change in ({"model": "4567"}, {"engine": "vllm"}, {"generation": {"temperature": 1.0}}):
        assert len(opened(tmp_path / FILE, {**SETTINGS, **change})) == 0
    assert len(opened(tmp_path / FILE)) == 3


def test_the_settings_are_written_once_and_readable(tmp_path):
    filled(tmp_path / FILE)
    opened(tmp_path / FILE)
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [row["of"] for row in rows if "of" in row] == [SETTINGS]
    assert {row["by"] for row in rows if "by" in row} == {digest(SETTINGS)}


def test_a_file_cut_anywhere_keeps_every_whole_answer_and_goes_on(tmp_path):
    whole = filled(tmp_path / "whole")
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    near = {end + step for end in ends for step in (-2, -1, 0, 1)}
    for cut in sorted({*range(0, len(whole), 17), *near} & set(range(len(whole)))):
        (tmp_path / FILE).write_bytes(whole[:cut])
        store = AnswerStore(tmp_path / FILE, SETTINGS)
        assert len(store) == max(0, sum(end <= cut for end in ends) - 1)
        assert store.damaged == (cut not in (0, *ends))
        store.add({key("new"): answer()})
        store.close()
        again = opened(tmp_path / FILE)
        assert again.damaged == 0 and again.get(key("new")) == answer()


@settings(max_examples=40)
@given(st.data())
def test_a_damaged_line_is_counted_and_its_question_open_again(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("store") / FILE
    whole = bytearray(filled(path, 6))
    place = data.draw(st.integers(0, len(whole) - 2).filter(lambda i: whole[i] != 10))
    whole[place] ^= data.draw(st.sampled_from([1, 2, 4, 16, 64]))
    path.write_bytes(bytes(whole))
    store = opened(path)
    line = bytes(whole[:place]).count(b"\n")
    assert store.damaged >= 1
    if line == 0:
        assert len(store) == 6
    else:
        assert store.get(key(str(line - 1))) is None
        assert len(store) == 5


def test_two_processes_do_not_write_the_same_file(tmp_path):
    store = AnswerStore(tmp_path / FILE, SETTINGS)
    with pytest.raises(InputError, match="another evaluation is writing there"):
        AnswerStore(tmp_path / FILE, SETTINGS)
    store.close()
    opened(tmp_path / FILE)


def test_digests_change_with_what_they_are_of():
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    pixels[0, 0, 0] = 1
    assert image_digest([]) == ""
    different = [[image], [Image.fromarray(pixels)], [image.resize((6, 5))], [image, image]]
    assert len({image_digest(images) for images in different}) == 4


# A real evaluation


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A stage folder with an untrained model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = BaseConfig(hidden_size=32, layers=2, tokenizer_texts=200, vocab_size=400)
    policy = build_policy(config)
    policy.save(folder / "checkpoint")
    return folder


CONFIG = {
    "prompt": "observe",
    "suites": [],
    "tasks": ["glyphs_reading", "glyphs_ood"],
    "max_new_tokens": 8,
    "limit": 12,
    "batch_size": 5,
    "images": 0,
}


def evaluate(base, out, **changes):
    out.mkdir(exist_ok=True)
    seen = []
    result = stage(
        {**CONFIG, **changes}, out, {"model": base}, lambda *progress: seen.append(progress)
    )
    return result, seen


def results(out):
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    responses = (out / "responses.jsonl").read_bytes()
    return [{**item, "seconds": None} for item in items], responses


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """An evaluation that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    return out, evaluate(base, out)[0]


def test_answers_are_those_of_one_call_of_the_native_engine(base, whole):
    """Whatever is kept and resumed, results are bit for bit what the engine alone gives."""
    from observe.model.policy import load_policy

    policy = load_policy(base / "checkpoint")
    asked = [("glyphs_reading", "general", 200, ["reading_order", "row_total"])]
    asked += [("glyphs_ood", "ood", 420, None)]
    pool = [
        (task, question)
        for task, split, size, families in asked
        for question in questions(split, size, families=families)[:12]
    ]
    samples = [
        policy.processor.sample(build_messages("observe", q.text, q.options, 1), q.open_images())
        for _, q in pool
    ]
    groups = NativeEngine(policy, batch_size=5).generate(
        samples, SamplingParams(max_new_tokens=8, temperature=0.0), [0] * len(samples)
    )
    expected = {(task, q.id): g[0] for (task, q), g in zip(pool, groups, strict=True)}
    out, _ = whole
    items, _ = results(out)
    responses = [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]
    assert len(responses) == len(expected) == 24
    for item, response in zip(items, responses, strict=True):
        completion = expected[response["benchmark"], response["item"]]
        assert response["response"] == completion.text
        assert item["response_tokens"] == len(completion.token_ids)
        assert item["truncated"] == completion.truncated


def test_killed_it_goes_on_after_the_last_answer_and_asks_nothing_twice(base, whole, tmp_path):
    """SIGKILL in a real process, as soon as some batches are answered."""
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import json, sys, time; from pathlib import Path; import torch;"
        "torch.set_num_threads(1);"
        "from benchmarks.evaluate import stage;"
        "config, out, base = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]);"
        "stage(config, out, {'model': base}, lambda *progress: (print(*progress, flush=True),"
        " time.sleep(0.5)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(CONFIG), str(out), str(base)],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if int(line.split()[0]) >= 10:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    kept = (out / FILE).read_bytes()
    answered = kept.count(b'"by"')
    assert 10 <= answered < 24
    assert not (out / "items.jsonl").exists()

    result, seen = evaluate(base, out)
    assert result["answers"] == {"asked": 24 - answered, "kept": answered, "damaged": 0}
    assert seen[0][:2] == (answered, 24) and seen[-1][:2] == (24, 24)
    assert f"{answered} kept from before" in seen[-1][2]
    assert (out / FILE).read_bytes().startswith(kept)
    asked = [json.loads(line) for line in (out / FILE).read_text().splitlines()][1:]
    assert len({(row["task"], row["item"]) for row in asked}) == len(asked) == 24
    assert results(out) == results(whole[0])
    assert result["benchmarks"] == whole[1]["benchmarks"]


def test_a_torn_line_costs_one_question(base, whole, tmp_path):
    out, _ = whole
    (tmp_path / "out").mkdir()
    torn = (out / FILE).read_bytes()[:-30]
    (tmp_path / "out" / FILE).write_bytes(torn)
    result, _ = evaluate(base, tmp_path / "out")
    assert result["answers"] == {"asked": 1, "kept": 23, "damaged": 1}
    assert results(tmp_path / "out") == results(out)


def test_more_items_ask_only_these_and_another_setting_all(base, whole, tmp_path):
    out = tmp_path / "out"
    first, _ = evaluate(base, out, limit=6)
    more, _ = evaluate(base, out)
    again, seen = evaluate(base, out)
    other, _ = evaluate(base, out, max_new_tokens=7)
    prompt, _ = evaluate(base, out, prompt="think")
    asked = [run["answers"]["asked"] for run in (first, more, again, other, prompt)]
    assert asked == [12, 12, 0, 24, 24]
    assert seen == [(24, 24, "responses")]


def test_what_is_amiss_is_counted(whole):
    out, result = whole
    items, _ = results(out)
    for task, means in result["benchmarks"].items():
        rows = [item for item in items if item["benchmark"] == task]
        assert means["cut"] == sum(row["truncated"] for row in rows)
        assert means["malformed"] == sum(row["format_ok"] is False for row in rows) == 12
        assert means["unscored"] == sum(row["score"] is None for row in rows)


def test_progress_tells_the_pace(whole, base, tmp_path):
    _, seen = evaluate(base, tmp_path / "out", limit=2)
    assert seen[0] == (0, 4, "responses")
    message = seen[-1][2]
    assert message.startswith("responses, ") and "items/s" in message and "tokens/s" in message
