"""Which questions of a pool a benchmark asks too: near-equal images, shared runs of words.

Images are compared by a perceptual hash (signs of the lowest frequencies of a cosine transform),
which survives scaling, re-encoding, tinting and added margins, and not cropping, turning or
mirroring. Texts are compared by the share of the question's runs of words (n-grams) that one item
of the benchmark holds too.
"""

import dataclasses
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from observe.data.images import decode_image, read_image
from observe.data.recipes import OWN, RECIPES, Rejected, read_row
from observe.data.rows import Folder, Source, image_bytes, parse_source, raw_rows
from observe.errors import InputError

SIDE = 64
"""Images are compared at this many pixels a side."""
BITS = 256
"""Of a hash: the 16 x 16 lowest frequencies."""
MAX_BITS = 40
"""Images whose hashes differ in at most so many bits are taken for the same."""
FAINT = 0.25
"""What differs from the paper by less than this share of what differs most is no part of the
drawing, but a trace of compression."""
BLANK = 8
"""An image whose brightness differs by no more than this (of 255) shows nothing."""
MAX_STRETCH = 1.15
"""The same image has the same ratio of its sides, up to this factor."""
WORDS = 8
"""Length of the runs of words; a shorter question is told by its image alone."""
MIN_SHARE = 0.5
"""Least share of a question's runs that an item holds when it asks the same."""
COMMON = 10
"""A run of words that more items of the benchmarks hold is a turn of phrase, and tells nothing."""
RULE = {"bits": BITS, "max_bits": MAX_BITS, "words": WORDS, "min_share": MIN_SHARE}
"""When a question is taken for an item, as it is recorded."""

_ONES = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(1)
"""Bits that are set in each number of 16 bits."""
_SAID = 2048
"""Questions between two lines of progress."""
_TEXT_KEYS = ("text", "question", "problem", "query", "Question")
_IMAGE_KEYS = ("images", "image", "decoded_image", "image_path", "ImagePath")
_ANY = dataclasses.replace(OWN, name="any")


class Look(NamedTuple):
    """What an image looks like."""

    bits: bytes
    """32 of them."""
    ratio: float
    """Width by height, without margins."""


class Item(NamedTuple):
    """An item of a benchmark."""

    name: str
    where: str
    """File and line."""
    text: str
    looks: list[Look]


@dataclass(frozen=True, kw_only=True)
class Match:
    """A question that an item of a benchmark asks, too."""

    question: str
    reference: str
    item: str
    where: str
    """File and line of the item."""
    image_bits: int | None
    """Bits in which the nearest images differ; null when they are not the same."""
    text_share: float | None
    """Share of the question's runs of words in the item; null when it is small."""


def look(image: Image.Image) -> Look | None:
    """The perceptual hash of an RGB image; None when it shows nothing but one colour."""
    # A quick reduction first: the hash needs few pixels.
    image = image.copy()
    image.thumbnail((512, 512))
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    contrast = np.abs(grey - np.median(border))
    if contrast.max() <= BLANK:
        return None
    drawn = contrast > FAINT * contrast.max()
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    left, top, right, bottom = map(int, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    shown = image.convert("L").crop((left, top, right, bottom))
    small = np.asarray(shown.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    low = _COSINES @ small @ _COSINES.T
    low[0, 0] = 0  # Brightness as a whole.
    signs = (low > np.median(low)).ravel()
    return Look(np.packbits(signs).tobytes(), shown.width / shown.height)


_COSINES = np.cos(np.pi / SIDE * (np.arange(SIDE) + 0.5) * np.arange(16)[:, None])


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """The n-grams of a text: lower case, letters and digits alone."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(c if c.isalnum() else " " for c in plain).split()
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


class References:
    """Items of benchmarks, found again by what they look like and by their runs of words."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = list(items)
        looks = [(one, number) for number, item in enumerate(items) for one in item.looks]
        self._bits = _as_words([one for one, _ in looks])
        self._ratios = np.array([one.ratio for one, _ in looks])
        self._owners = np.array([number for _, number in looks], dtype=int)
        self._runs: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, item in enumerate(self.items):
            for run in runs_of_words(item.text):
                self._runs[run].append(number)

    def nearest_image(self, looks: Sequence[Look]) -> tuple[int, int] | None:
        """(bits, item) of the item whose image differs least, if one is the same."""
        found = []
        for one in looks:
            differ = _ONES[self._bits ^ _as_words([one])].sum(1)
            stretch = np.maximum(self._ratios / one.ratio, one.ratio / self._ratios)
            same = np.flatnonzero((differ <= MAX_BITS) & (stretch <= MAX_STRETCH))
            found += [(int(differ[i]), int(self._owners[i])) for i in same]
        return min(found, default=None)

    def nearest_text(self, text: str) -> tuple[float, int] | None:
        """(share, item) of the item that holds most of the text's runs, if it holds enough."""
        holders = [self._runs.get(run, ()) for run in runs_of_words(text)]
        telling = [numbers for numbers in holders if len(numbers) <= COMMON]
        counts = Counter(number for numbers in telling for number in numbers)
        if not counts:
            return None
        number, count = max(counts.items(), key=lambda pair: (pair[1], -pair[0]))
        share = count / len(telling)
        return (share, number) if share >= MIN_SHARE else None


def _as_words(looks: Sequence[Look]) -> np.ndarray:
    """Hashes as rows of 16 numbers of 16 bits."""
    return np.frombuffer(b"".join(one.bits for one in looks), np.uint16).reshape(-1, BITS // 16)


def find_matches(
    records: Sequence[Mapping[str, Any]],
    folder: Path,
    against: Sequence[str],
    say: Callable[[str], None] = lambda text: None,
) -> tuple[list[Match], list[dict[str, Any]]]:
    """The records of a pool that ``against`` asks too, and what each reference held.

    ``against`` names data sets as sources are named, or files and folders of rows with a question
    and images. Raises InputError for one that cannot be read or holds no item.
    """
    references: list[tuple[str, References]] = []
    told: list[dict[str, Any]] = []
    for name in against:
        items, unread = read_reference(name)
        if not items:
            raise InputError(f"--against: {name}: no item with a question or an image found there")
        references.append((name, References(items)))
        told.append({"name": name, "items": len(items), "unread": unread})
    matches = []
    for number, (record, looks) in enumerate(_with_looks(records, folder) if against else ()):
        if number % _SAID == 0:
            say(f"{number} of {len(records)} questions compared with {', '.join(against)}")
        for name, reference in references:
            by_image = reference.nearest_image(looks)
            by_text = reference.nearest_text(record["text"])
            if by_image is None and by_text is None:
                continue
            found = by_image[1] if by_image else by_text[1] if by_text else 0
            matches.append(
                Match(
                    question=record["id"],
                    reference=name,
                    item=reference.items[found].name,
                    where=reference.items[found].where,
                    image_bits=by_image[0] if by_image else None,
                    text_share=round(by_text[0], 3) if by_text else None,
                )
            )
    for held in told:
        held["matched"] = sum(match.reference == held["name"] for match in matches)
    return matches, told


def _with_looks(
    records: Sequence[Mapping[str, Any]], folder: Path
) -> Iterator[tuple[Mapping[str, Any], list[Look]]]:
    """Records of a pool and what their images look like."""

    def looks(record: Mapping[str, Any]) -> list[Look]:
        images = (read_image(folder / file) for file in record.get("images", ()))
        return [one for one in map(look, images) if one]

    with ThreadPoolExecutor() as threads:
        for start in range(0, len(records), _SAID):
            block = records[start : start + _SAID]
            yield from zip(block, threads.map(looks, block), strict=True)


def read_reference(name: str) -> tuple[list[Item], int]:
    """The items of a benchmark, and how many rows or images of it could not be read."""
    if name.partition("=")[0] in RECIPES:
        source = parse_source(name)
    elif (place := Path(name)).exists():
        source = Source(name=name, recipe=_ANY, place=place)
    else:
        raise InputError(
            f"--against: {name!r} is neither a data set ({', '.join(RECIPES)}) nor a file or folder"
        )
    items, unread = [], 0
    for number, (where, raw, folder) in enumerate(raw_rows(source)):
        if not isinstance(raw, Mapping):
            unread += 1
            continue
        text, images = _asked(source, raw, number)
        looks = []
        for image in images:
            try:
                seen = look(_picture(image, folder))
            except (Rejected, InputError):
                unread += 1
                continue
            if seen:
                looks.append(seen)
        if text or looks:
            items.append(Item(str(raw.get("id", number)), where, text, looks))
    return items, unread


def _picture(image: Any, folder: Folder) -> Image.Image:
    data, name = image_bytes(image, folder)
    return decode_image(data, name)


def _asked(source: Source, raw: Mapping[str, Any], number: int) -> tuple[str, Sequence[Any]]:
    """Question and images of a row of a known schema, or of any that names them as is usual."""
    if source.recipe is not _ANY:
        try:
            row = read_row(source.recipe, raw, number)
        except Rejected:
            pass
        else:
            return row.text, row.images
    text = next((raw[key] for key in _TEXT_KEYS if isinstance(raw.get(key), str)), "")
    images = next((raw[key] for key in _IMAGE_KEYS if raw.get(key)), ())
    return text, images if isinstance(images, list) else [images] if images else []
