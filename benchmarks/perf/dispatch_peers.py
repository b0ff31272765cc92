"""The no-op work through another launcher: ``... dispatch_peers NAME STAGES SLOTS FOLDER``.

Runs in the peers' environment (``make perf-env``), needs nothing of ours but ``noop`` and
``measure`` beside it, and leaves ``cost.json`` in the folder.
"""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.perf.measure import NOT_INSTALLED, measured
from benchmarks.perf.noop import work


def submitit_local(stages: int, slots: int, folder: Path) -> None:
    """submitit's LocalExecutor. It starts everything at once, so that slots are counted here."""
    import submitit

    executor = submitit.LocalExecutor(folder)
    jobs: list[Any] = []
    running: list[Any] = []
    for i in range(stages):
        while len(running) == slots:
            time.sleep(0.005)
            running = [job for job in running if not job.done()]
        jobs.append(executor.submit(work, i))
        running.append(jobs[-1])
    assert [job.result()["i"] for job in jobs] == list(range(stages))


def submitit_slurm(stages: int, slots: int, folder: Path) -> None:
    """submitit's arrays on Slurm, as long as the site allows; Slurm counts the slots."""
    import submitit

    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(time=10, cpus_per_task=1, mem="100M", array_parallelism=slots)
    longest = 1000
    jobs = []
    for start in range(0, stages, longest):
        with executor.batch():
            jobs += [executor.submit(work, i) for i in range(start, min(stages, start + longest))]
    # Job.result() asks sacct, which not every site has, and then waits for ever.
    waiting = {job.paths.result_pickle for job in jobs}
    while waiting:
        time.sleep(0.2)
        waiting = {path for path in waiting if not path.exists()}


def hydra_basic(stages: int, slots: int, folder: Path) -> None:
    """Hydra's basic launcher: one run after the other in this process."""
    import hydra

    @hydra.main(version_base=None, config_path=None)
    def application(config: Any) -> None:
        work(config.i)

    sys.argv = ["application", "--multirun", f"hydra.sweep.dir={folder}", f"+i=range({stages})"]
    application()


def optuna_grid(stages: int, slots: int, folder: Path) -> None:
    """Optuna's grid: threads of this process that share a journal file."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal"))),
        sampler=optuna.samplers.GridSampler({"i": list(range(stages))}),
    )
    study.optimize(lambda trial: work(trial.suggest_int("i", 0, stages - 1))["i"], n_jobs=slots)
    assert len(study.trials) >= stages


def python_alone(stages: int, slots: int, folder: Path) -> None:
    """Starting Python for each, and nothing else: no launcher of processes can be quicker."""
    running: list[subprocess.Popen[bytes]] = []
    for _ in range(stages):
        while len(running) == slots:
            time.sleep(0.001)
            running = [process for process in running if process.poll() is None]
        running.append(subprocess.Popen([sys.executable, "-c", "pass"]))
    for process in running:
        process.wait()


PEERS = {
    "python": ("sys", python_alone),
    "submitit": ("submitit", submitit_local),
    "submitit_slurm": ("submitit", submitit_slurm),
    "hydra": ("hydra", hydra_basic),
    "optuna": ("optuna", optuna_grid),
}
"""Name -> the package that must be there, and what runs the work with it."""


def main() -> int:
    """Run one peer once; what it costs goes to ``cost.json``, without importing it."""
    name, stages, slots, folder = sys.argv[1:]
    package, peer = PEERS[name]
    try:
        importlib.import_module(package)
    except ImportError as missing:
        print(missing, file=sys.stderr)
        return NOT_INSTALLED
    cost = measured(lambda: peer(int(stages), int(slots), Path(folder)))
    Path(folder, "cost.json").write_text(json.dumps(cost))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
