from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from automl_tl.errors import RunError
from automl_tl.model import checkpoint
from automl_tl.model.checkpoint import load_tensors, save_tensors


@pytest.fixture
def tensors():
    return {
        "maps": torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
    }


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_tensors_come_back_as_they_were(tensors, tmp_path):
    path = tmp_path / "new" / "folder" / "model.safetensors"
    save_tensors(tensors, path)
    assert same(load_tensors(path), tensors)
    assert list(path.parent.iterdir()) == [path]


def test_tied_weights_are_written_twice(tmp_path):
    tied = torch.nn.Parameter(torch.randn(3))
    save_tensors({"first": tied, "second": tied, "part": tied[:2]}, tmp_path / "x")
    read = load_tensors(tmp_path / "x")
    assert torch.equal(read["first"], read["second"])
    assert torch.equal(read["part"], tied[:2])


def break_writing(monkeypatch, error):
    """Let the file be begun, then fail as the disk does."""

    def write_half(tensors, path):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", write_half)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk; free some and resume"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "no space is left on the disk"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    ],
)
def test_a_failed_write_leaves_the_old_file(tensors, tmp_path, monkeypatch, error, reason):
    path = tmp_path / "model.safetensors"
    save_tensors(tensors, path)
    break_writing(monkeypatch, error)
    with pytest.raises(RunError, match=f"cannot write the checkpoint .*model.safetensors: .*{reason}"):
        save_tensors({"other": torch.zeros(1)}, path)
    assert same(load_tensors(path), tensors)
    assert list(tmp_path.iterdir()) == [path]


def test_a_crash_while_writing_leaves_the_old_file(tensors, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save_tensors(tensors, path)
    break_writing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        save_tensors({"other": torch.zeros(1)}, path)
    assert same(load_tensors(path), tensors)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tensors, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot write the checkpoint"):
        save_tensors(tensors, tmp_path / "file" / "model.safetensors")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(RunError, match=r"the checkpoint .*gone\.safetensors is missing"):
        load_tensors(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    "damage", [lambda old: b"", lambda old: old[:-3], lambda old: b"\xff" * 40 + old, lambda old: b"{}"]
)
def test_a_damaged_checkpoint_is_named_with_the_remedy(tensors, tmp_path, damage):
    path = tmp_path / "model.safetensors"
    save_tensors(tensors, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"the checkpoint .* is damaged \(.*\); delete it and resume the run"):
        load_tensors(path)
