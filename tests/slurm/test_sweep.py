"""The command from end to end on Slurm, with real stages."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "tiny.yaml"
OWN = ("seconds", "gpu_hours", "code")
"""In the names of columns that equal runs need not share: times, and the commit that ran them."""


def sweep(folder: Path, *options: str) -> str:
    """Run the command; what it said."""
    run = subprocess.run(
        [sys.executable, "-m", "harness.sweep", str(FILE), "--out", str(folder), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def table(folder: Path, name: str) -> pd.DataFrame:
    read = pd.read_parquet(folder / "tiny" / "results" / f"{name}.parquet")
    return read.drop(columns=[c for c in read.columns if any(word in c for word in OWN)])


def test_slurm_and_this_machine_give_the_same_tables(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("{partition: main, poll_seconds: 0.5}\n")
    said = sweep(tmp_path / "slurm", "--executor", "slurm", "--profile", str(profile))
    assert "6 stages started" in said and "report: " in said
    sweep(tmp_path / "local", "--jobs", "1")
    for name in ("runs", "items", "responses", "questions"):
        slurm, local = (table(tmp_path / where, name) for where in ("slurm", "local"))
        pd.testing.assert_frame_equal(slurm, local, obj=name)
    stages = table(tmp_path / "slurm", "stages")
    assert set(stages["state"]) == {"done"} and set(stages["attempt"]) == {1}
