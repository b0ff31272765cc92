"""Runs stages as Slurm jobs, sent through submitit: one array per group of equal resources.

What an earlier launcher sent is found by its markers and taken up; only what Slurm does not know is
sent again. What became of a stage stands in the stage's own status; Slurm is asked for what a
status cannot tell: that a job waits, or died. Jobs outlive the launcher.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness import process, slurm
from harness.executors.base import Ended
from harness.executors.slurm_array import Array, Element, complete, elements, name_of, send
from harness.process import Liveness
from harness.profile import Profile
from harness.store import Status, Store
from harness.task import Task
from observe.errors import InputError

LAG_S = 60.0
"""How late a file written on a node may be seen here (attribute caches of NFS)."""
SILENT_S = 600.0
"""How long a job that runs may give no sign of life until that is said: it may be setting up."""
CLOSE_S = 10.0
"""How long to wait for finished jobs to leave the queue."""
CANCEL_S = 45.0
"""How long cancelled jobs may take to leave: Slurm kills those that do not stop after 30 s."""
TEMPORARY = (
    "timed out",
    "temporarily",
    "Unable to contact",
    "Connection refused",
    "Connection reset",
    "Transport endpoint",
    "Zero Bytes",
    "missing socket",
    "Communication",
    "Message send failure",
    "Message receive failure",
    "standby mode",
)
"""What sbatch says when it may work later, or may even have worked."""
LIMITS = ("violates accounting/QOS policy", "MaxSubmitJob", "QOSMaxJobs", "AssocGrp")
"""What sbatch says when there are too many jobs: later fewer, unless there are none."""


class SlurmExecutor:
    """Jobs outlive it: what an earlier launcher sent is taken up again."""

    name = "slurm"

    def __init__(self, profile: Profile = Profile(), *, jobs: int | None = None) -> None:  # noqa: B008
        """``jobs``: stages in the queue or running at most, when less than the profile's.

        Raises InputError when this is no machine that jobs can be sent from.
        """
        if not shutil.which("sbatch") or not shutil.which("srun"):
            raise InputError(
                "--executor slurm: no sbatch and srun on PATH; start it on a login node of the "
                "cluster, or leave --executor out to run on this machine"
            )
        self._profile = profile
        self._limit = min(profile.max_submitted, jobs or profile.max_submitted)
        self._array_size: int | None = None
        self._unsent: list[Task] = []
        self._in_flight: dict[str, Element] = {}
        self._attached: dict[str, Status] = {}
        self._earlier: dict[tuple[str, int], Element] | None = None
        self._arrays: dict[str, Array] = {}
        self._stuck: set[str] = set()
        self._stopping = self._killing = self._silent = False
        self._next_look = 0.0

    def room(self, task: Task) -> bool:
        return len(self._in_flight) + len(self._unsent) < self._limit

    def submit(self, task: Task) -> None:
        self._read_markers(task)
        # Sent by poll, together with all that are ready now.
        self._unsent.append(task)

    def attach(self, task: Task, status: Status) -> Liveness:
        element = self._read_markers(task).get((task.id, task.attempt))
        if element:
            # Whether it still is, poll finds out: only Slurm can tell, and it may be silent now.
            self._in_flight[task.id] = element
            return "alive"
        if status.process is None:
            return "dead"  # Its launcher died before it was sent.
        alive = process.liveness(status.process)
        if alive == "alive":
            self._attached[task.id] = status
        return alive

    def poll(self, timeout_s: float) -> list[Ended]:
        if self._stopping:
            withdrawn = [Ended(id=task.id, detail="it was never sent") for task in self._unsent]
            self._unsent = []
            if withdrawn:
                return withdrawn
        elif self._unsent:
            self._send()
        if time.monotonic() < self._next_look:
            time.sleep(timeout_s)
            return []
        ended = self._look()
        self._next_look = time.monotonic() + self._profile.poll_seconds
        for stage, status in list(self._attached.items()):
            if process.liveness(status.process) == "dead":
                del self._attached[stage]
                ended.append(Ended(id=stage, detail="its process ended"))
        return ended

    def cancel(self) -> None:
        self._stop(kill=False)

    def kill(self) -> None:
        self._stop(kill=True)

    def close(self) -> None:
        """Let what has ended leave the queue, and take out what nobody waits for."""
        deadline = time.monotonic() + CLOSE_S
        while self._arrays and time.monotonic() < deadline:
            jobs = slurm.queue()
            if jobs is not None:
                self._cancel_strays(jobs)
                if not self._left(jobs):
                    return
            time.sleep(0.1)

    def _read_markers(self, task: Task) -> dict[tuple[str, int], Element]:
        """What earlier launchers sent, from the sweep's folder."""
        if self._earlier is None:
            self._earlier = elements(Path(task.directory))
            self._arrays |= {e.array.name: e.array for e in self._earlier.values()}
        return self._earlier

    def _stop(self, *, kill: bool) -> None:
        self._stopping, self._killing = True, self._killing or kill
        self._next_look = 0.0
        _cancel(self._in_flight.values(), kill=kill)
        for status in self._attached.values():
            if status.process and process.liveness(status.process) == "alive":
                os.kill(status.process["pid"], signal.SIGKILL if kill else signal.SIGTERM)

    # Sending

    def _send(self) -> None:
        """Send what is ready: an array for each kind of resources, split where it is too long."""
        self._array_size = self._array_size or slurm.max_array_size()
        self._heard(self._array_size is not None)
        if self._array_size is None:
            return
        groups: dict[tuple[Any, ...], list[Task]] = {}
        for task in self._unsent:
            shape = (task.nodes, task.processes, task.cpus, task.gpus, task.mem_gb, task.hours)
            groups.setdefault(shape, []).append(task)
        self._unsent = []
        for tasks in groups.values():
            for start in range(0, len(tasks), self._array_size):
                self._send_array(tasks[start : start + self._array_size])

    def _send_array(self, tasks: list[Task]) -> None:
        array = Array(
            name=name_of(tasks),
            sent=time.time(),
            minutes=self._profile.minutes(tasks[0].hours),
            max_requeues=self._profile.max_requeues,
            tasks=tasks,
        )
        shutil.rmtree(array.folder, ignore_errors=True)
        array.write()
        self._arrays[array.name] = array
        others = bool(self._in_flight)
        for index, task in enumerate(tasks):
            self._in_flight[task.id] = Element(array=array, index=index)
        from submitit.core.utils import FailedJobError

        try:
            array.job = send(array, self._profile)
        except (FailedJobError, TimeoutError) as error:
            said = str(error)
            if not may_work_later(said, others=others):
                shutil.rmtree(array.folder)  # So that the next launcher does not look for it.
                raise InputError(_refused(said, tasks[0])) from None
            # Taken or not: it is looked for by name, and sent again when it is not found.
            array.sent = time.time()
            array.write()
            print(f"sbatch: {said.strip().splitlines()[-1]}; trying again", flush=True)
        else:
            array.write()

    # Looking

    def _look(self) -> list[Ended]:
        """What ended since the last time."""
        jobs = slurm.queue()
        self._heard(jobs is not None)
        if jobs is not None:
            self._find(jobs)
        elif self._killing:
            raise InputError(
                "Slurm does not answer, and its jobs may go on: stop them with "
                "python -m harness.cancel when it does, or run the sweep again to take them up"
            )
        ended, never_taken = [], set()
        for stage, element in list(self._in_flight.items()):
            detail = self._end(element, jobs)
            if detail is not None:
                ended.append(Ended(id=stage, detail=detail))
            elif jobs is not None and element.array.job is None and element.array.settled:
                self._unsent.append(element.task)
                never_taken.add(element.array.folder)
            else:
                continue
            del self._in_flight[stage]
        for folder in never_taken:  # The next launcher must not look for it.
            shutil.rmtree(folder)
        if jobs is not None:
            self._cancel_strays(jobs)
        return ended

    def _cancel_strays(self, jobs: dict[str, slurm.Job]) -> None:
        """Take out jobs of this sweep that no stage waits for.

        Slurm queues a job again whose end it has forgotten; and an sbatch whose launcher was killed
        may reach Slurm later than its array was given up.
        """
        flying = self._in_flight.values()
        awaited = {element.array.key(element.index) for element in flying if element.array.job}
        sought = {element.array.name for element in flying if not element.array.job}
        strays = [
            job.key
            for job in self._left(jobs)
            if job.state != "COMPLETING" and job.key not in awaited and job.name not in sought
        ]
        if strays:
            slurm.cancel(strays, [])

    def _left(self, jobs: dict[str, slurm.Job]) -> list[slurm.Job]:
        """Jobs of this sweep that may still do something, without those of an earlier plan."""
        return [
            job
            for job in jobs.values()
            if not job.final
            and (array := self._arrays.get(job.name))
            and not self._of_earlier_plan(job, array)
        ]

    def _of_earlier_plan(self, job: slurm.Job, array: Array) -> bool:
        """Whether a job works for a stage that is not in this plan: the question was changed."""
        if str(job.array) != array.job:
            return False
        task = array.tasks[int(job.key.partition("_")[2] or 0)]
        status = Store(Path(task.directory)).status(task.id)
        active = status.state in ("submitted", "running") and status.attempt == task.attempt
        return active and task.id not in self._in_flight

    def _find(self, jobs: dict[str, slurm.Job]) -> None:
        """Complete the markers of arrays that were sent, and whose id nobody noted."""
        lost = {e.array.name: e.array for e in self._in_flight.values() if e.array.job is None}
        for array in lost.values():
            found = [job.array for job in jobs.values() if job.name == array.name]
            if found:
                array.job = str(max(found))
                complete(array)
                array.write()
        if lost and self._stopping:
            _cancel(self._in_flight.values(), kill=False)

    def _heard(self, answered: bool) -> None:
        """Say it once when Slurm falls silent: nothing is known then, so nothing is done."""
        if not answered and not self._silent:
            print("Slurm does not answer; waiting for it", flush=True)
        self._silent = not answered

    def _end(self, element: Element, jobs: dict[str, slurm.Job] | None) -> str | None:
        """How a stage's job ended; None when it has not, or nobody knows."""
        array, task = element.array, element.task
        known = jobs.get(array.key(element.index)) if jobs and array.job else None
        if known and known.name != array.name:
            known = None  # A controller that was killed may give an id out again.
        if known and known.launch_failed:  # Taken out as a stray; no user may release it.
            return f"its Slurm job {known.key} was not started by its node ({known.reason})"
        now = time.monotonic()
        if (
            known and known.state == "PENDING" and not known.restarts
        ):  # Most do, and none has begun.
            element.heard, element.missing_since = now, None
            self._warn_if_stuck(known, 0.0)
            return None
        status = Store(Path(task.directory)).status(task.id)
        if status.state in ("done", "failed"):
            # Until its process has gone it counts at the site's limit. A controller that was killed
            # may not know that it went.
            element.over_since = element.over_since or now
            stays = known and known.state == "RUNNING" and now - element.over_since < CLOSE_S
            return None if stays else status.state
        if status.heartbeat != element.heartbeat:  # It works, whatever Slurm says.
            element.heartbeat, element.heard, element.missing_since = status.heartbeat, now, None
        if jobs is None or array.job is None:
            return None
        if known and not known.final:
            element.missing_since = None
            if known.state != "RUNNING":
                element.heard = now
            self._warn_if_stuck(known, now - element.heard)
            return None
        if known is None:
            known = slurm.accounted(array.key(element.index))
        if known and known.final and known.state != "COMPLETED":
            return known.detail
        # It ended well, or long ago: its status tells the rest as soon as it can be seen here.
        element.missing_since = element.missing_since or now
        if now - element.missing_since < LAG_S:
            return None
        return f"its Slurm job {array.key(element.index)} is gone without a word"

    def _warn_if_stuck(self, job: slurm.Job, silent_s: float) -> None:
        """Say it once when a job waits for something that will not happen by itself."""
        if job.stuck:
            why = f"waits ({job.reason}): mend that"
        elif job.state == "RUNNING" and silent_s > SILENT_S:
            why = f"runs, but gives no sign of life for {silent_s:.0f} s: see whether it does"
        else:
            return
        if job.key not in self._stuck:
            self._stuck.add(job.key)
            print(
                f"Slurm says that job {job.key} {why}, or 'scancel {job.key}' to have it sent anew",
                flush=True,
            )


def liveness(directory: Path, statuses: list[Status]) -> dict[str, Liveness]:
    """Stage -> whether a job of Slurm's waits or works for it."""
    sent, jobs = elements(directory), slurm.queue()
    found: dict[str, Liveness] = {}
    for status in statuses:
        element = sent.get((status.stage, status.attempt))
        if element is None:  # Its launcher was killed before it was sent.
            found[status.stage] = "dead"
        elif jobs is None or not (element.array.job or element.array.settled):
            found[status.stage] = "unknown"
        else:
            array, key = element.array, element.array.key(element.index)
            own = [
                j for j in jobs.values() if j.key == key or (not array.job and j.name == array.name)
            ]
            found[status.stage] = "dead" if all(job.final for job in own) else "alive"
    return found


def cancel_sweep(directory: Path, statuses: list[Status]) -> None:
    """Take the jobs of these stages out of the queue, and wait until no job of the sweep is in it.

    A job whose stage has just ended leaves by itself.
    """
    sent = elements(directory)
    ours = [sent[key] for status in statuses if (key := (status.stage, status.attempt)) in sent]
    _cancel(ours, kill=False)
    names = {element.array.name for element in sent.values()}
    deadline = time.monotonic() + CANCEL_S
    while names and time.monotonic() < deadline and not _left(names):
        time.sleep(0.2)


def _cancel(chosen: Iterable[Element], *, kill: bool) -> None:
    """By id; by name where nobody noted the id."""
    chosen = list(chosen)
    keys = [element.array.key(element.index) for element in chosen if element.array.job]
    names = {element.array.name for element in chosen if element.array.job is None}
    slurm.cancel(keys, sorted(names), kill=kill)


def may_work_later(said: str, *, others: bool) -> bool:
    """Whether what sbatch said speaks of the controller or of ``others`` in the queue, rather than
    of the job, so that the same job may be taken later."""
    return any(word in said for word in (TEMPORARY + LIMITS if others else TEMPORARY))


def _left(names: set[str]) -> bool:
    """Whether Slurm says that no job of these names does anything any more."""
    jobs = slurm.queue()
    if jobs is None:
        return False
    return not any(job.name in names and not job.final for job in jobs.values())


def _refused(said: str, task: Task) -> str:
    kind = task.id.partition("-")[0]
    lines = [line for line in said.splitlines() if "sbatch" in line and "error" in line]
    asked = f"{task.cpus} cpus, {task.gpus} gpus, {task.mem_gb} GB, {task.hours} hours"
    asked = f"{task.nodes} nodes of {asked}" if task.nodes > 1 else asked
    return (
        f"resources.{kind} ({asked}): sbatch refused the job ({'; '.join(lines) or said.strip()}); "
        "change resources in the ablation file, or the cluster's profile"
    )
