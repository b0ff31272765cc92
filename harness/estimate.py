"""How long a plan still takes: from what its stages have taken so far, else from what was asked."""

import dataclasses
import statistics

from harness.graph import Plan
from harness.store import Status, Store
from observe.errors import InputError

TELLING = 0.05
"""Share of a stage that must be done before its own pace counts: the start is mostly loading."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Expected cost of what is not done."""

    seconds: float
    """Wall time from now."""
    stage_seconds: dict[str, float]
    """Kind -> seconds of one stage."""
    measured: dict[str, bool]
    """Kind -> whether that is measured in this folder, or ``resources.<kind>.hours``."""
    gpu_hours: float
    """GPU time."""


def known_statuses(plan: Plan, store: Store) -> dict[str, Status]:
    """The status of every stage of the plan; an unreadable one counts as pending."""
    statuses = {}
    for stage in plan.stages:
        try:
            statuses[stage] = store.status(stage)
        except InputError:
            statuses[stage] = Status(stage=stage)
    return statuses


def estimate(plan: Plan, statuses: dict[str, Status], *, cores: int, jobs: int | None) -> Estimate:
    """Expected wall time: kinds follow each other, stages of a kind share the machine.

    ``jobs``: stages at a time at most. A running stage that tells its progress counts by what is
    left of it.
    """
    seconds, measured = {}, {}
    total = gpu_seconds = 0.0
    for kind, stages in plan.stages_of().items():
        own = [statuses[stage.id] for stage in stages]
        taken = [status.seconds for status in own if status.state == "done"]
        projected = [expected for status in own if (expected := _projected(status)) is not None]
        resources = stages[0].resources
        measured[kind] = bool(taken or projected)
        known = taken or projected or [resources.hours * 3600]
        seconds[kind] = statistics.median(known)
        left = sum(
            max(0.0, (_projected(status) or seconds[kind]) - status.seconds)
            for status in own
            if status.state != "done" and not status.pruned
        )
        at_once = jobs or max(1, cores // resources.cpus)
        total += left / min(at_once, len(stages))
        gpu_seconds += left * resources.gpus * resources.nodes
    return Estimate(
        seconds=total, stage_seconds=seconds, measured=measured, gpu_hours=gpu_seconds / 3600
    )


def _projected(status: Status) -> float | None:
    """Expected total seconds of a running stage, from its own progress."""
    progress = status.progress
    if status.state != "running" or not progress or not progress["total"]:
        return None
    if progress["done"] < TELLING * progress["total"]:
        return None
    return status.seconds * progress["total"] / progress["done"]


def duration(seconds: float) -> str:
    """Seconds for people: ``50 s``, ``12 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
