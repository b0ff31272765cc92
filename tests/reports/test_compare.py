"""Two sweeps joined: the difference between them is an effect like any other."""

import json
from pathlib import Path

import pandas as pd
import pytest

from reports.build import main
from reports.compare import join
from reports.example import Made, write_example
from reports.tables import TableError, read_tables

TWO = {"format": 0.06, "bonus": 0.0}


def made(directory: Path, **changes: object) -> Path:
    settings = {"clusters": 8, "effects": TWO, "seeds": (0, 1), "exact": True, "run_sd": 0.002}
    return write_example(directory, Made(**(settings | changes)))  # type: ignore[arg-type]


def report(first: Path, second: Path, out: Path, formats: str = "json") -> dict:
    assert main([str(first), str(second), "--out", str(out), "--format", formats]) == 0
    return json.loads((out / "report" / "results.json").read_text())


def test_a_planted_difference_is_found(tmp_path: Path) -> None:
    first = made(tmp_path / "old")
    second = made(tmp_path / "new", trained=0.70, effects={"format": 0.10, "bonus": 0.0}, seed=0)
    results = report(first, second, tmp_path / "both", "json,html")
    row = next(
        r for r in results["effects"] if r["factor"] == "sweep" and r["suite"] == "reasoning"
    )
    assert row["level"] == "new" and row["against"] == "old"
    assert row["estimate"] == pytest.approx(0.05, abs=0.005) and row["p_adjusted"] < 0.01
    pair = next(
        r
        for r in results["interactions"]
        if r["factors"] == ["format", "sweep"] and r["suite"] == "reasoning"
    )
    assert pair["estimate"] == pytest.approx(0.02, abs=0.005) and pair["p_adjusted"] < 0.05
    planned = [r for r in results["contrasts"] if r["family"] == "planned"]
    assert {r["arm"] for r in planned} >= {"new: control", "new: format", "new: base/think"}
    assert all(r["against"] == r["arm"].replace("new: ", "old: ") for r in planned)
    assert results["reference_arm"] == "new: format+bonus"
    checks = {row["check"]: row["ok"] for row in results["validity"]}
    assert checks["arms of one name have the same settings in both sweeps"] is True
    assert "joins two sweeps" in results["verdict"]
    page = (tmp_path / "both" / "report" / "index.html").read_text()
    assert "what differs?" in page and "joins two sweeps" in page


def test_equal_sweeps_differ_in_nothing(tmp_path: Path) -> None:
    first, second = made(tmp_path / "old", run_sd=0.01), made(tmp_path / "new", run_sd=0.01, seed=5)
    results = report(first, second, tmp_path / "both")
    assert len(read_tables(tmp_path / "both").runs) == 2 * len(read_tables(first).runs)
    rows = [r for r in results["effects"] if r["factor"] == "sweep"]
    assert len(rows) == 3 and all(row["p_adjusted"] > 0.01 for row in rows)


def test_sweeps_of_other_factors_share_arms(tmp_path: Path) -> None:
    first = made(tmp_path / "old")
    second = made(tmp_path / "new", effects={"format": 0.06, "bonus": 0.0, "curriculum": 0.0})
    results = report(first, second, tmp_path / "both")
    assert {row["factor"] for row in results["effects"]} == {"settings", "sweep"}
    arms = {row["level"] for row in results["effects"] if row["factor"] == "settings"}
    assert arms == {"format", "bonus", "format+bonus"}
    row = next(
        r for r in results["effects"] if r["factor"] == "sweep" and r["suite"] == "reasoning"
    )
    assert row["estimable"]


def test_sweeps_that_cannot_be_compared_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = made(tmp_path / "old"), made(tmp_path / "new", clusters=7)
    out = ["--out", str(tmp_path / "both")]
    assert main([str(first), str(second), *out]) == 2
    assert "4 items were asked in one sweep only" in capsys.readouterr().err
    assert main([str(first), str(first)]) == 2
    assert "two and --out DIR" in capsys.readouterr().err
    with pytest.raises(TableError, match="is one of the two sweeps"):
        join(first, made(tmp_path / "third"), first)
    file = tmp_path / "third" / "results" / "questions.parquet"
    table = pd.read_parquet(file)
    table.assign(gold="other").to_parquet(file)
    with pytest.raises(TableError, match="gold: differs"):
        join(first, tmp_path / "third", tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_another_base_is_said(tmp_path: Path) -> None:
    first, second = made(tmp_path / "old"), made(tmp_path / "new", base=0.6)
    sweep = read_tables(join(first, second, tmp_path / "both")).sweep
    row = next(r for r in sweep["checks"] if "untrained base scores alike" in r["check"])
    assert row["ok"] is False


def test_a_base_that_is_scored_in_one_sweep_alone_is_not_alike(tmp_path: Path) -> None:
    first, second = made(tmp_path / "old"), made(tmp_path / "new")
    file = second / "results" / "items.parquet"
    items = pd.read_parquet(file)
    unscored = (items["run"] == "base-think") & (items["item"] == "count-0001")
    assert unscored.any()
    items.assign(score=items["score"].mask(unscored)).to_parquet(file)
    sweep = read_tables(join(first, second, tmp_path / "both")).sweep
    row = next(r for r in sweep["checks"] if "untrained base scores alike" in r["check"])
    assert row["ok"] is False


def test_joined_responses_are_the_normal_ones(tmp_path: Path) -> None:
    first, second = made(tmp_path / "old"), made(tmp_path / "new")
    file = first / "results" / "responses.parquet"
    normal = pd.read_parquet(file).drop(columns="condition", errors="ignore")
    blind = normal.assign(condition="no_image", response="I see nothing.")
    pd.concat([blind, normal.assign(condition=None)]).to_parquet(file)
    responses = read_tables(join(first, second, tmp_path / "both")).responses
    assert responses is not None
    run = f"old: {normal['run'].iloc[0]}"
    shown = responses.of([run])["response"]
    assert len(shown) and "I see nothing." not in set(shown)


def test_an_image_may_be_named_by_its_whole_path(tmp_path: Path) -> None:
    first, second = made(tmp_path / "old"), made(tmp_path / "new")
    results = (first / "results").resolve()
    questions = pd.read_parquet(results / "questions.parquet")
    whole = [None if x is None else str(results / x) for x in questions["image"]]
    assert any(whole)
    questions.assign(image=whole).to_parquet(results / "questions.parquet")
    out = join(first, second, tmp_path / "both")
    joined = pd.read_parquet(out / "results" / "questions.parquet")["image"].dropna()
    assert len(joined) and all((out / "results" / name).is_file() for name in joined)
    assert not any(Path(name).is_absolute() for name in joined)
