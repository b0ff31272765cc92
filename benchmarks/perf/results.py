"""What the scripts here print."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from harness import machine

Row = dict[str, Any]


def publish(
    rows: Sequence[Row], show: Callable[[Sequence[Row], dict[str, object]], None], *, as_json: bool
) -> int:
    """Print the rows with the machine they were measured on; the exit code of success.

    ``show`` prints them as a table; with ``as_json`` it is one JSON object.
    """
    described = machine.describe()
    if as_json:
        print(json.dumps({"machine": described, "results": rows}, indent=1))
    else:
        show(rows, described)
    return 0
