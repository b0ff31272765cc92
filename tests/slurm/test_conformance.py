"""The suite of all executors, on a real Slurm."""

from conformance import *  # noqa: F403

from harness.executors.slurm import SlurmExecutor
from harness.profile import Profile

PROFILE = Profile(poll_seconds=0.3)

EXECUTORS = {"slurm": lambda: SlurmExecutor(PROFILE)}
MANY = 60
"""A second each on two cores; three thousand were measured, see benchmarks/perf/dispatch.py."""
