"""What every command of the trainer shares: progress lines and exit codes."""

import sys
import time
from collections.abc import Callable

from jsonargparse import set_parsing_settings

from observe.errors import InputError, TrainingFailed

# The docstring under a config field is its --help.
set_parsing_settings(docstring_parse_attribute_docstrings=True)

_INTERVAL_S = 5.0
_state = {"started": 0.0, "first": 0.0, "printed": 0.0}


def print_progress(done: int, total: int, message: str) -> None:
    """Print ``done/total``, the time left and a message, every few seconds and at the end.

    The time left is taken from the pace of this process alone: a resumed run starts at some
    ``done`` that others reached.
    """
    now = time.monotonic()
    if done <= 1 or not _state["started"]:
        _state.update(started=now, first=done)
    if done < total and now - _state["printed"] < _INTERVAL_S:
        return
    _state["printed"] = now
    left = (now - _state["started"]) / max(done - _state["first"], 1) * (total - done)
    print(f"{done}/{total}  {left:5.0f} s left  {message}", flush=True)


def exit_code(command: Callable[[], object]) -> int:
    """Run a command: 0 when it ends; with the message, 1 when training fails and 2 on bad input.

    Other errors propagate.
    """
    try:
        command()
    except (InputError, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0
