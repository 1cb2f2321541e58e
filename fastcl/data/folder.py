"""Image files, and folders of them: subfolders give the labels, a flat folder has none."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcl.errors import DataError, run_extra

__all__ = ["classes_of", "find_images", "open_image", "read_folder", "read_images"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def find_images(folder: Path) -> list[Path]:
    """All image files under `folder`, by name; hidden files and folders are left out.

    Raises:
        DataError: where there is none.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
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
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        name = f"{len(source)} bytes" if isinstance(source, bytes) else source
        raise DataError(f"{name}: expected a readable image: {error}") from error


def read_images(paths: Sequence[Path], size: int, channels: int = 3) -> Tensor:
    """Reads image files, each resized (antialiased) so that its shorter side is `size`, then cropped to its centre.

    Args:
        paths: the files.
        size: height and width of the result, in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 [len(paths), channels, size, size].

    Raises:
        DataError: for a file that is no readable image.
    """
    with run_extra():
        from PIL import Image, ImageOps
    images = torch.empty((len(paths), channels, size, size), dtype=torch.uint8)
    for row, path in enumerate(paths):
        # A JPEG is decoded at twice the size or more: what the resize makes of that is as sharp.
        image = open_image(path, channels, min_side=2 * size)
        fitted = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        images[row] = torch.from_numpy(np.array(fitted)).reshape(size, size, channels).permute(2, 0, 1)
    return images


def read_folder(folder: Path, size: int) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Reads a folder of images as RGB; the name of the first subfolder is an image's class.

    Returns:
        Images uint8 [N, 3, size, size], labels int64 [N] and the names of the classes; no labels where an image lies
        in `folder` itself or all lie in one subfolder.

    Raises:
        DataError: for a folder without images, or a file that is no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of images")
    paths = find_images(folder)
    return read_images(paths, size), *classes_of(folder, paths)


def classes_of(folder: Path, paths: Sequence[Path]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels int64 [len(paths)] and the names of the classes, from the first subfolder of each; see `read_folder`."""
    parts = [path.relative_to(folder).parts for path in paths]
    classes = tuple(sorted({part[0] for part in parts if len(part) > 1}))
    if len(classes) < 2 or any(len(part) == 1 for part in parts):
        return None, ()
    return torch.tensor([classes.index(part[0]) for part in parts]), classes
