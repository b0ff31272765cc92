"""The daemons that all tests here share."""

import getpass
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "harness")]
pytest.register_assert_rewrite("conformance")

import cluster  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def slurm() -> Iterator[None]:
    """A cluster of one node, reached by the commands on PATH."""
    try:
        root = cluster.fetch()
    except cluster.Unavailable as reason:
        pytest.skip(f"no Slurm: {reason}")
    # Not pytest's folder: the path of a socket is short.
    with (
        tempfile.TemporaryDirectory(prefix="slurm") as folder,
        cluster.running(root, Path(folder)) as shared,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in shared.environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def empty_queue(slurm: None) -> Iterator[None]:
    """What a failed test leaves in the queue must not take the next one's place."""
    yield
    subprocess.run(["scancel", "--user", getpass.getuser()], check=False)
