"""What a training run holds: its questions, their order, and its seeds."""

import dataclasses
import hashlib
import json

import pytest
from PIL import Image
from small_runs import changed, run

from observe.config import (
    BonusConfig,
    DataConfig,
    RewardConfig,
)
from observe.data.question import Question, write_jsonl
from observe.data.rungs import load_ladder
from observe.data.sources import load_questions
from observe.errors import InputError
from observe.prompts import build_messages
from observe.run import choose_questions, prepare, resolve_rewards, stable_seed


def handed_out(ladder, processor, order, seed=0, size=20, **values):
    data = DataConfig(size=size, selection="ladder", order=order, **values)
    questions, curriculum, _ = choose_questions(changed(data=data, seed=seed), ladder, processor)
    batches = [curriculum.next_batch(4) for _ in range(size // 4)]
    assert curriculum.next_batch(4) == []
    assert {question.id for question in questions} == {i for batch in batches for i in batch}
    return [i for batch in batches for i in batch]


ORDERS = ("shuffled", "ladder", "easy_to_hard")


@pytest.fixture
def processor(untrained):
    return untrained.processor


def test_every_order_and_seed_hands_out_the_same_questions_once(ladder, processor):
    orders = [handed_out(ladder, processor, order) for order in ORDERS]
    orders.append(handed_out(ladder, processor, "shuffled", seed=1))
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len(set(orders[0])) == 20
    assert len({tuple(order) for order in (orders[0], orders[1], orders[3])}) == 3


@pytest.mark.parametrize("source", ["glyphs", "questions.jsonl"])
def test_the_seed_of_a_raw_run_changes_the_order_and_not_the_questions(processor, tmp_path, source):
    if source != "glyphs":
        source = str(tmp_path / source)
        asked = [
            Question(id=f"q{i:02d}", text="?", gold="1", answer_type="integer") for i in range(60)
        ]
        write_jsonl(asked, tmp_path / "questions.jsonl")
    data = DataConfig(source=source, size=20, selection="raw")
    (questions, one, _), (same, two, _) = (
        choose_questions(changed(data=data, seed=seed), None, processor) for seed in (1, 2)
    )
    assert questions == load_questions(source, size=20, seed=0)
    assert same == questions
    orders = one.next_batch(20), two.next_batch(20)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(question.id for question in questions)
    assert orders[0] != orders[1]


def lengths_of(questions, processor):
    """The length of each question's longest prompt, by really making it."""
    return {
        q.id: max(
            processor.sample(
                build_messages(prompt, q.text, q.options, len(q.images)), q.open_images()
            ).length
            for prompt in ("plain", "think", "observe")
        )
        for q in questions
    }


def test_prompts_too_long_are_left_out_of_every_order_alike(ladder, processor):
    lengths = lengths_of(load_ladder(ladder).questions(), processor)
    bound = sorted(lengths.values())[40]
    orders = [handed_out(ladder, processor, order, max_prompt_tokens=bound) for order in ORDERS]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert all(lengths[question] <= bound for question in orders[0])
    data = DataConfig(size=20, selection="ladder", max_prompt_tokens=bound)
    for prompt in ("plain", "observe"):
        _, _, skipped = choose_questions(changed(data=data, prompt=prompt), ladder, processor)
        assert {one.question for one in skipped} == {q for q in lengths if lengths[q] > bound}
        assert {one.reason for one in skipped} == {"too_long"}
    with pytest.raises(InputError, match=r"data\.size: 20 questions asked for, but .* keeps 0"):
        handed_out(ladder, processor, "ladder", max_prompt_tokens=3)


@pytest.fixture
def source(tmp_path):
    """40 questions with an image, without one, with one that is broken, and with a long text."""
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n broken")
    Image.new("RGB", (28, 28), "red").save(tmp_path / "red.png")
    lines = []
    for i in range(40):
        line = {"id": f"q{i:02d}", "text": "How many?", "gold": "3", "answer_type": "integer"}
        if i % 2:
            line["images"] = ["broken.png" if i == 7 else "red.png"]
        if i == 12:
            line["text"] = "How many? " * 200
        lines.append(json.dumps(line))
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_what_cannot_be_used_is_skipped_counted_written_down_and_replaced(base, source, tmp_path):
    data = DataConfig(
        source=str(source),
        size=36,
        selection="raw",
        max_prompt_tokens=400,
        max_skipped_share=0.06,
    )
    out = tmp_path / "out"
    out.mkdir()
    asked = {}
    for seed in (0, 1):
        made = prepare(
            changed(data=data, seed=seed, eval_steps=()),
            out,
            model=base / "checkpoint",
            ladder=None,
        )
        asked[seed] = set(made.questions)
        assert {one.question: one.reason for one in made.skipped} == {
            "q07": "image",
            "q12": "too_long",
        }
    assert asked[0] == asked[1] and len(asked[0]) == 36 and not {"q07", "q12"} & asked[0]
    written = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [one["reason"] for one in written] == [one.reason for one in made.skipped]
    assert any("broken.png: not a readable image" in one["detail"] for one in written)
    assert any("data.max_prompt_tokens is 400" in one["detail"] for one in written)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"size": 40}, r"39 usable questions of the split 'train', 40 asked for: 1 skipped"),
        (
            {"size": 36, "max_skipped_share": 0.01},
            r"2\.7% of the questions cannot be used.*skipped",
        ),
        ({"size": 4, "max_prompt_tokens": 5}, r"0 usable questions .* 39 skipped .*max_prompt_tok"),
    ],
)
def test_too_much_that_cannot_be_used_is_refused(base, source, tmp_path, data, message):
    config = changed(data=DataConfig(source=str(source), selection="raw", **data), eval_steps=())
    with pytest.raises(InputError, match=message):
        prepare(config, tmp_path, model=base / "checkpoint", ladder=None)


def test_a_run_with_and_without_images_trains(base, source, tmp_path):
    data = DataConfig(source=str(source), size=8, selection="raw")
    summary = run(changed(data=data, eval_steps=()), tmp_path / "out", base)
    assert (summary["steps"], summary["bad_steps"]) == (2, 0)
    no_images = DataConfig(source=str(source.with_name("text.jsonl")), size=4, selection="raw")
    asked = [line for line in source.read_text().splitlines() if "images" not in line]
    source.with_name("text.jsonl").write_text("\n".join(asked))
    summary = run(changed(data=no_images, eval_steps=()), tmp_path / "text", base)
    assert summary["steps"] == 1


@pytest.mark.parametrize(
    ("prompt", "bonus", "expected"),
    [
        ("think", BonusConfig(weight=0.2, min_length_quantile=0.5), 20),
        ("think", BonusConfig(weight=0.2, min_length_quantile=0.1), 12),
        ("observe", BonusConfig(weight=0.2, min_length_quantile=0.5), 120),
        ("think", BonusConfig(weight=0.2, min_length_quantile=0.5, min_length=7), 7),
        ("think", BonusConfig(weight=0.2), None),
        ("think", BonusConfig(weight=0.0, min_length_quantile=0.5), None),
    ],
)
def test_the_bonus_takes_its_least_length_from_the_ladder(ladder, prompt, bonus, expected):
    reward = RewardConfig(accuracy=0.9, format="observe", shuffle=True, bonus=bonus)
    resolved = resolve_rewards(changed(prompt=prompt, reward=reward), ladder)
    assert resolved.bonus.min_length == expected
    assert resolved.bonus.weight == bonus.weight
    assert dataclasses.replace(resolved, bonus=bonus) == reward


def test_an_optimizer_step_goes_through_the_weights_one_by_one(base, tmp_path):
    # What the memory estimate counts on: on a GPU torch takes all of them at once by default.
    made = prepare(changed(), tmp_path, model=base / "checkpoint", ladder=None)
    assert made.optimizer.defaults["foreach"] is False


def test_seeds_are_stable_and_tell_their_parts_apart():
    assert stable_seed(0, 1, "a") == int(hashlib.sha256(b"0/1/a").hexdigest()[:16], 16) >> 1
    assert len({stable_seed(0, 1), stable_seed(1, 0), stable_seed(0, 11), stable_seed(0)}) == 4
    assert all(0 <= stable_seed(i) < 2**63 for i in range(100))
