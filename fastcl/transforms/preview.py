"""A picture of what a recipe does to images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcl.ragged import RaggedBatch
from fastcl.transforms.compose import Compose, Transform, as_batch
from fastcl.transforms.multiview import MultiViewTransform
from fastcl.transforms.single import Resize

_GAP = 2  # pixels between pictures


def preview_grid(images: Any, transform: Any, views: int = 6, epoch: int = 0) -> Tensor:
    """A picture grid: a row for each image, first the image itself, then views of it (without normalisation).

    Args:
        images: uint8 (or float32 from 0 to 1) [B, C, H, W] or [C, H, W], C = 1 or 3, or a PIL image.
        transform: a transform of this package, a :class:`Compose`, or one of several views (the first of its kinds).
        views: how many.
        epoch: of the draws; the images' sample numbers are 0 to B - 1.

    Returns:
        uint8 [3, height, width].

    Raises:
        TypeError: for a transform that is not this package's, or images of different sizes.
        ValueError: for images of other channels.
    """
    batch, _ = as_batch(images)
    if isinstance(batch, RaggedBatch):
        raise TypeError("preview_grid: images must be of one size, got a RaggedBatch")
    if batch.shape[1] not in (1, 3):
        raise ValueError(f"preview_grid: images must have 1 or 3 channels, got {list(batch.shape)}")
    if isinstance(transform, MultiViewTransform):
        transform = transform.groups[0][0]
    elif isinstance(transform, Transform):
        transform = Compose([transform])
    if not isinstance(transform, Compose):
        raise TypeError(f"preview_grid: transform must be fastcl.transforms', got {type(transform).__name__}")
    size = (batch.shape[2], batch.shape[3])
    columns = [
        transform.apply(batch, transform.sample(len(batch), size, epoch, view).to(batch.device), pictures=True)
        for view in range(views)
    ]
    whole = Compose([Resize(columns[0].shape[2:] if columns else size)], seed=0)
    columns.insert(0, whole.apply(batch, whole.sample(len(batch), size).to(batch.device), pictures=True))
    grid = torch.stack(columns, dim=1).expand(-1, -1, 3, -1, -1)  # [rows, columns, 3, height, width]
    rows, n, _, height, width = grid.shape
    out = torch.full((3, rows * (height + _GAP) + _GAP, n * (width + _GAP) + _GAP), 255, dtype=torch.uint8)
    for row in range(rows):
        for column in range(n):
            top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
            out[:, top : top + height, left : left + width] = grid[row, column]
    return out
