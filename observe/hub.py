"""Models on the Hugging Face Hub: ``org/name``, or ``org/name@revision`` for the very same weights.

Light on purpose (no torch): the planner tells Hub ids from folders with it.
"""

import re
from pathlib import Path

from observe.errors import InputError

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What of a model's repository is needed: no second copy of the weights in another format."""


def is_hub_id(path: str) -> bool:
    """Whether this is the form of a Hub id (and not of an absolute path)."""
    return _HUB_ID.fullmatch(path) is not None


def split_revision(hub_id: str) -> tuple[str, str | None]:
    """``org/name@revision`` as (``org/name``, ``revision``); None where none is given."""
    repository, _, revision = hub_id.partition("@")
    return repository, revision or None


def is_pinned(hub_id: str) -> bool:
    """Whether the revision is a commit, so that it names the same files for ever."""
    return _COMMIT.fullmatch(split_revision(hub_id)[1] or "") is not None


def cached_model(hub_id: str) -> Path | None:
    """The folder of a model in this machine's Hub cache, or None when it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = split_revision(hub_id)
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(FILES), local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        return None


def local_model(path: str | Path) -> Path:
    """The folder of a model: the path itself, or the snapshot of a Hub id.

    A snapshot is taken from the cache, and downloaded when it is not there. Raises InputError when
    it cannot be.
    """
    if Path(path).exists() or not is_hub_id(str(path)):
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, revision = split_revision(str(path))
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(
            f"{path}: not in the Hub cache, and it cannot be downloaded ({reason}); get it where "
            f"there is a network: {download_command(str(path))}"
        ) from None


def download_command(hub_id: str) -> str:
    """The command that puts a model into the Hub cache."""
    repository, revision = split_revision(hub_id)
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")
