"""Who runs a stage: a process's identity, and whether that process still lives."""

import os
import socket
from pathlib import Path
from typing import Any, Literal

Liveness = Literal["alive", "dead", "unknown"]


def identity(pid: int | None = None) -> dict[str, Any]:
    """What recognises a process later, also after a reboot or when its id was given out again.

    host, boot (id of this boot), namespace (of process ids), pid and start (clock ticks after
    boot, so that a reused pid is not mistaken for it).
    """
    pid = pid or os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "namespace": _pid_namespace(),
        "pid": pid,
        "start": start_ticks(pid),
    }


def liveness(process: dict[str, Any] | None) -> Liveness:
    """Whether the process of an ``identity`` still runs.

    What cannot be seen from here (another machine, another container) is unknown: neither dead
    nor done.
    """
    if not process or process.get("host") != socket.gethostname():
        return "unknown"
    if process.get("boot") != _boot_id():
        return "dead"
    if process.get("namespace") != _pid_namespace():
        return "unknown"
    start = start_ticks(process["pid"])
    return "alive" if start is not None and start == process.get("start") else "dead"


def start_ticks(pid: int) -> int | None:
    """Start of a process in clock ticks after boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name is in brackets and may hold anything; fields are counted behind it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")
