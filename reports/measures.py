"""The analyses of a sweep's measures (score, length, form ...), each made once and shared."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from reports.analysis import Analysis, Settings
from reports.stats.effects import Design
from reports.stats.outcomes import Layout, layout, outcome
from reports.tables import Tables


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Item measures of one sweep: `of("response_tokens")` is the analysis of that column."""

    tables: Tables
    settings: Settings
    designs: dict[tuple[str, ...], Design] = field(default_factory=dict)
    """What was computed from the runs' levels, shared by all analyses of the same runs."""
    _known: dict[str, Analysis | None] = field(default_factory=dict)

    @cached_property
    def _layout(self) -> Layout:
        return layout(self.tables.items)

    def of(self, measure: str) -> Analysis | None:
        """The analysis of an item column; None where no item has it."""
        if measure not in self._known:
            tables = self.tables
            measured = outcome(tables.items, measure, tables.suites, self._layout)
            self._known[measure] = (
                None
                if measured is None
                else Analysis(tables, measured, self.settings, self.designs)
            )
        return self._known[measure]
