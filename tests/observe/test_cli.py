"""What every command shares: exit codes and progress lines."""

import pytest

from observe import cli
from observe.errors import InputError, TrainingFailed


def bad_input():
    raise InputError("a.yaml: seed: expected int, got 'x'")


def test_bad_input_ends_with_2_and_its_message(capsys):
    assert cli.exit_code(bad_input) == 2
    assert capsys.readouterr().err == "error: a.yaml: seed: expected int, got 'x'\n"


def test_training_that_cannot_go_on_ends_with_1_and_its_message(capsys):
    def fails():
        raise TrainingFailed("runs/a: step 7: infinite")

    assert cli.exit_code(fails) == 1
    assert capsys.readouterr().err == "error: runs/a: step 7: infinite\n"


def test_success_ends_with_0_and_other_errors_are_not_hidden():
    assert cli.exit_code(lambda: 7) == 0
    with pytest.raises(ZeroDivisionError):
        cli.exit_code(lambda: 1 / 0)


@pytest.fixture
def clock(monkeypatch):
    """A clock to set; no progress has been printed yet."""
    now = {"s": 1000.0}
    monkeypatch.setattr(cli.time, "monotonic", lambda: now["s"])
    monkeypatch.setattr(cli, "_state", {"started": 0.0, "first": 0.0, "printed": 0.0})
    return now


def printed(capsys, clock, steps):
    for seconds, done in steps:
        clock["s"] = 1000.0 + seconds
        cli.print_progress(done, 100, "loss 1.0")
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_progress_is_printed_every_few_seconds_and_at_the_end(capsys, clock):
    lines = printed(capsys, clock, [(0, 1), (1, 2), (2, 3), (7, 8), (8, 9), (9, 100)])
    assert [line[0] for line in lines] == ["1/100", "8/100", "100/100"]
    assert lines[1] == ["8/100", "92", "s", "left", "loss", "1.0"]
    assert lines[2][1] == "0"


def test_a_resumed_run_takes_its_own_pace(capsys, clock):
    lines = printed(capsys, clock, [(0, 81), (20, 91)])
    assert lines[-1][:2] == ["91/100", "18"]
