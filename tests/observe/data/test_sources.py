"""Questions: JSONL round trip, samples of a source, and every way in which a file can be wrong."""

import json

import pytest
from PIL import Image

from observe.data.question import Question, from_record, to_record, write_jsonl
from observe.data.sources import load_questions, load_usable, read_jsonl, verifiable
from observe.errors import InputError

GOOD = {"id": "q1", "text": "How many?", "gold": "3", "answer_type": "integer"}


def write(folder, *lines):
    path = folder / "questions.jsonl"
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def test_round_trip_keeps_everything_and_saves_images(tmp_path):
    image = Image.new("RGB", (4, 4), (200, 10, 30))
    question = Question(
        id="scene 1/a",
        text="Which colour?",
        gold="B",
        answer_type="choice",
        options=("green", "réd"),
        images=(image,),
        family="colour",
        level=2,
        cluster="scene 1",
        observation="red circle",
        metadata={"rows": 3},
    )
    write_jsonl([question], tmp_path / "set" / "questions.jsonl")
    [(split, read)] = read_jsonl(tmp_path / "set" / "questions.jsonl")
    assert split == "train"
    assert read.images[0].parent == tmp_path / "set" / "images"
    assert read.open_images()[0].getpixel((0, 0)) == (200, 10, 30)
    for name in ("id", "text", "gold", "answer_type", "options", "family", "level", "cluster"):
        assert getattr(read, name) == getattr(question, name)
    assert (read.observation, read.metadata) == ("red circle", {"rows": 3})
    assert to_record(read, tmp_path / "set") == to_record(question, tmp_path / "set")


def test_a_question_may_hold_line_separators_of_its_own(tmp_path):
    path = tmp_path / "questions.jsonl"
    texts = ["How many\u2028circles?", "How many\x85squares?"]
    asked = [Question(id=text, text=text, gold="3", answer_type="integer") for text in texts]
    write_jsonl(asked, path)
    assert [question.text for _, question in read_jsonl(path)] == texts


def test_images_outside_the_folder_keep_their_absolute_path(tmp_path):
    file = tmp_path / "elsewhere.png"
    Image.new("RGB", (2, 2)).save(file)
    question = Question(id="q", text="t", gold="1", answer_type="integer", images=(file,))
    record = to_record(question, tmp_path / "set")
    assert record["images"] == [str(file)]
    assert from_record(record, tmp_path / "set").images == (file,)


def test_images_of_any_mode_open_as_rgb(tmp_path):
    grey = Image.new("L", (2, 2), 7)
    question = Question(id="q", text="t", gold="1", answer_type="integer", images=(grey,))
    assert question.open_images()[0].mode == "RGB"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", ["not valid JSON", "one JSON object"]),
        ("[1, 2]", ["expected a JSON object"]),
        ({**GOOD, "golds": "3"}, ["golds", "unknown key", "known keys"]),
        ({k: v for k, v in GOOD.items() if k != "gold"}, ["gold", "missing"]),
        ({**GOOD, "text": ""}, ["text", "missing or empty"]),
        ({**GOOD, "text": "<|image_pad|> How many?"}, ["text", "<|image_pad|>", '"images"']),
        ({**GOOD, "gold": 3}, ["gold", "expected str", "3"]),
        ({**GOOD, "level": True}, ["level", "expected int"]),
        ({**GOOD, "answer_type": "number"}, ["answer_type", "integer", "'number'"]),
        ({**GOOD, "options": [1]}, ["options", "expected strings"]),
        ({**GOOD, "images": ["no.png"]}, ["images", "no such file", "no.png"]),
        ({**GOOD, "gold": "three apples"}, ["gold", "cannot be read as integer"]),
        ({**GOOD, "answer_type": "choice", "gold": "A"}, ["gold", "options"]),
        (
            {**GOOD, "answer_type": "choice", "gold": "C", "options": ["x", "y"]},
            ["gold", "A, B", "'C'"],
        ),
        ({**GOOD, "id": "q0"}, ["id", "'q0' is taken by", "questions.jsonl:1"]),
    ],
)
def test_a_bad_line_is_named_with_its_key_and_remedy(tmp_path, line, words):
    path = write(tmp_path, {**GOOD, "id": "q0"}, "", line)
    with pytest.raises(InputError) as caught:
        load_questions(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    for word in words:
        assert word in message


def test_a_missing_file_a_folder_and_a_missing_split_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        load_questions(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="not a JSONL text file"):
        load_questions(tmp_path)
    path = write(tmp_path, GOOD)
    with pytest.raises(InputError, match="validation"):
        load_questions(path, split="validation")
    with pytest.raises(InputError, match=r"1 questions.*2 asked for"):
        load_questions(path, size=2)


def test_samples_of_a_file_are_nested_seeded_and_in_file_order(tmp_path):
    lines = [{**GOOD, "id": f"q{i:02d}"} for i in range(30)]
    lines += [{**GOOD, "id": "v", "split": "validation"}]
    path = write(tmp_path, *lines)

    def ids(size, seed):
        return [q.id for q in load_questions(path, size=size, seed=seed)]

    assert ids(None, 0) == [f"q{i:02d}" for i in range(30)]
    assert ids(10, 0) == sorted(ids(10, 0))
    assert set(ids(10, 0)) < set(ids(20, 0))
    assert ids(10, 0) == ids(10, 0) != ids(10, 1)
    assert [q.id for q in load_questions(path, split="validation")] == ["v"]


def test_what_cannot_be_used_is_replaced_by_the_next_of_the_sample(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines = [{**GOOD, "id": f"q{i:02d}"} for i in range(30)]
    path = write(tmp_path, *lines)
    sample = [q.id for q in load_questions(path, size=10, seed=3)]
    larger = [q.id for q in load_questions(path, size=11, seed=3)]
    [next_one] = set(larger) - set(sample)
    broken = int(sample[4][1:])
    lines[broken]["images"] = ["broken.png"]
    write(tmp_path, *lines)
    usable, skipped = load_usable(path, size=10, seed=3)
    ids = [q.id for q in usable]
    assert [one.question for one in skipped] == [sample[4]]
    assert ids == sorted(ids) == sorted({*sample, next_one} - {sample[4]})
    usable, skipped = load_usable(path, size=29, seed=0)
    assert (len(usable), len(skipped)) == (29, 1)
    with pytest.raises(InputError, match="29 usable .* 30 asked for: 1 skipped .image., e.g. q"):
        load_usable(path, size=30)
    with pytest.raises(InputError, match="31 asked for"):
        load_usable(path, size=31)


def test_where_all_can_be_used_nothing_changes(tmp_path):
    path = write(tmp_path, *({**GOOD, "id": f"q{i:02d}"} for i in range(30)))
    for source in (path, "glyphs"):
        for size in (10, 30):
            whole = load_questions(source, size=size, seed=3)
            assert load_usable(source, size=size, seed=3) == (whole, [])


def test_the_embedded_world_is_a_source_and_needs_a_size():
    questions = load_questions("glyphs", split="train", size=14, seed=3)
    assert len({q.id for q in questions}) == 14
    assert all(verifiable(questions))
    with pytest.raises(InputError, match="how many"):
        load_questions("glyphs")
