"""What this machine offers, as far as this process may use it."""

import os
import platform
import subprocess
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores: those of the affinity mask, less where a container's quota is smaller."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # Not on macOS.
        count = os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return max(1, min(count, int(quota) // int(period))) if quota.isdigit() else count


def memory_gb() -> float:
    """Memory in gigabytes, or what a container's limit leaves of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return (min(memory, int(limit)) if limit.isdigit() else memory) / 2**30


def gpus() -> list[str]:
    """GPUs, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))]


def describe() -> dict[str, object]:
    """Processor model, cores, memory in gigabytes, GPUs, operating system."""
    return {
        "cpu": _processor(),
        "cores": cores(),
        "memory_gb": round(memory_gb(), 1),
        "gpus": len(gpus()),
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _cgroup(name: str) -> str:
    try:
        return (CGROUP / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""
