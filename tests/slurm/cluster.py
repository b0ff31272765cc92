"""A real Slurm on this host, without root, containers or systemd.

``python tests/slurm/cluster.py`` gets the programs ready and says where they are. They are those on
PATH, else Debian's packages, unpacked into a cache folder. Their daemons (munged, slurmctld,
slurmd) take about 20 MB and start in seconds; a node claims more cores than the host has, and
memory it may not have, so that queueing can be tested anywhere.
"""

import contextlib
import ctypes
import getpass
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 libhwloc15"
CPUS = 8
MEMORY_MB = 16000
MAX_ARRAY_SIZE = 5
"""Small, so that a handful of stages needs several arrays."""


class Unavailable(Exception):
    """There is no Slurm to be had here; the message says why."""


def cache() -> Path:
    """Where Debian's packages are unpacked."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return home / "observe-ablations" / "slurm"


def fetch() -> Path:
    """Get the programs; the root of their file system. Raises Unavailable."""
    if all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch")):
        return Path("/")
    root = cache() / "root"
    if (root / "usr/sbin/slurmctld-wlm").exists():
        return root
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise Unavailable("no slurmctld, slurmd and munged on PATH, and no apt-get to get them")
    with contextlib.ExitStack() as cleaning:
        folder = cache() / f"fetching.{os.getpid()}"
        folder.mkdir(parents=True)
        cleaning.callback(shutil.rmtree, folder, ignore_errors=True)
        command = ["apt-get", "download", "-qq", *PACKAGES.split()]
        got = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if got.returncode and os.getuid() == 0:  # The package lists may be missing or old.
            subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False)
            got = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if got.returncode:
            raise Unavailable(f"{' '.join(command)}: {got.stderr.strip()}")
        for package in sorted(folder.glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
        with contextlib.suppress(OSError):  # Another process was faster.
            (folder / "root").rename(root)
    return root


@contextlib.contextmanager
def running(root: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Daemons that live as long as the context; the environment in which commands reach them."""
    environment = _configure(root, folder)
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in _daemons(root, folder):
            log = open(folder / f"{Path(command[0]).name}.out", "wb")  # noqa: SIM115
            # Through ``reap``: slurmd waits for orphans of a job, which not every container's
            # first process reaps.
            command = [sys.executable, __file__, "reap", *command]
            daemons.append(
                subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
            )
            if len(daemons) == 1:
                _wait(lambda: (folder / "munge.socket").exists(), "munged", folder)
        _wait(lambda: "idle" in _ask(environment, "sinfo", "-h", "-o", "%T"), "the node", folder)
        yield environment
    finally:
        _ask(environment, "scancel", "--user", getpass.getuser())
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            daemon.wait()


def _configure(root: Path, folder: Path) -> dict[str, str]:
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach.
    libraries = root / "usr/lib" / f"{platform.machine()}-linux-gnu"
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    controller, node = _free_port(), _free_port()
    plugins = f"PluginDir={libraries}/slurm-wlm" if root != Path("/") else ""
    (folder / "slurm.conf").write_text(
        f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
{plugins}
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MinJobAge=300
MaxArraySize={MAX_ARRAY_SIZE}
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY_MB} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
    )
    environment = {"SLURM_CONF": f"{folder}/slurm.conf"}
    if root != Path("/"):
        environment["PATH"] = f"{root}/usr/bin:{os.environ['PATH']}"
        environment["LD_LIBRARY_PATH"] = f"{libraries}:{libraries}/slurm-wlm"
    return environment


def _daemons(root: Path, folder: Path) -> list[list[str]]:
    """The commands that start munged, slurmctld and slurmd in the foreground."""

    def program(name: str) -> str:
        return shutil.which(name) or str(root / "usr/sbin" / name) if root == Path("/") else str(
            next(p for p in (root / "usr/sbin" / f"{name}-wlm", root / "usr/sbin" / name)
                 if p.exists())
        )  # fmt: skip

    munged = [program("munged"), "--foreground", "--force", f"--key-file={folder}/munge.key"]
    munged += [f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"]
    munged += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    slurmd = [program("slurmd"), "-D"]
    if root != Path("/"):
        slurmd += ["-d", program("slurmstepd")]
    return [munged, [program("slurmctld"), "-D", "-c"], slurmd]


def _wait(condition: "object", what: str, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            said = "".join(path.read_text() for path in sorted(folder.glob("*.out")))
            raise Unavailable(f"{what} did not come up in 30 s: {said[-2000:]}")
        time.sleep(0.1)


def _ask(environment: dict[str, str], *command: str) -> str:
    """What a command of Slurm's prints."""
    environment = {**os.environ, **environment}
    path = shutil.which(command[0], path=environment["PATH"])
    run = subprocess.run(
        [str(path), *command[1:]], env=environment, capture_output=True, text=True, check=False
    )
    return run.stdout


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def reap(command: list[str]) -> int:
    """Run a command, and be the parent of the orphans it leaves; its exit code."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    if sys.argv[1:2] == ["reap"]:
        sys.exit(reap(sys.argv[2:]))
    try:
        print(f"Slurm for the tests: {fetch()}")
    except Unavailable as reason:
        sys.exit(f"make test-slurm needs Slurm: {reason}")
