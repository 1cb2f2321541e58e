"""The files of a run: the training's checkpoint, and the encoder with all that is needed to use it again.

Both are named tensors and a description in one safetensors file, written atomically and checked when read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcl.compress.int8 import to_int8
from fastcl.encoder import Encoder, EncoderConfig, TextEncoder, TextEncoderConfig
from fastcl.errors import CheckpointError
from fastcl.files import pack_tensors, read_tensors, write_atomically

__all__ = [
    "encoder_origin",
    "load_checkpoint",
    "load_encoder",
    "newest_checkpoint",
    "pack_encoder",
    "previous_of",
    "remove_checkpoint",
    "save_checkpoint",
    "save_encoder",
]

_CHECKPOINT = "fastcl-checkpoint-1"
_ENCODER = "fastcl-encoder-1"


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Writes the checkpoint at `path`; the one that was there becomes :func:`previous_of` it.

    Args:
        path: the file.
        tensors: what to keep.
        description: what can be written as JSON; floats come back with the same bits.
    """
    kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    content = pack_tensors(kept, {"format": _CHECKPOINT, "sha256": _digest(kept), **description})
    write_atomically(path, content, previous_of(path))


def previous_of(path: Path) -> Path:
    """Where the checkpoint before that at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def newest_checkpoint(path: Path, tell: Callable[[str], None]) -> Path | None:
    """The checkpoint at `path`, or where that is damaged or missing the one before it; None where there is neither.

    Args:
        path: as given to :func:`save_checkpoint`.
        tell: is told of one that is damaged.

    Raises:
        CheckpointError: where none that is there can be read.
    """
    found = [candidate for candidate in (path, previous_of(path)) if candidate.exists()]
    for candidate in found:
        try:
            load_checkpoint(candidate)
        except CheckpointError as error:
            tell(f"{error}; looking for the checkpoint before")
        else:
            return candidate
    if found:
        raise CheckpointError(
            f"{path}: damaged, and there is no earlier checkpoint to go on from; start anew with --overwrite"
        )
    return None


def remove_checkpoint(path: Path) -> None:
    """Removes the checkpoint at `path` and the one before it."""
    path.unlink(missing_ok=True)
    previous_of(path).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a checkpoint whole.

    Returns:
        The tensors, and the description with the keys ``format`` and ``sha256`` added.

    Raises:
        CheckpointError: for a file that is missing, truncated, changed or no checkpoint.
    """
    tensors, header = read_tensors(path, _CHECKPOINT)
    if header.get("sha256") != _digest(tensors):
        raise CheckpointError(f"{path}: damaged: its checksum does not match its content")
    return tensors, header


def save_encoder(encoder: Encoder, path: Path, kind: str, origin: Mapping[str, Any] | None = None) -> int:
    """Writes an encoder of kind ``"float"`` or ``"int8"``; returns the size of the file in bytes.

    Args:
        encoder: what to keep.
        path: the file, which is replaced in one step.
        kind: ``"float"`` or ``"int8"``.
        origin: what it was made from, for :func:`encoder_origin`; can be written as JSON.
    """
    data = pack_encoder(encoder, kind, origin)
    write_atomically(path, data)
    return len(data)


def pack_encoder(encoder: Encoder, kind: str, origin: Mapping[str, Any] | None = None) -> bytes:
    """What :func:`save_encoder` writes."""
    config = {key: value for key, value in asdict(encoder.config).items() if value is not None}
    header = {"format": _ENCODER, "kind": kind, "config": config}
    return pack_tensors(encoder.state_dict(), header | ({"origin": origin} if origin else {}))


def encoder_origin(path: Path) -> dict[str, Any]:
    """What :func:`save_encoder` was told of where the encoder came from.

    Raises:
        CheckpointError: for a file that is missing, damaged or no encoder.
    """
    origin: dict[str, Any] = read_tensors(path, _ENCODER)[1].get("origin", {})
    return origin


def load_encoder(path: Path) -> tuple[Encoder, str]:
    """Reads an encoder and its kind, ``"float"`` or ``"int8"``, in evaluation mode.

    Raises:
        CheckpointError: for a file that is missing, damaged or no encoder.
    """
    tensors, header = read_tensors(path, _ENCODER)
    try:
        # JSON has lists for tuples.
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in header["config"].items()
        }
        encoder, kind = _build(fields), header["kind"]
        if kind == "int8":
            encoder = to_int8(encoder)
        encoder.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the encoder does not fit its own description: {error}") from error
    return encoder.eval(), kind


def _build(fields: dict[str, Any]) -> Encoder:
    if "length" in fields:
        return TextEncoder(TextEncoderConfig(**fields))
    return Encoder(EncoderConfig(**fields))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()
