"""Memory that was freed is used again, without asking the system for it."""

import subprocess
import sys

import pytest

from observe.allocator import keep_freed_memory

PROGRAM = """
import resource, sys, torch
from observe.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 * 2**20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[-5:]))
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_large_blocks_are_not_mapped_anew():
    def faults(how):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert faults("keep") < faults("leave") / 10
