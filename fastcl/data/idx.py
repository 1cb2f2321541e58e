"""``mnist`` and ``fashion-mnist``: the IDX files of both, gzipped or not (format: yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcl.errors import DataError

__all__ = ["CLASSES", "download", "find_folder", "read_idx", "read_split"]

CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
}  # fmt: skip
_PLACES = {
    "mnist": ("/usr/share/datasets/mnist", "data/MNIST/raw", "data/mnist"),
    # Debian's package dataset-fashion-mnist installs the first.
    "fashion-mnist": ("/usr/share/datasets/fashion-mnist", "data/FashionMNIST/raw", "data/fashion-mnist"),
}
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: Path, shape: tuple[int | None, ...]) -> Tensor:
    """Reads one IDX file of unsigned bytes.

    Args:
        path: the file; it is unpacked where its name ends in ``.gz``.
        shape: what is expected, with None for any size: ``(None, 28, 28)`` for images, ``(None,)`` for labels.

    Returns:
        uint8 of that shape.

    Raises:
        DataError: for a file that cannot be read, is truncated, has bytes left over, or holds something else.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: expected {'a gzipped' if path.suffix == '.gz' else 'an'} IDX file: {error}"
        ) from error
    want = "×".join("any" if size is None else str(size) for size in shape)
    header = 4 + 4 * len(shape)
    if len(data) < header:
        raise DataError(
            f"{path}: expected an IDX file of {want} bytes, got {len(data)} bytes in all, too few for a header"
        )
    if data[:4] != bytes([0, 0, 8, len(shape)]):
        raise DataError(
            f"{path}: expected an IDX file of {want} unsigned bytes, which starts with 0000080{len(shape)}; "
            f"it starts with {data[:4].hex()}"
        )
    sizes = tuple(np.frombuffer(data, dtype=">u4", count=len(shape), offset=4).tolist())
    if any(want_size not in (None, size) for want_size, size in zip(shape, sizes, strict=True)) or 0 in sizes:
        raise DataError(f"{path}: expected {want} bytes and at least one row, got {'×'.join(map(str, sizes))}")
    if len(data) != header + math.prod(sizes):
        raise DataError(
            f"{path}: expected {header + math.prod(sizes):,} bytes for {'×'.join(map(str, sizes))}, got {len(data):,}: "
            "the file is truncated or damaged"
        )
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8, offset=header).reshape(sizes).copy())


def read_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Reads the images and the labels of ``"train"`` or ``"test"``.

    Returns:
        Images uint8 [N, 1, 28, 28] and labels int64 [N].

    Raises:
        DataError: for a missing or wrong file.
    """
    image_path, label_path = (_file(folder, f"{_PREFIX[split]}-{kind}") for kind in ("images-idx3", "labels-idx1"))
    images, labels = read_idx(image_path, (None, 28, 28)), read_idx(label_path, (None,))
    if len(images) != len(labels):
        raise DataError(f"{label_path}: expected {len(images):,} labels, one for each image, got {len(labels):,}")
    if labels.max() > 9:
        raise DataError(f"{label_path}: expected labels of 0 to 9, got {int(labels.max())}")
    return images[:, None], labels.long()


def _file(folder: Path, stem: str) -> Path:
    """The file of that stem: ``-ubyte`` or ``.ubyte`` (both are in use), gzipped or not."""
    names = [f"{stem}{end}" for end in ("-ubyte", "-ubyte.gz", ".ubyte", ".ubyte.gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: expected a file {names[0]} or {names[1]}, found none")


def find_folder(name: str, folder: Path | None) -> Path:
    """The folder with the files of `name`: the one given, else the first known place that exists."""
    if folder is not None:
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder with the IDX files of {name}")
        return folder
    for place in map(Path, _PLACES[name]):
        if place.is_dir():
            return place
    raise DataError(
        f"{name}: no folder with its IDX files in {', '.join(_PLACES[name])}; name one with --data-dir, or ask for "
        "--download (which needs torchvision and a network)"
    )


def download(name: str, folder: Path) -> Path:
    """Fetches the files with torchvision and returns their folder.

    Raises:
        DataError: without torchvision, or where the download fails.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DataError(f"{name}: downloading needs torchvision: pip install torchvision") from error
    kind: Any = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}[name]
    try:
        for train in (True, False):
            kind(str(folder), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name}: the download to {folder} failed: {error}") from error
    return folder / str(kind.__name__) / "raw"
