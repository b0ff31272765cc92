"""How long a large report takes, and how much memory: ``python -m benchmarks.perf.report``.

Makes up the tables of a full factorial (``--factors`` two-level factors, so 2^factors arms, with
``--seeds`` runs of each, and a base under each of two prompts) that were asked ``--items`` items,
and builds its report with all sections and formats in a process of its own. Columns: seconds and
peak memory of that process and the size of its page, each followed by its goal. Making up the
tables is not counted, and is done by another process, so that its memory is not either.
"""

import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from benchmarks.perf.measure import measured_process
from benchmarks.perf.results import publish, show_columns
from harness.cli import run_command

GOAL_S, GOAL_MB, GOAL_PAGE_MB = 60.0, 2000.0, 50.0


def make_up(folder: Path, *, factors: int, seeds: int, items: int) -> None:
    """The tables of such a sweep: reports.example, of that size."""
    from reports.example import SUITES, Made, write_example

    effects = {f"part{i}": 0.01 * (i % 3) for i in range(factors - 1)} | {"format": 0.03}
    clusters = -(-items // (4 * sum(len(names) for names in SUITES.values())))
    write_example(folder, Made(effects=effects, seeds=tuple(range(seeds)), clusters=clusters))


def build(folder: Path) -> dict[str, Any]:
    """Seconds, megabytes and the page's size of one report."""
    seconds, peak_mb = measured_process([sys.executable, "-m", "reports", str(folder)])
    return {
        "seconds": seconds,
        "goal_s": GOAL_S,
        "peak_mb": peak_mb,
        "goal_mb": GOAL_MB,
        "page_mb": (folder / "report" / "index.html").stat().st_size / 1e6,
        "goal_page_mb": GOAL_PAGE_MB,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = ArgumentParser(
        prog="python -m benchmarks.perf.report",
        description="How long a large report takes, and how much memory.",
    )
    parser.add_argument("--factors", type=int, default=7, help="Two-level factors.")
    parser.add_argument("--seeds", type=int, default=4, help="Runs of every arm.")
    parser.add_argument("--items", type=int, default=5000, help="Items that every run was asked.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead.")
    options = parser.parse_args(arguments)

    def command() -> int:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = {"factors": options.factors, "seeds": options.seeds, "items": options["items"]}
            maker = multiprocessing.get_context("spawn").Process(
                target=make_up, args=(folder,), kwargs=size
            )
            maker.start()
            maker.join()
            if maker.exitcode:
                raise RuntimeError(f"the tables could not be made up (exit code {maker.exitcode})")
            row: dict[str, Any] = {
                "arms": 2**options.factors,
                "seeds": options.seeds,
                "items": options["items"],
                **build(folder),
            }
        return publish([row], show_columns, as_json=options.json)

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
