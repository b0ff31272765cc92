"""Scenes: a grid of cells, each empty or holding one coloured shape, and their pictures."""

import hashlib
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

CELL_PX = 16
COLOURS = {"red": (214, 60, 52), "green": (64, 168, 72), "blue": (58, 92, 206)}
ROW_TINT = COLUMN_TINT = 24
"""How much darker in red each row's paper is than the one above it, and in blue each column's than
the one to its left: a cell shows where it is, as a ruled sheet does."""
SHAPES = ("circle", "square", "triangle")
HELD_OUT = frozenset({("green", "triangle"), ("blue", "circle")})
"""Combinations that occur in the out-of-distribution split alone."""
MAX_OBJECTS = 5
"""Most objects of a scene, but in the out-of-distribution split."""

Item = tuple[str, str]
"""(colour, shape)"""

_SUPERSAMPLING = 4
_SEEN = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)
_SPLIT_OF_BUCKET = [
    ("train", 80),
    ("validation", 5),
    ("reasoning", 8),
    ("general", 7),
]  # per cent of all layouts; a layout belongs to exactly one split by its hash


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture's content; ``cells`` holds rows x columns entries in reading order."""

    rows: int
    columns: int
    cells: tuple[Item | None, ...]
    render_seed: int

    @property
    def objects(self) -> list[Item]:
        """The objects in reading order."""
        return [cell for cell in self.cells if cell is not None]

    @property
    def id(self) -> str:
        """A name of the layout (12 hex digits); scenes of one layout are one cluster."""
        return hashlib.sha256(repr((self.rows, self.columns, self.cells)).encode()).hexdigest()[:12]

    def row(self, index: int) -> tuple[Item | None, ...]:
        """The cells of one row."""
        return self.cells[index * self.columns : (index + 1) * self.columns]


def split_of(scene: Scene) -> str:
    """The one split a layout can occur in, so that no two splits share a scene."""
    held_out = any(item in HELD_OUT for item in scene.objects)
    if scene.rows * scene.columns > 9 or len(scene.objects) > MAX_OBJECTS or held_out:
        return "ood"
    bucket = int(scene.id, 16) % 100
    for split, share in _SPLIT_OF_BUCKET:
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("shares add up to 100")


def sample_scene(rng: random.Random, split: str) -> Scene:
    """A random scene of a split.

    ``ood`` mixes three shifts in equal parts: more objects than ever seen, colour-shape
    combinations never seen, and a 4 x 4 grid.
    """
    shift = rng.choice(("count", "combination", "grid")) if split == "ood" else ""
    while True:
        side = 4 if shift == "grid" else 3
        if shift == "count":
            count = rng.randint(MAX_OBJECTS + 1, 8)
        elif shift == "grid":
            count = rng.randint(4, 7)
        else:
            count = rng.randint(2, MAX_OBJECTS)
        # Few kinds in a scene, so that counts of one kind vary.
        kinds = rng.sample(_SEEN, rng.randint(2, 4))
        items = [rng.choice(kinds) for _ in range(count)]
        if shift == "combination":
            for i in range(min(2, count)):
                items[i] = rng.choice(sorted(HELD_OUT))
        cells: list[Item | None] = [*items, *[None] * (side * side - count)]
        rng.shuffle(cells)
        scene = Scene(rows=side, columns=side, cells=tuple(cells), render_seed=rng.getrandbits(32))
        if split_of(scene) == split:
            return scene


def render(scene: Scene) -> Image.Image:
    """The picture of a scene: RGB, 16 pixels a cell on tinted paper, with jitter and noise."""
    rng = np.random.default_rng(scene.render_seed)
    scale = _SUPERSAMPLING
    width, height = scene.columns * CELL_PX, scene.rows * CELL_PX
    canvas = Image.new("RGB", (width * scale, height * scale))
    draw = ImageDraw.Draw(canvas)
    for index, item in enumerate(scene.cells):
        row, column = divmod(index, scene.columns)
        draw.rectangle(
            [
                column * CELL_PX * scale,
                row * CELL_PX * scale,
                (column + 1) * CELL_PX * scale - 1,
                (row + 1) * CELL_PX * scale - 1,
            ],
            fill=(250 - ROW_TINT * row, 240, 250 - COLUMN_TINT * column),
        )
        if item is None:
            continue
        colour, shape = item
        radius = rng.uniform(4.4, 6.2) * scale
        x = ((column + 0.5) * CELL_PX + rng.uniform(-1.2, 1.2)) * scale
        y = ((row + 0.5) * CELL_PX + rng.uniform(-1.2, 1.2)) * scale
        fill = tuple(
            int(v) for v in np.clip(np.array(COLOURS[colour]) + rng.normal(0, 14, 3), 0, 255)
        )
        if shape == "circle":
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
        elif shape == "square":
            side = radius * 0.88
            draw.rectangle([x - side, y - side, x + side, y + side], fill=fill)
        else:
            draw.polygon(
                [(x, y - radius), (x - radius, y + 0.8 * radius), (x + radius, y + 0.8 * radius)],
                fill=fill,
            )
    pixels = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=np.float32)
    noisy = pixels + rng.normal(0, 10, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
