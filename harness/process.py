"""Who runs a stage: a process's identity, and whether that process still lives."""

import os
import socket
import subprocess
from pathlib import Path
from typing import Any, Literal

Liveness = Literal["alive", "dead", "unknown"]


def identity(pid: int | None = None) -> dict[str, Any]:
    """What recognises a process later, also after a reboot or when its id was given out again.

    host, boot (id of this boot), namespace (of process ids), pid and start (when it started, so
    that a reused pid is not mistaken for it).
    """
    pid = pid or os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "namespace": _pid_namespace(),
        "pid": pid,
        "start": start_of(pid),
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
    start = start_of(process["pid"])
    return "alive" if start is not None and start == process.get("start") else "dead"


def start_of(pid: int) -> int | str | None:
    """When a process started, in clock ticks after boot; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self").exists() else start_by_ps(pid)
    # The command's name is in brackets and may hold anything; fields are counted behind it.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def start_by_ps(pid: int) -> str | None:
    """The same where there is no /proc (macOS), as ``ps`` tells it: to the second."""
    told = _output("ps", "-o", "state=,lstart=", "-p", str(pid))
    return None if not told or told[0] in "ZX" else told.partition(" ")[2].strip()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return _output("sysctl", "-n", "kern.bootsessionuuid")


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except FileNotFoundError:
        return ""


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
