"""Image files as a data set that is decoded in a DataLoader's workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastcl.data.folder import classes_of, find_images, open_image
from fastcl.errors import DataError

__all__ = ["ImageFiles", "decode"]


def decode(source: str | Path | bytes, *, channels: int = 3, min_side: int | None = None) -> Tensor:
    """Decodes an image with Pillow, upright as its EXIF data say.

    Args:
        source: a file, or the bytes of one.
        channels: 3 for RGB, 1 for grey.
        min_side: a JPEG whose shorter side is at least twice, 4 or 8 times that is decoded at 1/2, 1/4 or 1/8 of its
            size, which its decoder does for less than the whole costs; the shorter side stays at least ``min_side``.
            Other formats, and None, give the whole image.

    Returns:
        uint8 [channels, height, width], the channels last in memory.

    Raises:
        DataError: for what is no image, or a truncated one; names the file.
        MissingExtraError: without Pillow.
        ValueError: for other channels, or a ``min_side`` below 1.
    """
    if channels not in (1, 3) or (min_side is not None and min_side < 1):
        raise ValueError(f"decode: channels must be 1 or 3 and min_side at least 1, got {channels} and {min_side}")
    pixels = np.array(open_image(source, channels, min_side))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


class ImageFiles(Dataset[Any]):
    """Image files, decoded when they are asked for: a :class:`Loader` or DataLoader decodes them in its workers.

    Args:
        paths: the files.
        labels: int64 [len(paths)], or None.
        channels: 3 for RGB, 1 for grey.
        min_side: as :func:`decode`'s; for views of ``size`` pixels, ``size`` or more.

    An item is an image uint8 [channels, height, width], or with labels (image, label).
    """

    def __init__(
        self, paths: Sequence[str | Path], labels: Any = None, *, channels: int = 3, min_side: int | None = None
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        self.classes: tuple[str, ...] = ()
        self.channels, self.min_side = channels, min_side
        if self.labels is not None and self.labels.shape != (len(self.paths),):
            raise ValueError(f"ImageFiles: labels must be [{len(self.paths)}], got {list(self.labels.shape)}")

    @classmethod
    def from_folder(cls, folder: str | Path, *, channels: int = 3, min_side: int | None = None) -> ImageFiles:
        """All images under a folder; where each lies in a subfolder and there are several, those are the classes.

        Raises:
            DataError: for a folder without images.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder of images")
        paths = find_images(folder)
        labels, classes = classes_of(folder, paths)
        files = cls(paths, labels, channels=channels, min_side=min_side)
        files.classes = classes
        return files

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        image = decode(self.paths[index], channels=self.channels, min_side=self.min_side)
        return image if self.labels is None else (image, self.labels[index])
