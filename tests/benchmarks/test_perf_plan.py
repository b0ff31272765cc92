"""A small grid is planned and its status told."""

import json

import pytest

from benchmarks.perf.plan import main


def test_a_grid_is_planned_and_its_status_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--levels", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row["what"], row["cells"]) for row in rows] == [("plan", 16), ("status", 16)]
    assert all(row["seconds"] > 0 and row["peak_mb"] > 10 for row in rows)
