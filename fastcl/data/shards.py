"""Images in tar shards as WebDataset lays them out, plain or encrypted: read where they lie, never unpacked.

A sample is the files of a shard with one name up to the first dot: ``cat/0017.jpg``, and ``cat/0017.cls`` with its
class as a number. Without ``.cls`` the first folders of the names are the classes, as in a folder of images.

The package webdataset streams: samples have no numbers, an order is drawn in a buffer, and a stream cannot go on in
the middle of an epoch with the same batches. Here a view follows from the sample's number, so the shards are indexed
instead, by Python's tarfile from their headers alone, and samples are read at their places.

An encrypted shard is the tar, cut into rows of 16 KiB, as a data set of :mod:`fastcl.data.secure`: a folder of the
shard's name. Nothing of it is in the clear on disk, and what was changed is refused.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastcl.data.dataset import Dataset, RowImages, limited, stratified_split
from fastcl.data.folder import SUFFIXES, class_names, fitted, open_image
from fastcl.data.secure import Key, SecureImages, encrypt
from fastcl.errors import DataError
from fastcl.files import TEMPORARY, write_atomically

__all__ = ["ShardImages", "ShardSampler", "expand", "open_shards", "write_shards"]

_BLOCK = 512  # bytes of a tar's header; a tar ends in one of zeros
_ROW_BYTES = 16384  # of an encrypted shard: what one read decrypts at least
_JUDGED = 20_000  # images on which an encoder is judged, whose embeddings and pixels are held in memory
_OPEN_SHARDS = 64  # encrypted shards that are kept open


def expand(pattern: str) -> list[Path]:
    """The shards that a pattern names: ``shards/{000000..000009}.tar``, or ``*`` and ``?`` for those that are there.

    Raises:
        DataError: where one is missing, or none is found.
    """
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)  # text, first, last, text, …
    ranges = [
        [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        for first, last in zip(parts[1::3], parts[2::3], strict=True)
    ]
    names = [
        "".join(part for pair in zip(parts[::3], [*chosen, ""], strict=True) for part in pair)
        for chosen in product(*ranges)
    ]
    found: list[Path] = []
    for path in map(Path, names):
        if "*" in path.name or "?" in path.name:
            found += sorted(path.parent.glob(path.name))
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: expected a shard, found nothing")
    if not found:
        raise DataError(f"{pattern}: expected shards (.tar), found none")
    return found


# -------------------------------------------------------------------------------------------------------------- reading


class _UnreadableError(DataError):
    """One sample cannot be decoded, or is cut off: it can be left out, unlike a shard that was tampered with."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.why = why


class _Plain:
    """A tar file. It is opened for every read: there may be more shards than files that may be open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    def read(self, offset: int, size: int) -> bytes:
        with self.path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)


class _Sealed:
    """An encrypted tar file, decrypted at the places that are read."""

    def __init__(self, path: Path, key: Key) -> None:
        self._rows = SecureImages(path, key)
        if self._rows.description["kind"] != "shard":
            raise DataError(f"{path}: expected an encrypted shard, got an encrypted data set; name it secure:{path}")
        self.size = len(self._rows) * _ROW_BYTES

    def read(self, offset: int, size: int) -> bytes:
        first, last = offset // _ROW_BYTES, min(-(-(offset + size) // _ROW_BYTES), len(self._rows))
        content = b"".join(map(self._rows.chunk, range(first, last)))  # a row is a chunk
        return content[offset - first * _ROW_BYTES :][:size]


class _Stream(io.RawIOBase):
    """A shard as a file for tarfile."""

    def __init__(self, source: _Plain | _Sealed) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._source.read(self._at, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class _Sample(NamedTuple):
    key: str
    offset: int
    size: int
    label: int | None


def _index(source: _Plain | _Sealed) -> tuple[list[_Sample], str]:
    """The samples of a shard, and what is wrong with the rest of it, if anything."""
    found: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    wrong = ""
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Stream(source), _ROW_BYTES), mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                stem, _, extension = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not member.isreg() or not stem:
                    continue
                if member.offset_data + member.size > source.size:
                    raise tarfile.ReadError("unexpected end of data")
                if extension.lower() == "cls":
                    labels[key] = int(source.read(member.offset_data, member.size))
                elif f".{extension.lower()}".endswith(SUFFIXES):
                    found[key] = member.offset_data, member.size
            if source.read(tar.offset, _BLOCK) != bytes(_BLOCK):  # tarfile takes a damaged header for the end
                raise tarfile.ReadError("a header is damaged, or the end is missing")
    except (tarfile.TarError, OSError, ValueError) as error:
        wrong = f"damaged after {len(found)} samples, the rest is left out: {error}"
    return [_Sample(key, *place, labels.get(key)) for key, place in found.items()], wrong


class ShardImages(RowImages):
    """Images in tar shards, decoded as they are asked for; resized and cropped as those of a folder.

    Attributes:
        keys: the samples' names.
        labels: int64 [N], or None.
        classes: their names; empty without labels.
        skipped: shards that are damaged, with what is wrong.
        shard_of: the number of each sample's shard, int64 [N].
    """

    def __init__(self, shards: Sequence[str | Path], size: int, *, channels: int = 3, key: Key | None = None) -> None:
        """Indexes the shards, from the headers in them; samples are numbered in the order of shards and tars.

        Args:
            shards: tar files, or with a key the folders of encrypted ones.
            size: height and width of the images, in pixels.
            channels: 3 for RGB, 1 for grey.
            key: of encrypted shards.

        Raises:
            DataError: where there is no image, a shard is missing, or an encrypted one was changed.
        """
        self._paths, self._key, self._channels = [Path(path) for path in shards], key, channels
        self._sources: dict[int, _Plain | _Sealed] = {}
        self.skipped: dict[str, str] = {}
        samples: list[_Sample] = []
        numbers: list[int] = []
        for number, path in enumerate(self._paths):
            part, wrong = _index(self._source(number))
            if wrong:
                self.skipped[str(path)] = wrong
            samples += part
            numbers += [number] * len(part)
        if not samples:
            first = next(iter(self.skipped.values()), "no image files in it")
            raise DataError(f"{self._paths[0]}: expected tar shards with images, found none; the first: {first}")
        self.keys = [sample.key for sample in samples]
        self.shard_of = torch.tensor(numbers)
        self._places = torch.tensor([(sample.offset, sample.size) for sample in samples])
        self.labels, self.classes = _labels(samples)
        self.shape = torch.Size([len(samples), channels, size, size])

    def _source(self, number: int) -> _Plain | _Sealed:
        source = self._sources.get(number)
        if source is None:
            path = self._paths[number]
            try:
                source = _Plain(path) if self._key is None else _Sealed(path, self._key)
            except OSError as error:
                raise DataError(f"{path}: expected a shard: {error}") from error
            # A dict of its own each time, which other threads may be looking into.
            self._sources = {**dict(list(self._sources.items())[1 - _OPEN_SHARDS :]), number: source}
        return source

    def read(self, number: int) -> bytes:
        """The file of an image.

        Raises:
            DataError: where it cannot be read, or was changed in an encrypted shard.
        """
        shard, offset, size = int(self.shard_of[number]), *self._places[number].tolist()
        try:
            content = self._source(shard).read(offset, size)
        except OSError as error:
            raise DataError(f"{self._paths[shard]}: expected a shard that can be read: {error}") from error
        if len(content) != size:
            raise _UnreadableError(self._name(number), "the shard was cut off")
        return content

    def _name(self, number: int) -> str:
        return f"{self._paths[int(self.shard_of[number])]}:{self.keys[number]}"

    def _decode(self, number: int, content: bytes) -> Tensor:
        try:
            return fitted(content, self.shape[2], self._channels)
        except DataError as error:
            raise _UnreadableError(self._name(number), f"expected a readable image: {error.__cause__}") from error

    def __getitem__(self, rows: Any) -> Tensor:
        """Decodes images.

        Args:
            rows: a number, a slice, or numbers as a list or an int64 Tensor.

        Returns:
            uint8 [C, H, W] for a number, else [n, C, H, W].

        Raises:
            IndexError: for a number out of range.
            DataError: for an image that cannot be decoded, and for an encrypted shard that was changed.
        """
        if isinstance(rows, int):
            return self._decode(range(len(self))[rows], self.read(range(len(self))[rows]))
        numbers = torch.arange(len(self))[rows]
        out = torch.empty((len(numbers), *self.shape[1:]), dtype=torch.uint8)
        for place in numbers.argsort(stable=True).tolist():  # as they lie in the shards
            out[place] = self[int(numbers[place])]
        return out

    def readable(self, rows: Tensor) -> tuple[Tensor, dict[int, str]]:
        """Which of some rows can be decoded, int64 [n], and what is wrong with the others, by number."""
        wrong: dict[int, str] = {}
        for number in rows.tolist():
            try:
                self[number]
            except _UnreadableError as error:
                wrong[number] = str(error)
        return torch.tensor([number for number in rows.tolist() if number not in wrong], dtype=torch.int64), wrong

    def verify(self) -> tuple[Tensor, str]:
        """Reads and decodes everything once, in order and by PyTorch's number of threads.

        Returns:
            The numbers of the images that can be decoded, int64 [n], and a hash over all of the files and labels;
            :attr:`skipped` has the others afterwards.

        Raises:
            DataError: for an encrypted shard that was changed.
        """
        digest = hashlib.sha256(
            repr((tuple(self.shape), None if self.labels is None else self.labels.tolist())).encode()
        )

        def check(number: int) -> tuple[bytes, str]:
            try:
                content = self.read(number)
            except _UnreadableError as error:
                return b"", error.why
            try:
                self._decode(number, content)
            except _UnreadableError as error:
                return hashlib.sha256(content).digest(), error.why
            return hashlib.sha256(content).digest(), ""

        kept: list[int] = []
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for first in range(0, len(self), 1024):  # a few at a time: what is read waits nowhere
                numbers = range(first, min(first + 1024, len(self)))
                for number, (content, why) in zip(numbers, pool.map(check, numbers), strict=True):
                    digest.update(self.keys[number].encode() + content)
                    if why:
                        self.skipped[self._name(number)] = why
                    else:
                        kept.append(number)
        return torch.tensor(kept, dtype=torch.int64), digest.hexdigest()[:16]

    def select(self, rows: Tensor) -> ShardImages:
        """Some of the images, read as they are asked for."""
        other = object.__new__(ShardImages)
        other.__dict__.update(self.__dict__)
        other.keys = [self.keys[row] for row in rows.tolist()]
        other.shard_of, other._places = self.shard_of[rows], self._places[rows]
        other.labels = None if self.labels is None else self.labels[rows]
        other.shape = torch.Size([len(rows), *self.shape[1:]])
        return other

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are spawned: what gives the key, never the key."""
        if self._key is not None and not callable(self._key):
            raise TypeError("ShardImages: to be pickled it must be opened with a callable that gives the key")
        return {**self.__dict__, "_sources": {}}


def _labels(samples: Sequence[_Sample]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels and the names of the classes: by the numbers in .cls, else by the first folders."""
    folders = [sample.key.partition("/")[0] if "/" in sample.key else None for sample in samples]
    if any(sample.label is None for sample in samples):
        return class_names(folders)
    numbers = [int(sample.label or 0) for sample in samples]
    names: dict[int, set[str | None]] = {}
    for number, folder in zip(numbers, folders, strict=True):
        names.setdefault(number, set()).add(folder)
    ordered = sorted(names)
    own = all(len(folder) == 1 and None not in folder for folder in names.values())
    classes = tuple(str(next(iter(names[number])) if own else number) for number in ordered)
    if len(ordered) < 2:
        return None, ()
    return torch.tensor([ordered.index(number) for number in numbers]), classes


class ShardSampler:
    """The order of an epoch for shards that are slow to reach: each process reads shards of its own, a few at a time.

    Shards are shuffled and dealt out to the processes; within `together` of them, samples are shuffled. Give it to
    ``Loader(sampler=)``; the views are those of any other order. A process whose shards hold fewer samples than its
    share takes some of them twice, one with more leaves some out, other ones in every epoch.

    Args:
        images: of the shards.
        seed: of the order.
        together: shards that a process shuffles with each other; more mix better, fewer are reread less often.
        rank: of this process; by default torch.distributed's, or where it is not in use 0.
        world: number of processes; by default as `rank`.

    Raises:
        ValueError: for fewer shards than processes, or values out of range.
    """

    def __init__(
        self,
        images: ShardImages,
        seed: int = 0,
        together: int = 4,
        *,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        in_use = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = rank if rank is not None else torch.distributed.get_rank() if in_use else 0
        self._world = world if world is not None else torch.distributed.get_world_size() if in_use else 1
        self._shards = images.shard_of.unique().tolist()
        if not 0 <= self._rank < self._world <= len(self._shards) or together < 1:
            raise ValueError(
                f"ShardSampler: expected a shard for each process and together of at least 1, got {len(self._shards)} "
                f"shards, rank {self._rank} of {self._world} and together={together}"
            )
        self._shard_of, self._seed, self._together, self._epoch = images.shard_of, seed, together, 0

    def set_epoch(self, epoch: int) -> None:
        """Takes the order of that epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._shard_of) // self._world

    def __iter__(self) -> Iterator[int]:
        # The legacy generator: its stream is frozen for all numpy versions.
        random = np.random.RandomState([self._seed, self._epoch])
        mine = random.permutation(self._shards)[self._rank :: self._world]
        order: list[int] = []
        for first in range(0, len(mine), self._together):
            chosen = torch.isin(self._shard_of, torch.from_numpy(mine[first : first + self._together]))
            order += random.permutation(chosen.nonzero()[:, 0].numpy()).tolist()
        while len(order) < len(self):
            order += order[: len(self) - len(order)]
        return iter(order[: len(self)])


@dataclass(frozen=True)
class _ShardDataset(Dataset):
    """A data set whose images stay in their shards until they are asked for."""

    digest: str = ""  # of the files

    @property
    def train_images(self) -> Tensor:
        """As :attr:`Dataset.train_images`, but ShardImages."""
        images: Any = self.images
        return images.select(self.train)  # type: ignore[no-any-return]

    @property
    def test_images(self) -> Tensor:
        """As :attr:`Dataset.test_images`, but ShardImages."""
        images: Any = self.images
        return images.select(self.test)  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """As :attr:`Dataset.fingerprint`, of the files as they lie in the shards."""
        return f"{self.digest}-{len(self.train)}"

    @cached_property
    def judged(self) -> Dataset:
        """At most 20,000 images, and at most a GiB of them, in memory."""
        most = max(4, min(_JUDGED, 2**30 // self.images[:1].numel()))
        if most < len(self.images):
            return limited(self, most)
        return Dataset(
            self.name, self.images[:], self.labels, self.classes, self.train, self.test, private=self.private,
            skipped=self.skipped,
        )  # fmt: skip


def open_shards(pattern: str, size: int, test_fraction: float, *, key: Key | None = None, channels: int = 3) -> Dataset:
    """A data set of the images in shards, split as those of a folder; what cannot be read is left out and listed.

    Everything is read and decoded once, so that what is left out is known before the training; images are then
    read as they are asked for. No more than a batch, and those on which the encoder is judged, are in memory.

    Args:
        pattern: of the shards, for :func:`expand`.
        size: height and width of the images, in pixels.
        test_fraction: the share of the images held out.
        key: of encrypted shards.
        channels: 3 for RGB, 1 for grey.

    Raises:
        DataError: for missing shards, none of whose images can be read, and for encrypted ones that were changed.
    """
    images = ShardImages(expand(pattern), size, channels=channels, key=key)
    kept, digest = images.verify()
    if not len(kept):
        first = next(iter(images.skipped.values()))
        raise DataError(f"{pattern}: none of the {len(images)} images can be read; the first: {first}")
    images = images.select(kept)
    train, test = stratified_split(images.labels, len(images), test_fraction)
    parts: Any = images
    name = Path(pattern).parent.resolve().name
    return _ShardDataset(
        name, parts, images.labels, images.classes, train, test, private=key is not None, skipped=images.skipped,
        digest=digest,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- writing


def write_shards(
    paths: Sequence[Path],
    labels: Tensor | None,
    classes: Sequence[str],
    out: str | Path,
    *,
    shard_bytes: int = 64 << 20,
    key: Key | None = None,
) -> tuple[int, dict[str, str]]:
    """Copies image files into shards ``000000.tar``, ``000001.tar``, …, in a random order that is always the same.

    The folder appears whole, or not at all. A shard is made in memory.

    Args:
        paths: of the images; such that cannot be decoded are left out.
        labels: int64 [len(paths)], or None.
        classes: their names.
        out: the folder to write; it must not exist.
        shard_bytes: a shard is closed when its files have reached so many.
        key: encrypts the shards; none leaves them plain.

    Returns:
        The number of shards, and the files that were left out, with why.

    Raises:
        DataError: where the folder exists or cannot be written, or no image can be read.
        ValueError: for a size below 1.
    """
    out = Path(out)
    if shard_bytes < 1:
        raise ValueError(f"write_shards: shard_bytes must be at least 1, got {shard_bytes}")
    if out.exists():
        raise DataError(f"{out}: expected a folder that does not exist yet")
    skipped: dict[str, str] = {}
    shards = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=out.parent))
        try:
            buffer: io.BytesIO | None = None
            for number in np.random.RandomState(0).permutation(len(paths)).tolist():
                path = paths[number]
                try:
                    open_image(path, 3)
                    content = path.read_bytes()
                except (DataError, OSError) as error:
                    skipped[str(path)] = str(error.__cause__ or error)
                    continue
                if buffer is None:
                    buffer, tar = _new_tar()
                label = None if labels is None else int(labels[number])
                name = f"{number:08d}" if label is None else f"{classes[label]}/{number:08d}"
                _add(tar, name + path.suffix.lower(), content)
                if label is not None:
                    _add(tar, f"{name}.cls", str(label).encode())
                if buffer.tell() >= shard_bytes:
                    _finish(tar, buffer, folder / f"{shards:06d}.tar", key)
                    buffer, shards = None, shards + 1
            if buffer is not None:
                _finish(tar, buffer, folder / f"{shards:06d}.tar", key)
                shards += 1
            if not shards:
                raise DataError(
                    f"none of the {len(paths)} image files can be read; the first: {next(iter(skipped.values()))}"
                )
            folder.chmod(0o755)
            folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{out}: expected a folder that can be written: {error}") from error
    return shards, skipped


def _new_tar() -> tuple[io.BytesIO, tarfile.TarFile]:
    buffer = io.BytesIO()
    return buffer, tarfile.open(fileobj=buffer, mode="w")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _finish(tar: tarfile.TarFile, buffer: io.BytesIO, path: Path, key: Key | None) -> None:
    tar.close()
    if key is None:
        write_atomically(path, buffer.getvalue())
        return
    buffer.write(bytes(-buffer.seek(0, os.SEEK_END) % _ROW_BYTES))  # a tar ends in zeros: more of them mean nothing
    rows = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).view(-1, 1, 1, _ROW_BYTES)
    none = torch.empty(0, dtype=torch.int64)
    encrypt(Dataset(path.name, rows, None, (), none, none, "shard"), path, key, rows_per_chunk=1)
