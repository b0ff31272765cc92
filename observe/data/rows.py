"""Rows of data sets as they are: on the Hugging Face Hub, or in files on this machine.

Nothing is decoded or believed here: images come as bytes, paths are followed only within the data
set's folder, and what cannot be read is a `Rejected` with its reason.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from observe.data.recipes import OWN, RECIPES, Recipe, Rejected
from observe.errors import InputError

MAX_BYTES = 64 * 2**20
"""Largest image file that is read."""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".PNG", ".JPG", ".JPEG")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set and where it is read from."""

    name: str
    """Prefix of its questions' ids."""
    recipe: Recipe
    place: Path | None
    """A folder or file on this machine; null takes the recipe's repository on the Hub."""


def parse_source(text: str) -> Source:
    """``NAME``, ``NAME=PATH`` (rows in the data set's own schema) or the path of a JSONL file.

    Raises InputError for a name that is no recipe and a path that is not there.
    """
    name, _, place = text.partition("=")
    if name in RECIPES:
        if place and not Path(place).exists():
            raise InputError(f"--sources: {text}: no such file or folder")
        return Source(name=name, recipe=RECIPES[name], place=Path(place) if place else None)
    path = Path(text)
    if path.is_file():
        return Source(name=path.parent.name or path.stem, recipe=OWN, place=path)
    raise InputError(
        f"--sources: {text!r} is neither a data set ({', '.join(RECIPES)}) nor a JSONL file"
    )


@dataclass(frozen=True)
class Folder:
    """Where the image paths of a file's rows lead."""

    places: tuple[Path, ...]
    """Folders that a path may be relative to, tried in order."""
    root: Path
    """Nothing outside of it is read."""


def image_bytes(image: Any, folder: Folder) -> tuple[bytes, str]:
    """The bytes of an image as rows hold it, and its name; Rejected when it cannot be had."""
    if isinstance(image, Mapping):
        if isinstance(image.get("bytes"), bytes):
            return _bounded(image["bytes"], str(image.get("path") or "image")), "image"
        image = image.get("path")
    if isinstance(image, bytes):
        return _bounded(image, "image"), "image"
    if not isinstance(image, str) or not image or "\0" in image:
        raise Rejected("no_image", f"expected a path or bytes, got {type(image).__name__}")
    try:
        return _file_bytes(image, folder)
    except (OSError, ValueError) as error:  # Too long a name, none at all, no permission.
        raise Rejected("no_image", f"{image[:80]!r}: {error}") from None


def _file_bytes(image: str, folder: Folder) -> tuple[bytes, str]:
    """The bytes of the file that is named so in one of the folder's places, and its path."""
    for place in folder.places:
        path = place / image
        named = [path] if path.suffix else [path.with_name(path.name + s) for s in _SUFFIXES]
        for candidate in [path, *named]:
            if not candidate.resolve().is_relative_to(folder.root.resolve()):
                raise Rejected("outside", f"{image} leads out of {folder.root}")
            if candidate.is_file():
                if candidate.stat().st_size > MAX_BYTES:
                    raise Rejected("bomb", f"{image}: more than {MAX_BYTES >> 20} MiB")
                return candidate.read_bytes(), str(candidate)
    raise Rejected("no_image", f"no file {image} in {folder.root}")


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > MAX_BYTES:
        raise Rejected("bomb", f"{name}: more than {MAX_BYTES >> 20} MiB")
    return data


def raw_rows(source: Source) -> Iterator[tuple[str, Any, Folder]]:
    """Where each row stands, the row (or why it is none), and where its images lie."""
    recipe, place = source.recipe, source.place
    if place is None:
        if recipe.files:
            place, root = _fetch(recipe, recipe.hub or "")
        else:
            yield from _from_hub(recipe)
            return
    else:
        root = place if place.is_dir() else place.parent
    files = [place] if place.is_file() else data_files(place)
    if not files:
        raise InputError(f"{place}: no .jsonl, .json or .parquet file in it")
    for file in files:
        bases = dict.fromkeys((file.parent, place if place.is_dir() else place.parent))
        folder = Folder(tuple(base / name for base in bases for name in recipe.images_below), root)
        for where, raw in read_file(file):
            yield where, raw, folder


def data_files(folder: Path) -> list[Path]:
    """The files of rows in a folder; further down only where there are none at its top."""
    for pattern in ("*", "**/*"):
        found = sorted(
            path
            for path in folder.glob(pattern)
            if path.suffix in (".jsonl", ".json", ".parquet") and path.is_file()
        )
        if found:
            return found
    return []


def read_file(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of a JSON lines, JSON (a list, or lists by group) or Parquet file, and where they stand.

    A line that is no JSON comes as Rejected. Raises InputError for a file that is not what its
    name says.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            file = pyarrow.parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a Parquet file ({error})") from None
        number = 0
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
        return
    try:
        if path.suffix == ".json":
            whole = json.loads(path.read_text(encoding="utf-8"))
            groups = whole if isinstance(whole, dict) else {"": whole}
            for group, rows in groups.items():
                for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
                    named = {"group": group, **row} if group and isinstance(row, dict) else row
                    yield f"{path}:{group}[{number}]", named
            return
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    yield f"{path}:{number}", json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    yield f"{path}:{number}", Rejected("malformed", f"not valid JSON ({error})")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a JSON text file ({error})") from None


def _from_hub(recipe: Recipe) -> Iterator[tuple[str, Any, Folder]]:
    """Rows of a Hub data set, their images as bytes; nothing is decoded here."""
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    try:
        rows = load_dataset(recipe.hub, split=recipe.split)
    except Exception as error:  # Whatever the network, the Hub or a changed repository come to.
        raise InputError(
            f"--sources: {recipe.name}: {recipe.hub} cannot be loaded from the Hub "
            f"({type(error).__name__}: {error}); where it cannot be reached, fetch it elsewhere "
            f"and give its folder: --sources {recipe.name}=FOLDER"
        ) from None
    for column, feature in rows.features.items():
        if isinstance(feature, ImageFeature):
            rows = rows.cast_column(column, ImageFeature(decode=False))
    nowhere = Folder((), Path())
    for number, row in enumerate(rows):
        yield f"{recipe.hub}:{recipe.split}[{number}]", row, nowhere


def _fetch(recipe: Recipe, hub: str) -> tuple[Path, Path]:
    """The folder of a repository of plain files, and what the links in it may lead to."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(hub, repo_type="dataset", allow_patterns=list(recipe.files))
        )
    except Exception as error:  # As above.
        raise InputError(
            f"--sources: {recipe.name}: {hub} cannot be fetched from the Hub "
            f"({type(error).__name__}: {error}); give its folder: --sources {recipe.name}=FOLDER"
        ) from None
    if archives := sorted(folder.glob("*.zip")):
        unpacked = archives[0].with_suffix("")
        if not unpacked.is_dir():
            raise InputError(
                f"{archives[0]}: unpack it, beside the files that lie with it, and give that "
                f"folder: --sources {recipe.name}=FOLDER"
            )
    return folder, folder.parent.parent
