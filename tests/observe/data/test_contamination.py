"""Contamination: an image or a question is found again in a benchmark, and only then."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from observe.data.contamination import (
    MAX_BITS,
    Item,
    Look,
    References,
    find_matches,
    look,
    runs_of_words,
)
from observe.data.pool import prepare
from observe.data.rows import parse_source
from observe.errors import InputError

LONG = "A farmer puts {} apples into boxes of eight, and then sells all but three of the boxes"


def diagram(seed, size=(300, 240)):
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(7):
        a, b, c, d = (int(x) for x in rng.integers(10, 230, 4))
        draw.line((a, b, c, d), fill="black", width=3)
        draw.ellipse((a, d, a + 30, d + 40), outline="blue", width=3)
    return image


def again(image, change):
    if change == "smaller":
        return image.resize((image.width // 2, image.height // 2))
    if change == "larger":
        return image.resize((image.width * 2, image.height * 2))
    if change == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=40)
        return Image.open(buffer).convert("RGB")
    if change == "margin":
        wide = Image.new("RGB", (image.width + 80, image.height + 30), "white")
        wide.paste(image, (60, 10))
        return wide
    return image.convert("L").convert("RGB")


def bits_between(a, b):
    """Bits in which two images differ, None when they are not the same."""
    found = References([Item("a", "", "", [a])]).nearest_image([b])
    return found and found[0]


@pytest.mark.parametrize("change", ["smaller", "larger", "jpeg", "margin", "grey"])
def test_the_same_image_is_known_however_it_was_saved(change):
    for seed in range(20):
        image = diagram(seed)
        assert bits_between(look(image), look(again(image, change))) is not None


def test_other_images_are_not_the_same():
    looks = [look(diagram(seed)) for seed in range(60)]
    for i, a in enumerate(looks):
        assert bits_between(a, a) == 0
        assert all(bits_between(a, b) is None for b in looks[:i])


def test_an_image_of_one_colour_looks_like_none():
    assert look(Image.new("RGB", (50, 50), "white")) is None


@given(st.integers(0, 2**256 - 1), st.sets(st.integers(0, 255), max_size=60))
@settings(max_examples=60)
def test_all_images_within_the_bound_are_found(bits, flipped):
    other = bits
    for bit in flipped:
        other ^= 1 << bit
    found = bits_between(Look(other.to_bytes(32, "big"), 1.0), Look(bits.to_bytes(32, "big"), 1.1))
    assert found == (len(flipped) if len(flipped) <= MAX_BITS else None)


def test_runs_of_words_ignore_case_and_signs():
    assert runs_of_words("One, two THREE four: five six seven (eight)!") == {
        ("one", "two", "three", "four", "five", "six", "seven", "eight")
    }
    assert runs_of_words("too short") == set()


def test_a_question_is_known_by_its_words_but_not_by_turns_of_phrase():
    items = [Item("a", "", LONG.format(40), []), Item("b", "", "What is it?", [])]
    references = References(items)
    assert references.nearest_text(LONG.format(40).upper() + "?") == (1.0, 0)
    share, number = references.nearest_text(LONG.format(56))
    assert number == 0
    assert 0.5 <= share < 1
    assert references.nearest_text("What is it?") is None
    common = [Item(str(i), "", LONG.format(40), []) for i in range(11)]
    assert References(common).nearest_text(LONG.format(40)) is None


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        diagram(row.pop("seed", number)).save(folder / f"{number}.png")
        row["image"] = f"{number}.png"
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def ask(number, text="How many?"):
    return {"id": f"q{number}", "question": text, "answer": "3", "options": []}


def test_the_pool_leaves_out_reports_or_stops_at_what_a_benchmark_asks(tmp_path):
    train = write(
        tmp_path / "train",
        [ask(0), ask(1), ask(2, LONG.format(40)), {**ask(3, LONG.format(99) + " What?")}],
    )
    held = write(
        tmp_path / "held",
        [
            {**ask(7), "seed": 50},
            {**ask(8, "Another one?"), "seed": 1},
            {**ask(9, LONG.format(40)), "seed": 51},
            {"no": "item", "seed": 52},
        ],
    )
    diagram(1).resize((150, 120)).save(held / "1.png", quality=50)
    (held / "3.png").write_bytes(b"broken")
    sources = [parse_source(f"mathvision={train}")]
    kept = {}
    for mode in ("drop", "report"):
        pool = prepare(sources, tmp_path / mode, against=[str(held)], contaminated=mode)
        questions = (tmp_path / mode / "questions.jsonl").read_text().splitlines()
        kept[mode] = [json.loads(line)["id"] for line in questions]
        matches = [
            json.loads(line)
            for line in (tmp_path / mode / "contaminated.jsonl").read_text().splitlines()
        ]
        assert [(m["question"], m["item"]) for m in matches][:2] == [
            ("mathvision/q1", "q8"),
            ("mathvision/q2", "q9"),
        ]
        assert matches[0]["image_bits"] <= MAX_BITS
        assert matches[0]["where"] == f"{held / 'items.jsonl'}:2"
        assert matches[0]["text_share"] is None
        assert matches[1]["text_share"] == 1
        [told] = pool["contamination"]["references"]
        assert (told["items"], told["unread"]) == (3, 1)
    assert kept["report"] == [f"mathvision/q{i}" for i in range(4)]
    assert "mathvision/q0" in kept["drop"]
    assert not {"mathvision/q1", "mathvision/q2"} & set(kept["drop"])
    with pytest.raises(InputError, match="are asked there, too, e.g. mathvision/q1 by q8"):
        prepare(sources, tmp_path / "stop", against=[str(held)], contaminated="stop")


def test_a_known_data_set_as_reference_and_one_that_is_none(tmp_path):
    held = write(tmp_path / "held", [ask(1)])
    records = [{"id": "x", "text": "?", "images": ["0.png"]}]
    [match], [told] = find_matches(records, held, [f"mathvision={held}"])
    assert (match.item, match.image_bits, told["items"]) == ("q1", 0, 1)
    with pytest.raises(InputError, match="neither a data set"):
        find_matches(records, held, ["nothing"])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no item"):
        find_matches(records, held, [str(tmp_path / "empty.jsonl")])
