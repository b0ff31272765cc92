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
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the default example, tables only."""
    return write_example(tmp_path_factory.mktemp("example"), Made(clusters=25))


@pytest.fixture(scope="session")
def built(example: Path) -> Path:
    """The report of the default example, in all formats."""
    return build_report(example)
