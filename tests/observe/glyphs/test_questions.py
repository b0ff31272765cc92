"""Questions: gold answers against an oracle that reads the gold observation, splits, balance."""

import dataclasses
import re
from collections import Counter

import pytest

from observe import glyphs
from observe.glyphs.questions import observation
from observe.glyphs.scenes import HELD_OUT, MAX_OBJECTS, Scene

COLOURS, SHAPES = ("red", "green", "blue"), ("circle", "square", "triangle")
EMPTY = "empty cell"
COMBINATIONS = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
COMBINATIONS_HELD_OUT = {" ".join(item) for item in HELD_OUT}


def texts(split, size, **given):
    """Questions without their pictures, which take most of the time."""
    return glyphs.questions(split, size, pictures=False, **given)


def listed(question):
    """Rows of cells in the words of the gold observation: ``1: red circle, empty cell; 2: ...``."""
    labels, rows = zip(*(row.split(": ") for row in question.observation.split("; ")), strict=True)
    assert labels == tuple(str(i + 1) for i in range(len(rows)))
    return [row.split(", ") for row in rows]


def grid(question):
    """Rows of cells, each the set of its words; that of an empty cell is empty."""
    return [
        [set() if cell == EMPTY else set(cell.split()) for cell in row] for row in listed(question)
    ]


def counted(question, noun):
    """How many cells of the observation a noun of the question's text describes."""
    words = {word.removesuffix("s") for word in noun.split()} - {"object"}
    return sum(words <= cell for row in grid(question) for cell in row)


def option(question, text):
    return "ABC"[question.options.index(text)]


def nouns(question, pattern):
    return re.fullmatch(pattern, question.text).groups()


def count(question):
    return str(counted(question, *nouns(question, r"How many (.*) are there\?")))


def compare(question):
    more, less = nouns(question, r"Are there more (.*) than (.*)\?")
    return "yes" if counted(question, more) > counted(question, less) else "no"


def most(question):
    (kind,) = nouns(question, r"Which (colour|shape) is there most often\?")
    numbers = {name: counted(question, name) for name in question.options}
    assert set(numbers) == set(COLOURS if kind == "colour" else SHAPES)
    top = max(numbers.values())
    (best,) = [name for name, number in numbers.items() if number == top]
    return option(question, best)


def difference(question):
    more, less = nouns(question, r"How many more (.*) than (.*) are there\?")
    return str(counted(question, more) - counted(question, less))


def formula(question):
    a, b, k = nouns(question, r"Add the (.*) and the (.*), then multiply by (\d+)\.")
    return str((counted(question, a) + counted(question, b)) * int(k))


def cost(question):
    pattern = r"One (.*) costs (\d+), one (.*) costs (\d+)\. What do they cost in all\?"
    a, p, b, q = nouns(question, pattern)
    return str(counted(question, a) * int(p) + counted(question, b) * int(q))


def exists(question):
    return "yes" if counted(question, *nouns(question, r"Is there a (.*)\?")) else "no"


def cell_at(question, pattern):
    row, column = nouns(question, pattern)
    return grid(question)[int(row) - 1][int(column) - 1]


def naming(question):
    pattern = r"What (?:colour|shape) is the object in row (\d+), column (\d+)\?"
    (word,) = cell_at(question, pattern) & set(question.options)
    return option(question, word)


def empty(question):
    return "no" if cell_at(question, r"Is row (\d+), column (\d+) empty\?") else "yes"


def reading_order(question):
    (word,) = nouns(question, r"Reading row by row, what is the (first|last) object\?")
    objects = [cell for row in listed(question) for cell in row if cell != EMPTY]
    return objects[0 if word == "first" else -1]


def row_total(question):
    (row,) = nouns(question, r"How many objects are in row (\d+)\?")
    return str(sum(bool(cell) for cell in grid(question)[int(row) - 1]))


ORACLES = {
    "count": count,
    "count_pair": count,
    "compare": compare,
    "most": most,
    "difference": difference,
    "formula": formula,
    "cost": cost,
    "exists": exists,
    "colour": naming,
    "shape": naming,
    "empty": empty,
    "reading_order": reading_order,
    "row_total": row_total,
}


@pytest.fixture(scope="module")
def by_split():
    return {split: texts(split, 500) for split in glyphs.SPLITS}


def test_an_observation_lists_every_cell_row_by_row():
    cells = (("red", "circle"), None, None, ("blue", "square"))
    scene = Scene(rows=2, columns=2, cells=cells, render_seed=0)
    assert observation(scene) == "1: red circle, empty cell; 2: empty cell, blue square"


def test_every_statement_of_an_observation_is_a_colour_and_a_shape_or_an_empty_cell(by_split):
    for questions in by_split.values():
        for question in questions:
            rows = listed(question)
            assert {len(row) for row in rows} == {len(rows)}
            assert {cell for row in rows for cell in row} <= COMBINATIONS | {EMPTY}


def test_every_family_has_an_oracle():
    assert set(ORACLES) == set(glyphs.FAMILIES)


@pytest.mark.parametrize("family", ORACLES)
@pytest.mark.parametrize("split", ["reasoning", "ood"])
def test_gold_follows_from_the_observation_and_the_text(family, split):
    for question in texts(split, 60, seed=5, families=(family,)):
        assert question.gold == ORACLES[family](question), question.id


def test_no_two_splits_share_a_scene(by_split):
    seen = {}
    for split, questions in by_split.items():
        for question in questions:
            assert seen.setdefault(question.cluster, split) == split


def test_questions_of_one_layout_are_one_cluster(by_split):
    for questions in by_split.values():
        names = {}
        for question in questions:
            assert names.setdefault(question.observation, question.cluster) == question.cluster
        assert len(set(names.values())) == len(names)


def test_the_general_split_asks_general_questions_and_the_others_reason(by_split):
    for split, questions in by_split.items():
        expected = glyphs.GENERAL_FAMILIES if split == "general" else glyphs.REASONING_FAMILIES
        assert {question.family for question in questions} == set(expected)


def test_ood_observations_show_the_shifts_and_no_other_split_does(by_split):
    for split, questions in by_split.items():
        cells = [[cell for row in listed(question) for cell in row] for question in questions]
        combinations = [bool(COMBINATIONS_HELD_OUT & set(c)) for c in cells]
        crowded = [sum(x != EMPTY for x in c) > MAX_OBJECTS for c in cells]
        large = [len(c) == 16 for c in cells]
        if split == "ood":
            assert min(map(sum, (combinations, crowded, large))) > 100
            assert all(map(any, zip(combinations, crowded, large, strict=True)))
        else:
            assert not any(combinations + crowded + large)


@pytest.mark.parametrize("family", ["count_pair", "exists"])
@pytest.mark.parametrize("split", glyphs.SPLITS)
def test_held_out_combinations_are_asked_for_in_the_ood_split_alone(split, family):
    questions = texts(split, 200, families=(family,))
    asked = {c for c in COMBINATIONS if any(c in question.text for question in questions)}
    assert asked == (COMBINATIONS if split == "ood" else COMBINATIONS - COMBINATIONS_HELD_OUT)


def test_equal_arguments_give_equal_questions_and_pixels():
    one, two = (glyphs.questions("train", 30, seed=3) for _ in range(2))
    assert [q.images[0].tobytes() for q in one] == [q.images[0].tobytes() for q in two]
    assert [(q.id, q.text, q.gold, q.observation) for q in one] == [
        (q.id, q.text, q.gold, q.observation) for q in two
    ]


def test_a_question_does_not_depend_on_how_many_are_asked_for():
    few, many = glyphs.questions("train", 9), glyphs.questions("train", 30)
    assert [q.images[0].tobytes() for q in few] == [q.images[0].tobytes() for q in many[:9]]
    assert [q.id for q in few] == [q.id for q in many[:9]]


def test_a_question_without_its_picture_is_the_same_question():
    (drawn,), (told,) = glyphs.questions("ood", 1), texts("ood", 1)
    assert drawn.images and told == dataclasses.replace(drawn, images=())


def test_another_seed_gives_other_questions():
    one, two = texts("train", 50, seed=1), texts("train", 50, seed=2)
    assert not {q.id for q in one} & {q.id for q in two}
    assert sum(a.cluster == b.cluster for a, b in zip(one, two, strict=True)) < 5


def test_an_id_says_split_seed_family_and_number():
    ids = [q.id for q in texts("ood", 3, seed=4, families=("cost", "row_total"))]
    assert ids == ["ood-4-cost-00000", "ood-4-row_total-00001", "ood-4-cost-00002"]


def test_ids_are_unique_over_splits_families_and_seeds(by_split):
    ids = [q.id for questions in by_split.values() for q in questions]
    ids += [q.id for q in texts("train", 500, seed=1)]
    ids += [q.id for q in texts("train", 500, families=tuple(glyphs.GENERAL_FAMILIES))]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("family", ["compare", "exists", "empty"])
def test_yes_and_no_are_both_common(family):
    golds = Counter(q.gold for q in texts("train", 400, families=(family,)))
    assert set(golds) == {"yes", "no"}
    assert 0.3 <= golds["yes"] / 400 <= 0.7


@pytest.mark.parametrize("family", ["most", "colour", "shape"])
def test_the_right_option_is_under_every_letter_alike(family):
    questions = texts("train", 600, families=(family,))
    letters = Counter(q.gold for q in questions)
    assert all(150 <= letters[letter] <= 250 for letter in "ABC")
    assert all(len(set(q.options)) == 3 for q in questions)


def test_answers_to_counting_questions_are_no_constant():
    for family in ("count", "count_pair", "difference", "formula", "cost", "row_total"):
        golds = Counter(q.gold for q in texts("train", 400, families=(family,)))
        assert max(golds.values()) < 0.7 * 400, family


def test_levels_rise_from_perception_to_arithmetic():
    levels = [family.level for family in glyphs.REASONING_FAMILIES.values()]
    assert levels == sorted(levels)
    assert levels[0] == 1 < levels[-1]
