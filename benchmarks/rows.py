"""Rows of a public benchmark: from local files, or from the Hub's cache, checked one by one.

Local files hold rows in the Hub's schema: JSONL (also gzipped) whose image fields are paths below
the file's folder, or parquet as downloaded from the Hub. Nothing outside the folder is read, and
nothing is decompressed without a limit.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from benchmarks import adapters
from benchmarks.adapters import BadRow, Row
from benchmarks.config import OnBadItem
from benchmarks.docs import to_dataset_of_docs, to_doc
from benchmarks.registry import Benchmark, find
from observe.data.images import decode_image, read_image
from observe.data.sources import Skipped, describe_skipped
from observe.errors import InputError

MAX_LINE = 2**24
"""Characters of a row in a JSONL file."""
MAX_BYTES = 2**31
"""Bytes of a JSONL file after decompression."""
MAX_IMAGE_BYTES = 2**26
"""Bytes of an image file; a larger one is not opened."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The usable questions of a benchmark, as documents, and what was left out."""

    benchmark: str
    docs: list[dict[str, Any]] = field(repr=False)
    skipped: list[Skipped]
    source: str
    """``local``, or the Hub id."""
    revision: str | None


def dataset(
    benchmark: str,
    data_dir: str | None = None,
    limit: int | None = None,
    on_bad_item: OnBadItem = "stop",
    **_: Any,
) -> dict[str, Dataset]:
    """`custom_dataset` of the public benchmarks: one split, `test`."""
    return {"test": to_dataset_of_docs(load(benchmark, data_dir, limit, on_bad_item).docs)}


# A worker process evaluates many arms on the same questions.
@lru_cache(maxsize=32)
def load(benchmark: str, data_dir: str | None, limit: int | None, on_bad_item: OnBadItem) -> Loaded:
    """The first `limit` usable questions of a benchmark (None: all), every image decoded once.

    Raises InputError where the data is not there, where nothing in it can be used, and, unless
    `on_bad_item` is ``skip``, where any of it cannot, with counts and the first of each kind.
    """
    known = find(benchmark)
    folder = None if data_dir is None else find_folder(benchmark, data_dir)
    if folder is None:
        where = known.hub
        rows = hub_rows(known)
    else:
        where = str(folder)
        rows = local_rows(folder, known)
    docs: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for number, (values, home) in enumerate(rows):
        if limit is not None and len(docs) == limit:
            break
        row_id = f"row {number}"
        try:
            if isinstance(values, BadRow):
                raise values
            row = Row(values, number, partial(_checked_image, home=home))
            question = adapters.ADAPTERS[known.adapter](row)
            row_id = f"{question.id} (row {number})"
            if question.id in seen:
                raise BadRow("duplicate_id", "an earlier row has this id")
            doc = to_doc(question, by_image=known.cluster == "image")
        except BadRow as bad:
            skipped.append(Skipped(question=row_id, reason=bad.reason, detail=bad.detail))
            continue
        except InputError as error:
            skipped.append(Skipped(question=row_id, reason="image_unreadable", detail=str(error)))
            continue
        seen.add(question.id)
        docs.append(doc)
    if skipped and (on_bad_item == "stop" or not docs):
        remedy = (
            "mend the data, or leave these out with --on_bad_item skip"
            if docs
            else "is this the data of this benchmark?"
        )
        raise InputError(f"{benchmark}: {where}: {describe_skipped(skipped)}; {remedy}")
    if not docs:
        raise InputError(f"{benchmark}: {where}: no rows")
    return Loaded(
        benchmark=benchmark,
        docs=docs,
        skipped=skipped,
        source=known.hub if folder is None else "local",
        revision=known.revision if folder is None else None,
    )


def find_folder(benchmark: str, data_dir: str) -> Path:
    """Where a benchmark's local rows lie: a folder, or a JSONL file with its images beside it.

    `data_dir` is one folder for all (with ``NAME/`` or ``NAME.jsonl`` in it, or, for a single
    benchmark, the rows themselves), or ``NAME=FOLDER`` separated by commas. Raises InputError
    saying where it was looked for.
    """
    if "=" in data_dir:
        parts = [part.partition("=") for part in data_dir.split(",") if "=" in part]
        pairs = {name.strip(): folder.strip() for name, _, folder in parts}
        named = pairs.get(benchmark)
        if not named or not Path(named).exists():
            problem = f"{named}: no such folder" if named else "not named"
            raise InputError(f"data_dir: {benchmark}: {problem}; give {benchmark}=FOLDER")
        return Path(named)
    root = Path(data_dir)
    names = (benchmark, *find(benchmark).folders)
    for name in names:
        for path in (root / name, root / f"{name}.jsonl", root / f"{name}.jsonl.gz"):
            if path.exists():
                return path
    if root.is_dir() and any(root.glob("items.jsonl*")):
        return root
    raise InputError(
        f"data_dir: {root}: no rows of {benchmark}; expected {' or '.join(names)} there (a folder "
        f"with *.jsonl or *.parquet, or NAME.jsonl), or give {benchmark}=FOLDER"
    )


Rows = Iterator[tuple[dict[str, Any] | BadRow, Path | None]]
"""Rows, or what is wrong with them, each with the folder that holds its images."""


def local_rows(path: Path, known: Benchmark) -> Rows:
    """Rows of all JSONL or else parquet files of a folder, in the order of their names.

    Of parquet files named by split only those of the benchmark's are read, and of those that lie in
    folders named by configuration, as on the Hub: another one may hold the same questions in
    Chinese, or with other options.
    """
    if path.is_file():
        yield from _jsonl_rows(path)
        return
    tables = sorted([*path.glob("*.jsonl"), *path.glob("*.jsonl.gz")])
    for table in tables:
        yield from _jsonl_rows(table)
    if tables:
        return
    parquet = sorted(path.rglob("*.parquet"))
    of_config = [one for one in parquet if {*one.relative_to(path).parts[:-1]} & set(known.configs)]
    parquet = of_config or parquet
    of_split = [one for one in parquet if re.match(rf"{re.escape(known.split)}(?!\w)", one.name)]
    if not parquet:
        raise InputError(f"{path}: neither *.jsonl nor *.parquet in it")
    import pyarrow.parquet

    for table in of_split or parquet:
        try:
            file = pyarrow.parquet.ParquetFile(table)
            for batch in file.iter_batches(batch_size=64):
                for values in batch.to_pylist():
                    yield values, path
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise InputError(f"{table}: not a readable parquet file ({error})") from None


def _jsonl_rows(path: Path) -> Rows:
    opener = gzip.open if path.suffix == ".gz" else open
    total = 0
    try:
        with opener(path, "rb") as file:
            while line := file.readline(MAX_LINE + 1):
                total += len(line)
                if len(line) > MAX_LINE or total > MAX_BYTES:
                    limit = f"a row of {MAX_LINE}" if len(line) > MAX_LINE else f"{MAX_BYTES}"
                    raise InputError(f"{path}: more than {limit} bytes; this is no question file")
                if line.strip():
                    yield _parsed(line), path.parent
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _parsed(line: bytes) -> dict[str, Any] | BadRow:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow("field", f"not valid JSON ({error})")
    if not isinstance(values, dict):
        return BadRow("field", f"expected a JSON object, got {type(values).__name__}")
    return values


def hub_rows(known: Benchmark) -> Rows:
    """Rows of a data set in the Hub's cache; they are downloaded where the Hub may be asked."""
    import datasets

    for config in known.configs or (None,):
        try:
            table = datasets.load_dataset(
                known.hub, config, split=known.split, revision=known.revision
            )
        # Offline, not found, not permitted, another split: each raises something of its own.
        except Exception as error:
            raise InputError(
                f"{known.hub}: not available ({type(error).__name__}: {str(error)[:200]}); "
                "download it with HF_DATASETS_OFFLINE=0 HF_HUB_OFFLINE=0, or give local files "
                "with --data-dir"
            ) from None
        encoded = datasets.Image(decode=False)
        for name, feature in table.features.items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(name, encoded)
            elif isinstance(getattr(feature, "feature", None), datasets.Image):
                table = table.cast_column(name, datasets.List(encoded))
        for values in table:
            yield values, None


def _checked_image(value: Any, home: Path | None) -> Path | bytes:
    """A row's image, decoded once: a file's bytes, {bytes, path}, or a path below its folder."""
    if isinstance(value, dict):
        data, value = value.get("bytes"), value.get("path")
        value = value if data is None else data
    if isinstance(value, bytes):
        if len(value) > MAX_IMAGE_BYTES:
            raise BadRow("image_unreadable", f"{len(value)} bytes; at most {MAX_IMAGE_BYTES}")
        decode_image(value, "image")
        return value
    if not isinstance(value, str):
        raise BadRow("image_missing", f"expected an image, got {type(value).__name__}")
    if home is None:
        raise BadRow("image_missing", f"only the name {value[:80]!r}, and no folder")
    try:
        root = home.resolve()
        path = (root / value).resolve()
        size = path.stat().st_size if path.is_relative_to(root) and path.is_file() else None
    except (OSError, ValueError) as error:  # Too long a name, a null character, no permission.
        raise BadRow("image_missing", f"{value[:80]!r}: {error}") from None
    if not path.is_relative_to(root):
        raise BadRow("image_outside", f"{value[:80]!r} lies outside of {home}")
    if size is None:
        raise BadRow("image_missing", f"{path}: no such file")
    if size > MAX_IMAGE_BYTES:
        raise BadRow("image_unreadable", f"{path}: {size} bytes; at most {MAX_IMAGE_BYTES}")
    read_image(path)
    return path
