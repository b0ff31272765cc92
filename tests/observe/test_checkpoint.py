"""Checkpoints: whole at any moment, exact, and named when they are damaged."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from observe.checkpoint import latest_checkpoint, load_state, save_checkpoint
from observe.errors import InputError
from observe.model.policy import load_policy

STATE = {"step": 3, "optimizer": {"state": {0: {"exp_avg": torch.tensor([0.1, 0.2])}}}}


@pytest.fixture
def folder(untrained, tmp_path):
    save_checkpoint(tmp_path / "checkpoint", untrained, STATE)
    return tmp_path / "checkpoint"


def test_what_is_saved_is_loaded(untrained, folder):
    assert latest_checkpoint(folder) == folder
    state = load_state(folder)
    assert state["step"] == 3
    assert torch.equal(
        state["optimizer"]["state"][0]["exp_avg"], STATE["optimizer"]["state"][0]["exp_avg"]
    )
    again = load_policy(folder, dtype=torch.float64).model.state_dict()
    assert all(torch.equal(again[n], t) for n, t in untrained.model.state_dict().items())


def names(folder):
    return sorted(path.name for path in folder.parent.iterdir())


def step_of(folder):
    return load_state(folder)["step"]


def test_the_manifest_holds_size_and_sum_of_every_file(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 3
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    for name, written in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert written == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_new_checkpoint_takes_the_place_of_the_last_which_is_kept(untrained, folder):
    save_checkpoint(folder, untrained, {"step": 4})
    assert step_of(folder) == 4
    assert step_of(folder.with_name("checkpoint.step3")) == 3
    assert names(folder) == ["checkpoint", "checkpoint.step3"]


@pytest.mark.parametrize(
    ("keep", "left"),
    [(1, []), (2, ["checkpoint.step11"]), (3, ["checkpoint.step10", "checkpoint.step11"])],
)
def test_so_many_checkpoints_are_kept(untrained, tmp_path, keep, left):
    # By the number of their step: 11 comes after 9.
    for step in (8, 9, 10, 11, 12):
        save_checkpoint(tmp_path / "checkpoint", untrained, {"step": step}, keep=keep)
    assert names(tmp_path / "checkpoint") == ["checkpoint", *left]


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "checkpoint") is None


def killed_while_writing(folder):
    new = folder.with_name("checkpoint.new")
    shutil.copytree(folder, new)
    (new / "trainer_state.pt").write_bytes(b"half")


def killed_between_the_renames(folder):
    shutil.copytree(folder, folder.with_name("checkpoint.new"))
    folder.rename(folder.with_name("checkpoint.step3"))


def killed_while_removing_an_older_one(folder):
    old = folder.with_name("checkpoint.step2")
    shutil.copytree(folder, old)
    (old / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "killed",
    [killed_while_writing, killed_between_the_renames, killed_while_removing_an_older_one],
)
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(untrained, folder, killed):
    killed(folder)
    left = latest_checkpoint(folder)
    assert step_of(left) == 3
    load_policy(left)
    save_checkpoint(folder, untrained, {"step": 4})
    assert step_of(latest_checkpoint(folder)) == 4
    assert names(folder) == ["checkpoint", "checkpoint.step3"]


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def one_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [half, empty, one_bit, Path.unlink])
@pytest.mark.parametrize("name", ["trainer_state.pt", "model.safetensors", "config.json"])
def test_damage_is_named_and_the_checkpoint_before_it_is_taken(
    untrained, folder, caplog, name, damage
):
    save_checkpoint(folder, untrained, {"step": 4})
    damage(folder / name)
    older = folder.with_name("checkpoint.step3")
    assert latest_checkpoint(folder) == older
    [warning] = caplog.messages
    assert warning.startswith(f"{folder}: damaged checkpoint ({name} ")
    assert "going on from checkpoint.step3" in warning
    assert names(folder) == ["checkpoint.damaged", "checkpoint.step3"]
    # The damaged one is out of the way: what follows keeps two whole ones.
    save_checkpoint(folder, untrained, {"step": 4})
    assert step_of(latest_checkpoint(folder)) == 4
    assert {"checkpoint", "checkpoint.step3"} <= set(names(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": 4}', b'{"files": {"a": 1}}'])
def test_a_damaged_manifest_is_damage(untrained, folder, caplog, content):
    save_checkpoint(folder, untrained, {"step": 4})
    (folder / "manifest.json").write_bytes(content)
    assert step_of(latest_checkpoint(folder)) == 3
    assert "damaged checkpoint (manifest.json cannot be read" in caplog.text


def test_when_all_are_damaged_each_is_named_and_nothing_is_touched(untrained, folder):
    save_checkpoint(folder, untrained, {"step": 4})
    half(folder / "trainer_state.pt")
    (folder.with_name("checkpoint.step3") / "manifest.json").unlink()
    with pytest.raises(InputError) as caught:
        latest_checkpoint(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder}: damaged checkpoint (trainer_state.pt has ")
    assert "checkpoint.step3: manifest.json is missing" in message
    assert f"delete {folder}* to train from the start" in message
    assert names(folder) == ["checkpoint", "checkpoint.step3"]


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(untrained, small_disk):
    folder = small_disk / "checkpoint"
    save_checkpoint(folder, untrained, {"step": 3})
    # Each writer meets the end of the disk: of the state, the weights, the small files.
    one = sum(path.stat().st_size for path in folder.iterdir())
    for left in (20_000, one // 2, one - 20_000):
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - left))
        free = shutil.disk_usage(small_disk).free
        with pytest.raises(InputError) as caught:
            save_checkpoint(folder, untrained, {"step": 4})
        message = str(caught.value)
        assert message.startswith(
            f"{folder}: the checkpoint of step 4 cannot be written (No space left on device); "
        )
        assert f"{free / 1e6:.1f} MB are free there" in message
        filler.unlink()
        assert names(folder) == ["checkpoint"]
        assert step_of(latest_checkpoint(folder)) == 3
    save_checkpoint(folder, untrained, {"step": 4})
    assert step_of(latest_checkpoint(folder)) == 4


def test_an_error_that_is_not_the_disks_propagates(untrained, folder):
    with pytest.raises(AttributeError, match="pickle"):
        save_checkpoint(folder, untrained, {"step": 4, "bad": lambda: None})
    assert step_of(latest_checkpoint(folder)) == 3


def test_a_state_that_was_on_a_gpu_is_read_into_main_memory(untrained, tmp_path, monkeypatch):
    # As torch writes down where a tensor of rank 0's lies.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    save_checkpoint(tmp_path / "checkpoint", untrained, STATE)
    state = load_state(tmp_path / "checkpoint")
    assert state["optimizer"]["state"][0]["exp_avg"].device == torch.device("cpu")


def test_a_state_can_run_no_code_of_its_own(folder):
    class Harmful:
        def __reduce__(self):
            return exec, ("raise AssertionError('was run')",)

    torch.save({"step": Harmful()}, folder / "trainer_state.pt")
    with pytest.raises(InputError, match="damaged checkpoint"):
        load_state(folder)
