"""Scores of others as result tables: a plain CSV, and what lm-eval logs."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from reports.build import main as report
from reports.convert import main
from reports.tables import read_tables

ARMS = """arm,kind,curriculum,bonus
base,base,,
none,cell,off,off
a,cell,on,off
b,cell,off,on
ab,cell,on,on
"""
CHANCE = {"base": 0.4, "none": 0.5, "a": 0.7, "b": 0.5, "ab": 0.7}


def scores(seeds: int = 3, items: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    luck = rng.random(items)
    rows = []
    for arm, chance in CHANCE.items():
        for seed in range(1 if arm == "base" else seeds):
            right = luck < chance + rng.normal(0, 0.01)
            table = {"arm": arm, "seed": seed, "benchmark": "count", "score": right.astype(int)}
            rows.append(pd.DataFrame({**table, "item": [f"q{i}" for i in range(items)]}))
    return pd.concat(rows)


def test_a_csv_becomes_a_report(tmp_path: Path) -> None:
    scores().to_csv(tmp_path / "scores.csv", index=False)
    (tmp_path / "arms.csv").write_text(ARMS)
    out = tmp_path / "mine"
    given = ["csv", str(tmp_path / "scores.csv"), "--arms", str(tmp_path / "arms.csv")]
    assert main([*given, "--out", str(out), "--reference", "ab"]) == 0
    tables = read_tables(out)
    assert tables.control == "none" and tables.base_of("ab") == "base"
    assert report([str(out), "--format", "json"]) == 0
    results = json.loads((out / "report" / "results.json").read_text())
    effects = {row["factor"]: row for row in results["effects"]}
    assert effects["curriculum"]["estimate"] == pytest.approx(0.2, abs=0.04)
    assert effects["curriculum"]["p_adjusted"] < 0.01 < effects["bonus"]["p_adjusted"]


def test_words_for_nothing_are_names_and_answers(tmp_path: Path) -> None:
    rows = scores().replace({"arm": {"none": "None"}, "item": {"q0": "NA"}})
    rows["score"] = rows["score"].astype(object)
    rows.loc[rows["item"] == "q1", "score"] = "null"
    rows.assign(response="null").to_csv(tmp_path / "scores.csv", index=False)
    (tmp_path / "arms.csv").write_text(ARMS.replace("none,", "None,").replace("off", "None"))
    given = ["csv", str(tmp_path / "scores.csv"), "--arms", str(tmp_path / "arms.csv")]
    assert main([*given, "--out", str(tmp_path / "mine")]) == 0
    tables = read_tables(tmp_path / "mine")
    assert tables.control == "None" and tables.factors[0].levels == ("None", "on")
    assert "NA" in set(tables.items["item"])
    assert tables.items.loc[tables.items["item"] == "q1", "score"].isna().all()
    assert tables.responses is not None
    assert set(tables.responses.of(["None-0"])["response"]) == {"null"}


def test_a_row_without_a_name_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("arm,benchmark,item,score\na,b,1,1\n,b,2,1\n")
    assert main(["csv", str(tmp_path / "a.csv"), "--out", str(tmp_path / "mine")]) == 2
    assert "a.csv:3: arm: is empty" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_arms_without_factors_are_compared_with_the_reference(tmp_path: Path) -> None:
    scores().to_csv(tmp_path / "scores.csv", index=False)
    out = tmp_path / "mine"
    assert main(["csv", str(tmp_path / "scores.csv"), "--base", "base", "--out", str(out)]) == 0
    assert report([str(out), "--format", "json"]) == 0
    results = json.loads((out / "report" / "results.json").read_text())
    assert results["reference_arm"] == "ab" and results["effects"] == []
    row = next(r for r in results["contrasts"] if (r["arm"], r["against"]) == ("ab", "base"))
    assert row["delta"] == pytest.approx(0.3, abs=0.05) and row["checkpoints_low"] > 0


def sample(doc_id: int, right: bool, **changes: object) -> dict[str, object]:
    """A line as lm-eval logs it."""
    return {
        "doc_id": doc_id,
        "doc": {"question": f"How many? {doc_id}", "picture": f"{doc_id // 2}.png"},
        "target": "3",
        "arguments": {
            "gen_args_0": {"arg_0": f"<image> How many? {doc_id}", "arg_1": {"until": []}}
        },
        "resps": [["<think>one, two, three</think> 3" if right else "4"]],
        "filtered_resps": ["3"],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": f"hash-{doc_id}",
        "exact_match": float(right),
    } | changes


def logged(
    folder: Path, lines: list[dict[str, object]], time: str = "2026-01-02T03-04-05.6"
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"samples_my_task_{time}.jsonl"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    file.write_text(text, encoding="utf-8")
    return folder


def test_a_response_may_hold_line_separators_of_its_own(tmp_path: Path) -> None:
    text = "first\u2028then\x853"
    base = logged(tmp_path / "base", [sample(0, True, resps=[[text]]), sample(1, True)])
    assert main(["lm_eval", f"base={base}", "--out", str(tmp_path / "mine")]) == 0
    responses = pd.read_parquet(tmp_path / "mine" / "results" / "responses.parquet")
    assert list(responses["response"])[0] == text


def test_logged_samples_become_a_report(tmp_path: Path) -> None:
    base = logged(tmp_path / "base" / "model", [sample(i, i % 3 == 0) for i in range(60)])
    runs = [
        logged(tmp_path / f"tuned-{seed}", [sample(i, (i + seed) % 5 != 0) for i in range(60)])
        for seed in (0, 1)
    ]
    logged(runs[0], [sample(0, False)], time="2025-01-01T00-00-00.0")
    out = tmp_path / "mine"
    sources = [f"base={base.parent}", f"tuned@0={runs[0]}", f"tuned@1={runs[1]}"]
    given = ["lm_eval", *sources, "--base", "base", "--cluster", "picture", "--out", str(out)]
    assert main(given) == 0
    tables = read_tables(out)
    assert tables.suites == {"benchmarks": ["my_task"]}
    assert len(tables.items) == 180 and tables.items["cluster"].nunique() == 30
    assert report([str(out), "--format", "html,json"]) == 0
    results = json.loads((out / "report" / "results.json").read_text())
    row = next(r for r in results["arms"] if r["arm"] == "tuned" and r["benchmark"] is None)
    assert row["mean"] == pytest.approx(0.8) and row["seeds"] == 2
    page = (out / "report" / "index.html").read_text()
    assert "How many? " in page and "one, two, three" in page


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["tuned"], "expected ARM=FOLDER"),
        (["tuned={folder}/none"], "run lm_eval with --log_samples"),
        (["tuned={folder}/odd"], "is no number here; there are doc_id"),
        (["a={folder}/a", "b={folder}/b"], "is not the same document in all runs"),
        (["a={folder}/a", "--metric", "acc"], "acc: is no number here"),
        (["a={folder}/a", "--filter", "strict"], "filter strict: no sample has it"),
        (["a={folder}/a", "--cluster", "image"], "doc.image: there are question, picture"),
        (["a={folder}/a", "--reference", "c"], "no such arm; there are a"),
        (["a={folder}/a", "--base", "a"], "no arm is a cell"),
        (["a={folder}/high"], "/high: score = 2.0: expected 0 to 1"),
    ],
)
def test_logs_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sources: list[str], message: str
) -> None:
    logged(tmp_path / "a", [sample(i, True) for i in range(5)])
    logged(tmp_path / "b", [sample(i, True, doc_hash="other") for i in range(5)])
    logged(tmp_path / "high", [sample(0, True, exact_match=2)])
    logged(tmp_path / "odd", [{"doc_id": 0, "exact_match": "yes"}])
    given = [source.format(folder=tmp_path) for source in sources]
    assert main(["lm_eval", *given, "--out", str(tmp_path / "mine")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arm,item,score\na,1,1\n", "column benchmark: missing"),
        ("arm,benchmark,item,score\n", "no rows"),
        ("arm,benchmark,item,score\na,b,1,7\n", "scores.csv: score = 7.0: expected 0 to 1"),
        (
            "arm,benchmark,item,score\na,b,1,1\na,b,2,yes\n",
            "scores.csv:3: score: expected a number",
        ),
        ("arm,benchmark,item,score\na,b,1,1,0\n", "have more fields than the header"),
        ("arm,benchmark,item,score\na,b,1,1\na,b,1,1\n", "occurs twice"),
        ("", "not a CSV table"),
    ],
)
def test_csv_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "scores.csv"
    file.write_text(text)
    assert main(["csv", str(file), "--out", str(tmp_path / "mine")]) == 2
    assert message in capsys.readouterr().err
    assert main(["csv", str(tmp_path / "none.csv"), "--out", str(tmp_path / "mine")]) == 2
    assert list(tmp_path.iterdir()) == [file]


def test_a_bad_score_leaves_the_results_before_it_alone(tmp_path: Path) -> None:
    file, out = tmp_path / "scores.csv", tmp_path / "mine"
    file.write_text("arm,benchmark,item,score,response\na,b,1,1,three\n")
    assert main(["csv", str(file), "--out", str(out)]) == 0
    file.write_text("arm,benchmark,item,score\na,b,1,0\na,b,2,7\n")
    assert main(["csv", str(file), "--out", str(out)]) == 2
    tables = read_tables(out)
    assert list(tables.items["score"]) == [1.0] and tables.responses is not None
    file.write_text("arm,benchmark,item,score\na,b,1,0\n")
    assert main(["csv", str(file), "--out", str(out)]) == 0
    tables = read_tables(out)
    assert list(tables.items["score"]) == [0.0] and tables.responses is None


def test_one_word_among_many_numbers_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"a,b,{number},1" for number in range(300_000)]
    text = "\n".join(["arm,benchmark,item,score", *rows, "a,b,last,yes"])
    (tmp_path / "a.csv").write_text(text)
    assert main(["csv", str(tmp_path / "a.csv"), "--out", str(tmp_path / "mine")]) == 2
    assert "a.csv:300002: score: expected a number, got 'yes'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("arm,benchmark,item,score\na,b,1,1\n")
    given = ["csv", str(tmp_path / "a.csv"), "--out", str(tmp_path / "a.csv")]
    assert main(given) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["seed", "run", "code"])
def test_a_column_of_runs_is_no_factor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    scores(seeds=1, items=4).to_csv(tmp_path / "scores.csv", index=False)
    (tmp_path / "arms.csv").write_text(ARMS.replace("bonus", name, 1))
    given = ["csv", str(tmp_path / "scores.csv"), "--arms", str(tmp_path / "arms.csv")]
    assert main([*given, "--out", str(tmp_path / "mine")]) == 2
    assert f"column {name}: is of runs and no factor" in capsys.readouterr().err
