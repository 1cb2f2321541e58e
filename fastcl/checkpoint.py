"""Checkpoints: named tensors and a description in one safetensors file, written atomically and checked when read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcl.errors import CheckpointError
from fastcl.files import pack_tensors, read_tensors, write_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "fastcl-checkpoint-1"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Replaces the checkpoint at `path` by a new one, in one step.

    Args:
        path: the file.
        tensors: what to keep.
        description: what can be written as JSON; floats come back with the same bits.
    """
    kept = {name: tensor.detach() for name, tensor in tensors.items()}
    write_atomically(path, pack_tensors(kept, {"format": _FORMAT, "sha256": _digest(kept), **description}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint whole.

    Returns:
        The tensors, and the description with the keys ``format`` and ``sha256`` added.

    Raises:
        CheckpointError: for a file that is missing, truncated, changed or no checkpoint.
    """
    tensors, header = read_tensors(path, _FORMAT)
    if header.get("sha256") != _digest(tensors):
        raise CheckpointError(f"{path}: damaged: its checksum does not match its content; start anew with --overwrite")
    return tensors, header


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()
