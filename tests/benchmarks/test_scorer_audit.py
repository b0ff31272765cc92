"""The audit on made-up rows: what is counted, and what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import scorer_audit
from benchmarks.perf import scoring as perf

ROW = {
    "source": "made up",
    "model": "none",
    "options": [],
    "question_type": "free_form",
    "answer_type": "integer",
    "question": "How many owls?",
    "answer": "7",
    "nearest_option": False,
}
ROWS = [
    ROW | {"id": "1", "response": "7", "judged": True},
    ROW | {"id": "2", "response": "There are 8 owls.", "judged": False},
    ROW | {"id": "3", "response": "It is 7.", "judged": False},
    ROW | {"id": "4", "response": "many", "judged": True},
    ROW | {"id": "5", "answer": "seven-ish", "response": "7", "judged": False},
    ROW | {"id": "6", "response": "8", "judged": True, "nearest_option": True},
]
LABELS = "source,model,id,label,class\nmade up,none,3,right,in a sentence\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, ROWS)
    (tmp_path / "labels.csv").write_text(LABELS)
    return tmp_path


def write(folder: Path, rows: list[dict]) -> None:
    with gzip.open(folder / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_judged_right_and_judged_wrong_are_counted_apart(folder, capsys):
    options = ["--data", str(folder), "--out", str(folder / "audit.json")]
    options += ["--labels", str(folder / "labels.csv"), "--samples", str(folder / "read.jsonl")]
    assert scorer_audit.main(options) == 0
    assert "Where they differ" in capsys.readouterr().out
    written = json.loads((folder / "audit.json").read_text())
    total = {"right": dict.fromkeys(("rows", "agree", "differ", "unscored", "right"), 0)}
    total["wrong"] = dict(total["right"])
    for line in written["agreement"]:
        if line["type"] == "all":
            for name in total["right"]:
                total[line["judged"]][name] += line[name]
    assert total["right"] == {"rows": 2, "agree": 1, "differ": 1, "unscored": 0, "right": 1}
    assert total["wrong"] == {"rows": 3, "agree": 1, "differ": 1, "unscored": 1, "right": 2}
    found = {line["class"]: line["label"] for line in written["differences"]}
    assert found["in a sentence"] == "right"
    assert sorted(found.values()) == ["not read", "not read", "right"]
    drawn = [json.loads(line) for line in (folder / "read.jsonl").read_text().splitlines()]
    assert {row["id"] for row in drawn if row["class"] != "agree"} == {"3", "4", "5"}


def test_the_same_question_is_in_the_same_half_for_every_model():
    for row in ROWS:
        assert scorer_audit.half_of(row) == scorer_audit.half_of(row | {"model": "other"})
    halves = [scorer_audit.half_of(ROW | {"id": str(i)}) for i in range(1000)]
    assert 400 < halves.count("held_out") < 600


def test_bad_input_is_named(tmp_path, capsys):
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "audit.json")]
    assert scorer_audit.main(options) == 2
    write(tmp_path, [{key: value for key, value in ROWS[0].items() if key != "answer"}])
    assert scorer_audit.main(options) == 2
    errors = capsys.readouterr().err
    assert "no *.jsonl.gz" in errors and "line 1 has no answer" in errors


def test_the_labels_that_are_kept_here_are_well_formed():
    labels = scorer_audit.read_labels(scorer_audit.LABELS)
    assert {label for label, _ in labels.values()} == {"right", "wrong", "unclear"}
    assert all(name for _, name in labels.values())


@pytest.mark.long
def test_the_speed_of_scoring_is_compared_by_mix(folder, capsys, monkeypatch):
    monkeypatch.setattr(perf, "HOSTILE", ("10^9^9", "{" * 1000))
    options = ["--data", str(folder), "--size", "8", "--repeats", "1", "--workers", "1"]
    assert perf.main([*options, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    rows = {(row["mix"], row["scorer"]): row for row in results}
    assert rows["real mix", "ours, first"]["items"] == 5
    assert rows["real mix", "Math-Verify"]["ratio"] == 1
    assert rows["hostile", "ours, first"]["slowest_s"] > 0
