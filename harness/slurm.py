"""What Slurm knows of our jobs, and what it is told: squeue, sacct, scontrol and scancel.

No question here waits for Slurm for long, and no answer is never taken for an answer.
"""

import contextlib
import dataclasses
import getpass
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from observe.errors import InputError

COMMAND_S = 30.0
"""How long a command may take, in seconds: sacct is known to hang where its database is down."""

SEND_S = 120.0
"""How long sbatch may take: longer, as it leaves open whether the job was taken when it is cut off.
"""

FINAL = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""States in which a job does nothing any more; in any other, known or not, it may."""

STUCK = ("held", "Held", "PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints")
"""In the reasons of jobs that wait for a person."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A job, or one element of an array."""

    key: str
    """``<job>``, or ``<array>_<element>``."""
    name: str
    """The job's name."""
    state: str
    """Slurm's word for its state."""
    reason: str = ""
    """Why it waits."""
    exit: int = 0
    """Exit code of its script; negative: the signal that ended it."""
    restarts: int = 0
    """How often Slurm queued it again."""

    @property
    def array(self) -> int:
        """The number in front of the element's."""
        return int(self.key.partition("_")[0])

    @property
    def final(self) -> bool:
        """Whether it does nothing any more."""
        return self.state in FINAL

    @property
    def stuck(self) -> bool:
        """Whether it waits for something that will not happen by itself."""
        return self.state == "PENDING" and any(word in self.reason for word in STUCK)

    @property
    def launch_failed(self) -> bool:
        """Whether its node did not take it, so that Slurm put it aside for an administrator."""
        return self.state == "PENDING" and "launch failed" in self.reason.replace("_", " ").lower()

    @property
    def detail(self) -> str:
        """How it ended, in words."""
        number = -self.exit if self.exit < 0 else self.exit - 128  # A shell reports 128 + signal.
        with contextlib.suppress(ValueError):
            name = signal.Signals(number).name
            hint = " (out of memory?)" if name == "SIGKILL" and self.state == "FAILED" else ""
            return f"its Slurm job {self.key} was killed by {name}{hint}, state {self.state}"
        return f"its Slurm job {self.key} ended with state {self.state}, exit code {self.exit}"


def queue() -> dict[str, Job] | None:
    """Key -> job, for all of this user's that the controller remembers: also ended ones.

    None when it does not answer.
    """
    fields = "ArrayJobID:|,ArrayTaskID:|,Name:|,State:|,Reason:|,exit_code:|,RestartCnt:|"
    told = ask("squeue", "--user", getpass.getuser(), "--states=all", "--array", "-h", "-O", fields)
    if told is None:
        return None
    jobs = {}
    for line in told.splitlines():
        job, element, rest = line.split("|", 2)
        # The names of this user's other jobs may hold anything.
        name, state, reason, status, restarts, _ = rest.rsplit("|", 5)
        key = job if element == "N/A" else f"{job}_{element}"
        jobs[key] = Job(
            key=key,
            name=name,
            state=state,
            reason=reason,
            exit=_exit_code(int(status)),
            restarts=int(restarts),
        )
    return jobs


def _exit_code(status: int) -> int:
    """Of a wait status: what a process returned, or minus the signal that killed it."""
    return -(status & 0x7F) if status & 0x7F else status >> 8


def accounted(key: str) -> Job | None:
    """What the accounting database knows of a job; None where there is none, or no answer."""
    told = ask("sacct", "-n", "-P", "-X", "-j", key, "-o", "JobName,State,ExitCode")
    for line in (told or "").splitlines():
        name, state, code = line.split("|")
        exit, _, number = code.partition(":")
        # "CANCELLED by 1000"
        state = state.split()[0]
        return Job(key=key, name=name, state=state, exit=-int(number) or int(exit))
    return None


def max_array_size() -> int | None:
    """How many elements an array may have, 1 where arrays are switched off; None when Slurm does
    not answer."""
    told = ask("scontrol", "show", "config") or ""
    for line in told.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize":
            return max(1, int(value))
    return None


def cancel(keys: list[str], names: list[str], *, kill: bool = False) -> None:
    """Take jobs out of the queue, and stop what runs; ``kill``: at once."""
    chosen = [keys[start : start + 500] for start in range(0, len(keys), 500)]
    chosen += [["--user", getpass.getuser(), "--name", name] for name in names]
    for jobs in chosen:
        ask("scancel", *jobs)
        if kill:
            ask("scancel", "--full", "--signal=KILL", *jobs)


def submit(script: Path, parameters: dict[str, str | int | bool | None]) -> str:
    """Send a script as a job; its id. True stands for a bare flag, None for none.

    ``parameters`` name the job so that no other has the name: where sbatch gives no answer it is
    looked for by that. Raises InputError with what sbatch says when it is not taken, or not found.
    """
    flags = []
    for name, value in parameters.items():
        flag = f"--{name.replace('_', '-')}"
        if value is not None and value is not False:
            flags.append(flag if value is True else f"{flag}={value}")
    try:
        with no_job_around():
            run = subprocess.run(
                ["sbatch", "--parsable", *flags, str(script)],
                capture_output=True,
                text=True,
                check=False,
                timeout=SEND_S,
            )
    except subprocess.TimeoutExpired:
        return _taken(str(parameters["job_name"]))
    if run.returncode:
        raise InputError(f"sbatch {script}: {run.stderr.strip()}; change the profile, or try again")
    return run.stdout.strip().partition(";")[0]


def _taken(name: str) -> str:
    """The id of a job whose sbatch gave no answer. Raises InputError when it is not to be found."""
    for job in (queue() or {}).values():
        if job.name == name and not job.final:
            return str(job.array)
    raise InputError(
        f"sbatch gave no answer in {SEND_S:.0f} s, and may have taken the job or not; try again "
        f"when squeue --name={name} answers and does not show it"
    )


@contextlib.contextmanager
def time_limit(command: str, seconds: float) -> Iterator[None]:
    """Raise TimeoutError where others run a command that takes longer; in the main thread alone."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"{command} timed out: no answer in {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def no_job_around() -> Iterator[None]:
    """Hide that this process is itself in a job: its jobs would inherit its memory and binding."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration:
            os.environ["SLURM_CONF"] = configuration
        yield


def requeue_this_job() -> None:
    """Queue the job that this process runs in again.

    Raises CalledProcessError when refused, and TimeoutExpired when nobody knows whether it is.
    """
    command = ["scontrol", "requeue", os.environ["SLURM_JOB_ID"]]
    subprocess.run(command, check=True, timeout=COMMAND_S)


def ask(*command: str) -> str | None:
    """What a command of Slurm's prints; None when it fails, hangs or is not there."""
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return run.stdout if run.returncode == 0 else None
