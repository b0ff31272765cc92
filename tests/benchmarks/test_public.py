"""Every public benchmark offline: made-up rows in its schema through adapter, loader and scorer."""

import dataclasses
import gzip
import io
import json
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import rows
from benchmarks.adapters import ADAPTERS, BadRow, Row, split_options
from benchmarks.config import EvaluateConfig
from benchmarks.controls import conditions, permutable, rotated
from benchmarks.docs import chance, fingerprint, images, relaxed, request, to_question
from benchmarks.evaluate import TASKS, read_suites
from benchmarks.registry import describe, find, read_registry
from observe.errors import InputError
from observe.scoring import score_many

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("PUBLIC_DATA", ROOT.parent / "shared" / "data"))
REGISTRY = read_registry()


def adapted(name):
    """The fixture's rows as questions, images as their paths."""
    lines = (FIXTURES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    adapter = ADAPTERS[REGISTRY[name].adapter]
    return [adapter(Row(json.loads(line), n, Path)) for n, line in enumerate(lines)]


def load(name, data_dir=FIXTURES, **settings):
    return rows.load(name, str(data_dir), settings.get("limit"), settings.get("on_bad", "stop"))


def write(folder, *values):
    """A benchmark's folder with these rows and one good image."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(folder / "good.png")
    lines = [json.dumps(value) for value in values]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def puzzle(number=1, **more):
    return {
        **{"id": f"q{number}", "question": "Which?", "options": ["red", "blue"], "answer": "red"},
        **{"puzzle_type": "colour", "image": "good.png"},
        **more,
    }


@pytest.mark.parametrize("name", REGISTRY)
def test_rows_of_every_benchmark_become_questions_that_can_be_judged(name):
    loaded = load(name)
    questions = [to_question(doc) for doc in loaded.docs]
    assert len(questions) == len(adapted(name)) >= 2
    assert all(question.images and question.text for question in questions)
    alone = REGISTRY[name].cluster == "item"
    assert all(bool(question.cluster) != alone for question in questions[:1])
    for wrong in (False, True):
        said = ["none of it" if wrong else f"<answer>{q.gold}</answer>" for q in questions]
        verdicts = score_many(
            [request(q, text, public=True) for q, text in zip(questions, said, strict=True)]
        )
        assert [verdict.correct for verdict in verdicts] == [not wrong] * len(questions)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_benchmark_is_a_task_of_lm_eval(name):
    files = [path for path in TASKS.rglob(f"{name}.yaml")]
    assert len(files) == 1
    assert files[0].read_text().splitlines()[1:] == [
        f"task: {name}",
        f"dataset_kwargs: {{benchmark: {name}}}",
    ]


def test_every_benchmark_of_a_suite_is_known():
    public = [n for s, names in read_suites().items() if s.startswith("public") for n in names]
    assert set(public) <= set(REGISTRY)
    assert set(REGISTRY) - set(public) == {"mathvision_testmini", "mmmu_pro_4", "mmmu_pro_vision"}
    assert all(name in describe() for name in REGISTRY)
    assert REGISTRY["mathvision"].trained_on == ("MathVision",)


def test_what_adapters_make_of_their_rows():
    circle, width, years = adapted("mathvista")
    assert (circle.gold, circle.answer_type) == ("B", "choice")
    assert width.text == "How wide is the box? (Unit: cm) (Decimals: 1)"
    assert years.answer_type == "list"

    stated, shown, open_one = adapted("mathverse")
    assert stated.text.endswith("Find the angle at B.") and stated.options[2] == "100\u00b0"
    assert shown.options == () and shown.family == "Vision Only"
    assert stated.cluster == shown.cluster == "1" and open_one.answer_type == "decimal"

    corners, _, larger = adapted("mathvision")
    assert corners.text == "How many corners has the shape?" and corners.level == 1
    assert larger.text == "Compare (image 1) with (image 2). Which is larger?"

    one, several, in_text = adapted("logicvista")
    assert (one.gold, several.gold, several.answer_type) == ("D", "{A, C}", "list")
    assert in_text.options[0] == "Sales rose." and in_text.gold == "B"

    alone, many, open_one = adapted("mmmu")
    assert alone.text == "Which style is this?"
    assert many.options == ("(image 2)", "(image 3)") and len(many.images) == 3
    assert open_one.text == "How long is the side in the image?"
    assert (open_one.gold, open_one.metadata["accepted"]) == ("2", ["two"])

    assert adapted("mmmu_pro_vision")[0].metadata == {"choices": 5}
    assert [q.answer_type for q in adapted("geometry3k")] == ["expression", "decimal", "choice"]
    assert adapted("puzzlevqa")[1].gold == "C"
    assert adapted("mmstar")[0].options[1] == "A blue box, seen from above."
    hinted, two, _ = adapted("mmbench")
    assert hinted.text.startswith("Look at the middle.\n") and len(two.options) == 2
    assert adapted("scienceqa")[1].gold == "C"
    assert [q.answer_type for q in adapted("chartqa")] == ["integer", "text", "yes_no"]
    assert adapted("hallusionbench")[2].gold == "no"
    assert adapted("pope")[0].id != adapted("pope")[2].id
    assert adapted("mme")[0].metadata["groups"] == adapted("mme")[1].metadata["groups"]


@pytest.mark.parametrize(
    ("text", "stem", "options"),
    [
        ("Which?\nOptions: A: red, B: blue", "Which?", ["red", "blue"]),
        ("A. 4; B. 5; C. none", "", ["4", "5", "none"]),
        ("Find it. Choices:\nA:2\nB:3\n", "Find it.", ["2", "3"]),
        ("Vitamin A. Which? (A) yes (B) no", "Vitamin A. Which?", ["yes", "no"]),
        ("Select from A, B and C.", "Select from A, B and C.", []),
        ("Select (A) (B)", "Select (A) (B)", []),
        ("", "", []),
    ],
)
def test_options_in_a_text(text, stem, options):
    assert split_options(text) == (stem, options)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (puzzle(image=None), "image_missing"),
        (puzzle(image="nowhere.png"), "image_missing"),
        (puzzle(image="../secret.png"), "image_outside"),
        (puzzle(image="/etc/hostname"), "image_outside"),
        (puzzle(image="link.png"), "image_outside"),
        (puzzle(image="broken.png"), "image_unreadable"),
        (puzzle(image="cut.png"), "image_unreadable"),
        (puzzle(image="bomb.png"), "image_unreadable"),
        (puzzle(image=3), "image_missing"),
        (puzzle(image="nul\0.png"), "image_missing"),
        (puzzle(image="x" * 5000), "image_missing"),
        (puzzle(image="."), "image_missing"),
        (puzzle(options=[]), "options"),
        (puzzle(options=["red"]), "options"),
        (puzzle(options=list("abcdefghijk"), answer="a"), "options"),
        (puzzle(options={"A": "red"}), "options"),
        (puzzle(answer="green"), "gold"),
        (puzzle(answer=""), "field"),
        (puzzle(question=["Which?"]), "field"),
        (puzzle(question="What is <|image_pad|>?"), "text"),
        (puzzle(0), "duplicate_id"),
        (["no", "object"], "field"),
    ],
)
def test_a_bad_row_is_named_and_counted_or_left_out(values, reason, tmp_path):
    folder = write(tmp_path / "data" / "puzzlevqa", puzzle(0), values, puzzle(2))
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "data" / "secret.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:40])
    (folder / "bomb.png").write_bytes(bomb(60_000, 60_000))
    with pytest.raises(InputError, match=rf"1 skipped \({reason}\).*row 1.*on_bad_item skip"):
        load("puzzlevqa", tmp_path / "data")
    loaded = load("puzzlevqa", tmp_path / "data", on_bad="skip")
    assert [doc["id"] for doc in loaded.docs] == ["q0", "q2"]
    assert [one.reason for one in loaded.skipped] == [reason]


def bomb(width, height):
    """A small PNG file that says it is enormous."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_nothing_is_decompressed_without_a_limit(tmp_path, monkeypatch):
    folder = tmp_path / "puzzlevqa"
    folder.mkdir()
    with gzip.open(folder / "items.jsonl.gz", "wb") as file:
        file.write(b" " * 2**20)
    monkeypatch.setattr(rows, "MAX_LINE", 2**16)
    with pytest.raises(InputError, match="more than a row of 65536 bytes"):
        load("puzzlevqa", tmp_path)
    with gzip.open(folder / "items.jsonl.gz", "wb") as file:
        file.write(b"{}\n" * 2**16)
    monkeypatch.setattr(rows, "MAX_BYTES", 2**16)
    with pytest.raises(InputError, match="more than 65536 bytes"):
        load("puzzlevqa", tmp_path)
    (folder / "items.jsonl.gz").write_bytes((folder / "items.jsonl.gz").read_bytes()[:50])
    with pytest.raises(InputError, match="cannot be read"):
        load("puzzlevqa", tmp_path)


def test_where_local_rows_are_found(tmp_path):
    folder = write(tmp_path / "puzzlevqa_sample", puzzle())
    assert load("puzzlevqa", tmp_path).docs == load("puzzlevqa", folder).docs
    assert load("puzzlevqa", f"mme=/x, puzzlevqa = {folder}").source == "local"
    for data_dir, message in (
        (tmp_path / "nowhere", "no rows of mmstar; expected mmstar there"),
        (f"puzzlevqa={folder}", "mmstar: not named; give mmstar=FOLDER"),
        ("mmstar=/nowhere", "no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            load("mmstar", data_dir)
    with pytest.raises(InputError, match="is this the data of this benchmark"):
        load("mmstar", folder)
    (folder / "items.jsonl").write_text("{broken\n")
    with pytest.raises(InputError, match="not valid JSON"):
        load("puzzlevqa", f"puzzlevqa={folder}")


def test_rows_as_they_are_downloaded_from_the_hub(tmp_path):
    import pyarrow
    import pyarrow.parquet

    data = io.BytesIO()
    Image.new("L", (8, 8), 128).save(data, format="PNG")
    image = {"bytes": data.getvalue(), "path": "x.png"}
    for split, number in (("test", 1), ("testmini", 2)):
        row = {"id": str(number), "question": "How many?", "options": [], "answer": "3", "level": 1}
        table = pyarrow.Table.from_pylist([{**row, "subject": "counting", "decoded_image": image}])
        folder = tmp_path / "mathvision" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    (doc,) = load("mathvision", tmp_path).docs
    assert doc["id"] == "1" and images(doc)[0].getpixel((0, 0)) == (128, 128, 128)
    (doc,) = load("mathvision_testmini", f"mathvision_testmini={tmp_path / 'mathvision'}").docs
    assert doc["id"] == "2"
    (folder / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable parquet file"):
        load("mathvision", f"mathvision={tmp_path / 'mathvision'}")


def test_rows_of_the_hub_come_with_their_encoded_images(tmp_path, monkeypatch):
    import datasets

    lists = {"images": datasets.List(datasets.Image()), "cover": datasets.Image()}
    texts = {name: datasets.Value("string") for name in ("problem", "answer")}
    expected = (FIXTURES / "images" / "a.png").read_bytes()
    image = {"bytes": expected, "path": None}
    row = {"problem": "<image>Find x.", "answer": "3", "images": [image], "cover": image}
    table = datasets.Dataset.from_list([row], features=datasets.Features(lists | texts))
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "test-0.parquet")
    known = find("geometry3k")
    here = dataclasses.replace(known, hub=str(tmp_path / "data"))
    ((values, home),) = rows.hub_rows(here)
    assert home is None and values["cover"]["bytes"] == values["images"][0]["bytes"] == expected

    monkeypatch.setitem(read_registry(), "geometry3k", here)
    rows.load.cache_clear()
    loaded = rows.load("geometry3k", None, None, "stop")
    assert loaded.source == here.hub and loaded.docs[0]["text"] == "Find x."
    rows.load.cache_clear()
    with pytest.raises(InputError, match="not available .*--data-dir"):
        list(rows.hub_rows(dataclasses.replace(known, hub=str(tmp_path / "nowhere"))))


def test_relaxed_accuracy_takes_numbers_within_five_percent():
    value, label, _ = adapted("chartqa")
    said = {"<answer>41.9</answer>": True, "<answer>42.1</answer>": False, "": False}
    for response, right in said.items():
        (verdict,) = score_many([request(value, response, public=True)])
        assert relaxed(verdict, value).correct is right
    (verdict,) = score_many([request(label, "<answer>Peru</answer>", public=True)])
    assert relaxed(verdict, label).correct is False


def test_chance():
    assert [chance(q) for q in adapted("mathvista")] == [1 / 3, 0.0, 0.0]
    assert chance(adapted("mmmu_pro_vision")[0]) == 1 / 5
    assert [chance(q) for q in adapted("logicvista")] == [None, None, 1 / 3]
    assert chance(adapted("mme")[0]) == 0.5


def test_controls_change_only_what_they_name():
    docs = load("mmbench").docs
    found = conditions(("no_image", "shuffled_image", "rotations"), docs)
    assert list(found) == ["no_image", "shuffled_image", "rotation_1", "rotation_2"]
    assert all(doc["images"] == [] for doc in found["no_image"])
    for doc, other in zip(docs, found["shuffled_image"], strict=True):
        assert other["images"] != doc["images"] and {**other, "images": doc["images"]} == doc
    # The third item's options speak of others, so that they stay where they are.
    assert [doc["id"] for doc in found["rotation_1"]] == ["11", "12"]
    assert [doc["id"] for doc in found["rotation_2"]] == ["11"]
    for doc in docs[:2]:
        for k in range(1, len(doc["options"])):
            turned = rotated(doc, k)
            assert turned["options"] != doc["options"]
            assert (
                to_question(turned).options["ABC".index(turned["gold"])]
                == (doc["options"]["ABC".index(doc["gold"])])
            )
    for fixed in (["A", "B"], ["(A)", "C or D"], ["x", "all of them"]):
        assert not permutable({"answer_type": "choice", "options": fixed, "images": [b""] * 2})
    assert permutable({"answer_type": "choice", "options": ["yes", "no", "A cat"], "images": []})


def test_panels_of_one_image_stay_at_their_letters_and_images_do_not(tmp_path):
    row = {"id": "1", "question": "Which fits?", "options": ["<image1>", "<image2>"]}
    row |= {"answer": "B", "level": 1, "image": "good.png"}
    write(tmp_path / "mathvision", row)
    (panels,) = load("mathvision", tmp_path).docs
    assert panels["options"] == ["(image 1)", "(image 2)"] and not permutable(panels)
    images = load("mmmu").docs[1]
    assert images["options"] == ["(image 2)", "(image 3)"] and permutable(images)


def test_turned_rows_of_mmbench_are_one_question():
    row = {"question": "Which?", "A": "red", "B": "blue", "answer": "A", "image": "x"}
    read = [
        ADAPTERS["mmbench"](Row({**row, "index": index}, 0, Path))
        for index in (12, 1_000_012, 3_000_012, 13)
    ]
    assert [q.metadata["groups"]["question"] for q in read] == ["12", "12", "12", "13"]
    assert len({q.id for q in read}) == 4


@pytest.mark.parametrize(
    ("name", "other"), [("mmbench", "cn"), ("mmmu_pro_4", "standard (10 options)")]
)
def test_of_a_downloaded_data_set_one_configuration_is_read(name, other, tmp_path):
    import pandas as pd

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    picture = {"bytes": buffer.getvalue(), "path": None}
    known = find(name)
    row = {"index": 1, "id": "1", "A": "x", "B": "y", "options": "['x', 'y']", "answer": "A"}
    row |= {"image": picture, "image_1": picture}
    for config, question in ((other, "another"), (known.configs[0], "the right one")):
        folder = tmp_path / name / config
        folder.mkdir(parents=True)
        table = pd.DataFrame([{**row, "question": question}])
        table.to_parquet(folder / f"{known.split}-00000-of-00001.parquet")
    assert [doc["text"] for doc in load(name, tmp_path).docs] == ["the right one"]


def test_a_fingerprint_changes_with_what_else_is_right():
    docs = load("mmmu").docs
    other = [{**docs[2], "metadata": json.dumps({"accepted": ["2.0"]})}]
    assert fingerprint(docs[2:]) != fingerprint(other)


def test_a_level_that_is_no_number_is_named():
    row = {"id": "1", "question": "Why?", "options": [], "answer": "1", "image": "x"}
    assert ADAPTERS["mathvision"](Row({**row, "level": 2.0}, 0, Path)).level == 2
    for level in ("hard", "inf"):
        with pytest.raises(BadRow, match="level: expected a number"):
            ADAPTERS["mathvision"](Row({**row, "level": level}, 0, Path))


def test_a_row_names_the_fields_it_has():
    with pytest.raises(BadRow, match="pid: missing; fields: question, image"):
        ADAPTERS["mathvista"](Row({"question": "Why?", "image": "x", "answer": "1"}, 0, Path))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}: real rows of public benchmarks")
@pytest.mark.parametrize(
    ("name", "items"), [("mathvision_testmini", 304), ("puzzlevqa", 200), ("geometry3k", 10)]
)
def test_real_rows_load_completely_and_can_be_judged(name, items):
    loaded = load(name, SHARED)
    assert len(loaded.docs) == items and not loaded.skipped
    questions = [to_question(doc, decode=False) for doc in loaded.docs]
    verdicts = score_many(
        [request(q, f"<answer>{q.gold}</answer>", public=True) for q in questions]
    )
    assert [verdict.correct for verdict in verdicts] == [True] * items


def test_a_folder_that_is_not_said_is_not_the_current_one():
    with pytest.raises(InputError, match="mmstar: not named; give mmstar=FOLDER"):
        rows.find_folder("mmstar", "mmstar=")


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_a_temperature_is_a_number(temperature):
    with pytest.raises(InputError, match="temperature: expected 0 or more"):
        EvaluateConfig(temperature=temperature)
