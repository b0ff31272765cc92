"""How tables are read: the same whatever the file's encoding, and small in memory."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reports.analysis import Settings
from reports.build import results_of
from reports.example import Made, write_example
from reports.tables import plain, read_tables

SMALL = Made(clusters=6, effects={"format": 0.06, "bonus": 0.0}, optional=False)
TEXTS = ("run", "suite", "benchmark", "item", "cluster", "reason", "type")


def test_texts_of_items_are_categories_in_order_and_plain_writes_them_out(tmp_path: Path) -> None:
    tables = read_tables(write_example(tmp_path, SMALL))
    written = pd.read_parquet(tmp_path / "results" / "items.parquet")
    for name in TEXTS:
        column = tables.items[name]
        assert list(column.cat.categories) == sorted(written[name].unique()), name
        assert plain(tables.items)[name].tolist() == written[name].tolist()
    arm, names = tables.item_arms
    of = written["run"].map(tables.runs["arm"])
    assert [names[place] for place in arm] == of.tolist()
    suites = {("reasoning", "count"), ("reasoning", "compare")}
    assert tables.evaluated["base-think"] == suites | {
        ("general", "colour"),
        ("general", "existence"),
    }


def without_draws(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers sort otherwise as texts, so that the bootstrap draws other items."""
    drawn = ("checkpoints_low", "checkpoints_high")
    return [{name: row[name] for name in row if name not in drawn} for row in rows]


@pytest.mark.parametrize("written", ["categories", "large", "groups", "numbers"])
def test_a_table_says_the_same_however_it_is_written(tmp_path: Path, written: str) -> None:
    expected = results_of(read_tables(write_example(tmp_path, SMALL)), Settings())
    file = tmp_path / "results" / "items.parquet"
    items = pd.read_parquet(file)
    if written == "categories":
        items.astype(dict.fromkeys([*TEXTS, "score"], "category")).to_parquet(file)
    elif written == "large":
        table = pa.Table.from_pandas(items, preserve_index=False)
        kinds = [
            pa.field(one.name, pa.large_string() if one.name in TEXTS else one.type)
            for one in table.schema
        ]
        pq.write_table(table.cast(pa.schema(kinds)), file, use_dictionary=False)
    elif written == "groups":
        items.to_parquet(file, row_group_size=100)
    else:
        items["item"] = items["item"].str[-4:].astype(int)
        items["cluster"] = items["cluster"].str[-3:].astype(int)
        items.to_parquet(file)
    found = results_of(read_tables(tmp_path), Settings())
    assert found["effects"] == expected["effects"]
    assert without_draws(found["contrasts"]) == without_draws(expected["contrasts"])
    assert found["paths"] == expected["paths"] and found["agreement"] == expected["agreement"]
