"""What is known of each public benchmark: where it lies, how it is judged, who may have seen it.

Light on purpose (no torch, no datasets): the command line lists it and refuses unknown names.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml

REGISTRY = Path(__file__).parent / "registry.yaml"

Fact = Literal["hub", "configs", "split", "revision", "licence", "items", "related", "fields"]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark; its adapter is the function of `benchmarks.adapters` that is named here."""

    hub: str
    """Data set on the Hugging Face Hub."""
    configs: tuple[str, ...] = ()
    """Configurations of the data set, read one after the other; empty: its only one."""
    split: str
    """Split with gold answers."""
    revision: str | None = None
    """Commit of the data set that the adapter was written for; null: not known, the newest."""
    licence: str
    """As the data set states it."""
    items: int
    """Questions in the split."""
    adapter: str
    """Function that makes a question of a row."""
    answer: str
    """Kinds of answers, in words."""
    metric: Literal["exact", "relaxed"] = "exact"
    """relaxed: a number within 5% of the gold is right too (ChartQA)."""
    cluster: str
    """What questions that are not independent share; `image` is the image's content."""
    groups: tuple[str, ...] = ()
    """Groups of items that also count as a whole: right when all of the group are."""
    trained_on: tuple[str, ...] = ()
    """NeuraLadder's sources that draw from this benchmark: a model trained on it has seen it."""
    related: tuple[str, ...] = ()
    """NeuraLadder's sources that draw from the same data sets, maybe from other splits."""
    folders: tuple[str, ...] = ()
    """Further names of its folder under --data-dir."""
    note: str = ""
    """What else a reader of its scores should know."""
    unverified: tuple[Fact, ...] = ()
    """Facts remembered, not read: check them before publishing."""


@cache
def read_registry() -> dict[str, Benchmark]:
    """Name of the lm-eval task -> benchmark. The embedded world's benchmarks are not in it."""
    return {
        name: from_mapping(Benchmark, entry, source=str(REGISTRY), key=name)
        for name, entry in load_yaml(REGISTRY).items()
    }


def find(name: str) -> Benchmark:
    """The benchmark of this name; raises InputError listing the known ones."""
    registry = read_registry()
    if name not in registry:
        raise InputError(f"no benchmark {name!r}; known: {', '.join(registry)}")
    return registry[name]


def describe() -> str:
    """The registry as a table, one line per benchmark; what was remembered only has a "?"."""
    rows = [("benchmark", "data set", "split", "items", "licence", "metric", "cluster", "seen in")]
    for name, one in read_registry().items():
        sure = {fact: "?" * (fact in one.unverified) for fact in ("hub", "split", "items")}
        licence = one.licence + "?" * ("licence" in one.unverified)
        related = [f"({source}{'?' * ('related' in one.unverified)})" for source in one.related]
        rows.append(
            (name, one.hub + sure["hub"], one.split + sure["split"], f"{one.items}{sure['items']}")
            + (licence, one.metric, one.cluster, ", ".join([*one.trained_on, *related]) or "-")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, "", "?: remembered, not read. (in brackets): from the same sources."])
