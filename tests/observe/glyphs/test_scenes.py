"""Scenes: every layout in one split, every picture from its seed."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observe.glyphs.scenes import (
    CELL_PX,
    COLOURS,
    COLUMN_TINT,
    HELD_OUT,
    MAX_OBJECTS,
    ROW_TINT,
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


@pytest.mark.parametrize("split", IN_DISTRIBUTION)
def test_a_scene_has_few_kinds_so_that_counts_of_one_kind_vary(split):
    found = scenes(split)
    assert all(len(set(scene.objects)) <= 4 for scene in found)
    repeats = [len(set(scene.objects)) < len(scene.objects) for scene in found]
    assert sum(repeats) > 0.5 * len(found)


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


def sheet(side, render_seed):
    """Mean colour (side, side, 3) of each cell's paper, nothing drawn on it."""
    blank = Scene(rows=side, columns=side, cells=(None,) * side**2, render_seed=render_seed)
    return by_cell(pixels_of(blank), side).mean(axis=(2, 3))


def pixels_of(scene):
    return np.asarray(render(scene), float)


def by_cell(pixels, side=3):
    """Pixels cell by cell: (row, column, y, x, channel)."""
    return pixels.reshape(side, CELL_PX, side, CELL_PX, 3).transpose(0, 2, 1, 3, 4)


@pytest.mark.parametrize("side", [3, 4])
@pytest.mark.parametrize("render_seed", range(3))
def test_the_tint_of_the_paper_tells_rows_and_columns_apart(side, render_seed):
    red, green, blue = np.moveaxis(sheet(side, render_seed), -1, 0)
    # Noise moves a cell's mean by about one; what is brighter than white is cut off.
    assert (red[:-1] - red[1:] > ROW_TINT / 2).all()
    assert (blue[:, :-1] - blue[:, 1:] > COLUMN_TINT / 2).all()
    assert np.ptp(red, axis=1).max() < ROW_TINT / 4
    assert np.ptp(blue, axis=0).max() < COLUMN_TINT / 4
    assert np.ptp(green) < ROW_TINT / 4


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_is_painted_in_its_colour_in_its_cell_alone(colour):
    cells = [None] * 9
    cells[5] = (colour, "square")
    pixels = pixels_of(Scene(rows=3, columns=3, cells=tuple(cells), render_seed=4))
    change = np.abs(by_cell(pixels).mean(axis=(2, 3)) - sheet(3, render_seed=4)).max(axis=-1)
    assert int(np.argmax(change)) == 5
    assert np.sort(change, axis=None)[-1] > 20 > 5 > np.sort(change, axis=None)[-2]
    middle = pixels[22:26, 38:42].mean(axis=(0, 1))
    nearest = min(COLOURS, key=lambda name: np.abs(middle - COLOURS[name]).sum())
    assert nearest == colour


def test_the_shapes_differ_in_how_much_of_their_box_they_fill():
    def filled(shape):
        scene = Scene(rows=3, columns=3, cells=(("red", shape),) * 9, render_seed=9)
        inked = by_cell(pixels_of(scene))[..., 2].reshape(9, CELL_PX, CELL_PX) < 127
        boxes = [ink[np.ix_(ink.any(axis=1), ink.any(axis=0))] for ink in inked]
        return np.mean([box.mean() for box in boxes])

    assert set(SHAPES) == {"triangle", "circle", "square"}
    assert filled("triangle") < 0.7 < filled("circle") < 0.88 < filled("square")
