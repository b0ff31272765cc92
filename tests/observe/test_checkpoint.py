"""Checkpoints: whole at any moment, exact, and named when they are damaged."""

import shutil

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


def test_a_new_checkpoint_takes_the_place_of_the_last(untrained, folder):
    save_checkpoint(folder, untrained, {"step": 4})
    assert load_state(folder) == {"step": 4}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "checkpoint") is None


def killed_while_writing(folder):
    new = folder.with_name("checkpoint.new")
    shutil.copytree(folder, new)
    (new / "trainer_state.pt").write_bytes(b"half")


def killed_between_the_renames(folder):
    shutil.copytree(folder, folder.with_name("checkpoint.new"))
    folder.rename(folder.with_name("checkpoint.old"))


def killed_while_removing_the_last(folder):
    old = folder.with_name("checkpoint.old")
    shutil.copytree(folder, old)
    (old / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "killed", [killed_while_writing, killed_between_the_renames, killed_while_removing_the_last]
)
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(untrained, folder, killed):
    killed(folder)
    left = latest_checkpoint(folder)
    assert load_state(left)["step"] == 3
    load_policy(left)
    save_checkpoint(folder, untrained, {"step": 4})
    assert load_state(latest_checkpoint(folder)) == {"step": 4}
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def truncated(data):
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    "damage", [truncated, lambda data: b"", lambda data: b"no checkpoint", lambda data: data[4:]]
)
def test_a_damaged_state_is_named_with_a_remedy(folder, damage):
    path = folder / "trainer_state.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        load_state(folder)
    assert str(caught.value).startswith(f"{path}: damaged checkpoint")
    assert f"delete {folder} to train from the start" in str(caught.value)


def test_a_state_can_run_no_code_of_its_own(folder):
    class Harmful:
        def __reduce__(self):
            return exec, ("raise AssertionError('was run')",)

    torch.save({"step": Harmful()}, folder / "trainer_state.pt")
    with pytest.raises(InputError, match="damaged checkpoint"):
        load_state(folder)
