"""The questions of benchmarks as files, and training questions found among them."""

from benchmarks.items import main
from observe.data.contamination import find_matches
from observe.data.question import to_record
from observe.data.sources import load_questions


def test_items_are_written_and_those_questions_are_found_in_a_pool(tmp_path, capsys):
    assert main(["--tasks", "glyphs_reading", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "glyphs_reading/questions.jsonl: 200 items" in told
    [first, *_] = load_questions(tmp_path / "glyphs_reading" / "questions.jsonl")
    record = to_record(first, tmp_path / "glyphs_reading")
    pool = tmp_path / "glyphs_reading"
    matches, [told] = find_matches([{**record, "id": "mine"}], pool, [str(tmp_path)])
    assert matches[0].question == "mine"
    assert matches[0].image_bits == 0
    assert (told["matched"], told["unread"]) == (1, 0)


def test_what_is_no_benchmark_ends_with_2(tmp_path, capsys):
    for given, words in (
        (["--suite", "none"], "no suite 'none'; known: reasoning"),
        (["--tasks", "none"], "no benchmark 'none'; known: "),
        ([], "nothing to write"),
    ):
        assert main([*given, "--out", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err
