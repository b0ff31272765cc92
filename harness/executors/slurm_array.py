"""Arrays of Slurm jobs: the marker of each, how submitit sends it, and what its elements do.

A marker, ``slurm/<name>/array.json``, is written before an array is sent, and the array's name
follows from what it holds. So a launcher that takes over finds every job of an earlier one by name,
wherever that one was killed.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import job, ranks, slurm
from harness.executors.base import stage_environment
from harness.profile import Profile
from harness.store import Store, write_atomically
from harness.task import Task

SETTLE_S = 20.0
"""After so long an array that was sent is in the queue, or was never taken."""


@dataclasses.dataclass(kw_only=True)
class Array:
    """The content of a marker."""

    name: str
    """Name of the job."""
    sent: float
    """When sbatch was called, or gave up, in seconds since the epoch."""
    minutes: int
    """Its time limit."""
    max_requeues: int
    """How often an element is queued again."""
    tasks: list[Task]
    """Its elements, in order."""
    job: str | None = None
    """Slurm's id, once it is known."""

    @property
    def folder(self) -> Path:
        """Holds the marker, and the files of submitit."""
        return _folder(Path(self.tasks[0].directory)) / self.name

    def key(self, index: int) -> str:
        """Slurm's id of an element."""
        return f"{self.job}_{index}" if len(self.tasks) > 1 else f"{self.job}"

    @property
    def settled(self) -> bool:
        """Whether it would be in the queue by now, had it been taken."""
        return time.time() - self.sent > SETTLE_S

    def write(self) -> None:
        """Write the marker."""
        write_atomically(self.folder / "array.json", json.dumps(dataclasses.asdict(self)))

    @staticmethod
    def read(folder: Path) -> "Array":
        """Read the marker of a folder."""
        content = json.loads((folder / "array.json").read_text(encoding="utf-8"))
        return Array(**{**content, "tasks": [Task(**task) for task in content["tasks"]]})


@dataclasses.dataclass(kw_only=True)
class Element:
    """A stage in flight."""

    array: Array
    index: int
    missing_since: float | None = None
    """Since when neither Slurm nor a status knows what became of it (monotonic seconds)."""
    heartbeat: float | None = None
    """The last sign of life that was seen."""
    heard: float = dataclasses.field(default_factory=time.monotonic)
    """When it was seen, or its job last waited (monotonic seconds)."""
    over_since: float | None = None
    """Since when its stage is known to be done or failed (monotonic seconds)."""

    @property
    def task(self) -> Task:
        return self.array.tasks[self.index]


def elements(directory: Path) -> dict[tuple[str, int], Element]:
    """Stage and attempt -> its job, for all that the launchers of a sweep sent."""
    found = {}
    for marker in sorted(_folder(directory).glob("*/array.json")):
        array = Array.read(marker.parent)
        for index, task in enumerate(array.tasks):
            found[task.id, task.attempt] = Element(array=array, index=index)
    return found


def name_of(tasks: list[Task]) -> str:
    """The same for the same attempts of the same stages, and for no others."""
    described = [tasks[0].directory, *(f"{task.id}:{task.attempt}" for task in tasks)]
    digest = hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]
    return f"{Path(tasks[0].directory).name}-{digest}"


def send(array: Array, profile: Profile) -> str:
    """Send an array through submitit; Slurm's id of it.

    Raises submitit's FailedJobError when sbatch fails, TimeoutError when it gives no answer: the
    array may have been taken then.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    executor = submitit.SlurmExecutor(folder=array.folder, python=profile.python)
    executor.update_parameters(**_parameters(array, profile))
    try:
        limit = slurm.time_limit("sbatch", slurm.SEND_S)
        with slurm.no_job_around(), limit, executor.batch():
            sent = [executor.submit(run_element, str(array.folder)) for _ in array.tasks]
    except FailedJobError as error:
        if isinstance(error.__cause__, TimeoutError):
            raise error.__cause__ from None
        raise
    return str(sent[0].job_id).partition("_")[0]


def _parameters(array: Array, profile: Profile) -> dict[str, Any]:
    """Parameters of submitit for an array of a profile."""
    task = array.tasks[0]
    environment = stage_environment(task.cpus)
    if task.gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    lines = [f"export {name}={value}" for name, value in environment.items()]
    parameters = {
        "job_name": array.name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "time": array.minutes,
        "cpus_per_task": task.cpus,
        "gpus_per_node": task.gpus or None,
        "nodes": task.nodes if task.nodes > 1 else None,
        "ntasks_per_node": 1 if task.nodes > 1 else None,
        "mem": f"{math.ceil(task.mem_gb * 1024)}M" if task.mem_gb else None,
        "setup": [*profile.setup, *lines, *code_lines(task.source)],
        # A node that dies takes the others along: none waits for it.
        "srun_args": [*profile.srun_args, *(["--kill-on-bad-exit=1"] if task.nodes > 1 else [])],
        "signal_delay_s": profile.warning(array.minutes),
        "array_parallelism": profile.max_running,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **profile.sbatch},
    }
    return {key: value for key, value in parameters.items() if value is not None}


def code_lines(source: str | None) -> list[str]:
    """Shell lines that make Python import from this folder, then from where the launcher does."""
    # Without the Python that a container may replace.
    own = [os.path.abspath(path) for path in sys.path if not path.startswith(sys.base_prefix)]
    own = [path for path in own if not path.startswith(sys.prefix)]
    paths = ":".join(dict.fromkeys([*([source] if source else []), *own]))
    lines = [f'export PYTHONPATH="{paths}${{PYTHONPATH:+:$PYTHONPATH}}"']
    # Before PYTHONPATH, python -m looks in its working directory: often a checkout that moves on.
    return [*lines, f"cd {shlex.quote(source)}"] if source else lines


def complete(array: Array) -> None:
    """Write the files that submitit's jobs wait for, where their launcher was killed before."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    for index in range(len(array.tasks)):
        path = JobPaths(array.folder, job_id=array.key(index)).submitted_pickle
        if not path.exists():
            call = DelayedSubmission(run_element, str(array.folder))
            call.set_timeout(array.minutes, array.max_requeues)
            call.dump(path)


def run_element(folder: str) -> None:
    """What a job does: run its element of the array; queue itself again when it has to leave."""
    array = Array.read(Path(folder))
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    task, store = array.tasks[index], Store(Path(array.tasks[index].directory))
    status = store.status(task.id)
    if status.attempt == task.attempt and status.state in ("done", "failed"):
        return  # Queued again by Slurm itself, after all was done.
    if int(os.environ.get("SLURM_PROCID", "0")):
        ranks.follow(task, store)
        return
    array.job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])
    state = job.run(task, executor="slurm", job=array.key(index), queued=True)
    if state == "cancelled":
        sys.exit(1)  # So that Slurm does not call it complete.
    if state != "submitted":
        return
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) < array.max_requeues:
        with contextlib.suppress(subprocess.TimeoutExpired):  # The launcher sees what came of it.
            slurm.requeue_this_job()
        sys.exit(1)
    message = (
        f"not done after {array.max_requeues + 1} jobs of {array.minutes} minutes; raise the "
        "stage's hours in resources, or max_requeues in the profile"
    )
    error = {"class": "TimeLimit", "message": message}
    store.write_status(dataclasses.replace(store.status(task.id), state="failed", error=error))
    store.event("failed", stage=task.id, attempt=task.attempt, **error)


def _folder(directory: Path) -> Path:
    return directory / "slurm"
