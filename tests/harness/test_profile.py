"""Cluster profiles are read strictly, and what sbatch says of a job is told from what passes."""

import shutil
from pathlib import Path

import pytest
from sweeps import write_ablation

from harness import sweep
from harness.executors.slurm import SlurmExecutor, may_work_later
from harness.profile import Profile, load_profile
from observe.errors import InputError

ROOT = Path(__file__).parents[2]


def test_the_shipped_example_is_a_profile() -> None:
    profile = load_profile(ROOT / "profiles" / "example.yaml")
    assert profile.partition == "gpu" and profile.setup[0] == "module load cuda"
    assert profile.sbatch == {"constraint": "a100"}
    assert profile.launcher.partition == "cpu" and profile.launcher.sbatch == {}


def test_an_empty_profile_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("")
    assert load_profile(tmp_path / "p.yaml") == Profile()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", r"p.yaml: partitoin: unknown key; did you mean 'partition'\?"),
        ("setup: module load cuda", "p.yaml: setup: expected .*, got 'module load cuda'"),
        ("max_submitted: 0", "p.yaml: max_submitted: expected 1 or more, got 0"),
        ("poll_seconds: 0", "p.yaml: poll_seconds: expected more than 0"),
        ("max_minutes: 5", "p.yaml: max_minutes: 5 is less than min_minutes, 10"),
        ("launcher: {hours: 0}", "p.yaml: launcher.hours: expected more than 0, got 0"),
        ("[gpu]", "p.yaml: the file: expected a mapping"),
    ],
)
def test_a_mistake_in_a_profile_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_profile(tmp_path / "p.yaml")


def test_time_limits_are_the_stages_hours_within_the_clusters_bounds() -> None:
    profile = Profile(time_limit_factor=2.0, min_minutes=10, max_minutes=240)
    assert [profile.minutes(hours) for hours in (0.01, 1.0, 5.0)] == [10, 120, 240]


def test_a_profile_without_slurm_and_slurm_without_sbatch_are_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(write_ablation(tmp_path))
    assert sweep.main([file, "--profile", "p.yaml"]) == 2
    assert "only with --executor slurm" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("sbatch") is None
    with pytest.raises(InputError, match="no sbatch and srun on PATH"):
        SlurmExecutor()
    out = tmp_path / "runs"
    assert sweep.main([file, "--out", str(out), "--executor", "slurm"]) == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("said", "others", "later"),
    [
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv", False, True),
        (
            "sbatch: error: slurm_msg_sendto: address:port=127.0.0.1:1 msg_type=4003: "
            "Unexpected missing socket error",
            False,
            True,
        ),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", False, True),
        ("sbatch: error: AssocGrpSubmitJobsLimit", True, True),
        ("sbatch: error: AssocGrpSubmitJobsLimit", False, False),
        ("sbatch: error: invalid partition specified: nowhere", True, False),
        ("sbatch: error: Requested node configuration is not available", True, False),
    ],
)
def test_only_what_speaks_of_the_job_itself_is_a_refusal(
    said: str, others: bool, later: bool
) -> None:
    assert may_work_later(said, others=others) is later
