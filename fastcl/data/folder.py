"""Image files, and folders of them: subfolders give the labels, a flat folder has none."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcl.errors import DataError, run_extra

__all__ = ["class_names", "classes_of", "find_images", "fitted", "open_image", "read_folder", "read_images"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_images(folder: Path) -> list[Path]:
    """All image files under `folder`, by name, links to what is gone among them; nothing hidden.

    Raises:
        DataError: where there is none, or a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: expected a folder that can be read: {error.strerror}") from error

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
    found.sort()
    if not found:
        raise DataError(f"{folder}: expected image files ({', '.join(SUFFIXES)}), found none")
    return found


def open_image(source: str | Path | bytes, channels: int, min_side: int | None = None) -> Any:
    """Decodes a file, or its bytes, to an upright PIL image; `channels` and `min_side` as :func:`fastcl.data.decode`'s.

    Raises:
        DataError: for what is no readable image; names the file.
    """
    with run_extra():
        from PIL import Image, ImageOps, UnidentifiedImageError
    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if min_side is not None:
                width, height = (max(1, side * min_side // min(image.size)) for side in image.size)
                image.draft(mode, (width, height))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image if image.mode == mode else image.convert(mode)
    except Exception as error:  # damaged files raise struct.error, TypeError and others beside Pillow's own
        if isinstance(error, UnidentifiedImageError):  # which names the file, or an object in memory
            error = UnidentifiedImageError("cannot identify image file")
        name = f"{len(source)} bytes" if isinstance(source, bytes) else source
        raise DataError(f"{name}: expected a readable image: {error}") from error


def read_images(paths: Sequence[Path], size: int, channels: int = 3, skipped: dict[str, str] | None = None) -> Tensor:
    """Reads image files, each resized (antialiased) so that its shorter side is `size`, then cropped to its centre.

    Args:
        paths: the files.
        size: height and width of the result, in pixels.
        channels: 3 for RGB, 1 for grey.
        skipped: where given, a file that cannot be read is left out, and entered here with what is wrong with it.

    Returns:
        uint8 [n, channels, size, size], n = len(paths) less those left out.

    Raises:
        DataError: for a file that is no readable image.
    """
    images = torch.empty((len(paths), channels, size, size), dtype=torch.uint8)
    row = 0
    for path in paths:
        try:
            images[row] = fitted(path, size, channels)
            row += 1
        except DataError as error:
            if skipped is None:
                raise
            skipped[str(path)] = str(error.__cause__) or type(error.__cause__).__name__
    return images[:row]


def fitted(source: str | Path | bytes, size: int, channels: int = 3) -> Tensor:
    """An image as :func:`read_images` gives it, uint8 [channels, size, size].

    Raises:
        DataError: for what is no readable image; names the file.
    """
    with run_extra():
        from PIL import Image, ImageOps
    # A JPEG is decoded at twice the size or more: what the resize makes of that is as sharp.
    image = ImageOps.fit(open_image(source, channels, min_side=2 * size), (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).reshape(size, size, channels).permute(2, 0, 1)


def read_folder(folder: Path, size: int) -> tuple[Tensor, Tensor | None, tuple[str, ...], dict[str, str]]:
    """Reads a folder of images as RGB; the name of the first subfolder is an image's class.

    Returns:
        Images uint8 [N, 3, size, size], labels int64 [N], the names of the classes, and the files that were skipped as
        they cannot be read, with why; no labels where an image lies in `folder` itself or all lie in one subfolder.

    Raises:
        DataError: for a folder without images that can be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images")
    paths = find_images(folder)
    skipped: dict[str, str] = {}
    images = read_images(paths, size, skipped=skipped)
    kept = [path for path in paths if str(path) not in skipped]
    if not kept:
        first = next(iter(skipped.values()))
        raise DataError(f"{folder}: none of its {len(paths)} image files can be read; the first: {first}")
    return images, *classes_of(folder, kept), skipped


def classes_of(folder: Path, paths: Sequence[Path]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels int64 [len(paths)] and the names of the classes, from the first subfolder of each; see `read_folder`."""
    parts = [path.relative_to(folder).parts for path in paths]
    return class_names([part[0] if len(part) > 1 else None for part in parts])


def class_names(folders: Sequence[str | None]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels int64 [len(folders)] and the names of the classes; no labels where one is None or all are alike."""
    classes = tuple(sorted({name for name in folders if name is not None}))
    if len(classes) < 2 or None in folders:
        return None, ()
    number = {name: label for label, name in enumerate(classes)}
    return torch.tensor([number[name] for name in folders if name is not None]), classes
