"""What is said of two evaluations of the same items."""

import json

import pytest

from benchmarks import protocol, tables
from benchmarks.agreement import agreement, main
from observe.errors import InputError


def results(folder, answers, *, engine="native", question="How many?"):
    """A result folder: (benchmark, item, score, response) of each answer."""
    folder.mkdir()
    tables = {"items": [], "responses": [], "questions": []}
    for benchmark, item, score, response in answers:
        key = {"benchmark": benchmark, "item": item, "attempt": 0}
        tables["items"].append({"suite": "s", **key, "condition": "normal", "score": score})
        tables["responses"].append({**key, "response": response})
        tables["questions"].append({**key, "question": question, "options": [], "gold": "3"})
    # An item of two suites is one item.
    tables["items"].append({**tables["items"][0], "suite": "other"})
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
    protocol = {"engine": engine, "generation": {"max": 5}, "hash": engine}
    (folder / "protocol.json").write_text(json.dumps(protocol))
    return folder


FIRST = [("a", "1", 1, "x"), ("a", "2", 0, "y"), ("b", "1", None, "z"), ("b", "2", 1, "w")]
SECOND = [("a", "1", 1, "x"), ("a", "2", 1, "Y"), ("b", "1", None, "Z"), ("b", "3", 1, "w")]


def test_shares_of_equal_texts_and_verdicts(tmp_path):
    one = results(tmp_path / "one", FIRST)
    two = results(tmp_path / "two", SECOND, engine="vllm")
    found = agreement(one, two)
    assert found["all"] == {
        "items": 3,
        "identical_response": pytest.approx(1 / 3),
        "identical_verdict": pytest.approx(2 / 3),
        "only_first": 0,
        "only_second": 1,
        "scores": [0.5, 1.0],
    }
    assert found["benchmarks"]["b"]["scores"] == [None, None]
    assert found["benchmarks"]["b"]["identical_verdict"] == 1.0
    assert found["differences"] == {"engine": ["native", "vllm"]}
    assert found["missing"] == 2


def test_items_under_controls_are_compared_too(tmp_path):
    folders = [results(tmp_path / name, FIRST) for name in ("one", "two")]
    for folder, response in zip(folders, ("x", "y"), strict=True):
        key = {"benchmark": "a", "item": "1", "condition": "no_image", "attempt": 0}
        with (folder / "items.jsonl").open("a") as items:
            items.write(json.dumps({"suite": "s", **key, "score": 0}) + "\n")
        line = json.dumps({**key, "response": response}) + "\n"
        (folder / "control_responses.jsonl").write_text(line)
    found = agreement(*folders)
    assert found["all"]["items"] == 5 and found["all"]["identical_response"] == 4 / 5


def test_a_response_may_hold_line_separators_of_its_own(tmp_path):
    answers = [("a", "1", 1, "one\u2028two\x85three"), *FIRST[1:]]
    one, two = results(tmp_path / "one", answers), results(tmp_path / "two", FIRST)
    assert agreement(one, two)["benchmarks"]["a"]["identical_response"] == 0.5
    for folder in (one, two):
        rows = [
            {"benchmark": "a", "item": "1", "condition": "normal", "score": 1, "answer": "1\u2028"}
        ]
        tables.write(folder, {"s": ["a"]}, {}, {"a": rows}, {}, num_images=0)
        described = protocol.hashed({"data": {"a": {"items": 1}}})
        (folder / "protocol.json").write_text(json.dumps(described))
    said, comparable = protocol.compare(one, two)
    assert comparable and "a                             1  1.000" in said


def test_the_command(tmp_path, capsys):
    one, two = results(tmp_path / "one", FIRST), results(tmp_path / "two", FIRST)
    assert main([str(one), str(two)]) == 0
    assert "100.00%" in capsys.readouterr().out
    assert main([str(one), str(two), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["all"]["identical_response"] == 1.0
    assert main([str(one), str(tmp_path / "none")]) == 2
    assert "two finished evaluations" in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(tmp_path):
    one = results(tmp_path / "one", FIRST)
    with pytest.raises(InputError, match="no item in common"):
        agreement(one, results(tmp_path / "two", [("c", "1", 1, "x")]))
    with pytest.raises(InputError, match="item 1 is another question"):
        agreement(one, results(tmp_path / "three", FIRST, question="Which?"))
    (one / "responses.jsonl").write_text("")
    with pytest.raises(InputError, match="do not hold the same items"):
        agreement(one, one)
    (one / "items.jsonl").write_text("{")
    with pytest.raises(InputError, match="items.jsonl: damaged"):
        agreement(one, one)
