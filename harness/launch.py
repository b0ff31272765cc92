"""The launcher: runs a recorded plan, collects the results, writes the report.

``python -m harness.launch DIR`` is the launcher of a detached sweep, and needs nothing but its
folder.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from harness import machine, process, provenance, slurm
from harness.ablation import Ablation
from harness.ablation_file import to_plain
from harness.cli import run_command
from harness.dispatch import Outcome, dispatch
from harness.estimate import known_statuses
from harness.executors.base import Executor
from harness.executors.inline import InlineExecutor
from harness.executors.local import LocalExecutor
from harness.executors.slurm import SlurmExecutor
from harness.graph import KINDS, Plan, read_plan, write_plan
from harness.profile import Profile
from harness.store import Status, Store, write_atomically, write_yaml
from harness.tail import last_lines
from harness.watch import Watch, arms_of
from observe.errors import InputError
from observe.mapping import from_mapping

LOCK_S = 300.0
"""How long file servers may hold the lock of a launcher whose node died."""
TAIL_STAGES, TAIL_LINES = 3, 15
"""How much of the logs of failed stages is shown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher is told besides the plan (``launch.json``)."""

    executor: str
    """local, inline or slurm."""
    command: str
    """The command that was given, for the record."""
    jobs: int | None = None
    """Stages at a time at most."""
    retries: int = 2
    """How often a stage is tried again whose process was killed."""
    profile: Profile = Profile()
    """What the cluster asks of jobs."""
    code: str | None = None
    """Commit of the code."""
    source: str | None = None
    """The folder that jobs run the code from; None: from wherever the launcher has it."""


def record(store: Store, ablation: Ablation, plan: Plan, launch: Launch) -> Launch:
    """Write the question, the plan and the code into the sweep's folder; the completed launch."""
    write_yaml(store.sweep_file, to_plain(ablation))
    write_plan(plan, store.plan_file)
    launch = record_code(store, launch)
    write_atomically(_file(store), json.dumps(dataclasses.asdict(launch), indent=1))
    return launch


def record_code(store: Store, launch: Launch) -> Launch:
    """Write which code this is into the sweep's folder; the launch with it."""
    code = provenance.record(store.directory)
    # A job may start in days, or again: by then a checkout has moved on.
    source = str(provenance.snapshot(store.directory)) if launch.executor == "slurm" else None
    return dataclasses.replace(launch, code=code, source=source)


def read_launch(store: Store) -> Launch:
    """What the last launcher was told. Raises InputError where there was none."""
    try:
        content = json.loads(_file(store).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{store.directory}: no sweep here (no {_file(store).name})") from None
    except ValueError as error:
        raise InputError(
            f"{_file(store)}: not a launch ({error}); run the sweep again to write it"
        ) from None
    return from_mapping(Launch, content, source=str(_file(store)))


def executor_of(launch: Launch) -> Executor:
    """The executor. Raises InputError where it cannot work."""
    if launch.executor == "inline":
        return InlineExecutor()
    if launch.executor == "slurm":
        return SlurmExecutor(launch.profile, jobs=launch.jobs)
    return LocalExecutor(jobs=launch.jobs)


def run(
    plan: Plan,
    store: Store,
    launch: Launch,
    executor: Executor,
    *,
    detached: bool = False,
    began: float | None = None,
) -> int:
    """Run what is not done, report, and say what there is; the exit code.

    The caller holds the store. ``began``: when the command did (monotonic seconds). ``detached``:
    nobody looks on, so that there is a report even where this raises InputError.
    """
    began = time.monotonic() if began is None else began
    if words := going_on(plan, known_statuses(plan, store)):
        print(words, flush=True)
    store.event(
        "launched",
        executor=executor.name,
        stages=len(plan.stages),
        code=launch.code,
        source=launch.source,
    )
    print(flush=True)
    watch = Watch(plan, store, cores=machine.cores(), jobs=launch.jobs)
    # A launcher job that Slurm ends, to start it again elsewhere, must not take its stages along;
    # harness.cancel stops them itself.
    in_job = detached and executor.name == "slurm"
    try:
        outcome = dispatch(
            plan,
            store,
            executor,
            retries=launch.retries,
            code=launch.code,
            source=launch.source,
            stop_on=() if in_job else (signal.SIGINT, signal.SIGTERM),
            watch=watch,
        )
    except InputError:
        if detached:
            states = {id: status.state for id, status in known_statuses(plan, store).items()}
            report(plan, store, Outcome(states=states), launch.command)
        raise
    finally:
        watch.close()
        store.event("left")
    report_s = report(plan, store, outcome, launch.command)
    return summary(plan, store, outcome, time.monotonic() - began, report_s)


def going_on(plan: Plan, statuses: dict[str, Status]) -> str | None:
    """What is kept of earlier launches, and how far trainings were; None when there is nothing."""
    names = arms_of(plan)
    done = sum(status.state == "done" for status in statuses.values())
    begun = []
    for stage in plan.stages.values():
        status = statuses[stage.id]
        progress = status.progress
        if stage.kind == "train" and status.state != "done" and progress and progress["done"]:
            live = status.state == "running" and process.liveness(status.process) != "dead"
            verb = "runs on" if live else "resumes"
            step = f"{progress['done']} of {progress['total']}"
            begun.append(f"train {names[stage.id]} {verb} after {step}")
    if done == len(statuses) or not (done or begun):
        return None
    return "; ".join([f"going on: {done} stage{'s' * (done != 1)} done", *begun])


def report(plan: Plan, store: Store, outcome: Outcome, command: str) -> float | None:
    """Tables and report, in processes of their own; seconds, or None when there was nothing to do.

    What goes wrong there is said there, on stderr; the summary misses the report.
    """
    began = time.monotonic()
    stamp = store.directory / "reported.json"
    described = json.dumps({"plan": store.plan_file.read_text("utf-8"), "states": outcome.states})
    finished = (store.report / "index.html").exists() and (store.results / "sweep.json").exists()
    if not outcome.started and finished and stamp.exists() and stamp.read_text() == described:
        return None
    evaluated = any(outcome.states[run.stages["evaluate"]] == "done" for run in plan.runs)
    if outcome.stopped or not evaluated:
        return None
    print("\ncollecting the results and writing the report", flush=True)
    stamp.unlink(missing_ok=True)
    (store.report / "index.html").unlink(missing_ok=True)
    directory = str(store.directory)
    collected = _quietly("harness.collect", directory, "--command", command) == 0
    # 1 says that runs are missing, as the summary does.
    if collected and _quietly("reports", directory) in (0, 1) and outcome.complete:
        write_atomically(stamp, described, durable=False)
    return time.monotonic() - began


def _quietly(module: str, *arguments: str) -> int:
    """Run a command of ours for its files; only its complaints are shown."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode


def summary(
    plan: Plan, store: Store, outcome: Outcome, wall_s: float, report_s: float | None
) -> int:
    """Print what there is and what is missing; the exit code."""
    statuses = known_statuses(plan, store)
    print("\nseconds per part (stages that run side by side count each):")
    for kind in KINDS:
        stages = [statuses[s.id] for s in plan.stages.values() if s.kind == kind]
        done = [status for status in stages if status.state == "done"]
        if stages:
            seconds = sum(status.seconds for status in done)
            print(f"  {kind:<9} {seconds:8.0f} s  {len(done)} of {len(stages)} stages")
    if report_s is not None:
        print(f"  {'report':<9} {report_s:8.0f} s")
    earlier = launch_seconds(store.events())[:-1]
    words = f"of this command, {outcome.started} stages started"
    if earlier:
        words += f"; {sum(earlier) + wall_s:.0f} s in {len(earlier) + 1} launches"
    print(f"  {'wall':<9} {wall_s:8.0f} s  {words}")
    _say_what_failed(plan, store, outcome, statuses)
    missing = [run.run for run in plan.runs if outcome.states[run.stages["evaluate"]] != "done"]
    if missing:
        print(f"missing: {', '.join(missing)}; run the same command again to go on")
    failed = [statuses[stage].error for stage, state in outcome.states.items() if state == "failed"]
    if failed and all(error and error["class"] == "InputError" for error in failed):
        return 2
    if outcome.stopped:
        return 1
    if not (store.report / "index.html").exists():
        print(f"no report: python -m reports {store.directory}")
        return 1
    print(f"report: {store.report / 'index.html'}")
    return 0 if outcome.complete else 1


def launch_seconds(events: list[dict[str, Any]]) -> list[float]:
    """How long each launcher of a sweep was at work: up to the last event before the next."""
    seconds: list[float] = []
    began = 0.0
    for event in events:
        if event["event"] == "launched":
            began = event["time"]
            seconds.append(0.0)
        elif seconds and event["event"] != "cancelled":  # That may be told days later.
            seconds[-1] = event["time"] - began
    return seconds


def _say_what_failed(
    plan: Plan, store: Store, outcome: Outcome, statuses: dict[str, Status]
) -> None:
    """Name the stages that failed, with the ends of the first few logs."""
    names, shown = arms_of(plan), 0
    for stage, state in outcome.states.items():
        error = statuses[stage].error
        if state not in ("failed", "cancelled") or not error:
            continue
        if error["class"] in ("Blocked", "Cancelled"):
            continue
        print(f"{state}: {stage} ({names[stage]}): {error['class']}: {error['message']}")
        print(f"  see {store.log(stage)}")
        # Bad input is said in one line, and that is above.
        if error["class"] != "InputError" and shown < TAIL_STAGES:
            shown += 1
            for line in last_lines(store.log(stage), TAIL_LINES):
                print(f"  | {line}")


def _file(store: Store) -> Path:
    return store.directory / "launch.json"


def _queue_again(number: int, frame: object) -> None:
    """The launcher's time is nearly up: have Slurm end this job and start it again."""
    # Not print, which this may have interrupted. Until Slurm ends it, the launcher goes on.
    os.write(1, b"the time limit of this job is near: it is queued again, and goes on\n")
    try:
        slurm.requeue_this_job()
    except subprocess.CalledProcessError:
        os.write(1, b"Slurm refused; run the sweep again with --detach to go on\n")
    except subprocess.TimeoutExpired:
        os.write(1, b"Slurm does not answer; run the sweep again with --detach if this job ends\n")


def main(arguments: list[str] | None = None) -> int:
    """Exit code as of ``harness.sweep``."""
    parser = ArgumentParser(
        prog="python -m harness.launch",
        description="Go on with a sweep as it was launched last; harness.sweep --detach runs this.",
    )
    parser.add_argument("dir", type=str, help="The sweep's folder, e.g. runs/full.")
    options = parser.parse_args(arguments)

    def command() -> int:
        store = Store(Path(options.dir))
        launch, plan = read_launch(store), read_plan(store.plan_file)
        executor = executor_of(launch)
        in_job = launch.executor == "slurm"
        if in_job:
            signal.signal(signal.SIGUSR2, _queue_again)
        with store.launcher(wait_s=LOCK_S if in_job else 0.0):
            return run(plan, store, launch, executor, detached=True)

    return run_command(command)


if __name__ == "__main__":
    raise SystemExit(main())
