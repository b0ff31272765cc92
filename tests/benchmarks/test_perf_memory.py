"""The estimate of a training's memory against the peak of a real one."""

import json

import pytest

from benchmarks.perf import memory


@pytest.mark.long
@pytest.mark.timeout(800)
def test_the_estimate_is_within_15_percent_of_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--cases", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["name"] for row in rows] == ["activations", "weights, optimizer"]
    for row in rows:
        assert 0.85 <= row["ratio"] <= 1.15, row
