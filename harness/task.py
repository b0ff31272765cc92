"""A stage as executors get it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Plain values only, so that it travels as JSON."""

    id: str
    """The stage's id."""
    function: str
    """``module:function`` of the stage."""
    config: dict[str, Any]
    """The stage's config."""
    inputs: dict[str, str]
    """Role -> id of a consumed, finished stage."""
    directory: str
    """The sweep's folder."""
    attempt: int
    """1 for the first start."""
    cpus: int = 1
    """Threads of torch, and cores it occupies."""
    gpus: int = 0
    """GPUs it occupies."""
    mem_gb: float = 0.0
    """Memory it occupies in gigabytes."""
    hours: float = 1.0
    """Expected hours."""
    nodes: int = 1
    """Nodes it occupies; the numbers above are for each."""
    processes: int = 1
    """Processes on each node that share the work."""
    code: str | None = None
    """Commit of the code."""
    source: str | None = None
    """Folder of the code for executors that run it elsewhere, later; None: the launcher's own."""
