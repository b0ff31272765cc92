"""Checkpoints: a plain Hugging Face folder with the trainer's state beside the weights."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from observe.errors import InputError
from observe.model.policy import Policy

_STATE = "trainer_state.pt"


def save_checkpoint(folder: Path, policy: Policy, state: dict[str, Any]) -> None:
    """Write weights, processor and trainer state.

    The folder is replaced by renaming, so that a process killed at any moment leaves a whole
    checkpoint: the new one, or the last one (see latest_checkpoint).
    """
    new, old = _sibling(folder, "new"), _sibling(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    policy.save(new)
    torch.save(state, new / _STATE)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint a killed run left at ``folder``, or None when it left none."""
    for candidate in (folder, _sibling(folder, "old")):
        if (candidate / _STATE).exists():
            return candidate
    return None


def load_state(folder: Path) -> dict[str, Any]:
    """The trainer state of a checkpoint; InputError when it is damaged."""
    try:
        return torch.load(folder / _STATE, weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{folder / _STATE}: damaged checkpoint ({error}); "
            f"delete {folder} to train from the start"
        ) from None


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
