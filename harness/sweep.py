"""Answer an ablation file: ``python -m harness.sweep ablations/full.yaml``.

Plans, runs what is not done, collects the results and writes the report. Run again, it goes on.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from harness import cli, machine, provenance
from harness.ablation import Ablation, load_ablation, to_plain
from harness.dispatch import Outcome, dispatch
from harness.estimate import known_statuses
from harness.executors.base import Executor
from harness.executors.inline import InlineExecutor
from harness.executors.local import LocalExecutor
from harness.executors.slurm import SlurmExecutor
from harness.graph import KINDS, Plan, make_plan, write_plan
from harness.plan import describe
from harness.profile import Profile, load_profile
from harness.store import Store, write_atomically, write_yaml
from harness.watch import Watch, arms_of
from observe.errors import InputError


def sweep(options: Namespace, command: str) -> int:
    """Run the command; its exit code. Raises InputError before anything is written."""
    began = time.monotonic()
    cli.check_numbers(options.jobs, options.retries)
    profile = profile_of(options)
    overrides = cli.overrides_of(options.seeds, options.set)
    ablation, start = load_ablation(Path(options.file), overrides)
    plan = make_plan(ablation, start, options.file)
    store = Store(Path(options.out) / plan.name)
    where = "on this machine"
    if options.executor == "slurm":
        options.jobs = options.jobs or profile.max_submitted
        where = f"from the first job on, {options.jobs} at a time at most"
    print(describe(plan, ablation, store, jobs=options.jobs, where=where), flush=True)
    if options.dry_run:
        return 0
    executor = executor_of(options, profile)
    with store.launcher():
        outcome = _run(options, executor, ablation, plan, store)
        report_s = report(plan, store, outcome, command)
    return summary(plan, store, outcome, time.monotonic() - began, report_s)


def profile_of(options: Namespace) -> Profile:
    """What --profile names. Raises InputError."""
    if options.profile is None:
        return Profile()
    if options.executor != "slurm":
        raise InputError(f"--profile {options.profile}: only with --executor slurm; add it")
    return load_profile(Path(options.profile))


def executor_of(options: Namespace, profile: Profile) -> Executor:
    """What --executor names."""
    if options.executor == "inline":
        return InlineExecutor()
    if options.executor == "slurm":
        return SlurmExecutor(profile, jobs=options.jobs)
    if shutil.which("sbatch"):
        print("running on this machine; --executor slurm sends the stages to the cluster")
    return LocalExecutor(jobs=options.jobs)


def _run(
    options: Namespace, executor: Executor, ablation: Ablation, plan: Plan, store: Store
) -> Outcome:
    """Record the plan and dispatch it."""
    write_yaml(store.sweep_file, to_plain(ablation))
    write_plan(plan, store.plan_file)
    store.event("launched", executor=executor.name, stages=len(plan.stages))
    print(flush=True)
    watch = Watch(plan, store, cores=machine.cores(), jobs=options.jobs)
    try:
        return dispatch(
            plan, store, executor, retries=options.retries, code=provenance.code(), watch=watch
        )
    finally:
        watch.close()


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
    statuses, names = known_statuses(plan, store), arms_of(plan)
    print("\nseconds per part (stages that run side by side count each):")
    for kind in KINDS:
        stages = [statuses[s.id] for s in plan.stages.values() if s.kind == kind]
        done = [status for status in stages if status.state == "done"]
        if stages:
            seconds = sum(status.seconds for status in done)
            print(f"  {kind:<9} {seconds:8.0f} s  {len(done)} of {len(stages)} stages")
    if report_s is not None:
        print(f"  {'report':<9} {report_s:8.0f} s")
    print(f"  {'wall':<9} {wall_s:8.0f} s  of this command, {outcome.started} stages started")
    for stage, state in outcome.states.items():
        status = statuses[stage]
        if state in ("failed", "cancelled") and status.error:
            if status.error["class"] in ("Blocked", "Cancelled"):
                continue
            error = f"{status.error['class']}: {status.error['message']}"
            print(f"{state}: {stage} ({names[stage]}): {error}")
            print(f"  see {store.log(stage)}")
    missing = [run.run for run in plan.runs if outcome.states[run.stages["evaluate"]] != "done"]
    if missing:
        print(f"missing: {', '.join(missing)}; run the same command again to go on")
    failed = [statuses[stage].error for stage, state in outcome.states.items() if state == "failed"]
    if failed and all(error and error["class"] == "InputError" for error in failed):
        return 2
    if not (store.report / "index.html").exists():
        print(f"no report: python -m reports {store.directory}")
        return 1
    print(f"report: {store.report / 'index.html'}")
    return 0 if outcome.complete else 1


def add_executor_arguments(parser: ArgumentParser) -> None:
    """--executor, --profile, --retries and --dry_run."""
    parser.add_argument(
        "--executor",
        choices=["local", "inline", "slurm"],
        default="local",
        help="local: warm worker processes on this machine. inline: one stage at a time in this "
        "process, for debugging. slurm: a job of the cluster for each stage.",
    )
    parser.add_argument(
        "--profile",
        type=str,
        default=None,
        metavar="CLUSTER.yaml",
        help="What the cluster asks of jobs, for --executor slurm; see profiles/example.yaml.",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=2,
        help="How often a stage is tried again whose process was killed (out of memory, ...).",
    )
    parser.add_argument("--dry_run", action="store_true", help="Print the plan, run nothing.")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when all is done, 1 when something failed or is missing, 2 for bad input."""
    parser = ArgumentParser(
        prog="python -m harness.sweep",
        description="Plan an ablation, run what is not done, report. Run it again to go on.",
    )
    cli.add_ablation_arguments(parser)
    add_executor_arguments(parser)
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = "python -m harness.sweep " + shlex.join(given)
    return cli.run_command(lambda: sweep(options, command))


if __name__ == "__main__":
    raise SystemExit(main())
