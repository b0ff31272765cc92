"""The comparison of launchers: what it says, not how fast anything is."""

import json
from pathlib import Path

import pytest

from benchmarks.perf import dispatch
from harness import graph, machine
from harness.graph import Kind


def test_every_launcher_has_a_row_and_a_missing_peer_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noop = Kind(function="benchmarks.perf.noop:stage", version=1)
    monkeypatch.setitem(graph.KINDS, "noop", noop)  # Not for the tests that follow.
    options = ["--stages", "3", "--slots", "1", "--repeats", "1", "--python", str(tmp_path / "no")]
    assert dispatch.main([*options, "--json"]) == 0
    rows = {row["launcher"]: row for row in json.loads(capsys.readouterr().out)["results"]}
    assert set(rows) == {"ours", "ours, new processes", "python", "submitit", "hydra", "optuna"}
    assert rows["hydra"]["missing"] == "not installed: make perf-env"
    assert rows["ours"]["ratio"] == 1 and rows["ours, new processes"]["ratio_new"] == 1
    assert dispatch.main([*options, "--no_peers", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["results"]
    assert [row["launcher"] for row in alone] == ["ours", "ours, new processes"]
    dispatch.show(list(rows.values()), machine.describe())
    assert "warm worker" in capsys.readouterr().out
