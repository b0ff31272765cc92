"""Folders of fake sweeps, and the fake stages that fill them."""

import sys
from pathlib import Path

import pytest

# Workers take over this path, so that they find the fake stages too.
sys.path.insert(0, str(Path(__file__).parent))

pytest.register_assert_rewrite("conformance")
