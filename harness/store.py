"""The folder of a sweep: everything needed to go on after any process has died.

``sweep.yaml`` (the question, resolved), ``plan.json``, ``events.jsonl`` (append-only history),
``stages/<id>/`` with ``config.yaml``, ``status.json`` (the truth about a stage, written by the job
itself), ``log.txt``, ``result.json`` and whatever the stage writes; then ``results/`` and
``report/``.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from harness import process
from observe.errors import InputError

State = Literal["pending", "submitted", "running", "done", "failed", "cancelled"]

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that are the file system's, whoever meets them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """What is known of a stage (``status.json``). Times are seconds since the epoch."""

    stage: str
    """The stage's id."""
    state: State = "pending"
    """pending, submitted (given to an executor), running, done, failed or cancelled."""
    attempt: int = 0
    """How often it was started."""
    executor: str | None = None
    """local, inline, ..."""
    job: str | None = None
    """The executor's name for the job: what its own tools know it by."""
    process: dict[str, Any] | None = None
    """Identity of the process that runs it (``harness.process.identity``)."""
    submitted: float | None = None
    """When it was given to the executor."""
    started: float | None = None
    """When this attempt started."""
    heartbeat: float | None = None
    """Last sign of life."""
    ended: float | None = None
    """When it was done, failed or cancelled."""
    earlier_seconds: float = 0.0
    """Seconds that interrupted attempts had worked for; a resumed stage goes on from there."""
    progress: dict[str, Any] | None = None
    """done, total and message, as the stage reports them."""
    error: dict[str, str] | None = None
    """class and message of what ended it."""
    code: str | None = None
    """Commit of the code that ran it, with ``+dirty`` for uncommitted changes."""

    @property
    def pruned(self) -> bool:
        """Whether it was ended early, for good."""
        return self.state == "cancelled" and (self.error or {}).get("class") == "Pruned"

    @property
    def seconds(self) -> float:
        """Seconds worked, over all attempts of the present run."""
        until = self.ended or self.heartbeat
        return self.earlier_seconds + (until - self.started if until and self.started else 0.0)


class Unwritable(InputError):
    """A folder takes no more; the message names it, the reason and the remedy."""


@contextlib.contextmanager
def writing(path: Path, *, only: tuple[int, ...] | None = None) -> Iterator[None]:
    """What cannot be written here raises Unwritable; ``only``: for these kinds of errors."""
    try:
        yield
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        raise unwritable(error, path) from None


def unwritable(error: OSError, path: Path) -> Unwritable:
    """The error in words, with the remedy."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space there" if full else "make it writable"
    return Unwritable(
        f"{path}: cannot be written ({error.strerror}); {remedy}, or choose "
        "another folder with --out. What is done is kept, and the same command goes on"
    )


class Store:
    """A sweep's folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.plan_file = directory / "plan.json"
        self.sweep_file = directory / "sweep.yaml"
        self.search_file = directory / "search.json"
        self.results = directory / "results"
        self.report = directory / "report"

    def folder(self, stage: str) -> Path:
        """The stage's own folder."""
        return Path(f"{self.directory}/stages/{stage}")  # Asked for thousands of times.

    def log(self, stage: str) -> Path:
        """What the stage printed."""
        return Path(f"{self.directory}/stages/{stage}/log.txt")

    def prune_marker(self, stage: str) -> Path:
        """A file that tells the running stage to end: its result is not wanted any more."""
        return self.folder(stage) / "prune"

    def status(self, stage: str) -> Status:
        """The stage's status; pending when it was never submitted.

        Raises InputError when the file is there and cannot be understood: that is neither done
        nor safe to run again.
        """
        path = f"{self.directory}/stages/{stage}/status.json"
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (FileNotFoundError, NotADirectoryError):
            return Status(stage=stage)
        try:
            status = Status(**json.loads(text))
            if status.state not in get_args(State):
                raise ValueError(f"state {status.state!r}")
            if status.stage != stage:
                raise ValueError(f"it belongs to stage {status.stage!r}")
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not a stage's status ({error}); delete the folder "
                f"{self.folder(stage)} to run this stage again"
            ) from None
        return status

    def write_status(self, status: Status, *, durable: bool = True) -> None:
        """Replace the stage's status atomically; ``durable`` also waits for the disk."""
        path = self.folder(status.stage) / "status.json"
        write_atomically(path, _json(vars(status), indent=1), durable=durable)

    def write_result(self, stage: str, result: dict[str, Any]) -> None:
        """Write what the stage returned."""
        write_atomically(self.folder(stage) / "result.json", _json(result, indent=1))

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage returned. Raises InputError where that is lost or damaged."""
        path = self.folder(stage) / "result.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            raise InputError(
                f"{path}: not a stage's result ({error}); delete the folder {path.parent} and run "
                "the sweep again to make it anew"
            ) from None

    def event(self, event: str, **fields: Any) -> None:
        """Append one line to ``events.jsonl``; a single write, so that writers never mix lines."""
        line = _json({"time": round(time.time(), 3), "event": event, **fields}) + "\n"
        path = self.directory / "events.jsonl"
        with writing(path):
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                size = os.fstat(handle).st_size
                # A machine that went down may have left half a line: it must not swallow this one.
                torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
                os.write(handle, (("\n" if torn else "") + line).encode())
            finally:
                os.close(handle)

    def events(self) -> list[dict[str, Any]]:
        """The history, oldest first; a torn line is left out."""
        try:
            lines = (self.directory / "events.jsonl").read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
        return events

    @contextlib.contextmanager
    def launcher(self, *, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the folder as its one launcher; death of the process releases it.

        ``wait_s``: how long to wait for another launcher to let go. Raises InputError when one
        holds it still.
        """
        lock = self.directory / "launcher.lock"
        with writing(lock):
            self.directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            with writing(lock):
                self._acquire(handle, time.monotonic() + wait_s)
                os.ftruncate(handle, 0)
                holder = {**process.identity(), "job": os.environ.get("SLURM_JOB_ID")}
                os.pwrite(handle, _json(holder).encode(), 0)
            try:
                yield
            finally:
                os.ftruncate(handle, 0)
        finally:
            os.close(handle)

    def _acquire(self, handle: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(1.0)
            else:
                return
        other = self.launcher_process() or {}
        job = f" (Slurm job {other['job']})" if other.get("job") else ""
        raise InputError(
            f"{self.directory}: process {other.get('pid')} on {other.get('host')}{job} is "
            f"running this sweep; see python -m harness.status {self.directory}"
        )

    def launcher_process(self) -> dict[str, Any] | None:
        """Identity of the launcher that holds, or was killed while it held, this folder.

        With ``job``, the Slurm job that it runs in, or None.
        """
        try:
            return json.loads((self.directory / "launcher.lock").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that may be growing, without one that is not finished; none if absent."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1].splitlines()


def write_atomically(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file by a rename: a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)


def write_yaml(path: Path, mapping: dict[str, Any]) -> None:
    """Write nested plain values as YAML 1.2, atomically."""
    buffer = io.StringIO()
    _yaml().dump(mapping, buffer)
    write_atomically(path, buffer.getvalue(), durable=False)


@functools.cache
def _yaml() -> Any:
    from ruamel.yaml import YAML  # Workers start without it.

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    return yaml


def _json(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
