"""Checkpoints: a plain Hugging Face folder with the trainer's state beside the weights.

``checkpoint/`` is the newest, ``checkpoint.step<N>/`` are the ones before it. A folder is written
as ``checkpoint.new``, brought to the disk, and renamed, so that a process killed at any moment and
a power cut leave a whole one. ``manifest.json`` holds size and SHA-256 of every file in it: what
was damaged later is noticed, named, and put aside as ``checkpoint.damaged``.
"""

import errno
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from observe.errors import InputError
from observe.model.policy import Policy

MANIFEST = "manifest.json"
_STATE = "trainer_state.pt"
_CHUNK = 2**20
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    policy: Policy,
    state: dict[str, Any],
    *,
    keep: int = 2,
    folders: Mapping[str, Path] | None = None,
) -> None:
    """Write weights, processor and trainer state; ``state["step"]`` names it.

    ``folders`` are moved into it under their names. The last ``keep`` checkpoints stay, this one
    included. Raises InputError naming the folder and its free space when it cannot be written; the
    checkpoint before it stays.
    """

    def fill(new: Path) -> None:
        # Through a file of Python's, so that a full disk is an OSError and no crash of the writer.
        new.mkdir()
        with (new / _STATE).open("wb") as file:
            torch.save(state, file)
        policy.save(new)
        for name, source in (folders or {}).items():
            os.rename(source, new / name)

    write_folder(folder, fill, step=state["step"], keep=keep)


def write_folder(folder: Path, fill: Callable[[Path], None], *, step: int, keep: int) -> None:
    """Replace ``folder`` by what ``fill`` writes into the path it is given, which does not exist.

    The checkpoint contract without its content: atomic, on the disk, with a manifest, the last
    ``keep`` folders kept. Raises InputError as `save_checkpoint` does.
    """
    new = _sibling(folder, "new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        fill(new)
        _seal(new, step)
    except Exception as error:
        if (reason := _unwritable(error)) is None:
            raise
        shutil.rmtree(new, ignore_errors=True)
        free = shutil.disk_usage(folder.parent).free
        raise InputError(
            f"{folder}: the checkpoint of step {step} cannot be written ({reason}); "
            f"what was begun is removed, and {free / 1e6:.1f} MB are free there. Free some space "
            "and give the same command again: the checkpoint before it is kept, and training goes "
            "on from it"
        ) from error
    if folder.exists():
        _put_aside(folder, folder.name + _suffix_of_last(folder))
    os.rename(new, folder)
    _sync(folder.parent)
    for older in _older(folder)[max(0, keep - 1) :]:
        shutil.rmtree(older)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint that a run left at ``folder``, or None when it left none.

    Every file is read and compared with the manifest. A damaged checkpoint is named in a warning,
    put aside, and the one before it is taken; InputError when all are damaged.
    """
    candidates = [path for path in (folder, *_older(folder)) if path.exists()]
    damages = []
    for candidate in candidates:
        if (damage := find_damage(candidate)) is None:
            break
        damages.append((candidate, damage))
    else:
        if not damages:
            return None
        first, damage = damages[0]
        others = "".join(f"; {path}: {why}" for path, why in damages[1:])
        raise InputError(
            f"{first}: damaged checkpoint ({damage}){others}; no whole one is left beside it: "
            f"delete {folder}* to train from the start"
        )
    for damaged, damage in damages:
        _put_aside(damaged, folder.name + ".damaged")
        _log.warning(
            "%s: damaged checkpoint (%s); put aside as %s.damaged, going on from %s",
            *(damaged, damage, folder.name, candidate.name),
        )
    return candidate


def find_damage(folder: Path) -> str | None:
    """What of a checkpoint is not as it was written, in words; None when it is whole."""
    try:
        files = _read_manifest(folder)["files"]
    except InputError as error:
        return str(error)
    for name, written in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != written["size"]:
            return f"{name} has {size} bytes, {written['size']} were written"
        if _sha256(path) != written["sha256"]:
            return f"{name} does not have the content that was written (SHA-256)"
    return None


def load_state(folder: Path) -> dict[str, Any]:
    """The trainer state of a checkpoint, in main memory; InputError when it cannot be read.

    Its tensors were rank 0's: on its device every rank would load them there.
    """
    try:
        return torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{folder / _STATE}: damaged checkpoint ({error}); "
            f"delete {folder} to train from the start"
        ) from None


def _seal(folder: Path, step: int) -> None:
    """Write the manifest, and bring every file and the folder's entries to the disk."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())

    def seal(name: str) -> dict[str, Any]:
        path = folder / name
        found = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
        return found

    # In threads: the disk commits files that wait together in one go.
    with ThreadPoolExecutor(max_workers=8) as pool:
        manifest = {"step": step, "files": dict(zip(names, pool.map(seal, names), strict=True))}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _sync(folder / MANIFEST)
    for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(inner)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        files = {
            str(name): {"size": int(file["size"]), "sha256": str(file["sha256"])}
            for name, file in manifest["files"].items()
        }
        return {"step": int(manifest["step"]), "files": files}
    except FileNotFoundError:
        raise InputError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{MANIFEST} cannot be read: {error!r}") from None


def _suffix_of_last(folder: Path) -> str:
    """What the name of the newest checkpoint gets when the next one takes its place."""
    try:
        return f".step{_read_manifest(folder)['step']}"
    except InputError:
        return ".damaged"


def _put_aside(folder: Path, name: str) -> None:
    shutil.rmtree(folder.with_name(name), ignore_errors=True)
    os.rename(folder, folder.with_name(name))


def _older(folder: Path) -> list[Path]:
    """The checkpoints before ``folder``, the newest first."""
    steps = {
        int(match[1]): path
        for path in folder.parent.glob(f"{folder.name}.step*")
        if (match := re.fullmatch(r".*\.step(\d+)", path.name))
    }
    return [steps[step] for step in sorted(steps, reverse=True)]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(error: BaseException) -> str | None:
    """The reason when the file system refused to take more, else None."""
    if isinstance(error, RuntimeError) and error.__context__:
        # torch.save closes its file all the same, and complains that it is short.
        return _unwritable(error.__context__)
    number = error.errno if isinstance(error, OSError) else None
    # Writers in Rust (safetensors, tokenizers) raise types of their own with the errno in the text.
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(match[1])
    return os.strerror(number) if number in _REFUSALS else None


def _sibling(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
