"""Files that are there whole or not at all, and files of tensors with a description."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcl.errors import CheckpointError, run_extra

__all__ = ["TEMPORARY", "pack_tensors", "read_tensors", "write_atomically"]

TEMPORARY = ".tmp-fastcl-"  # what the names of files in the making begin with


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file so that a reader, also after a crash, finds the old content or the new, never a part of it.

    Raises:
        OSError: where the folder cannot be written to; the old content then stands.
    """
    content = data.encode() if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
    if os.name == "posix":  # the new name itself reaches the disk with its folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def pack_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    """A safetensors file with a header of what can be written as JSON; the same bytes for the same arguments."""
    with run_extra():
        from safetensors.torch import save
    # One key: safetensors writes several in an order that changes from process to process.
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"fastcl": json.dumps(header)})


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`pack_tensors` made.

    Args:
        path: the file.
        kind: what is expected, for the messages; it is what the header's ``format`` must be.

    Returns:
        The tensors and the header.

    Raises:
        CheckpointError: for a file that is missing, damaged or of another kind.
    """
    with run_extra():
        from safetensors import SafetensorError
        from safetensors.torch import load
    try:
        # Read at once: a file that is replaced meanwhile is still seen whole.
        data = path.read_bytes()
        tensors = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        header: dict[str, Any] = json.loads(metadata.get("fastcl", "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a {kind} file of `fastcl run`: {error}") from error
    if header.get("format") != kind:
        raise CheckpointError(
            f"{path}: expected a {kind} file of `fastcl run`, got a safetensors file of format "
            f"{header.get('format', 'unknown')!r}"
        )
    return tensors, header
