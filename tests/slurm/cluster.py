"""A real Slurm on this host, without root, containers or systemd.

``python tests/slurm/cluster.py`` gets the programs and says where they are: those on PATH, else
Debian's packages, unpacked into a cache folder; ``... run COMMAND`` runs a command where they work.
Their daemons (munged, slurmctld, slurmd) take about 30 MB and start in seconds; a node claims more
cores than the host has, and memory it may not have, so that queueing can be tested anywhere.
Partition ``main`` has one node; ``pair`` has two, this host as well, for what needs several.
"""

import contextlib
import ctypes
import dataclasses
import getpass
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 libhwloc15"
CPUS = 8
MEMORY_MB = 16000
MAX_ARRAY_SIZE = 5
"""Small, so that a handful of stages needs several arrays."""
PAIR = ("pair1", "pair2")
"""The nodes of the partition ``pair``."""


class Unavailable(Exception):
    """There is no Slurm to be had here; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Daemons that run."""

    environment: dict[str, str]
    """In which commands reach them."""
    supervisors: dict[str, "subprocess.Popen[bytes]"]
    """munged, slurmctld, and slurmd of each node, each under a process that can start it again."""

    def kill(self, daemon: str) -> None:
        """SIGKILL; it stays away until ``start``."""
        self.supervisors[daemon].send_signal(signal.SIGUSR1)

    def start(self, daemon: str) -> None:
        """Start a daemon that was killed."""
        self.supervisors[daemon].send_signal(signal.SIGUSR2)


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
def running(root: Path, folder: Path, *, max_array_size: int = MAX_ARRAY_SIZE) -> Iterator[Cluster]:
    """Daemons that live as long as the context."""
    environment = _configure(root, folder, max_array_size)
    cluster = Cluster(environment=environment, supervisors={})
    try:
        for name, command in _daemons(root, folder).items():
            log = open(folder / f"{name}.out", "wb")  # noqa: SIM115
            cluster.supervisors[name] = subprocess.Popen(
                [sys.executable, __file__, "supervise", *command],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )
            if name == "munged":
                _wait(lambda: (folder / "munge.socket").exists(), "munged", folder)
        idle = ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
        _wait(lambda: len(_ask(environment, *idle).split()) == 1 + len(PAIR), "the nodes", folder)
        yield cluster
    finally:
        _ask(environment, "scancel", "--user", getpass.getuser())
        for supervisor in reversed(cluster.supervisors.values()):
            supervisor.send_signal(signal.SIGTERM)
        for supervisor in cluster.supervisors.values():
            supervisor.wait()


def _configure(root: Path, folder: Path, max_array_size: int) -> dict[str, str]:
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    folder.chmod(0o755)  # munged refuses a socket that others cannot reach.
    libraries = root / "usr/lib" / f"{platform.machine()}-linux-gnu"
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    controller, node = _free_port(), _free_port()
    pair = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} "
        f"CPUs={CPUS} RealMemory={MEMORY_MB} State=UNKNOWN"
        for name in PAIR
    )
    for name in (host, *PAIR):
        (folder / f"spool-{name}").mkdir()
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
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
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
MaxArraySize={max_array_size}
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={MEMORY_MB} State=UNKNOWN
{pair}
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=pair Nodes={",".join(PAIR)} MaxTime=INFINITE State=UP
"""
    )
    environment = {"SLURM_CONF": f"{folder}/slurm.conf"}
    if root != Path("/"):
        environment["PATH"] = f"{root}/usr/bin:{os.environ['PATH']}"
        environment["LD_LIBRARY_PATH"] = f"{libraries}:{libraries}/slurm-wlm"
    return environment


def _daemons(root: Path, folder: Path) -> dict[str, list[str]]:
    """The commands that run munged, slurmctld and every slurmd in the foreground."""

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
    nodes = {f"slurmd {name}": [*slurmd, "-N", name] for name in PAIR}
    return {"munged": munged, "slurmctld": [program("slurmctld"), "-D"], "slurmd": slurmd, **nodes}


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


def steps_on_this_node(job: str) -> list[str]:
    """Processes of Slurm's that stand for a step of a job."""
    titles = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            titles.append(process.read_text(errors="replace"))
    return [title for title in titles if re.match(rf"slurmstepd[\w-]*: \[{job}\.", title)]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def supervise(command: list[str]) -> int:
    """Run a daemon until SIGTERM, and be the parent of the orphans that it leaves.

    slurmd waits for orphans of a job, which not every container's first process reaps. SIGUSR1
    kills the daemon, SIGUSR2 starts it again.
    """
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)
    daemon, ending = subprocess.Popen(command), False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True
        if daemon.poll() is not None:
            sys.exit(0)
        daemon.terminate()

    def again(*_: object) -> None:
        nonlocal daemon
        daemon = subprocess.Popen(command)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, lambda *_: daemon.kill())
    signal.signal(signal.SIGUSR2, again)
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:  # The daemon was killed, and left nobody.
            time.sleep(0.1)
            continue
        if ending and pid == daemon.pid:
            return os.waitstatus_to_exitcode(status)


def run(command: list[str]) -> int:
    """Run a command with a cluster of its own; its exit code."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        running(fetch(), Path(folder), max_array_size=1001) as cluster,
    ):
        return subprocess.run(command, env={**os.environ, **cluster.environment}).returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["supervise"]:
        sys.exit(supervise(sys.argv[2:]))
    try:
        if sys.argv[1:2] == ["run"]:
            sys.exit(run(sys.argv[2:]))
        print(f"Slurm for the tests: {fetch()}")
    except Unavailable as reason:
        sys.exit(f"make test-slurm needs Slurm: {reason}")
