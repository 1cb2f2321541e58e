"""The ops of ``augment.py`` on images of different sizes, a :class:`fastcl.data.RaggedBatch`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.ops import augment_pixels as pixels
from fastcl.ops.augment import _check_draw, _check_dtype, _check_how, _check_out, _check_view
from fastcl.ops.augment_table import PARAM_NAMES, sample_reference
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
        RuntimeError: for an image without pixels; names it. On CUDA its row is one that fits no image.
    """
    _check_draw(recipe, index, epoch, view)
    if not isinstance(shapes, Tensor) or shapes.dtype != torch.int32:
        got = str(shapes.dtype) if isinstance(shapes, Tensor) else type(shapes).__name__
        raise TypeError(f"augment_sample: shapes must be int32 [n, 3], got {got}")
    if shapes.shape != (len(index), 3):
        raise ValueError(f"augment_sample: shapes must be [{len(index)}, 3], got {list(shapes.shape)}")
    if not all(1 <= side <= MAX_SIDE for side in out_size):
        raise ValueError(f"augment_sample: out_size must be two numbers from 1 to {MAX_SIDE}, got {tuple(out_size)}")
    return op("augment_sample_ragged", index)(recipe, index, shapes, seed, epoch, view, *out_size)  # type: ignore[no-any-return]


def augment_views_ragged(
    images: RaggedBatch,
    params: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    *,
    interpolation: str = "nearest",
    fill: Sequence[float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    resize: str = "bilinear",
    erase: Sequence[float] | None = None,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """:func:`augment_views` of images of different sizes: each gives, to the bit, what it gives alone.

    Args:
        images: the batch.
        params: one table for each view, float32 [n, len(PARAM_NAMES)], as :func:`augment_sample_ragged` gives it for
            ``images.whole_shapes``.
        sizes: as :func:`augment_views`'s, as are those below.
        interpolation: see sizes.
        fill: see sizes.
        mean: see sizes.
        std: see sizes.
        dtype: see sizes.
        resize: see sizes.
        erase: see sizes.
        out: see sizes.

    Returns:
        One tensor [n, C, height, width] for each view; ``out``'s where it was given.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit.
        RuntimeError: for an image that does not lie inside the data, and as :func:`augment_views` for rows; on CUDA the
            view of such an image is NaN instead (uint8: 0).
    """
    name = "augment_views"
    if not isinstance(images, RaggedBatch):
        raise TypeError(f"{name}: images must be a RaggedBatch, got {type(images).__name__}")
    if not len(images):
        raise ValueError(f"{name}: images must hold at least one image, got none")
    params, sizes = list(params), list(sizes)
    if len(sizes) != len(params) or (out is not None and len(out) != len(params)):
        got = f"{len(params)}, {len(sizes)}{'' if out is None else f' and {len(out)}'}"
        raise ValueError(f"{name}: params, sizes and out must have one entry for each view, got {got}")
    # The checks of images of one size look at the batch's length, channels, dtype and device alone.
    like = images.data.new_zeros(1).expand(len(images), images.channels, 1, 1)
    for view, (table, size) in enumerate(zip(params, sizes, strict=True)):
        _check_view(name, f"[{view}]", like, table, size)
    dtype = _check_dtype(name, like, dtype, out[0] if out else None)
    how = _check_how(name, like, interpolation, fill, mean, std, dtype, resize, erase)
    if out is None:
        out = [like.new_empty((*like.shape[:2], *size), dtype=dtype) for size in sizes]
    for view, (tensor, size) in enumerate(zip(out, sizes, strict=True)):
        _check_out(name, f"out[{view}]", like, size, dtype, tensor)
    if images.boxes is not None:
        corners = functional.pad(images.boxes[:, :2].to(torch.float32), (0, len(PARAM_NAMES) - 2))
        params = [table - corners for table in params]  # the crop comes first: top and left
    op("augment_views_ragged", images.data)(images.data, images.offsets, images.shapes, params, *how, list(out))
    return list(out)


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
    out = _sample_ragged_fake(recipe, index)
    for i, (height, width, channels) in enumerate(shapes.tolist()):
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise RuntimeError(
                f"augment_sample: image {i} (shapes[{i}] = {[height, width, channels]}): height and width must be from "
                f"1 to {MAX_SIDE}"
            )
        own = index[i : i + 1]
        out[i] = sample_reference(recipe, own, seed, epoch, view, height, width, out_height, out_width)[0]
    return out


def _sample_ragged_fake(recipe: Tensor, index: Tensor, *_: object) -> Tensor:
    return index.new_empty((index.shape[0], len(PARAM_NAMES)), dtype=torch.float32)


def _views_ragged_reference(
    data: Tensor,
    offsets: Tensor,
    shapes: Tensor,
    params: list[Tensor],
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    resize: str,
    erase: list[float],
    out: list[Tensor],
) -> None:
    try:
        check_ragged("augment_views", data, offsets, shapes)
    except ValueError as error:  # what the tensors hold, a native kernel finds out too: with the same words
        raise RuntimeError(str(error)) from None
    images = RaggedBatch(data, offsets, shapes)
    for v, (table, view) in enumerate(zip(params, out, strict=True)):
        for i in range(len(images)):
            one = slice(i, i + 1)
            try:
                pixels.apply_out_reference(
                    images[i][None], table[one], interpolation, fill, mean, std, view[one], resize, erase
                )
            except RuntimeError as error:  # of a row
                row = f"augment_views: params[{v}][{i}]"
                raise RuntimeError(str(error).replace("augment_apply: params[0]", row)) from None


register("augment_sample_ragged", _sample_ragged_reference, _sample_ragged_fake)
register("augment_views_ragged", _views_ragged_reference, pixels.out_fake)
