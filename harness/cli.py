"""What every command of the harness shares: exit codes."""

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from jsonargparse import ArgumentParser

from harness.ablation_file import parse_override
from harness.store import UNWRITABLE, unwritable
from observe.errors import InputError


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    Bad input, and a file system that takes no more, are said in one line, with code 2.
    """
    try:
        return command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 1
    except BrokenPipeError:  # The reader of a pipe has seen enough.
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"error: {unwritable(error, Path(error.filename or '.'))}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def many_objects() -> Iterator[None]:
    """No garbage collection where hundreds of thousands of objects are made that all stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def add_ablation_arguments(parser: ArgumentParser, *, search: bool = False) -> None:
    """FILE, --out, --seeds (not for a search), --set and --jobs."""
    parser.add_argument("--config", action="config", help="A YAML file with these options.")
    of, example = ("search", "search") if search else ("ablation", "full")
    parser.add_argument("file", type=str, help=f"The {of} file, e.g. ablations/{example}.yaml.")
    parser.add_argument(
        "--out", type=str, default="runs", help="Folder of all sweeps; this one's is OUT/<name>."
    )
    if not search:
        parser.add_argument(
            "--seeds",
            type=str,
            default=None,
            help="Seeds instead of the file's, with commas: 0,1,2. Every cell is run with each.",
        )
    parser.add_argument(
        "--set",
        type=str,
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"Change keys of the {of} file (report.confidence=0.9) or training settings of all "
        "that it trains (data.size=240).",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        help="Stages at a time at most; by default as many as have the cores they ask for.",
    )


def check_numbers(jobs: int | None, retries: int = 0) -> None:
    """Raises InputError for numbers that make no sense."""
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: expected 1 or more")
    if retries < 0:
        raise InputError(f"--retries {retries}: expected 0 or more")


def overrides_of(seeds: str | None, settings: list[str]) -> dict[str, object]:
    """What --seeds and --set change in the ablation file."""
    overrides = dict(parse_override(text) for text in settings)
    if seeds is not None:
        try:
            overrides["seeds"] = [int(seed) for seed in seeds.split(",")]
        except ValueError:
            raise InputError(
                f"--seeds {seeds}: expected integers with commas, e.g. 0,1,2"
            ) from None
    return overrides
