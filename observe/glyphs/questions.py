"""Questions about scenes, in families of graded difficulty, with exact gold answers.

Reasoning families go from perception (counting one attribute) to arithmetic over several counts.
General families ask for abilities that training on reasoning must not destroy: existence, naming,
emptiness, reading order.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from observe.data.question import Question
from observe.glyphs.scenes import (
    COLOURS,
    HELD_OUT,
    SHAPES,
    Item,
    Scene,
    render,
    sample_scene,
    split_of,
)
from observe.scoring import AnswerType

EMPTY = "empty cell"
"""How a cell without an object is described: two words, as an object, so that the place of a cell
in a listing is the place of its words."""
SPLITS = ("train", "validation", "reasoning", "general", "ood")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question about a scene before it is put into a ``Question``.

    ``working`` holds the steps of the gold reasoning, the last of which gives the answer.
    """

    text: str
    gold: str
    answer_type: AnswerType
    working: tuple[str, ...]
    options: tuple[str, ...] = ()


def _matches(item: Item | None, attribute: str) -> bool:
    """Whether a cell has an attribute: a colour, a shape, or both (``red circle``)."""
    return item is not None and all(word in item for word in attribute.split())


def _count(scene: Scene, attribute: str) -> int:
    return sum(_matches(item, attribute) for item in scene.cells)


def _counting(scene: Scene, attribute: str) -> str:
    """The reasoning step that counts: ``red 3``."""
    return f"{attribute} {_count(scene, attribute)}"


def _noun(attribute: str) -> str:
    """``red`` -> ``red objects``, ``circle`` -> ``circles``."""
    return f"{attribute} objects" if attribute in COLOURS else f"{attribute}s"


def _attribute(rng: random.Random, scene: Scene, kinds: Sequence[str], but: str = "") -> str:
    """A random attribute, present in the scene four times out of five."""
    present = [a for a in kinds if a != but and _count(scene, a)]
    if present and rng.random() < 0.8:
        return rng.choice(present)
    return rng.choice([a for a in kinds if a != but])


_SINGLE = (*COLOURS, *SHAPES)


def _pairs(scene: Scene) -> list[str]:
    """Colour-shape combinations to ask for; those held out only where they may occur."""
    asked = split_of(scene) == "ood"
    return [f"{c} {s}" for c in COLOURS for s in SHAPES if asked or (c, s) not in HELD_OUT]


def _how_many(scene: Scene, a: str) -> Task:
    return Task(
        text=f"How many {_noun(a)} are there?",
        gold=str(_count(scene, a)),
        answer_type="integer",
        working=(_counting(scene, a),),
    )


def _count_one(rng: random.Random, scene: Scene) -> Task:
    return _how_many(scene, _attribute(rng, scene, _SINGLE))


def _count_pair(rng: random.Random, scene: Scene) -> Task:
    return _how_many(scene, _attribute(rng, scene, _pairs(scene)))


def _compare(rng: random.Random, scene: Scene) -> Task:
    a = _attribute(rng, scene, _SINGLE)
    b = _attribute(rng, scene, _SINGLE, but=a)
    n, m = _count(scene, a), _count(scene, b)
    gold = "yes" if n > m else "no"
    sign = ">" if n > m else "<" if n < m else "="
    return Task(
        text=f"Are there more {_noun(a)} than {_noun(b)}?",
        gold=gold,
        answer_type="yes_no",
        working=(_counting(scene, a), _counting(scene, b), f"{n}{sign}{m}"),
    )


def _most(rng: random.Random, scene: Scene) -> Task | None:
    kinds = list(COLOURS if rng.random() < 0.5 else SHAPES)
    counts = {k: _count(scene, k) for k in kinds}
    (best, top), (_, second) = Counter(counts).most_common(2)
    if top == second:
        return None
    options = rng.sample(kinds, len(kinds))
    what = "colour" if kinds[0] in COLOURS else "shape"
    return Task(
        text=f"Which {what} is there most often?",
        gold="ABC"[options.index(best)],
        answer_type="choice",
        working=(*(f"{k} {counts[k]}" for k in options), f"most {best}"),
        options=tuple(options),
    )


def _difference(rng: random.Random, scene: Scene) -> Task:
    a = _attribute(rng, scene, _SINGLE)
    b = _attribute(rng, scene, _SINGLE, but=a)
    if _count(scene, a) < _count(scene, b):
        a, b = b, a
    n, m = _count(scene, a), _count(scene, b)
    return Task(
        text=f"How many more {_noun(a)} than {_noun(b)} are there?",
        gold=str(n - m),
        answer_type="integer",
        working=(_counting(scene, a), _counting(scene, b), f"{n}-{m}={n - m}"),
    )


def _formula(rng: random.Random, scene: Scene) -> Task:
    a = _attribute(rng, scene, _SINGLE)
    b = _attribute(rng, scene, _SINGLE, but=a)
    n, m, k = _count(scene, a), _count(scene, b), rng.randint(2, 5)
    return Task(
        text=f"Add the {_noun(a)} and the {_noun(b)}, then multiply by {k}.",
        gold=str((n + m) * k),
        answer_type="integer",
        working=(
            _counting(scene, a),
            _counting(scene, b),
            f"{n}+{m}={n + m}",
            f"{n + m}*{k}={(n + m) * k}",
        ),
    )


def _cost(rng: random.Random, scene: Scene) -> Task:
    a = _attribute(rng, scene, tuple(COLOURS))
    b = _attribute(rng, scene, tuple(COLOURS), but=a)
    n, m = _count(scene, a), _count(scene, b)
    p, q = rng.randint(2, 5), rng.randint(2, 5)
    return Task(
        text=f"One {a} object costs {p}, one {b} object costs {q}. What do they cost in all?",
        gold=str(n * p + m * q),
        answer_type="integer",
        working=(
            _counting(scene, a),
            _counting(scene, b),
            f"{n}*{p}={n * p}",
            f"{m}*{q}={m * q}",
            f"{n * p}+{m * q}={n * p + m * q}",
        ),
    )


def _exists(rng: random.Random, scene: Scene) -> Task:
    present = [a for a in _pairs(scene) if _count(scene, a)]
    absent = [a for a in _pairs(scene) if not _count(scene, a)]
    a = rng.choice(present if rng.random() < 0.5 else absent)
    n = _count(scene, a)
    return Task(
        text=f"Is there a {a}?",
        gold="yes" if n else "no",
        answer_type="yes_no",
        working=(f"{a} {n}",),
    )


def _place(scene: Scene, index: int) -> str:
    row, column = divmod(index, scene.columns)
    return f"row {row + 1}, column {column + 1}"


def _naming(rng: random.Random, scene: Scene, part: int, kinds: Sequence[str], what: str) -> Task:
    index = rng.choice([i for i, item in enumerate(scene.cells) if item])
    item = scene.cells[index]
    assert item is not None
    options = rng.sample(list(kinds), len(kinds))
    return Task(
        text=f"What {what} is the object in {_place(scene, index)}?",
        gold="ABC"[options.index(item[part])],
        answer_type="choice",
        working=(f"{_place(scene, index)} {' '.join(item)}",),
        options=tuple(options),
    )


def _colour(rng: random.Random, scene: Scene) -> Task:
    return _naming(rng, scene, 0, tuple(COLOURS), "colour")


def _shape(rng: random.Random, scene: Scene) -> Task:
    return _naming(rng, scene, 1, SHAPES, "shape")


def _empty(rng: random.Random, scene: Scene) -> Task:
    empty = rng.random() < 0.5 and None in scene.cells
    index = rng.choice([i for i, item in enumerate(scene.cells) if (item is None) == empty])
    item = scene.cells[index]
    return Task(
        text=f"Is {_place(scene, index)} empty?",
        gold="no" if item else "yes",
        answer_type="yes_no",
        working=(f"{_place(scene, index)} {' '.join(item) if item else EMPTY}",),
    )


def _first(rng: random.Random, scene: Scene) -> Task:
    word, index = rng.choice((("first", 0), ("last", -1)))
    item = " ".join(scene.objects[index])
    return Task(
        text=f"Reading row by row, what is the {word} object?",
        gold=item,
        answer_type="text",
        working=(f"{word} {item}",),
    )


def _row_total(rng: random.Random, scene: Scene) -> Task:
    row = rng.randrange(scene.rows)
    n = sum(item is not None for item in scene.row(row))
    return Task(
        text=f"How many objects are in row {row + 1}?",
        gold=str(n),
        answer_type="integer",
        working=(f"row {row + 1} {n}",),
    )


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of question: its level of difficulty (1 = perception) and its generator."""

    level: int
    make: Callable[[random.Random, Scene], Task | None]


REASONING_FAMILIES = {
    "count": Family(level=1, make=_count_one),
    "count_pair": Family(level=2, make=_count_pair),
    "compare": Family(level=3, make=_compare),
    "most": Family(level=3, make=_most),
    "difference": Family(level=4, make=_difference),
    "formula": Family(level=5, make=_formula),
    "cost": Family(level=6, make=_cost),
}
GENERAL_FAMILIES = {
    "exists": Family(level=1, make=_exists),
    "colour": Family(level=1, make=_colour),
    "shape": Family(level=1, make=_shape),
    "empty": Family(level=1, make=_empty),
    "reading_order": Family(level=2, make=_first),
    "row_total": Family(level=2, make=_row_total),
}
FAMILIES = {**REASONING_FAMILIES, **GENERAL_FAMILIES}


def questions(
    split: str,
    size: int,
    *,
    seed: int = 0,
    families: Sequence[str] | None = None,
    pictures: bool = True,
) -> list[Question]:
    """``size`` questions of a split, the families in turn, deterministic from ``seed``.

    Without ``families``: the general ones for the split ``general``, else the reasoning ones.
    Question i does not depend on ``size``. ``pictures=False`` leaves the images out, which take
    most of the time.
    """
    if families is None:
        families = tuple(GENERAL_FAMILIES if split == "general" else REASONING_FAMILIES)
    return [
        question(split, i, seed=seed, family=families[i % len(families)], picture=pictures)
        for i in range(size)
    ]


def question(split: str, index: int, *, seed: int, family: str, picture: bool = True) -> Question:
    """Question ``index`` of a split in one family."""
    rng = random.Random(f"{seed}/{split}/{family}/{index}")
    task = None
    while task is None:
        scene = sample_scene(rng, split)
        task = FAMILIES[family].make(rng, scene)
    return Question(
        id=f"{split}-{seed}-{family}-{index:05d}",
        text=task.text,
        gold=task.gold,
        answer_type=task.answer_type,
        options=task.options,
        images=(render(scene),) if picture else (),
        family=family,
        level=FAMILIES[family].level,
        cluster=scene.id,
        observation=observation(scene),
        metadata={"working": list(task.working), "rows": scene.rows, "columns": scene.columns},
    )


def observation(scene: Scene) -> str:
    """The gold observation, row by row: ``1: red circle, empty cell, ...; 2: ...``."""
    rows = [
        f"{r + 1}: " + ", ".join(" ".join(item) if item else EMPTY for item in scene.row(r))
        for r in range(scene.rows)
    ]
    return "; ".join(rows)
