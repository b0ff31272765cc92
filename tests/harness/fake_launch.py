"""``python -m harness.launch`` with the fake stages in place of the real ones."""

import fake_sweep  # noqa: F401

from harness import launch

if __name__ == "__main__":
    raise SystemExit(launch.main())
