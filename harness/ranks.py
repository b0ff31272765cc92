"""A stage on several processes, its ranks: started, watched, ended together, on one node or many.

Every node has one supervisor: on the first it is the stage's job itself (``run``), on the others
``follow``. They start the ranks with the environment that torchrun would give them, and know what
torchrun cannot say: by which signal a rank died, and which of all ranks failed first. The ranks of
a start meet in ``ranks/<attempt>.<restart>/`` of the stage's folder, which all nodes see.

A rank that fails ends the others, and its error is the stage's. One that is killed takes the job
along, which is then tried again as any job that was killed.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.executors.base import stage_environment
from harness.store import Store, write_atomically
from harness.task import Task
from observe.errors import InputError

POLL_S = 0.1
SETTLE_S = 1.0
"""How long after a rank ended to wait for its error, and for a signal that was meant for all."""
MEET_S = 600.0
"""How long nodes may take to start after each other."""
GRACE_S = 5.0
"""How long ranks that are told to end may take until they are killed."""

Progress = Callable[[int, int, str], None]


class RankError(Exception):
    """The first error of a rank."""


def run(task: Task, store: Store, progress: Progress) -> dict[str, Any]:
    """Run the stage on this node, and on those that ``follow``; the result of rank 0.

    Raises InputError or RankError, whichever a rank met first. Does not return when a rank was
    killed: neither does this process live then.
    """
    folder = _folder(task, store)
    folder.mkdir(parents=True, exist_ok=True)
    host = "127.0.0.1" if task.nodes == 1 else socket.gethostname()
    write_atomically(folder / "task.json", json.dumps(dataclasses.asdict(task)), durable=False)
    told = None
    try:
        with contextlib.ExitStack() as stack:
            address = {"host": host, "port": stack.enter_context(_held_port())}
            write_atomically(folder / "address.json", json.dumps(address), durable=False)
            ranks = stack.enter_context(_started(task, folder, address, node=0))
            while _running(ranks):
                if (now := _read(folder / "progress.json")) and now != told:
                    told = now
                    progress(now["done"], now["total"], now["message"])
                if _failed(folder, ranks):
                    time.sleep(SETTLE_S)
                    _raise_first(folder, ranks, task)
                time.sleep(POLL_S)
        if _failed(folder, ranks):
            time.sleep(SETTLE_S)
            _raise_first(folder, ranks, task)
    finally:
        (folder / "over").touch()
    result = _read(folder / "result.json")
    if result is None:
        raise RankError("rank 0 ended without a result")
    return result


def follow(task: Task, store: Store) -> None:
    """Run this node's ranks until they are done, or the first node says that it is over.

    An error is left for the first node to tell.
    """

    def leave(number: int, frame: Any) -> None:
        sys.exit(0)  # The first node queues the job again, or says that it was cancelled.

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, leave)
    folder, node = _folder(task, store), int(os.environ["SLURM_NODEID"])
    deadline = time.monotonic() + MEET_S
    while (address := _read(folder / "address.json")) is None:
        if time.monotonic() > deadline:
            raise InputError(f"{folder}: the first node of the job did not start in {MEET_S:.0f} s")
        time.sleep(POLL_S)
    with _started(task, folder, address, node=node) as ranks:
        while _running(ranks) and not (folder / "over").exists():
            for rank, code in _codes(ranks).items():
                if code < 0:
                    _leave_error(folder, rank, "Killed", signal.Signals(-code).name)
                    return
                if code and not (folder / f"error-{rank}.json").exists():
                    message = f"it ended without a word, with exit code {code}"
                    _leave_error(folder, rank, "SystemExit", message)
                    return
            time.sleep(POLL_S)


def _folder(task: Task, store: Store) -> Path:
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return store.folder(task.id) / "ranks" / f"{task.attempt}.{restart}"


Ranks = dict[int, "subprocess.Popen[bytes]"]


@contextlib.contextmanager
def _started(task: Task, folder: Path, address: dict[str, Any], *, node: int) -> Iterator[Ranks]:
    """This node's ranks, ended when the context is left, however."""
    ranks: Ranks = {}
    common = {
        **os.environ,
        **stage_environment(max(1, task.cpus // task.processes)),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "MASTER_ADDR": address["host"],
        "MASTER_PORT": str(address["port"]),
        "WORLD_SIZE": str(task.nodes * task.processes),
        "LOCAL_WORLD_SIZE": str(task.processes),
    }
    # Slurm and a terminal signal all processes of a job; what it means, the supervisor decides.
    held = {signal.SIGUSR2, signal.SIGINT}
    try:
        for local in range(task.processes):
            rank = node * task.processes + local
            environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(local)}
            command = [sys.executable, "-m", "harness.ranks", str(folder)]
            before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
            try:
                ranks[rank] = subprocess.Popen(command, env=environment)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield ranks
    finally:
        _end(ranks)


def _end(ranks: Ranks) -> set[int]:
    """End all that still run; those that had to be killed for it."""
    for process in ranks.values():
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE_S
    forced = set()
    for rank, process in ranks.items():
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            forced.add(rank)
    return forced


def _running(ranks: Ranks) -> bool:
    return any(process.poll() is None for process in ranks.values())


def _codes(ranks: Ranks) -> dict[int, int]:
    """Rank -> exit code, minus the signal for one that was killed, of those that have ended.

    Every one is asked: what a process that nobody asks about ended with is not known.
    """
    codes = {rank: process.poll() for rank, process in ranks.items()}
    return {rank: code for rank, code in codes.items() if code is not None}


def _failed(folder: Path, ranks: Ranks) -> bool:
    return any(_codes(ranks).values()) or any(folder.glob("error-*.json"))


def _raise_first(folder: Path, ranks: Ranks, task: Task) -> None:
    """End the ranks, and raise the error that came first on all nodes.

    Ends this process when a rank was killed.
    """
    found = [error for path in folder.glob("error-*.json") if (error := _read(path))]
    ended = _codes(ranks)
    # A killed process that has much memory to give back is gone only after the others miss it.
    forced = _end(ranks)
    codes = _codes(ranks)
    killed = {
        rank: signal.Signals(-code).name
        for rank, code in codes.items()
        if code < 0 and (rank in ended or (rank not in forced and code != -signal.SIGTERM))
    }
    told = sorted((e for e in found if e["class"] != "Killed"), key=lambda e: e["time"])
    killed |= {error["rank"]: error["message"] for error in found if error["class"] == "Killed"}
    # The others notice that it is gone, and say so: that is not what went wrong.
    if killed:
        for rank, name in killed.items():
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            print(f"rank {rank} was killed by {name}{hint}: ending the job", file=sys.stderr)
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    if not told:
        failed = {rank: code for rank, code in ended.items() if code}
        raise RankError(f"ranks ended without a word, with exit codes {failed}")
    first = told[0]
    if first["rank"] not in ranks:  # What it printed is not in this log.
        print(first["trace"], file=sys.stderr)
    if first["class"] == "InputError":
        raise InputError(first["message"])
    raise RankError(
        f"rank {first['rank']} of {task.nodes * task.processes} on {first['host']}: "
        f"{first['class']}: {first['message']}"
    )


def _leave_error(folder: Path, rank: int, kind: str, message: str, trace: str = "") -> None:
    error = {
        "rank": rank,
        "host": socket.gethostname(),
        "class": kind,
        "message": message,
        "trace": trace,
        "time": time.time(),
    }
    write_atomically(folder / f"error-{rank}.json", json.dumps(error), durable=False)


def _read(path: Path) -> Any:
    """A JSON file that is written atomically; None while it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _held_port() -> Iterator[int]:
    """A free port, which nobody else is given while rank 0 takes seconds to begin to listen there.

    Linux lets a socket listen beside one that is bound and does not listen, when both allow their
    address to be used again, as torch's does; elsewhere the port is let go of at once.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        port = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield port


def main() -> None:
    """A rank: the stage's function, whose progress and result rank 0 writes for the supervisor."""
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()

    def progress(done: int, total: int, message: str) -> None:
        if rank == 0:
            now = {"done": int(done), "total": int(total), "message": str(message)}
            write_atomically(folder / "progress.json", json.dumps(now), durable=False)

    try:
        task = Task(**json.loads((folder / "task.json").read_text(encoding="utf-8")))
        store = Store(Path(task.directory))
        module, _, name = task.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        inputs = {role: store.folder(stage) for role, stage in task.inputs.items()}
        result = function(task.config, store.folder(task.id), inputs, progress)
        if rank == 0:
            write_atomically(folder / "result.json", json.dumps(result), durable=False)
    except BaseException as error:
        _leave_error(folder, rank, type(error).__name__, str(error), traceback.format_exc())
        traceback.print_exc()
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)  # A process group that lost a member may wait for it at exit.


def _leave_with(parent: int) -> None:
    """End this process soon after its supervisor was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
