"""What a sweep's folder no longer needs: ``python -m harness.gc DIR [--delete]``."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

from jsonargparse import ArgumentParser

from harness import process
from harness.cli import run_command
from harness.executors.slurm_array import elements
from harness.graph import Plan, read_plan
from harness.launch import read_launch
from harness.store import Status, Store
from observe.errors import InputError

RESUME_ONLY = "trainer_state.pt"
"""The part of a checkpoint that a finished training needs no more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waste:
    """A file or folder that can go."""

    path: Path
    """What to delete."""
    why: str
    """Why nothing needs it."""
    size: int
    """Bytes."""


def find_waste(store: Store, *, models: bool) -> list[Waste]:
    """What can be deleted without any finished result being lost or made again.

    Stages that the plan does not know (of an earlier version of the question), the optimizer state
    of finished trainings, parts of files that a killed process left, copies of the code that no job
    runs from any more. ``models`` adds the trained models whose evaluations are all done: a new
    evaluation would have to train them again. What may still be written to is left alone. Raises
    InputError when there is no sweep.
    """
    plan = read_plan(store.plan_file)
    found: list[Waste] = []
    for folder in sorted((store.directory / "stages").glob("*")):
        stage = folder.name
        try:
            status = store.status(stage)
        except InputError:  # Not understood is not known to be needless.
            continue
        if _may_run(status):
            continue
        if stage not in plan.stages:
            found.append(_waste(folder, "the plan has no such stage"))
            continue
        found += [
            _waste(part, "left by a process that was killed")
            for part in [*folder.glob(".*.json.*"), *folder.glob("checkpoint.new")]
        ]
        if status.state == "done" and plan.stages[stage].kind == "train":
            # One that is not done may go on from any of them.
            older = sorted({*folder.glob("checkpoint.*")} - {folder / "checkpoint.new"})
            found += [_waste(part, "an earlier checkpoint") for part in older]
            checkpoint = folder / "checkpoint"
            if models and checkpoint.exists() and _consumers_done(store, plan, stage):
                found.append(_waste(checkpoint, "trained and evaluated"))
            elif (checkpoint / RESUME_ONLY).exists():
                found.append(_waste(checkpoint / RESUME_ONLY, "trained to the end"))
    return found + _old_code(store)


def _old_code(store: Store) -> list[Waste]:
    """Copies of the code but the last launch's, and those of jobs that wait or run."""
    copies = [path for path in sorted((store.directory / "code").glob("*")) if path.is_dir()]
    if not copies:
        return []
    try:
        needed = {read_launch(store).source}
        for (stage, attempt), element in elements(store.directory).items():
            status = store.status(stage)
            if status.attempt == attempt and status.state in ("submitted", "running"):
                needed.add(element.task.source)
    except InputError:  # As above.
        return []
    return [
        _waste(copy, "code that no job runs from")
        for copy in copies
        if str(copy.resolve()) not in needed
    ]


def delete(waste: Waste) -> None:
    """Delete it."""
    if waste.path.is_dir():
        shutil.rmtree(waste.path)
    else:
        waste.path.unlink()


def _may_run(status: Status) -> bool:
    if status.state not in ("submitted", "running"):
        return False
    return status.process is None or process.liveness(status.process) != "dead"


def _consumers_done(store: Store, plan: Plan, stage: str) -> bool:
    consumers = [other for other in plan.stages.values() if stage in other.consumes.values()]
    return all(store.status(other.id).state == "done" for other in consumers)


def _waste(path: Path, why: str) -> Waste:
    files = [path] if path.is_file() else [part for part in path.rglob("*") if part.is_file()]
    return Waste(path=path, why=why, size=sum(part.stat().st_size for part in files))


def main(arguments: list[str] | None = None) -> int:
    """Print what can go, and delete it when told to."""
    parser = ArgumentParser(
        prog="python -m harness.gc",
        description="Show what a sweep's folder no longer needs; delete it on request.",
    )
    parser.add_argument("dir", type=str, help="The sweep's folder, e.g. runs/full.")
    parser.add_argument("--delete", action="store_true", help="Delete what is shown.")
    parser.add_argument(
        "--models",
        action="store_true",
        help="Also the trained models whose evaluations are done; evaluating them on something "
        "new would mean training them again.",
    )
    options = parser.parse_args(arguments)

    def command() -> int:
        store = Store(Path(options.dir))
        read_plan(store.plan_file)  # Before the lock, which would make the folder.
        # A sweep that starts meanwhile must not lose what it is about to use.
        with store.launcher() if options.delete else contextlib.nullcontext():
            waste = find_waste(store, models=options.models)
            for item in waste:
                where = item.path.relative_to(store.directory)
                print(f"{item.size / 1e6:9.1f} MB  {where}  ({item.why})")
                if options.delete:
                    delete(item)
        total = f"{sum(item.size for item in waste) / 1e6:.1f} MB in {len(waste)} places"
        if options.delete:
            print(f"deleted {total}")
        else:
            print(f"{total}; --delete deletes them" if waste else "nothing to delete")
        return 0

    return run_command(command)


if __name__ == "__main__":
    raise SystemExit(main())
