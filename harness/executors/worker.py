"""A warm process that runs one stage after the other: ``python -m harness.executors.worker``.

Tasks come as JSON lines on stdin, the state each ended in goes out as JSON lines on stdout. Imports
are paid for once. When stdin closes the launcher is gone, and so is the worker soon after.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time

from harness import job
from harness.task import Task
from observe.errors import InputError

GRACE_S = 10.0


def main() -> None:
    """Run tasks until stdin closes."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What a stage prints belongs in its log; between stages there is nothing to say on stdout.
    os.dup2(2, 1)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    running, gone = threading.Event(), threading.Event()
    threading.Thread(target=_read, args=(tasks, running, gone), daemon=True).start()
    while (task := tasks.get()) is not None:
        if gone.is_set():
            break
        running.set()
        try:
            state: str = job.run(task, executor="local", job=str(os.getpid()))
        except (InputError, OSError) as error:  # Nothing about the stage could be written.
            state = f"its state could not be written ({error})"
        running.clear()
        with contextlib.suppress(BrokenPipeError):
            replies.write(json.dumps({"id": task.id, "state": state}) + "\n")
            replies.flush()


def _read(
    tasks: "queue.SimpleQueue[Task | None]", running: threading.Event, gone: threading.Event
) -> None:
    for line in sys.stdin:
        tasks.put(Task(**json.loads(line)))
    gone.set()
    tasks.put(None)
    # The launcher is gone: a running stage stops as it does on cancel, or is made to.
    if running.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
