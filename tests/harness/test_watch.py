"""What a terminal shows of a sweep."""

import io
import re
import sys
import time
from pathlib import Path

import pytest
from sweeps import plan_of, write_ablation

from harness.store import Status, Store
from harness.watch import Watch


class Terminal(io.StringIO):
    """Remembers what a terminal would show."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("level", ["[/x]", "[red]", ":bug:"])
def test_a_level_named_like_markup_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    levels = {"off": {}, "on": {"rollout.temperature": 0.5}, level: {"rollout.temperature": 2.0}}
    heat = {"control": "off", "levels": levels}
    changes = {"factors": {"heat": heat}, "reference": {"heat": level}, "variants": {}}
    plan, store = plan_of(write_ablation(tmp_path, changes)), Store(tmp_path / "sweep")
    stage = next(run for run in plan.runs if level in run.arm).stages["train"]
    progress = {"done": 1, "total": 2, "message": f"reward {level}"}
    store.write_status(Status(stage=stage, state="running", started=time.time(), progress=progress))

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    watch = Watch(plan, store, cores=1, jobs=None)
    watch(dict.fromkeys(plan.stages, "pending") | {stage: "running"})
    watch.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert f"heat={level}/seed0" in text and f"reward {level}" in text, text
