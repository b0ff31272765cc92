"""Scenes: every layout in one split, every picture from its seed."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observe.glyphs.scenes import (
    CELL_PX,
    COLOURS,
    HELD_OUT,
    MAX_OBJECTS,
    SHAPES,
    Scene,
    render,
    sample_scene,
    split_of,
)

IN_DISTRIBUTION = ("train", "validation", "reasoning", "general")
SPLITS = (*IN_DISTRIBUTION, "ood")


def scenes(split, number=400):
    rng = random.Random(f"test/{split}")
    return [sample_scene(rng, split) for _ in range(number)]


def shifts(scene):
    return {
        "count": len(scene.objects) > MAX_OBJECTS,
        "combination": any(item in HELD_OUT for item in scene.objects),
        "grid": (scene.rows, scene.columns) == (4, 4),
    }


@given(st.integers(0, 10**9), st.sampled_from(SPLITS))
def test_a_scene_is_of_the_split_it_was_drawn_for(seed, split):
    assert split_of(sample_scene(random.Random(seed), split)) == split


@pytest.mark.parametrize("split", IN_DISTRIBUTION)
def test_only_the_ood_split_is_shifted(split):
    for scene in scenes(split):
        assert not any(shifts(scene).values())
        assert 2 <= len(scene.objects) <= MAX_OBJECTS
        assert len(scene.cells) == scene.rows * scene.columns == 9


def test_the_ood_split_mixes_three_shifts_in_equal_parts():
    found = [shifts(scene) for scene in scenes("ood", 900)]
    # A large grid may be crowded as well: it has more room.
    parts = {
        "grid": sum(s["grid"] for s in found),
        "count": sum(s["count"] and not s["grid"] for s in found),
        "combination": sum(s["combination"] for s in found),
    }
    assert sum(parts.values()) == 900
    assert all(240 <= number <= 360 for number in parts.values()), parts


def test_layouts_are_spread_over_the_splits_by_their_shares():
    rng = random.Random(0)
    drawn = [_layout(rng) for _ in range(4000)]
    share = {s: sum(split_of(scene) == s for scene in drawn) / 4000 for s in IN_DISTRIBUTION}
    assert share == pytest.approx(
        {"train": 0.80, "validation": 0.05, "reasoning": 0.08, "general": 0.07}, abs=0.02
    )


def _layout(rng):
    seen = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT]
    cells = [rng.choice(seen) for _ in range(rng.randint(2, MAX_OBJECTS))]
    cells += [None] * (9 - len(cells))
    rng.shuffle(cells)
    return Scene(rows=3, columns=3, cells=tuple(cells), render_seed=0)


def test_a_layout_has_one_name_whatever_its_picture():
    cells = (("red", "circle"), None, None, None)
    one = Scene(rows=2, columns=2, cells=cells, render_seed=1)
    two = Scene(rows=2, columns=2, cells=cells, render_seed=2)
    other = Scene(rows=2, columns=2, cells=cells[::-1], render_seed=1)
    assert one.id == two.id != other.id
    assert render(one).tobytes() != render(two).tobytes()


def test_a_picture_is_made_from_its_scene_alone():
    scene = sample_scene(random.Random(3), "train")
    picture = render(scene)
    np.random.seed(7)
    random.seed(7)
    assert picture.tobytes() == render(scene).tobytes()
    assert picture.size == (3 * CELL_PX, 3 * CELL_PX)
    assert picture.mode == "RGB"


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_is_painted_in_its_colour_in_its_cell_alone(colour):
    cells = [None] * 9
    cells[5] = (colour, "square")
    pixels = np.asarray(render(Scene(rows=3, columns=3, cells=tuple(cells), render_seed=4)), float)
    darkness = [
        236 - pixels[r : r + CELL_PX, c : c + CELL_PX].mean()
        for r in range(0, 48, CELL_PX)
        for c in range(0, 48, CELL_PX)
    ]
    assert int(np.argmax(darkness)) == 5
    assert sorted(darkness)[-1] > 20 > 10 > sorted(darkness)[-2]
    middle = pixels[22:26, 38:42].mean(axis=(0, 1))
    nearest = min(COLOURS, key=lambda name: np.abs(middle - COLOURS[name]).sum())
    assert nearest == colour


def test_the_shapes_differ_in_the_area_they_cover():
    def area(shape):
        cells = tuple(("red", shape) for _ in range(9))
        picture = np.asarray(render(Scene(rows=3, columns=3, cells=cells, render_seed=9)), float)
        return (picture[..., 2] < 140).mean()

    areas = {shape: area(shape) for shape in SHAPES}
    assert len({round(a, 2) for a in areas.values()}) == 3
