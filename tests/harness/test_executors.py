"""The executors that need no other component: the suite of all, and what is theirs alone."""

import dataclasses
import os

import pytest
from conformance import *  # noqa: F403
from conformance import Make, run, starts
from sweeps import stages

from harness import machine
from harness.ablation import Resources
from harness.executors.inline import InlineExecutor
from harness.executors.local import LocalExecutor
from harness.store import Store
from observe.errors import InputError

EXECUTORS = {"inline": InlineExecutor, "local": LocalExecutor}
MANY = 1000


def test_two_hundred_small_stages(make: Make, store: Store) -> None:
    described = [("root", {}, [])] + [(f"s{i}", {"i": i}, ["root"]) for i in range(200)]
    outcome = run(stages(*described), store, make)
    assert outcome.complete and outcome.started == 201
    assert {store.result(f"s{i}")["config"]["i"] for i in range(200)} == set(range(200))
    processes = {tuple(starts(store, f"s{i}")) for i in range(200)}
    assert len(processes) <= len(os.sched_getaffinity(0)), "workers are kept warm"


def test_jobs_bounds_what_runs_at_once(store: Store) -> None:
    described = [(f"s{i}", {"do": "sleep", "seconds": 0.2}, []) for i in range(4)]
    run(stages(*described), store, lambda: LocalExecutor(jobs=1))
    spans = sorted((store.status(id).started, store.status(id).ended) for id, _, _ in described)
    assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))


def test_what_a_search_ends_early_stops_nothing_else(store: Store) -> None:
    plan = stages(("a", {"do": "sleep", "seconds": 0.1}, []), ("b", {}, []))
    store.folder("a").mkdir(parents=True)
    store.prune_marker("a").touch()  # As a launcher leaves it that was killed just then.
    outcome = run(plan, store, InlineExecutor)
    assert (outcome.states, outcome.stopped) == ({"a": "cancelled", "b": "done"}, False)
    assert store.status("a").pruned


def test_a_stage_that_asks_for_too_many_gpus_is_refused(store: Store) -> None:
    plan = stages(("a", {}, []))
    asks = dataclasses.replace(plan.stages["a"], resources=Resources(gpus=999))
    plan = dataclasses.replace(plan, stages={"a": asks})
    with pytest.raises(InputError, match="999 GPUs"):
        run(plan, store, LocalExecutor)


def test_each_gpu_has_one_stage_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    work = {"do": "sleep", "seconds": 0.3}
    plan = stages(*((f"s{i}", {**work, "i": i}, []) for i in range(5)), ("cpu", {}, []))
    asks = Resources(gpus=1, mem_gb=0.1)
    for id, stage in plan.stages.items():
        if id != "cpu":
            plan.stages[id] = dataclasses.replace(stage, resources=asks)
    assert run(plan, store, lambda: LocalExecutor(jobs=6)).complete
    assert store.result("cpu")["gpus"] == ""
    used: dict[str, list[tuple[float, float]]] = {"3": [], "5": []}
    for i in range(5):
        status = store.status(f"s{i}")
        used[store.result(f"s{i}")["gpus"]].append((status.started, status.ended))
    for spans in used.values():
        assert len(spans) >= 2
        spans.sort()
        assert all(one[1] <= other[0] for one, other in zip(spans, spans[1:], strict=False))


def test_stages_share_the_memory(store: Store) -> None:
    most = Resources(mem_gb=0.6 * machine.memory_gb())
    plan = stages(*((f"s{i}", {"do": "sleep", "seconds": 0.2}, []) for i in range(3)))
    for id, stage in plan.stages.items():
        plan.stages[id] = dataclasses.replace(stage, resources=most)
    assert run(plan, store, lambda: LocalExecutor(jobs=3)).complete
    spans = sorted((store.status(id).started, store.status(id).ended) for id in plan.stages)
    assert all(one[1] <= other[0] for one, other in zip(spans, spans[1:], strict=False))
