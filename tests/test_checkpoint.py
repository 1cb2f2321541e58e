from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fastcl.errors import CheckpointError
from fastcl.files import TEMPORARY, write_atomically

pytest.importorskip("safetensors")
from fastcl.checkpoint import load_checkpoint, save_checkpoint

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7), "c": torch.zeros(0, dtype=torch.float64)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, TENSORS, {"step": 3, "seconds": 0.1 + 0.2})
    return path


def test_comes_back_with_the_same_bits(path: Path):
    tensors, description = load_checkpoint(path)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert description.items() >= {"step": 3, "seconds": 0.1 + 0.2}.items()


@pytest.mark.parametrize("kept", [0, 7, 100, -1], ids=["empty", "no_header", "half_a_header", "last_byte_missing"])
def test_truncated(path: Path, kept: int):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: expected a fastcl-checkpoint-1 file"):
        load_checkpoint(path)


def test_a_changed_bit_is_noticed(path: Path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_missing_and_other_files(tmp_path: Path):
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="expected a fastcl-checkpoint-1 file"):
        load_checkpoint(tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="of format 'unknown'"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_a_write_that_fails_leaves_the_old_content(path: Path, monkeypatch: pytest.MonkeyPatch):
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_temporary_files_are_recognisable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.extend(path.name for path in tmp_path.iterdir()))
    write_atomically(tmp_path / "a", "text")
    assert seen[0].startswith(TEMPORARY)
    assert (tmp_path / "a").read_text() == "text"
