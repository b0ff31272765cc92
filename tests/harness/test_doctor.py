"""What the doctor finds, on the files that are shipped and on models of this machine."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sweeps import plan_of, write_ablation

from harness import doctor, doctor_slurm, inputs
from harness.profile import Profile, load_profile
from observe.config import BaseConfig

ROOT = Path(__file__).parents[2]
SMALL = BaseConfig(hidden_size=32, layers=1, tokenizer_texts=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from observe.glyphs.model import build_policy

    folder = tmp_path_factory.mktemp("model")
    build_policy(SMALL).save(folder)
    return folder


def checks(
    capsys: pytest.CaptureFixture[str], file: Path, *options: str, expected: int
) -> list[dict[str, Any]]:
    """What the command says of a file, as JSON."""
    code = doctor.main([str(file), "--json", *options])
    said = capsys.readouterr()
    assert code == expected, said.out + said.err
    found: list[dict[str, Any]] = json.loads(said.out)
    return found


def of(found: list[dict[str, Any]], section: str, what: str = "") -> list[dict[str, Any]]:
    return [c for c in found if c["section"] == section and what in c["what"]]


def question_file(folder: Path, count: int) -> Path:
    row = {"text": "How many?", "gold": "3", "answer_type": "integer"}
    rows = [{"id": f"q{i}", **row} for i in range(count)]
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(("size", "gpu"), [("3b", "80"), ("7b", "80")])
def test_the_papers_files_fit_the_machines_they_are_meant_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, size: str, gpu: str
) -> None:
    file = ROOT / "ablations" / f"observe_r1_{size}.yaml"
    found = checks(capsys, file, "--gpu_gb", gpu, "--out", str(tmp_path), expected=1)
    assert all(check["state"] != "missing" for check in of(found, "memory")), of(found, "memory")
    assert {check["what"] for check in of(found, "memory")} >= {
        "train, each GPU",
        "evaluate, each GPU",
        "train, main memory of a node",
    }
    (questions,) = of(found, "inputs", "questions")
    assert questions["state"] == "missing" and "docs/paper_scale.md" in questions["remedy"]
    (time,) = of(found, "time", "train")
    assert "GPU hours" in time["detail"]


def test_what_does_not_fit_comes_with_what_to_change(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = ROOT / "ablations" / "observe_r1_7b.yaml"
    options = ("--gpu_gb", "40", "--out", str(tmp_path))
    found = checks(capsys, file, *options, expected=1)
    train = of(found, "memory", "train, each GPU")
    assert train and train[0]["state"] == "missing" and train[0]["remedy"]


def test_nothing_is_missing_for_the_embedded_world(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = checks(capsys, ROOT / "ablations" / "full.yaml", "--out", str(tmp_path), expected=0)
    assert of(found, "model", "tokenizer and processor")[0]["state"] == "ok"
    assert of(found, "memory", "train, main memory")[0]["state"] == "ok"
    assert not of(found, "inputs")


def test_a_whole_model_and_its_questions_are_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    questions = question_file(tmp_path, 60)
    settings = {
        "model.path": str(model),
        "data.source": str(questions),
        "data.ladder.pool": 60,
    }
    file = write_ablation(tmp_path, {"set": settings})
    out = ("--out", str(tmp_path))
    found = checks(capsys, file, *out, "--try", expected=0)
    states = {check["what"]: check["state"] for check in of(found, "inputs")}
    assert states == {f"model {model}": "ok", f"questions {questions}": "ok"}
    assert of(found, "model", "prompts")[0]["detail"].startswith("median ")
    (tried,) = of(found, "try")
    assert "tokens/s" in tried["detail"] and tried["state"] == "ok"
    settings["data.ladder.pool"] = 61
    file = write_ablation(tmp_path, {"set": settings})
    again = of(checks(capsys, file, *out, expected=1), "inputs")
    (few,) = [check for check in again if check["what"] == "questions"]
    assert "60 there, 61 asked for" in few["detail"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("cut", "model.safetensors is cut short"),
        ("lost", "no model.safetensors"),
        ("tokenizer", "no tokenizer.json or vocab.json"),
    ],
)
def test_a_damaged_model_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, damage: str, said: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "lost":
        weights.unlink()
    else:
        (folder / "tokenizer.json").unlink()
    file = write_ablation(tmp_path, {"set": {"model.path": str(folder)}})
    found = checks(capsys, file, "--out", str(tmp_path), expected=1)
    (check,) = of(found, "inputs", "model")
    assert check["state"] == "missing" and said in check["detail"] and check["remedy"]


def test_a_processor_of_another_model_is_noticed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (name,) = (p for p in folder.glob("*processor_config.json"))
    config = json.loads(name.read_text())
    (config if "patch_size" in config else config["image_processor"])["patch_size"] = 14
    name.write_text(json.dumps(config))
    file = write_ablation(tmp_path, {"set": {"model.path": str(folder)}})
    found = checks(capsys, file, "--out", str(tmp_path), expected=1)
    (check,) = of(found, "model", "tokenizer and processor")
    assert "patch size 14 to the image processor, 8 to the model" in check["detail"]


def test_bad_input_is_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert doctor.main([str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_table_is_shown_with_what_is_missing_below(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = ROOT / "ablations" / "observe_r1_3b.yaml"
    assert doctor.main([str(file), "--gpu_gb", "80", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "MISSING" in said and "missing\n" in said


@pytest.mark.parametrize(
    "profile", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_profiles_that_are_shipped_can_be_read(profile: Path) -> None:
    assert load_profile(profile).max_requeues > 0


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("1-00:00:00", 1440), ("30:00", 30), ("infinite", None), ("2:30:00", 150)],
)
def test_limits_of_partitions(limit: str, minutes: int | None) -> None:
    assert doctor_slurm._minutes(limit) == minutes


@pytest.mark.parametrize(
    ("told", "gpus"),
    [("gpu:a100:8(S:0-1)", 8), ("gpu:4", 4), ("(null)", 0), ("lscratch:1,gpu:h100:2", 2)],
)
def test_gpus_of_a_node(told: str, gpus: int) -> None:
    assert doctor_slurm._gpus(told) == gpus


@pytest.mark.parametrize(
    ("code", "said", "gpu_bytes"),
    [
        (0, "81559\n40000", 40000 * 2**20),
        (0, "[N/A]", None),
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the driver 580", None),
    ],
)
def test_a_gpu_whose_driver_does_not_answer_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str, gpu_bytes: int | None
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "{said}"\nexit {code}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    patient: Any = SimpleNamespace(gpu_gb=None)
    assert doctor._gpu_bytes(patient) == gpu_bytes


SINFO = """#!/bin/sh
echo "short|30:00|2|8|16000|(null)|up"
echo "main*|1-00:00:00|2|8|16000|gpu:a100:4|{state}"
"""


@pytest.mark.parametrize(("state", "missing"), [("up", False), ("down", True)])
def test_a_partition_that_is_down_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, missing: bool
) -> None:
    for name, text in (("sinfo", SINFO.format(state=state)), ("sbatch", ""), ("srun", "")):
        (tmp_path / name).write_text(text or "#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    plan = plan_of(write_ablation(tmp_path))
    found = list(doctor_slurm.examine(plan, Profile()))
    assert found[0].what == "partition main" and "4 GPUs; limit 24.0 h" in found[0].detail
    assert (found[0].state == "missing") == missing == ("it is down" in found[0].detail)
    assert [check.what for check in found[1:]] == ["base", "ladder", "train", "evaluate"]


def test_data_sets_in_the_cache_are_found_by_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    one = inputs.Input(kind="dataset", name="AI4Math/MathVista", split="testmini")
    assert inputs.look(one, file="x.yaml").problems == ("not in the cache of datasets",)
    folder = tmp_path / "AI4Math___math_vista" / "default" / "0.0.0" / "abc"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    assert not inputs.look(one, file="x.yaml").problems
