"""The time left: from what stages have taken, else their own pace, else what was asked."""

import pytest

from harness.ablation import Resources
from harness.estimate import estimate
from harness.graph import Plan, Stage
from harness.store import Status

ASKED = Resources(hours=0.5)
PLAN = Plan(
    name="two",
    reference_arm="control",
    runs=[],
    stages={
        id: Stage(id=id, kind="train", config={}, consumes={}, resources=ASKED) for id in ("a", "b")
    },
)


def left(*statuses, jobs=1):
    known = dict(zip(PLAN.stages, statuses, strict=True))
    return estimate(PLAN, known, cores=1, jobs=jobs).seconds


def running(seconds, done, total=100):
    progress = {"done": done, "total": total, "message": ""}
    return Status(
        stage="a", state="running", started=100.0, heartbeat=100.0 + seconds, progress=progress
    )


def test_what_was_asked_for_counts_until_something_is_measured():
    assert left(Status(stage="a"), Status(stage="b")) == pytest.approx(3600)


def test_a_finished_stage_measures_the_others():
    done = Status(stage="a", state="done", started=100.0, ended=130.0)
    assert left(done, Status(stage="b")) == pytest.approx(30)


def test_a_running_stage_counts_by_its_own_pace():
    assert left(running(50, 50), Status(stage="b", state="done", started=100.0, ended=109.0)) == (
        pytest.approx(50)
    )


def test_the_first_steps_with_their_loading_say_nothing_of_the_pace():
    done = Status(stage="b", state="done", started=100.0, ended=160.0)
    assert left(running(20, 1), done) == pytest.approx(40)


def test_what_a_search_ended_early_is_not_left():
    pruned = Status(stage="b", state="cancelled", error={"class": "Pruned", "message": "early"})
    done = Status(stage="a", state="done", started=100.0, ended=160.0)
    assert left(done, pruned) == 0


def test_stages_side_by_side_share_the_time():
    waiting = Status(stage="a"), Status(stage="b")
    assert left(*waiting, jobs=2) == pytest.approx(left(*waiting, jobs=1) / 2)
