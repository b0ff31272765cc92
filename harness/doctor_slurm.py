"""The doctor's look at the cluster: partition, limits, and what its nodes have."""

import math
import shutil
from collections.abc import Iterator

from harness import machine, slurm
from harness.ablation import Resources
from harness.checks import Check
from harness.estimate import duration
from harness.graph import Plan
from harness.profile import Profile


def examine(plan: Plan, profile: Profile | None) -> Iterator[Check]:
    """Whether the partition, or without a profile this machine, has what the stages ask for."""
    if profile is None:
        gpus, cores, memory = len(machine.gpus()), machine.cores(), machine.memory_gb()
        for kind, stages in plan.stages_of().items():
            asked = stages[0].resources
            if asked.nodes > 1 or asked.gpus > gpus:
                yield Check(
                    section="machine",
                    what=kind,
                    state="missing",
                    detail=f"{_asked(asked)}; this machine has {gpus} GPUs, {cores} cores and "
                    f"{memory:.0f} GB",
                    remedy="give --profile for a cluster, or lower resources."
                    f"{kind} with --set resources.{kind}.gpus=...",
                )
        return
    if not shutil.which("sbatch") or not shutil.which("srun"):
        yield Check(
            section="slurm",
            what="sbatch, srun",
            state="missing",
            detail="not on PATH",
            remedy="run the doctor, and the sweep, on a login node of the cluster",
        )
        return
    yield from _partition(plan, profile)


def _partition(plan: Plan, profile: Profile) -> Iterator[Check]:
    chosen = ["-p", profile.partition] if profile.partition else []
    told = slurm.ask("sinfo", "-h", *chosen, "-o", "%P|%l|%D|%c|%m|%G|%a")
    if told is None:
        yield Check(
            section="slurm",
            what="sinfo",
            state="missing",
            detail="Slurm does not answer",
            remedy="try again when it does",
        )
        return
    rows = [line.split("|") for line in told.splitlines() if line.count("|") >= 6]
    rows = [row for row in rows if profile.partition or row[0].endswith("*")]
    if not rows:
        yield Check(
            section="slurm",
            what=f"partition {profile.partition or '(default)'}",
            state="missing",
            detail="there is none of this name",
            remedy="give another partition in the profile; sinfo lists them",
        )
        return
    limits = [minutes for row in rows if (minutes := _minutes(row[1])) is not None]
    limit = max(limits) if len(limits) == len(rows) else None
    count = sum(int(row[2]) for row in rows)
    cores, memory = (max(_number(row[i]) for row in rows) for i in (3, 4))
    gpus = max(_gpus(row[5]) for row in rows)
    closed = next((row[6] for row in rows if row[6] != "up"), None)
    yield Check(
        section="slurm",
        what=f"partition {rows[0][0].rstrip('*')}",
        state="missing" if closed else "ok",
        detail=f"{count} nodes, up to {cores} cores, {memory / 1024:.0f} GB, {gpus} GPUs; limit "
        + (f"{duration(60 * limit)}" if limit else "none")
        + (f"; it is {closed}, and starts no job" if closed else ""),
        remedy="give another partition in the profile, or wait until it is up" if closed else "",
    )
    for kind, stages in plan.stages_of().items():
        asked = stages[0].resources
        short = [
            f"{wanted} {word}"
            for wanted, there, word in (
                (asked.nodes, count, "nodes"),
                (asked.cpus, cores, "cores"),
                (math.ceil(asked.mem_gb * 1024), memory, "MB"),
                (asked.gpus, gpus, "GPUs a node"),
            )
            if wanted > there
        ]
        minutes = profile.minutes(asked.hours)
        if limit is not None and minutes > limit:
            short.append(f"{minutes} minutes (lower max_minutes in the profile to {limit}: a stage")
            short[-1] += " goes on in the next job)"
        yield Check(
            section="slurm",
            what=kind,
            state="missing" if short else "ok",
            detail=f"{_asked(asked)}, limit {duration(60 * minutes)}"
            + (f"; the partition does not have {', '.join(short)}" if short else ""),
            remedy=f"change resources.{kind}, or the profile" if short else "",
        )


def _asked(resources: Resources) -> str:
    nodes = f"{resources.nodes} x " if resources.nodes > 1 else ""
    return f"{nodes}{resources.gpus} GPUs, {resources.cpus} cores, {resources.mem_gb:g} GB"


def _minutes(limit: str) -> int | None:
    """A time limit of sinfo (``1-00:00:00``, ``30:00``) in minutes; None: there is none."""
    if not limit[0].isdigit():
        return None
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    while len(parts) < 3:
        parts.insert(0, 0)
    return int(days or 0) * 1440 + parts[0] * 60 + parts[1]


def _number(text: str) -> int:
    return int("".join(c for c in text if c.isdigit()) or 0)


def _gpus(resources: str) -> int:
    """GPUs of a node in sinfo's words: ``gpu:a100:8(S:0-1)``."""
    count = 0
    for part in resources.split(","):
        fields = part.partition("(")[0].split(":")
        if fields[0] == "gpu":
            count += int(fields[-1]) if fields[-1].isdigit() else 1
    return count
