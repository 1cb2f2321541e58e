"""The ops of ``augment.py`` on images of different sizes, a :class:`fastcl.data.RaggedBatch`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcl.ops.augment import (
    PARAM_NAMES,
    _apply_out_reference,
    _sample_reference,
    check_draw,
    check_look,
    check_out,
    check_params,
)
from fastcl.ops.registry import op, register
from fastcl.ragged import MAX_SIDE, RaggedBatch, check_ragged


def augment_sample_ragged(
    recipe: Tensor,
    index: Tensor,
    *,
    seed: int,
    epoch: int = 0,
    view: int = 0,
    shapes: Tensor,
    out_size: tuple[int, int],
) -> Tensor:
    """:func:`augment_sample` for images of different sizes: a row is what that gives for the image's own size.

    Args:
        recipe: as :func:`augment_sample`'s, as are those below that are not described.
        index: see recipe.
        seed: see recipe.
        epoch: see recipe.
        view: see recipe.
        shapes: heights, widths and channels of the images, int32 [n, 3].
        out_size: see recipe.

    Returns:
        float32 [n, len(PARAM_NAMES)] on ``index``'s device.

    Raises:
        TypeError: for a tensor of the wrong dtype.
        ValueError: for a shape or number out of range.
        RuntimeError: for an image without pixels; names it.
    """
    check_draw(recipe, index, epoch, view)
    if not isinstance(shapes, Tensor) or shapes.dtype != torch.int32:
        got = str(shapes.dtype) if isinstance(shapes, Tensor) else type(shapes).__name__
        raise TypeError(f"augment_sample: shapes must be int32 [n, 3], got {got}")
    if shapes.shape != (len(index), 3):
        raise ValueError(f"augment_sample: shapes must be [{len(index)}, 3], got {list(shapes.shape)}")
    if not all(1 <= side <= MAX_SIDE for side in out_size):
        raise ValueError(f"augment_sample: out_size must be two numbers from 1 to {MAX_SIDE}, got {tuple(out_size)}")
    return op("augment_sample_ragged", index)(recipe, index, shapes, seed, epoch, view, *out_size)  # type: ignore[no-any-return]


def augment_apply_ragged(
    images: RaggedBatch,
    params: Tensor,
    size: tuple[int, int],
    *,
    interpolation: str = "nearest",
    fill: Sequence[float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`augment_apply` on images of different sizes: each gives, to the bit, what it gives alone.

    Args:
        images: the batch.
        params: float32 [n, len(PARAM_NAMES)], as :func:`augment_sample_ragged` gives it or edited.
        size: as :func:`augment_apply`'s, as are those below.
        interpolation: see size.
        fill: see size.
        mean: see size.
        std: see size.
        dtype: see size.
        out: see size.

    Returns:
        [n, C, *size], contiguous; ``out`` where it was given.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit.
        RuntimeError: for an image that does not lie inside the data, and as :func:`augment_apply` for rows.
    """
    if not isinstance(images, RaggedBatch):
        raise TypeError(f"augment_apply: images must be a RaggedBatch, got {type(images).__name__}")
    if not len(images):
        raise ValueError("augment_apply: images must hold at least one image, got none")
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise ValueError(f"augment_apply: size must be two numbers from 1 to {MAX_SIDE}, got {tuple(size)}")
    check_params(params, len(images), images.device)
    dtype, how = check_look(torch.uint8, images.channels, interpolation, fill, mean, std, dtype, out)
    want = [len(images), images.channels, *size]
    if out is None:
        out = images.data.new_empty(want, dtype=dtype)
    check_out(out, want, dtype, images.device)
    op("augment_apply_ragged", images.data)(images.data, images.offsets, images.shapes, params, *how, out)
    return out


def _sample_ragged_reference(
    recipe: Tensor,
    index: Tensor,
    shapes: Tensor,
    seed: int,
    epoch: int,
    view: int,
    out_height: int,
    out_width: int,
) -> Tensor:
    out = _sample_ragged_fake(recipe, index, shapes, seed, epoch, view, out_height, out_width)
    for i, (height, width, channels) in enumerate(shapes.tolist()):
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise RuntimeError(
                f"augment_sample: image {i} (shapes[{i}] = {[height, width, channels]}): height and width must be from "
                f"1 to {MAX_SIDE}"
            )
        own = index[i : i + 1]
        out[i] = _sample_reference(recipe, own, seed, epoch, view, height, width, out_height, out_width)[0]
    return out


def _sample_ragged_fake(
    recipe: Tensor,
    index: Tensor,
    shapes: Tensor,
    seed: int,
    epoch: int,
    view: int,
    out_height: int,
    out_width: int,
) -> Tensor:
    return index.new_empty((index.shape[0], len(PARAM_NAMES)), dtype=torch.float32)


def _apply_ragged_reference(
    data: Tensor,
    offsets: Tensor,
    shapes: Tensor,
    params: Tensor,
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    out: Tensor,
) -> None:
    try:
        check_ragged("augment_apply", data, offsets, shapes)
    except ValueError as error:  # what the tensors hold, a native kernel finds out too: with the same words
        raise RuntimeError(str(error)) from None
    images = RaggedBatch(data, offsets, shapes)
    for i in range(len(images)):
        one = slice(i, i + 1)
        _apply_out_reference(images[i][None], params[one], interpolation, fill, mean, std, out[one])


def _apply_ragged_fake(
    data: Tensor,
    offsets: Tensor,
    shapes: Tensor,
    params: Tensor,
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    out: Tensor,
) -> None:
    return None


register("augment_sample_ragged", _sample_ragged_reference, _sample_ragged_fake)
register("augment_apply_ragged", _apply_ragged_reference, _apply_ragged_fake)
