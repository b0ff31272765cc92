"""Answer an ablation file: ``python -m harness.sweep ablations/full.yaml``.

Plans, runs what is not done, collects the results and writes the report. Run again, it goes on.
"""

import shlex
import shutil
import sys
import time
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from harness import cli, detach, launch
from harness.ablation_file import load_ablation
from harness.graph import make_plan
from harness.launch import Launch
from harness.plan import describe
from harness.profile import Profile, load_profile
from harness.store import Store
from observe.errors import InputError


def sweep(options: Namespace, command: str) -> int:
    """Run the command; its exit code. Raises InputError before anything is written."""
    began = time.monotonic()
    told = launch_of(options, command)
    overrides = cli.overrides_of(options.seeds, options.set)
    ablation, start = load_ablation(Path(options.file), overrides)
    plan = make_plan(ablation, start, options.file)
    store = Store(Path(options.out) / plan.name)
    where = "on this machine"
    if options.executor == "slurm":
        where = f"from the first job on, {told.jobs} at a time at most"
    print(describe(plan, ablation, store, jobs=told.jobs, where=where), flush=True)
    if options.dry_run:
        return 0
    executor = launch.executor_of(told)
    if options.executor == "local" and shutil.which("sbatch"):
        print("running on this machine; --executor slurm sends the stages to the cluster")
    detach.refuse_second(store)
    with store.launcher():
        told = launch.record(store, ablation, plan, told)
        if not options.detach:
            return launch.run(plan, store, told, executor, began=began)
    _detach(store, told)
    return 0


def _detach(store: Store, told: Launch) -> None:
    """Start the launcher elsewhere, and say how to follow and stop it."""
    if told.executor == "slurm":
        assert told.source
        launcher = detach.submit_job(store, told.profile, told.source)
    else:
        launcher = detach.start_process(store)
    print(
        f"\nlauncher: {launcher}, log {detach.log_of(store)}\n"
        f"  watch:  python -m harness.status {store.directory}\n"
        f"  stop:   python -m harness.cancel {store.directory}"
    )


def launch_of(options: Namespace, command: str) -> Launch:
    """What a launcher is told by the command line. Raises InputError."""
    cli.check_numbers(options.jobs, options.retries)
    profile = _profile(options)
    return Launch(
        executor=options.executor,
        command=command,
        jobs=options.jobs or (profile.max_submitted if options.executor == "slurm" else None),
        retries=options.retries,
        profile=profile,
    )


def _profile(options: Namespace) -> Profile:
    if options.profile is None:
        return Profile()
    if options.executor != "slurm":
        raise InputError(f"--profile {options.profile}: only with --executor slurm; add it")
    return load_profile(Path(options.profile))


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
    """Exit code 0 when all is done, 1 when something failed or is missing, 2 for bad input.

    Detached, 0 says that the launcher has started, or waits in Slurm's queue.
    """
    parser = ArgumentParser(
        prog="python -m harness.sweep",
        description="Plan an ablation, run what is not done, report. Run it again to go on.",
    )
    cli.add_ablation_arguments(parser)
    add_executor_arguments(parser)
    parser.add_argument(
        "--detach",
        action="store_true",
        help="Return at once: the launcher goes on in the background, with slurm as a small job "
        "of its own. Nothing has to stay open.",
    )
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    command = "python -m harness.sweep " + shlex.join(given)
    return cli.run_command(lambda: sweep(options, command))


if __name__ == "__main__":
    raise SystemExit(main())
