from collections.abc import Callable
from pathlib import Path

import pytest

from reports.build import build_report
from reports.example import Made, write_example
from reports.tables import Tables, read_tables


@pytest.fixture
def made(tmp_path: Path) -> Callable[[Made], Tables]:
    """Writes the tables of a made-up sweep and reads them back."""

    def write(sweep: Made) -> Tables:
        return read_tables(write_example(tmp_path, sweep))

    return write


@pytest.fixture(scope="session")
def example(once: Callable[..., Path]) -> Path:
    """The folder of the default example: its tables, and the report of `built` later on."""
    return once("example", lambda folder: write_example(folder, Made(clusters=25)))


@pytest.fixture(scope="session")
def built(example: Path, once: Callable[..., Path]) -> Path:
    """The report of the default example, in all formats."""
    once("built", lambda _: build_report(example))
    return example / "report"
