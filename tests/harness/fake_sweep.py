"""``python -m harness.sweep`` with the fake stages in place of the real ones."""

from pathlib import Path

import fake_stages

from harness import detach, graph, sweep

for kind in graph.KINDS:
    graph.KINDS[kind] = graph.Kind(function=f"{fake_stages.__name__}:{kind}", version=1)
detach.PROGRAM = [str(Path(__file__).with_name("fake_launch.py"))]

if __name__ == "__main__":
    raise SystemExit(sweep.main())
