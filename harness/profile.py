"""A cluster profile: what a site asks of the jobs that are sent to it (``--profile FILE``)."""

import dataclasses
from pathlib import Path

from observe.errors import InputError
from observe.mapping import from_mapping, load_yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class LauncherJob:
    """The job of ``--detach``: one core that sends the stages' jobs and writes the report."""

    partition: str | None = None
    """Partition; None: that of the stages."""
    hours: float = 24.0
    """Time limit, at most the profile's max_minutes. A launcher that reaches it is queued again and
    goes on."""
    mem_gb: float = 4.0
    """Memory in gigabytes, mostly for the report."""
    sbatch: dict[str, str | int | bool] = dataclasses.field(default_factory=dict)
    """Any other parameters of sbatch; the profile's own are for stages."""

    def __post_init__(self) -> None:
        for name in ("hours", "mem_gb"):
            if (number := getattr(self, name)) <= 0:
                raise InputError(f"{name}: expected more than 0, got {number}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """How stages become Slurm jobs. Cores, memory, GPUs and hours come from the ablation file."""

    partition: str | None = None
    """Partition; None: the site's default."""
    account: str | None = None
    """Account that the time is charged to."""
    qos: str | None = None
    """Quality of service."""
    setup: tuple[str, ...] = ()
    """Shell lines run on the node before Python starts, e.g. module load cuda."""
    python: str | None = None
    """Shell command that starts Python on a node, e.g. inside a container; None: the Python that
    runs the launcher, which nodes must then see under the same path."""
    srun_args: tuple[str, ...] = ()
    """Arguments of srun, e.g. --container-image=... of Pyxis."""
    sbatch: dict[str, str | int | bool] = dataclasses.field(default_factory=dict)
    """Any other parameters of sbatch, e.g. constraint: a100; true stands for a bare flag."""
    max_submitted: int = 200
    """Stages in the queue or running at most: the site's MaxSubmitJobs or less. Further ones are
    sent as these end."""
    max_running: int = 200
    """Stages of one array that run at a time at most."""
    time_limit_factor: float = 2.0
    """Time limit of a job: resources.<kind>.hours times this. A stage that reaches the limit is
    queued again and goes on from its last checkpoint."""
    min_minutes: int = 10
    """Shortest time limit in minutes."""
    max_minutes: int | None = None
    """Longest time limit in minutes: the partition's, else longer jobs would wait for ever."""
    warn_seconds: int = 90
    """How long before the time limit a stage is told to stop, in seconds; at most a fifth of the
    limit."""
    max_requeues: int = 100
    """How often a job is queued again (time limit, pre-emption) until its stage has failed."""
    poll_seconds: float = 5.0
    """How often Slurm is asked for states, in seconds."""
    launcher: LauncherJob = dataclasses.field(default_factory=LauncherJob)
    """The job of --detach."""

    def __post_init__(self) -> None:
        least = {"max_submitted": 1, "max_running": 1, "min_minutes": 1, "warn_seconds": 1}
        for name, number in {**least, "max_requeues": 0}.items():
            if getattr(self, name) < number:
                raise InputError(f"{name}: expected {number} or more, got {getattr(self, name)}")
        for name in ("time_limit_factor", "poll_seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.max_minutes is not None and self.max_minutes < self.min_minutes:
            raise InputError(
                f"max_minutes: {self.max_minutes} is less than min_minutes, {self.min_minutes}"
            )

    def minutes(self, hours: float) -> int:
        """The time limit in minutes of a stage that is expected to take so many hours."""
        minutes = max(self.min_minutes, round(hours * 60 * self.time_limit_factor))
        return min(minutes, self.max_minutes or minutes)

    def warning(self, minutes: int) -> int:
        """How many seconds before a time limit of so many minutes a job is told to stop."""
        return min(self.warn_seconds, minutes * 60 // 5)


def load_profile(path: Path) -> Profile:
    """Read a profile strictly. Raises InputError naming file, key and what was expected."""
    return from_mapping(Profile, load_yaml(path) or {}, source=str(path))
