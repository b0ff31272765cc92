"""A search from end to end, on fake stages whose skill grows with the learning rate."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_stages
import optuna
import pandas as pd
import pytest

import reports.build
from harness import collect, dispatch, graph, launch, search, status
from harness.search_file import load_search
from harness.store import Store, write_yaml
from observe.errors import InputError
from observe.mapping import with_overrides

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(Path(__file__).parent / "fake_search.py"), "search.yaml"]

SEARCH: dict[str, Any] = {
    "name": "found",
    "recipe": "recipe.yaml",
    "set": {"optim.lr": 1e-5, "reward.bonus.weight": 0.1},
    "space": {
        "optim.lr": {"low": 1e-6, "high": 1e-3, "log": True},
        "reward.bonus.weight": {"low": 0.0, "high": 0.5, "step": 0.1},
        "rollout.group_size": {"low": 2, "high": 8},
        "data.order": {"choices": ["shuffled", "ladder"]},
    },
    "objectives": [{"metric": "reward"}],
    "trials": 12,
    "startup_trials": 4,
    "confirm": {"seeds": [7, 8], "evaluate": {"suites": ["reasoning", "general"]}},
}


def write_search(folder: Path, changes: dict[str, Any] | None = None) -> Path:
    recipe, file = folder / "recipe.yaml", folder / "search.yaml"
    recipe.write_text("data: {size: 48}\nrollout: {group_size: 4}\n", encoding="utf-8")
    write_yaml(file, with_overrides(SEARCH, changes or {}))
    return file


def start(folder: Path, *arguments: str, step_s: float = 0.0) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FAKE_STEP_S": str(step_s)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, *arguments: str, step_s: float = 0.0) -> tuple[int, str]:
    process = start(folder, *arguments, step_s=step_s)
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


Search = Callable[..., tuple[int, str]]


@pytest.fixture
def searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Search:
    """Runs the command, and what it starts to report, in this process: exit code and output.

    Most of the time of a process of its own would go into its imports.
    """
    for kind in graph.KINDS:
        fake = graph.Kind(function=f"{fake_stages.__name__}:{kind}", version=1)
        monkeypatch.setitem(graph.KINDS, kind, fake)
    mains = {
        "harness.collect": collect.main,
        "reports": lambda given: reports.build.main([*given, "--format", "html,json"]),
    }
    monkeypatch.setattr(launch, "_quietly", lambda module, *given: mains[module](list(given)))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        code = search.main(["search.yaml", *arguments])
        said = capfd.readouterr()
        return code, said.out + said.err

    return run


def trials_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "runs/found/search.json").read_text())["trials"]


def starts(folder: Path, kind: str) -> list[int]:
    """Starts of each stage of a kind."""
    files = (folder / "runs/found/stages").glob(f"{kind}-*/starts")
    return [len(file.read_text().splitlines()) for file in files]


@pytest.mark.long
def test_a_search_killed_in_the_middle_goes_on_and_ends_in_a_comparison(tmp_path: Path) -> None:
    write_search(tmp_path)
    process = start(tmp_path, "--jobs", "2", step_s=0.2)
    deadline = time.monotonic() + 60
    found = tmp_path / "runs/found/search.json"
    while not (found.exists() and sum(t["state"] == "complete" for t in trials_of(tmp_path)) >= 4):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    known = [trial for trial in trials_of(tmp_path) if trial["state"] == "complete"]

    code, output = finish(tmp_path, "--jobs", "2")
    assert code == 0, output
    trials = trials_of(tmp_path)
    assert len(trials) == 12 and {trial["state"] for trial in trials} == {"complete"}
    assert [trials[trial["trial"]] for trial in known] == known
    # The base and the ladder are shared by all trials and by the comparison.
    assert starts(tmp_path, "base") == [1]
    assert sum(starts(tmp_path, "train")) <= 12 + 4 + 2, "two at most were under way"
    assert all(2 <= trial["setting/rollout.group_size"] <= 8 for trial in trials)
    assert isinstance(trials[0]["setting/rollout.group_size"], int)

    results = tmp_path / "runs/found/results"
    runs = pd.read_parquet(results / "runs.parquet")
    assert sorted(runs["run"]) == [
        *("base/think", "control/seed7", "control/seed8", "winner/seed7", "winner/seed8"),
    ]
    table = pd.read_parquet(results / "trials.parquet")
    best = table.loc[table["objective/reward"].idxmax()]
    configs = json.loads((results / "configs.json").read_text())
    assert configs["winner"]["optim"]["lr"] == best["setting/optim.lr"] > 1e-5
    report = json.loads((tmp_path / "runs/found/report/results.json").read_text())
    (effect,) = [row for row in report["effects"] if row["suite"] == "all"]
    assert (effect["factor"], effect["level"], effect["against"]) == (
        "winner",
        "on",
        "off",
    )
    assert "The search" in (tmp_path / "runs/found/report/index.html").read_text()

    again, output = finish(tmp_path)
    assert again == 0 and "0 stages started" in output


def test_the_default_is_the_first_trial_and_cannot_win(tmp_path: Path, searched: Search) -> None:
    write_search(tmp_path, {"trials": 3, "space": {"optim.lr": {"low": 1e-7, "high": 1e-5}}})
    assert searched("--executor", "inline")[0] == 0
    trials = trials_of(tmp_path)
    assert trials[0]["setting/optim.lr"] == 1e-5, "the best there is in this space"
    configs = json.loads((tmp_path / "runs/found/results/configs.json").read_text())
    assert configs["winner"]["optim"]["lr"] == max(t["setting/optim.lr"] for t in trials[1:])


@pytest.mark.long
def test_trials_below_the_median_are_ended_early(
    tmp_path: Path, searched: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "LOOK_S", 0.05)
    monkeypatch.setattr(dispatch, "POLL_S", 0.05)
    monkeypatch.setenv("FAKE_STEP_S", "0.4")
    changes = {"pruner": "median", "startup_trials": 2, "warmup_steps": 1, "sampler": "random"}
    write_search(tmp_path, {**changes, "trials": 8})
    code, output = searched("--jobs", "2")
    assert code == 0, output
    early = [trial for trial in trials_of(tmp_path) if trial["state"] == "pruned"]
    assert early and all(trial["last_step"] < 4 for trial in early)
    stages = pd.read_parquet(tmp_path / "runs/found/results/stages.parquet")
    assert (stages["state"] == "pruned").sum() == len(early)
    assert status.main([str(tmp_path / "runs/found")]) == 0
    report = json.loads((tmp_path / "runs/found/report/results.json").read_text())
    assert [row["ok"] for row in report["validity"] if row["check"] == "no stage failed"] == [True]


def test_two_objectives_take_the_best_in_the_first_that_none_beats(
    tmp_path: Path, searched: Search
) -> None:
    objectives = [{"metric": "reward"}, {"metric": "length", "direction": "minimize"}]
    write_search(tmp_path, {"objectives": objectives, "trials": 5})
    assert searched("--executor", "inline")[0] == 0
    trials = pd.DataFrame(trials_of(tmp_path))
    configs = json.loads((tmp_path / "runs/found/results/configs.json").read_text())
    best = trials.iloc[1:].sort_values("objective/reward").iloc[-1]
    assert configs["winner"]["optim"]["lr"] == best["setting/optim.lr"]


def test_trials_are_kept_in_any_database_and_the_store_is_one_of_a_sweep(
    tmp_path: Path, searched: Search, capfd: pytest.CaptureFixture[str]
) -> None:
    write_search(tmp_path, {"trials": 2})
    url = f"sqlite:///{tmp_path}/trials.db"
    assert searched("--executor", "inline", "--storage", url)[0] == 0
    study = optuna.load_study(study_name="found", storage=url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    store = Store(tmp_path / "runs/found")
    assert not (store.directory / "study.log").exists()
    assert status.main([str(store.directory)]) == 0
    assert "train     6 done" in capfd.readouterr().out


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URL of a database on a PostgreSQL server of our own."""
    programs = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)
    if programs is None:
        pytest.skip("no PostgreSQL: install the package postgresql")
    # It refuses to run as root; and the path of a socket is short.
    user = "nobody" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        if user:
            shutil.chown(folder, user)
        data = f"{folder}/data"
        made = [programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"]
        subprocess.run(made, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        options = ["-D", data, "-k", folder, "-c", "listen_addresses=", "-F"]
        server = subprocess.Popen(
            [programs / "postgres", *options], user=user, cwd=folder, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 30
            while not list(Path(folder).glob(".s.PGSQL.*[0-9]")):
                assert time.monotonic() < deadline and server.poll() is None
                time.sleep(0.1)
            yield f"postgresql+psycopg://tester@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # Clients that are still there are sent away.
            server.wait()


@pytest.mark.long
def test_a_search_in_postgresql_goes_on_after_a_kill(
    tmp_path: Path, postgres: str, searched: Search
) -> None:
    write_search(tmp_path, {"trials": 6})
    process = start(tmp_path, "--jobs", "2", "--storage", postgres, step_s=0.3)
    found = tmp_path / "runs/found/search.json"
    deadline = time.monotonic() + 60
    while not found.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, output = searched("--executor", "inline", "--storage", postgres)
    assert code == 0, output
    study = optuna.load_study(study_name="found", storage=postgres)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 6


def test_more_trials_go_on_and_another_space_is_refused(tmp_path: Path, searched: Search) -> None:
    write_search(tmp_path, {"trials": 2})
    assert searched("--executor", "inline")[0] == 0
    assert searched("--executor", "inline", "--set", "trials=4")[0] == 0
    assert len(trials_of(tmp_path)) == 4
    write_search(tmp_path, {"trials": 4, "space": {"optim.lr": {"low": 1e-6, "high": 1e-2}}})
    code, output = searched("--executor", "inline")
    assert code == 2 and "another space" in output


def test_a_base_that_fails_costs_no_trial(tmp_path: Path, searched: Search) -> None:
    write_search(tmp_path, {"trials": 2})
    (tmp_path / "break").write_text("base")
    code, output = searched("--executor", "inline")
    assert code == 1 and "config.json: missing" in output
    (tmp_path / "break").unlink()
    assert searched("--executor", "inline")[0] == 0
    assert [trial["state"] for trial in trials_of(tmp_path)] == ["complete", "complete"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "space: no setting"),
        ({"space": {"optim.rate": {"low": 0.0, "high": 1.0}}}, "optim.rate"),
        ({"space": {"optim.lr": {"low": 1.0, "high": 0.1}}}, "space.optim.lr: expected low"),
        ({"space": {"optim.lr": {"low": 0.0, "high": 0.1, "log": True}}}, "low > 0"),
        ({"space": {"data.order": {"choices": ["ladder"]}}}, "two or more"),
        ({"space": {"data.order": {"choices": ["ladder", "up"]}}}, "data.order"),
        ({"space": {"data.order": {"choices": ["ladder", "ladder"]}}}, "different ones"),
        ({"space": {"optim.lr": {"low": 0.0, "high": 0.1, "step": -0.1}}}, "step: expected more"),
        (
            {"space": {"rollout.group_size": {"low": 2, "high": 8, "step": 0.5}}},
            "space.rollout.group_size: rollout.group_size: expected int, got 2.5",
        ),
        ({"startup_trials": -1}, "startup_trials: expected 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps: expected 0 or more"),
        ({"seed": -1}, "seed: expected 0 to 4294967295"),
        ({"pruner": "median", "objectives": [{"metric": "a"}, {"metric": "b"}]}, "pruner"),
        ({"sampler": "cmaes", "objectives": [{"metric": "a"}, {"metric": "b"}]}, "sampler"),
        ({"objectives": [{}]}, "objectives: eval/accuracy is never recorded"),
        ({"objectives": [{}], "set": {"eval_steps": [0, 9]}}, "is from 1 to 2, the last step"),
        ({"confirm": {"seeds": [0]}}, "confirm.seeds"),
        ({"trials": 0}, "trials"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = write_search(tmp_path)
    write_yaml(file, {**SEARCH, **changes})
    with pytest.raises(InputError, match=message):
        load_search(file, {})


def test_a_metric_that_is_not_recorded_is_named(tmp_path: Path, searched: Search) -> None:
    write_search(tmp_path, {"trials": 2, "objectives": [{"metric": "elegance"}]})
    code, output = searched("--executor", "inline")
    assert code == 2 and "no training recorded 'elegance'" in output and "reward" in output
