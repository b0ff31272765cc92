"""The pool: rows of data sets checked, what cannot be used named and counted, nothing followed out
of its folder."""

import dataclasses
import io
import json
import struct
import zlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw

from observe.data.pool import REASONS, prepare
from observe.data.recipes import RECIPES
from observe.data.rows import Source, parse_source
from observe.data.sources import load_questions
from observe.errors import InputError


def picture(seed, size=(96, 80)):
    """A drawing of its own on white."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, w, h = rng.integers(4, 60, 4)
        draw.rectangle(
            (x, y, x + w, y + h),
            outline="black",
            width=2,
            fill=tuple(map(int, rng.integers(0, 255, 3))),
        )
    return image


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def bomb():
    """A PNG that claims 10,000 x 10,000 pixels."""

    def part(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = part(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + part(b"IDAT", zlib.compress(b"\0" * 100))


def good(number):
    return {
        "id": f"q{number}",
        "text": f"How many of {number}?",
        "gold": "3",
        "answer_type": "integer",
        "images": [f"{number}.png"],
    }


def folder_of(path, rows, pictures=range(20)):
    """A JSONL file with images beside it."""
    path.mkdir(parents=True, exist_ok=True)
    for number in pictures:
        picture(number).save(path / f"{number}.png")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (path / "asked.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path / "asked.jsonl"


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_can_be_used_is_kept_as_it_is(tmp_path):
    row = {**good(0), "family": "counting", "level": 2, "cluster": "scene", "metadata": {"x": 1}}
    row |= {"split": None, "options": None}  # As a table of several kinds of rows has them.
    choice = {**good(1), "gold": "blue", "options": ["red", "blue"], "answer_type": "choice"}
    file = folder_of(tmp_path / "mine", [row, choice])
    pool = prepare([parse_source(str(file))], tmp_path / "out")
    first, second = load_questions(tmp_path / "out" / "questions.jsonl")
    assert (first.id, first.text, first.gold) == ("mine/q0", "How many of 0?", "3")
    assert (first.family, first.level, first.cluster) == ("counting", 2, "mine/scene")
    assert first.metadata == {"x": 1}
    assert (second.gold, second.options) == ("B", ("red", "blue"))
    assert first.images[0].read_bytes() == (tmp_path / "mine" / "0.png").read_bytes()
    [source] = pool["sources"]
    assert (source["rows"], source["usable"], source["rejected"]) == (2, 2, {})


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_bad_row_is_named_with_its_reason_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    picture(99).save(tmp_path / "secret.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "cut.png").write_bytes(png(picture(3))[:200])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    bad = {
        "malformed": [
            "{not json",
            "[1, 2]",
            {**good(1), "golds": "3"},
            {k: v for k, v in good(1).items() if k != "gold"},
            {**good(1), "images": 7},
            *({**good(1), "level": level} for level in ("hard", 2.0, True)),
            {**good(1), "family": 3},
            *({**good(1), "metadata": metadata} for metadata in ("x", [1])),
            {**good(1), "options": "AB", "gold": "A", "answer_type": "choice"},
            {**good(1), "family": "\ud800"},
            '{"id": "u", "text": "\\ud800?", "gold": "1", "answer_type": "integer", '
            '"images": ["1.png"]}',
        ],
        "other_split": [{**good(1), "split": "validation"}],
        "no_text": [{**good(1), "text": "  "}],
        "no_gold": [{**good(1), "gold": ""}, {**good(1), "gold": 3}],
        "options": [
            {**good(1), "gold": "E", "options": ["x", "y"]},
            {**good(1), "gold": "A", "options": ["x", ""]},
            {**good(1), "gold": "B", "answer_type": "choice"},
        ],
        "no_image": [
            {**good(1), "images": []},
            {**good(1), "images": ["none.png"]},
            {**good(1), "images": ["/"]},
            {**good(1), "images": ["x" * 5000]},
        ],
        "outside": [
            {**good(1), "images": ["../secret.png"]},
            {**good(1), "images": [str(tmp_path / "secret.png")]},
            {**good(1), "images": ["link.png"]},
        ],
        "image": [{**good(1), "images": ["broken.png"]}, {**good(1), "images": ["cut.png"]}],
        "bomb": [{**good(1), "images": ["bomb.png"]}],
        "vision_token": [{**good(1), "text": "<|image_pad|> how many?"}],
        "duplicate_id": [good(0)],
        "duplicate": [{**good(0), "id": "again"}],
        "unverifiable": [{**good(1), "gold": "three apples"}],
    }
    rows, expected = [good(0)], []
    for reason, several in bad.items():
        for row in several:
            if isinstance(row, dict) and reason not in ("duplicate_id", "duplicate"):
                row = {**row, "id": f"{reason}{len(rows)}"}
            rows.append(row)
            expected.append(reason)
    file = folder_of(folder, [*rows, good(2)])
    pool = prepare([parse_source(str(file))], tmp_path / "out")
    refused = lines(tmp_path / "out" / "rejected.jsonl")
    # What is seen without pixels is named first; the file's line says which row it is.
    refused.sort(key=lambda one: int(one["where"].rsplit(":", 1)[1]))
    assert [one["reason"] for one in refused] == expected
    assert all(one["detail"] and one["where"].startswith(f"{file}:") for one in refused)
    assert set(expected) <= set(REASONS)
    assert pool["sources"][0]["usable"] == 2
    kept = load_questions(tmp_path / "out" / "questions.jsonl")
    assert [question.id for question in kept] == ["mine/q0", "mine/q2"]
    with pytest.raises(InputError, match=r"asked\.jsonl:2: row: malformed: not valid JSON"):
        prepare([parse_source(str(file))], tmp_path / "other", on_bad="stop")


def test_a_known_data_set_is_read_from_json_lines_json_and_parquet(tmp_path):
    rows = [
        {
            "id": str(i),
            "question": f"How long is side {i}?\n<image1>",
            "options": ["A", "B"] if i % 2 else [],
            "answer": "B" if i % 2 else str(i),
            "level": 3,
            "subject": "length",
        }
        for i in range(4)
    ]
    (tmp_path / "lines" / "images").mkdir(parents=True)
    for i in range(4):
        picture(i).save(tmp_path / "lines" / "images" / f"{i}.png")
    with_path = [{**row, "image": f"images/{row['id']}.png"} for row in rows]
    text = "".join(json.dumps(row) + "\n" for row in with_path)
    (tmp_path / "lines" / "items.jsonl").write_text(text)
    (tmp_path / "lines" / "README.md").write_text("of no interest")
    (tmp_path / "parquet").mkdir()
    embedded = [
        {**row, "decoded_image": {"bytes": png(picture(i)), "path": None}}
        for i, row in enumerate(rows)
    ]
    table = pyarrow.Table.from_pylist(embedded)
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "test-00000.parquet")
    read = []
    for name in ("lines", "parquet"):
        prepare([parse_source(f"mathvision={tmp_path / name}")], tmp_path / f"out-{name}")
        read.append((tmp_path / f"out-{name}" / "questions.jsonl").read_text())
    assert read[0] == read[1]
    assert [json.loads(line)["gold"] for line in read[0].splitlines()] == ["0", "B", "2", "B"]
    assert json.loads(read[0].splitlines()[1])["id"] == "mathvision/1"


def test_groups_of_rows_and_images_named_without_their_ending(tmp_path):
    asked = "Which is it?\n\nA. this\nB. that"
    groups = {
        "Math": [
            {
                "Question": asked,
                "Answer (final answer highlighted)": "B",
                "ImagePath": f"Math/{i}",
            }
            for i in (1, 2)
        ]
    }
    folder = tmp_path / "scemqa"
    (folder / "Multiple_Choice" / "Math").mkdir(parents=True)
    picture(1).save(folder / "Multiple_Choice" / "Math" / "1.jpg")
    picture(2).save(folder / "Multiple_Choice" / "Math" / "2.png")
    (folder / "Multiple_Choice" / "multiple_choice.json").write_text(json.dumps(groups))
    prepare([parse_source(f"scemqa={folder}")], tmp_path / "out")
    kept = load_questions(tmp_path / "out" / "questions.jsonl")
    assert [(q.id, q.gold, q.images[0].suffix) for q in kept] == [
        ("scemqa/Math/0", "B", ".jpg"),
        ("scemqa/Math/1", "B", ".png"),
    ]


def test_several_sources_keep_apart_and_a_second_call_reads_nothing_again(tmp_path):
    one = folder_of(tmp_path / "one", [good(0), good(1)])
    two = folder_of(tmp_path / "two", [good(0), good(2)])
    sources = [parse_source(str(file)) for file in (one, two)]
    pool = prepare(sources, tmp_path / "out")
    assert [source["usable"] for source in pool["sources"]] == [2, 2]
    one.unlink()
    assert prepare(sources, tmp_path / "out") == pool
    with pytest.raises(InputError, match="pool of other sources"):
        prepare(sources[:1], tmp_path / "out")
    with pytest.raises(InputError, match="same name"):
        prepare([sources[1], sources[1]], tmp_path / "twice")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "neither a data set .*mathvision.* nor a JSONL file"),
        ("mathvision=/none", "no such file or folder"),
    ],
)
def test_a_source_that_is_none_is_named(text, words):
    with pytest.raises(InputError, match=words):
        parse_source(text)


def test_a_folder_without_rows_and_a_pool_without_questions_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no .jsonl, .json or .parquet"):
        prepare([parse_source(f"we_math={tmp_path / 'empty'}")], tmp_path / "out")
    file = folder_of(tmp_path / "mine", [{**good(1), "gold": ""}])
    with pytest.raises(InputError, match="no question is left: {'no_gold': 1}"):
        prepare([parse_source(str(file))], tmp_path / "out")
    (tmp_path / "mine" / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a Parquet file"):
        prepare([parse_source(f"we_math={tmp_path / 'mine' / 'bad.parquet'}")], tmp_path / "out")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_data_set_of_the_hub_is_loaded_undecoded(tmp_path, offline):
    rows = [
        {
            "ID": str(i),
            "key": "2steps_1",
            "question": f"Which of {i}?",
            "option": "A. one; B. two",
            "answer": "B",
            "image_path": {"bytes": data, "path": None},
        }
        for i, data in enumerate([png(picture(0)), b"broken", png(picture(2))])
    ]
    (tmp_path / "hub" / "data").mkdir(parents=True)
    features = Features(
        {**{name: Value("string") for name in list(rows[0])[:-1]}, "image_path": ImageFeature()}
    )
    Dataset.from_list(rows, features=features).to_parquet(
        tmp_path / "hub" / "data" / "testmini-00000-of-00001.parquet"
    )
    recipe = dataclasses.replace(RECIPES["we_math"], hub=str(tmp_path / "hub"))
    source = Source(name="we_math", recipe=recipe, place=None)
    pool = prepare([source], tmp_path / "out")
    assert pool["sources"][0]["rejected"] == {"image": 1}
    [one, other] = load_questions(tmp_path / "out" / "questions.jsonl")
    assert (one.id, one.gold, other.cluster) == ("we_math/0@2steps_1", "B", "we_math/2")


@pytest.mark.parametrize("name", ["mathvision", "scemqa"])
def test_where_the_hub_cannot_be_reached_the_remedy_is_named(name, tmp_path, offline):
    with pytest.raises(InputError, match=f"from the Hub .*--sources {name}=FOLDER"):
        prepare([parse_source(name)], tmp_path)
