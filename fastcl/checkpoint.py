"""Checkpoints: named tensors and a JSON description in one safetensors file, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcl.errors import CheckpointError, run_extra
from fastcl.files import write_atomically

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "fastcl-checkpoint-1"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Replaces the checkpoint at `path` by a new one, in one step.

    Args:
        path: the file.
        tensors: what to keep.
        description: what can be written as JSON; floats come back with the same bits.
    """
    with run_extra():
        from safetensors.torch import save
    kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    header = {"format": _FORMAT, "description": dict(description), "sha256": _digest(kept)}
    # One key: safetensors writes several in an order that changes from process to process.
    write_atomically(path, save(kept, metadata={"fastcl": json.dumps(header)}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint whole.

    Returns:
        The tensors and the description.

    Raises:
        CheckpointError: for a file that is missing, truncated, changed or no checkpoint.
    """
    with run_extra():
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("fastcl", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint of `fastcl run`: {error}; start anew with --overwrite"
        ) from error
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: expected a checkpoint of `fastcl run` ({_FORMAT}), got format {header.get('format', 'unknown')!r}"
        )
    if header.get("sha256") != _digest(tensors):
        raise CheckpointError(
            f"{path}: the checkpoint is damaged: its checksum does not match its content; start anew with --overwrite"
        )
    return tensors, header["description"]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).numpy().data)
    return digest.hexdigest()
