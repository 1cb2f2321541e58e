"""Data sets encrypted at rest: AES-256-GCM in chunks, read row by row, never in the clear on disk.

A data set is a folder of two files, all numbers big-endian::

    key    magic (8)  file id (16)  nonce (12)  the data key under the user's key (32) and its tag (16)
    data   magic (8)  file id (16)  rows (8)  bytes of a row (8)  rows of a chunk (8)  bytes of the description (8)
           the description and its tag (16): labels, classes, split, shape; then every chunk and its tag (16)

The data key is new for every folder, and a chunk's nonce is its number: no nonce is used twice under a key. What GCM
authenticates beside a chunk is the head of ``data`` and the chunk's number: a byte that was changed, a chunk that was
moved, left out or brought from another folder, and a file that was cut are refused. A new user's key re-encrypts the
data key alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastcl.data.dataset import Dataset, RowImages
from fastcl.errors import DataError, extra
from fastcl.files import TEMPORARY, write_atomically

__all__ = [
    "KEY_BYTES",
    "Key",
    "SecureImages",
    "create_key_file",
    "encrypt",
    "key_from_env",
    "key_from_file",
    "open_secure",
    "rotate_key",
]

KEY_BYTES = 32
Key = bytes | Callable[[], bytes]
"""A key of 32 bytes, or what gives it when it is needed."""

_DATA, _KEY = "data", "key"  # the files
_HEAD, _DATA_MAGIC, _KEY_MAGIC = struct.Struct(">8s16sQQQQ"), b"fastclD1", b"fastclK1"
_ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 16, 12, 16
_CHUNK_BYTES = 1024  # rows share a chunk where they are smaller: a chunk costs a call and 16 bytes


# ----------------------------------------------------------------------------------------------------------------- keys


def key_from_file(path: str | Path) -> bytes:
    """The key in a file: 32 bytes, or 64 hexadecimal digits.

    Raises:
        DataError: for a file that is missing or holds something else.
    """
    try:
        return _as_key(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path}: expected a file with a key: {error}") from error


def key_from_env(name: str) -> bytes:
    """The key in an environment variable, as 64 hexadecimal digits.

    Raises:
        DataError: where the variable is missing or holds something else.
    """
    if name not in os.environ:
        raise DataError(f"environment variable {name}: expected a key of 64 hexadecimal digits, found none")
    return _as_key(os.environ[name].encode(), f"environment variable {name}")


def _as_key(content: bytes, where: str) -> bytes:
    if len(content) == KEY_BYTES:
        return content
    try:
        key = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:  # the content itself is nothing for a message
        raise DataError(f"{where}: expected a key of 32 bytes or 64 hexadecimal digits, got {len(content)} bytes")
    return key


def create_key_file(path: str | Path) -> None:
    """Writes a new random key, readable by the user alone.

    Raises:
        DataError: where the file exists or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: expected to write a new key there: {error}") from error


def _cipher(key: Key) -> Any:
    with extra("secure"):
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    value = key() if callable(key) else key
    if not isinstance(value, bytes) or len(value) != KEY_BYTES:
        got = f"{len(value)} bytes" if isinstance(value, bytes) else type(value).__name__
        raise DataError(f"key: expected {KEY_BYTES} bytes, got {got}")
    return AESGCM(value)


def _nonce(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "big")


def _wrap(key: Key, file_id: bytes, data_key: bytes) -> bytes:
    """The content of the file ``key``."""
    # Random nonces may be 2^32 under one user's key (NIST SP 800-38D, section 8.3): so many folders, not chunks.
    nonce = secrets.token_bytes(_NONCE_BYTES)
    wrapped: bytes = _cipher(key).encrypt(nonce, data_key, _KEY_MAGIC + file_id)
    return _KEY_MAGIC + file_id + nonce + wrapped


def _unwrap(path: Path, key: Key) -> tuple[bytes, bytes]:
    """The file id and the data key."""
    with extra("secure"):
        from cryptography.exceptions import InvalidTag
    content = _read(path / _KEY)
    start = len(_KEY_MAGIC) + _ID_BYTES
    if len(content) != start + _NONCE_BYTES + KEY_BYTES + _TAG_BYTES or content[: len(_KEY_MAGIC)] != _KEY_MAGIC:
        raise DataError(f"{path / _KEY}: expected the wrapped key of an encrypted data set: damaged, or something else")
    nonce, wrapped = content[start : start + _NONCE_BYTES], content[start + _NONCE_BYTES :]
    try:
        return content[len(_KEY_MAGIC) : start], _cipher(key).decrypt(nonce, wrapped, content[:start])
    except InvalidTag as error:
        raise DataError(f"{path}: the key does not open it: another key, or {path / _KEY} was changed") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a file of an encrypted data set: {error}") from error


# -------------------------------------------------------------------------------------------------------------- writing


def encrypt(data: Dataset, path: str | Path, key: Key, *, rows_per_chunk: int | None = None) -> None:
    """Writes a data set encrypted: the folder appears whole, or not at all.

    Args:
        data: images (or texts), labels, classes, split and name are all encrypted; sizes and counts are not.
        path: of the folder; it must not exist.
        key: of the user.
        rows_per_chunk: images that are encrypted together. By default one, or as many as 1,024 bytes hold: a batch
            that is drawn at random decrypts a chunk for every image.

    Raises:
        DataError: where the folder exists or cannot be written, or for a wrong key.
        ValueError: for images that are not uint8, or a chunk without rows.
    """
    path = Path(path)
    images: Any = data.images
    shape = list(images.shape)
    if images.dtype != torch.uint8 or len(shape) != 4 or 0 in shape:
        raise ValueError(f"encrypt: images must be uint8 [N, C, H, W] and not empty, got {images.dtype} {shape}")
    row_bytes = shape[1] * shape[2] * shape[3]
    per_chunk = max(1, _CHUNK_BYTES // row_bytes) if rows_per_chunk is None else rows_per_chunk
    if per_chunk < 1:
        raise ValueError(f"encrypt: rows_per_chunk must be at least 1, got {rows_per_chunk}")
    file_id, data_key = secrets.token_bytes(_ID_BYTES), secrets.token_bytes(KEY_BYTES)
    wrapped, cipher = _wrap(key, file_id, data_key), _cipher(data_key)
    description = json.dumps(_describe(data, shape)).encode()
    head = _HEAD.pack(_DATA_MAGIC, file_id, shape[0], row_bytes, per_chunk, len(description))
    if path.exists():
        raise DataError(f"{path}: expected a new folder, this one exists")
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as temporary:
            folder = Path(temporary) / "data"
            folder.mkdir()
            with (folder / _DATA).open("wb") as file:
                file.write(head)
                file.write(cipher.encrypt(_nonce(0), description, head + _nonce(0)))
                for number, chunk in enumerate(images.split(per_chunk), 1):
                    file.write(
                        cipher.encrypt(_nonce(number), chunk.contiguous().numpy().data.cast("B"), head + _nonce(number))
                    )
                file.flush()
                os.fsync(file.fileno())
            write_atomically(folder / _KEY, wrapped)
            folder.rename(path)
    except OSError as error:
        raise DataError(f"{path}: expected a folder that can be written: {error}") from error


def _describe(data: Dataset, shape: list[int]) -> dict[str, Any]:
    return {
        "name": data.name,
        "kind": data.kind,
        "shape": shape,
        "classes": data.classes,
        "labels": None if data.labels is None else data.labels.tolist(),
        "train": data.train.tolist(),
        "test": data.test.tolist(),
        "fingerprint": data.fingerprint(),
    }


def rotate_key(path: str | Path, old: Key, new: Key) -> None:
    """Puts a data set under another key of the user's: the small file ``key`` is replaced, the data stays.

    Whoever kept the old key and the old file ``key`` can still read: where the old key became known, encrypt anew.

    Raises:
        DataError: where the old key does not open it, or the folder cannot be written.
    """
    path = Path(path)
    file_id, data_key = _unwrap(path, old)
    try:
        write_atomically(path / _KEY, _wrap(new, file_id, data_key))
    except OSError as error:
        raise DataError(f"{path / _KEY}: expected a file that can be written: {error}") from error


# -------------------------------------------------------------------------------------------------------------- reading


class _File:
    """A file that is open for as long as something refers to it; read at places, it can be shared with forks."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


class SecureImages(RowImages):
    """Images that are decrypted as they are asked for: a Tensor's indexing by rows, ``len``, ``shape``, ``split``.

    It is a map-style data set for a DataLoader, too. What is not asked for is neither read nor authenticated.
    """

    def __init__(self, path: str | Path, key: Key) -> None:
        """Opens the folder and authenticates its description.

        Raises:
            DataError: for a folder that was changed or is no encrypted data set, and for a wrong key.
        """
        with extra("secure"):
            from cryptography.exceptions import InvalidTag
        self._invalid: type[Exception] = InvalidTag
        self._key, self._path = key, Path(path)
        file_id, data_key = _unwrap(self._path, key)
        self._cipher = _cipher(data_key)
        try:
            self._file = _File(self._path / _DATA)
            size = os.fstat(self._file.descriptor).st_size
        except OSError as error:
            raise DataError(f"{self._path / _DATA}: expected a file of an encrypted data set: {error}") from error
        self._head = os.pread(self._file.descriptor, _HEAD.size, 0)
        if len(self._head) != _HEAD.size or self._head[:8] != _DATA_MAGIC:
            raise DataError(f"{self._path / _DATA}: expected an encrypted data set: damaged, or something else")
        _, its_id, self._count, self._row_bytes, self._per_chunk, described = _HEAD.unpack(self._head)
        if its_id != file_id:
            raise DataError(f"{self._path}: key and data are of different data sets, or were changed")
        self._start = _HEAD.size + described + _TAG_BYTES
        chunks = -(-self._count // self._per_chunk) if self._per_chunk else 0
        if size != self._start + self._count * self._row_bytes + chunks * _TAG_BYTES:
            raise DataError(f"{self._path / _DATA}: truncated, or changed: its size is not what its head says")
        self.description: dict[str, Any] = json.loads(self._decrypt(0, _HEAD.size, described))
        self._rows: Tensor | None = None  # of the file; None for all
        self.shape = torch.Size(self.description["shape"])

    def _decrypt(self, number: int, at: int, size: int) -> bytes:
        nonce = _nonce(number)
        try:
            sealed = os.pread(self._file.descriptor, size + _TAG_BYTES, at)
            return self._cipher.decrypt(nonce, sealed, self._head + nonce)  # type: ignore[no-any-return]
        except self._invalid as error:
            what = f"chunk {number - 1}" if number else "the description"
            raise DataError(f"{self._path / _DATA}: {what} was changed: it does not fit its authentication") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{self._path / _DATA}: expected a file that can be read: {error}") from error

    def chunk(self, chunk: int) -> bytes:
        """The rows that are encrypted together, by the number of their chunk.

        Raises:
            DataError: for a chunk that was changed.
        """
        size = self._per_chunk * self._row_bytes
        whole = min(size, self._count * self._row_bytes - chunk * size)  # the last one is smaller
        return self._decrypt(chunk + 1, self._start + chunk * (size + _TAG_BYTES), whole)

    def __getitem__(self, rows: Any) -> Tensor:
        """Decrypts rows.

        Args:
            rows: a number, a slice, or numbers as a list or an int64 Tensor.

        Returns:
            uint8 [C, H, W] for a number, else [n, C, H, W].

        Raises:
            IndexError: for a number out of range.
            DataError: for a chunk that was changed.
        """
        if isinstance(rows, int):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} of {len(self)}")
            return self[torch.tensor([rows])][0]
        numbers = torch.arange(len(self))[rows]
        wanted = (numbers if self._rows is None else self._rows[numbers]).tolist()
        out = torch.empty((len(wanted), *self.shape[1:]), dtype=torch.uint8)
        size, per_chunk = self._row_bytes, self._per_chunk
        target = out.view(-1).numpy().data
        last, content = -1, b""
        for place in range(len(wanted)) if per_chunk == 1 else np.argsort(wanted, kind="stable").tolist():
            chunk, within = divmod(wanted[place], per_chunk)
            if chunk != last:
                last, content = chunk, self.chunk(chunk)
            target[place * size : (place + 1) * size] = content[within * size : (within + 1) * size]
        return out

    def select(self, rows: Tensor) -> SecureImages:
        """Some of the rows, decrypted as they are asked for."""
        other = object.__new__(SecureImages)
        other.__dict__.update(self.__dict__)
        other._rows = rows if self._rows is None else self._rows[rows]
        other.shape = torch.Size([len(rows), *self.shape[1:]])
        return other

    def __reduce__(self) -> Any:
        """For workers that are spawned: the folder and what gives the key, never the key."""
        if not callable(self._key):
            raise TypeError("SecureImages: to be pickled it must be opened with a callable that gives the key")
        return _reopened, (self._path, self._key, self._rows)


def _reopened(path: Path, key: Key, rows: Tensor | None) -> SecureImages:
    images = SecureImages(path, key)
    return images if rows is None else images.select(rows)


class _SecureDataset(Dataset):
    """A data set whose images stay encrypted until they are asked for."""

    @property
    def train_images(self) -> Tensor:
        """As :attr:`Dataset.train_images`, but SecureImages."""
        return cast(Any, self.images).select(self.train)  # type: ignore[no-any-return]

    @property
    def test_images(self) -> Tensor:
        """As :attr:`Dataset.test_images`, but SecureImages."""
        return cast(Any, self.images).select(self.test)  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """That of the data set that was encrypted."""
        return str(cast(Any, self.images).description["fingerprint"])


def open_secure(path: str | Path, key: Key) -> Dataset:
    """A data set whose images are :class:`SecureImages`; only batches of it are ever in the clear, in memory.

    Args:
        path: of the folder that :func:`encrypt` wrote.
        key: of the user.

    Raises:
        DataError: for a folder that was changed or is no encrypted data set, and for a wrong key.
    """
    images: Any = SecureImages(path, key)
    told = images.description
    if told["kind"] == "shard":
        raise DataError(
            f"{path}: expected an encrypted data set, got a shard of one; name it secure:{path}, ending in .tar"
        )
    labels = None if told["labels"] is None else torch.tensor(told["labels"], dtype=torch.int64)
    train, test = (torch.tensor(told[part], dtype=torch.int64) for part in ("train", "test"))
    return _SecureDataset(told["name"], images, labels, tuple(told["classes"]), train, test, told["kind"], private=True)
