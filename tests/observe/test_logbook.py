"""Where a run is written down, and what is said aloud."""

import importlib.util
import json

import pytest
from small_runs import changed, rows
from test_health import curve

from observe.errors import InputError
from observe.logbook import Logbook, progress_message

SICK = curve(steps=30, **{"completions/clipped_ratio": lambda step: float(step < 12)})


def test_a_warning_is_said_and_written_when_it_begins_and_when_it_ends(tmp_path, caplog):
    log = Logbook(changed(log_tensorboard=False), tmp_path, resume_at=0)
    for row in SICK:
        log.log(row)
    written = rows(tmp_path, "warnings.jsonl")
    assert [(w["sickness"], w["event"]) for w in written] == [
        ("length_explosion", "begins"),
        ("length_explosion", "ends"),
    ]
    assert [notice.message for notice in log.notices] == [w["message"] for w in written]
    assert caplog.messages == [f"warning: step {w['step']}: {w['message']}" for w in written]


@pytest.mark.parametrize("resume_at", [0, 5, 10, 25])
def test_a_resumed_logbook_says_only_what_is_new(tmp_path, caplog, resume_at):
    config = changed(log_tensorboard=False)
    first = Logbook(config, tmp_path, resume_at=0)
    for row in SICK:
        first.log(row)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    caplog.clear()
    second = Logbook(config, tmp_path, resume_at=resume_at)
    assert caplog.messages == []
    for row in SICK[resume_at:]:
        second.log(row)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before
    assert second.notices == first.notices


def test_progress_tells_what_is_learned_and_where_the_time_goes():
    row = {
        "reward": 0.8123,
        "completions/mean_length": 34.06,
        "observe/format_failure_share": 0.08,
        "timing_s/gen": 0.4,
        "timing_s/reward": 0.1,
        "timing_s/forward_backward": 0.91,
        "timing_s/optimizer": 0.02,
    }
    assert progress_message(row) == (
        "reward 0.812  length 34.1  form 92%  "
        "rollout 0.40 s  reward 0.10 s  forward/backward 0.91 s  optimizer 0.02 s"
    )


COMPLETIONS = {
    "step": 1,
    "question": "q",
    "text": "How many?",
    "gold": "3",
    "completions": [
        {
            **{"text": "<answer>3</answer>", "tokens": 5, "truncated": False, "reward": 1.5},
            **{"accuracy": 1.0, "format": 0.5, "bonus": 0.0, "answer": "3", "reason": "equal"},
        }
    ],
}


def test_tensorboard_holds_every_number_and_the_completions(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = changed()  # Where it is installed it is used.
    for resume_at, last in ((0, 7), (4, 10)):
        log = Logbook(config, tmp_path, resume_at=resume_at)
        for row in curve(steps=10)[resume_at:last]:
            log.log({**row, "loss": float("nan")})
        log.log_completions({**COMPLETIONS, "step": last})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("reward")]
    expected = [(row["step"], row["reward"]) for row in curve(steps=10)]
    assert logged == [(step, pytest.approx(value)) for step, value in expected]
    assert "loss" not in events.Tags()["scalars"]
    assert "completions/text_summary" in events.Tags()["tensors"]


def test_weights_and_biases_continues_the_run_of_the_folder(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for resume_at in (0, 2):
        log = Logbook(changed(log_wandb="observe"), tmp_path, resume_at=resume_at)
        ids.append(wandb.run.id)
        for row in curve(steps=4)[resume_at:]:
            log.log(row)
        assert wandb.run.summary["reward"] == pytest.approx(curve(steps=4)[-1]["reward"])
        log.close()
    assert ids[0] == ids[1] == (tmp_path / "wandb-id").read_text()


@pytest.mark.parametrize(("package", "key"), [("tensorboard", True), ("wandb", "observe")])
def test_what_is_asked_for_and_not_installed_is_named(tmp_path, package, key):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    with pytest.raises(InputError, match=f"log_{package}: the package {package} is not installed"):
        Logbook(changed(**{f"log_{package}": key}), tmp_path, resume_at=0)


def test_without_a_folder_nothing_is_written_or_said(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = Logbook(changed(log_tensorboard=True, log_wandb="observe"), None, resume_at=0)
    log.log({"step": 1, "reward": 1.0, "observe/bad_step": 1.0})
    log.log_completions(COMPLETIONS)
    log.sync()
    log.close()
    assert (log.rows(), log.notices, caplog.text) == ([], [], "")
    assert not list(tmp_path.iterdir())


def test_every_line_of_a_log_is_json_that_other_languages_read(tmp_path):
    log = Logbook(changed(log_tensorboard=False), tmp_path, resume_at=0)
    log.log({"step": 1, "reward": 1.0, "loss": float("nan")})
    log.log_completions(COMPLETIONS)

    def refuse(name):
        raise AssertionError(name)

    lines = [
        json.loads(line, parse_constant=refuse)
        for path in tmp_path.glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert len(lines) >= 2
