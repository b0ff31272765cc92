"""The simulation in small: `python -m reports.simulate` is the full one (docs/statistics.md)."""

import json
from pathlib import Path

import numpy as np
import pytest

from reports.simulate import (
    KEY,
    coverage,
    false_positives_and_power,
    main,
    scenarios,
    sweeps,
    tables_of,
)

REPLICATED = next(one for one in scenarios() if one.name == "2^3, 3 seeds")


def test_planted_effects_are_what_the_items_show() -> None:
    """The mean over many sweeps of an effect on the items drawn is the planted one."""
    tables = tables_of(REPLICATED)
    made = list(sweeps(REPLICATED, tables, 100, seed=1))
    here = np.mean([one.here for one in made], axis=0)
    assert here == pytest.approx(np.array(REPLICATED.world.effects[:3]), abs=0.004)
    on = (tables.runs["a"] == "on").to_numpy()
    off = (tables.runs["a"] == "off").to_numpy()
    means = np.mean([one.outcome.means[KEY].to_numpy() for one in made], axis=0)
    assert means[on].mean() - means[off].mean() == pytest.approx(0.04, abs=0.004)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rows = {row["kind"]: row for row in coverage(REPLICATED, 80, seed=2)}
    for kind, row in rows.items():
        if "interval for items of the kind" not in kind:
            assert row["coverage"] > 0.89, kind
    assert rows["arms against the reference, these items"]["estimands"] == 7


def test_a_sweep_without_effects_rarely_claims_one() -> None:
    found = false_positives_and_power(REPLICATED, 60, seed=3)
    assert found["family_wise"] <= 0.15
    assert 0.6 < found["power_value"] < 0.95
    assert found["mde_value"] < found["mde_corrected"]


def test_the_command_prints_a_table_and_writes_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--sweeps=4", "--also=2", "--designs=leave", f"--json={tmp_path / 'out.json'}"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "leave one out, 3 seeds" in printed and "Family-wise" in printed
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["sweeps"] == 4
    other = [*arguments[:3], "--seed=7", f"--json={tmp_path / 'other.json'}"]
    assert main(other) == 0
    files = [str(tmp_path / name) for name in ("out.json", "other.json")]
    assert main(["--join", json.dumps(files), f"--json={tmp_path / 'both.json'}"]) == 0
    parts = [json.loads(Path(file).read_text())[0] for file in files]
    (both,) = json.loads((tmp_path / "both.json").read_text())
    assert both["sweeps"] == 8 and both["seed"] == [0, 7]
    for row, *mine in zip(both["coverage"], *(part["coverage"] for part in parts), strict=True):
        assert row["coverage"] == pytest.approx(np.mean([one["coverage"] for one in mine]))
        assert row["sweeps"] == sum(one["sweeps"] for one in mine)
    powers = [part["power_value"] for part in parts]
    assert both["power_value"] == pytest.approx(np.mean(powers))
    assert main(["--designs=nothing"]) == 2
    assert "expected the beginning of one of" in capsys.readouterr().err
