"""Files that are there whole or not at all, and files of tensors with a description."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcl.errors import CheckpointError, RunError, run_extra

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["TEMPORARY", "locked", "pack_tensors", "read_tensors", "write_atomically"]

TEMPORARY = ".tmp-fastcl-"  # what the names of files in the making begin with


def write_atomically(path: Path, data: bytes | str, previous: Path | None = None) -> None:
    """Writes a file so that a reader, also after a crash, finds the old content or the new, never a part of it.

    Args:
        path: of the file.
        data: its new content.
        previous: where the old content goes; on a file system without hard links, a crash may leave it there alone.

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
        if previous is not None and path.exists():
            _keep(path, previous, Path(f"{temporary}.old"))
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


def _keep(path: Path, previous: Path, between: Path) -> None:
    """Gives a file a second name, replacing what has it; `between` is a free third one."""
    try:
        between.hardlink_to(path)
        between.replace(previous)
    except OSError:  # no hard links here: then there is a moment without the first name
        path.replace(previous)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder; the system lets go of it when this process ends, however it ends.

    Where the system or the file system has no such locks, it is up to the user.

    Raises:
        RunError: where another process has it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{folder}: another process of fastcl is at work there; wait until it ends, or choose another --out"
            ) from error
        except OSError:  # a file system without locks
            pass
        _locks.add(descriptor)
        yield
    finally:
        _locks.discard(descriptor)
        os.close(descriptor)


_locks: set[int] = set()


def _let_go() -> None:
    """A forked worker that outlives its parent for a moment must not hold the parent's locks."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


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
