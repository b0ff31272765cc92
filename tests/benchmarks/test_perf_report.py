import json

import pytest

from benchmarks.perf.report import main


@pytest.mark.long
def test_a_small_report_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--factors", "2", "--seeds", "1", "--items", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]
    (row,) = found["results"]
    assert row["arms"] == 4 and row["seconds"] > 0 and row["peak_mb"] > 50 and row["page_mb"] > 0
    assert (row["goal_s"], row["goal_mb"], row["goal_page_mb"]) == (60, 2000, 50)
