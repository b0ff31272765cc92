"""Models are told apart by what their folders hold, not by where these lie."""

import shutil

import pytest

from observe import fingerprint
from observe.fingerprint import file_digest, fingerprint_model


def model(folder):
    (folder / "adapter").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "adapter" / "notes.md").write_text("about it")
    return folder


def test_a_copy_is_the_same_model_and_a_changed_one_is_not(tmp_path):
    first = model(tmp_path / "one")
    known = fingerprint_model(first)
    assert fingerprint_model(shutil.copytree(first, tmp_path / "two")) == known
    (first / "config.json").write_text("[]")
    changed = fingerprint_model(first)
    (first / "config.json").write_text("{}")
    assert fingerprint_model(first) == known != changed
    (first / "extra.bin").write_bytes(b"more")
    assert fingerprint_model(first) not in (known, changed)


def test_the_fingerprint_of_a_model_stays_what_it_was(tmp_path):
    """It is part of the identity of stages: another one has everything run again."""
    assert fingerprint_model(model(tmp_path / "one")) == (
        "sha256:d1200741c4ddc9cc504c9fcded0660910195f7749f4a8ec0118b84dc4828da03"
    )


def test_a_large_file_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "LARGE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    first = file_digest(file)
    remembered = tmp_path / "cache" / "observe-ablations" / "fingerprints.json"
    assert first in remembered.read_text()
    remembered.write_text(remembered.read_text().replace(first, "remembered"))
    assert file_digest(file) == "remembered"
    file.write_bytes(b"others!!")
    assert file_digest(file) not in (first, "remembered")


@pytest.mark.parametrize("spoilt", ["a folder", "no JSON"])
def test_what_cannot_be_remembered_is_read_again(tmp_path, monkeypatch, spoilt):
    monkeypatch.setattr(fingerprint, "LARGE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remembered = tmp_path / "cache" / "observe-ablations" / "fingerprints.json"
    remembered.parent.mkdir(parents=True)
    remembered.mkdir() if spoilt == "a folder" else remembered.write_text("{")
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    assert file_digest(file) == file_digest(file)
