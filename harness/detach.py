"""A launcher that nobody waits for: a process of its own session, or a small job of Slurm's.

Both run ``python -m harness.launch DIR``, which finds all it needs in the sweep's folder.
"""

import dataclasses
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from harness import process, slurm
from harness.executors.slurm_array import code_lines
from harness.profile import Profile
from harness.store import Store, write_atomically, writing
from observe.errors import InputError

PROGRAM = ["-m", "harness.launch"]
"""What Python is told to run."""
CANCEL_S = 45.0
"""How long a cancelled job may take to leave: Slurm kills one that does not stop after 30 s."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launcher:
    """What is known of a sweep's launcher."""

    state: Literal["none", "queued", "alive", "dead", "unknown"]
    """queued: its job waits in Slurm's queue; dead: it was killed while it held the sweep."""
    where: str = ""
    """Its process or job, in words."""
    job: str | None = None
    """Slurm's id of the job that was sent to launch this sweep, while that waits or runs."""


def log_of(store: Store) -> Path:
    """What a detached launcher prints."""
    return store.directory / "launcher.log"


def start_process(store: Store) -> str:
    """Start a launcher on this machine; which one, in words.

    It has a session of its own, and nothing of the terminal's, so that it outlives both. Raises
    InputError when it could not take up the sweep.
    """
    log = log_of(store)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    with writing(log), open(log, "ab") as output:
        launcher = subprocess.Popen(
            [sys.executable, *PROGRAM, str(store.directory)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    while (store.launcher_process() or {}).get("pid") != launcher.pid:
        code = launcher.poll()
        if code == 2:
            raise InputError(f"the launcher did not start; see the end of {log}")
        if code is not None:
            break
        time.sleep(0.05)
    return f"process {launcher.pid}"


def submit_job(store: Store, profile: Profile, source: str) -> str:
    """Send a job that launches the sweep with the code in a folder; which one, in words.

    Slurm starts it again when its node fails. Raises InputError when it is refused.
    """
    asked = profile.launcher
    minutes = max(1, round(asked.hours * 60))
    minutes = min(minutes, profile.max_minutes or minutes)
    program = shlex.join([sys.executable, *PROGRAM, str(store.directory.resolve())])
    # In the shell's place, so that it gets the signals that are meant for the job.
    lines = ["#!/bin/bash", *profile.setup, *code_lines(source), f"exec {program}"]
    write_atomically(_script(store), "\n".join(lines) + "\n")
    job = slurm.submit(
        _script(store),
        {
            "job_name": _job_name(store),
            "output": str(log_of(store).resolve()),
            "open_mode": "append",
            "partition": asked.partition or profile.partition,
            "account": profile.account,
            "qos": profile.qos,
            "ntasks": 1,
            "cpus_per_task": 1,
            "mem": f"{round(asked.mem_gb * 1024)}M",
            "time": minutes,
            "signal": f"B:USR2@{profile.warning(minutes)}",
            "requeue": True,
            **asked.sbatch,
        },
    )
    return f"Slurm job {job}"


def launcher_of(store: Store) -> Launcher:
    """The launcher that holds a sweep, or is to. Asks Slurm where the sweep has to do with it."""
    holder = store.launcher_process()
    sent = _script(store).exists()
    jobs = slurm.queue() if sent or (holder and holder.get("job")) else None
    if sent and jobs is not None:
        for job in jobs.values():
            if job.name == _job_name(store) and not job.final:
                waits = job.state == "PENDING"
                where = f"Slurm job {job.key}" + (f", {job.reason}" if waits else "")
                return Launcher(state="queued" if waits else "alive", where=where, job=job.key)
    if holder is None:
        return Launcher(state="unknown" if sent and jobs is None else "none")
    where = f"process {holder['pid']} on {holder['host']}"
    alive = process.liveness(holder)
    if alive == "unknown" and holder.get("job") and jobs is not None:
        job_of_holder = jobs.get(holder["job"])
        where += f", Slurm job {holder['job']}"
        # A controller that answers and does not know a job has long seen it end.
        alive = "dead" if job_of_holder is None or job_of_holder.final else "unknown"
    return Launcher(state=alive, where=where)


def refuse_second(store: Store) -> None:
    """Raises InputError when a job waits or runs to launch this sweep.

    A launcher that holds the sweep is refused by its lock.
    """
    launcher = launcher_of(store)
    if launcher.job:
        raise InputError(
            f"{store.directory}: {launcher.where} is to run this sweep; see python -m "
            f"harness.status {store.directory}, or stop it with python -m harness.cancel"
        )


def stop(store: Store, deadline: float) -> None:
    """Stop the launcher and wait until it is gone, at most until then (monotonic seconds).

    A job gets longer: Slurm takes its time.
    """
    job = launcher_of(store).job
    if job:
        slurm.cancel([job], [])
        until = time.monotonic() + CANCEL_S
        while launcher_of(store).job and time.monotonic() < until:
            time.sleep(0.2)
    holder = store.launcher_process()
    if holder and process.liveness(holder) == "alive":
        os.kill(holder["pid"], signal.SIGTERM)
        while process.liveness(holder) == "alive" and time.monotonic() < deadline:
            time.sleep(0.1)


def _script(store: Store) -> Path:
    return store.directory / "launcher.sh"


def _job_name(store: Store) -> str:
    """The same for the same folder, so that the job is found by whoever lost its id."""
    directory = store.directory.resolve()
    digest = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    return f"{directory.name}-launcher-{digest}"
