"""Fused augmentation: draw a table of parameters, then apply it in one pass; kernels in ``csrc/augment``.

A **recipe** says what may happen (:data:`RECIPE_NAMES`: ranges and probabilities), :func:`augment_sample` draws one row
of :data:`PARAM_NAMES` per image from it, and :func:`augment_apply` is a pure function of images and rows::

    crop, antialiased resize, flips -> warp -> colour jitter in the row's order -> grayscale -> blur -> sharpen
    -> invert -> posterize -> solarize -> autocontrast -> equalize -> normalise -> erase

:func:`augment_views` makes several views of each image in one call. Each stage computes what torchvision's tensor
functional of the same parameters computes on float images. Values stay float32 between the stages where torchvision
rounds uint8 images after each: the result is nearer to exact arithmetic. The references stand in ``augment_table.py``
(draws) and ``augment_pixels.py``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastcl.ops import augment_pixels as pixels
from fastcl.ops.augment_table import PARAM_NAMES, RECIPE_NAMES, sample_fake, sample_reference
from fastcl.ops.registry import op, register

INTERPOLATIONS = ("nearest", "bilinear")
RESIZES = ("bilinear", "bicubic")
OUTPUT_DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_SIDE = 1 << 20  # pixels


def augment_sample(
    recipe: Tensor,
    index: Tensor,
    *,
    seed: int,
    epoch: int = 0,
    view: int = 0,
    size: tuple[int, int],
    out_size: tuple[int, int],
) -> Tensor:
    """Draws one row of parameters per image, a function of (recipe, seed, epoch, view, sample number, sizes) alone.

    The numbers come from Philox4x32-10 (Salmon et al. 2011) keyed by the seed, its counter being (sample number, epoch,
    view, pass, draw). The reference and the native kernel give the same bits.

    Args:
        recipe: float64 [len(RECIPE_NAMES)] on the CPU.
        index: sample numbers, int64 [n].
        seed: any 64-bit integer.
        epoch: in [0, 2^32).
        view: in [0, 2^16).
        size: height and width of the images, in pixels.
        out_size: height and width of what :func:`augment_apply` is to give.

    Returns:
        float32 [n, len(PARAM_NAMES)] on ``index``'s device.

    Raises:
        TypeError: for a tensor of the wrong dtype.
        ValueError: for a shape or number out of range.
    """
    _check_draw(recipe, index, epoch, view)
    for name, (height, width) in (("size", size), ("out_size", out_size)):
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ValueError(f"augment_sample: {name} must be two numbers from 1 to {MAX_SIDE}, got {(height, width)}")
    return op("augment_sample", index)(recipe, index, seed, epoch, view, *size, *out_size)  # type: ignore[no-any-return]


def augment_apply(
    images: Tensor,
    params: Tensor,
    size: tuple[int, int],
    *,
    interpolation: str = "nearest",
    fill: Sequence[float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    resize: str = "bilinear",
    erase: Sequence[float] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Applies one row of parameters to each image.

    Args:
        images: [B, C, H, W], uint8 (0 to 255), float32 or float64 (0 to 1), contiguous or channels_last. Colour jitter
            and grayscale take C = 1 (saturation, hue and grayscale do nothing) or 3; the rest takes any C.
        params: float32 [B, len(PARAM_NAMES)], as :func:`augment_sample` gives it or edited.
        size: height and width of the output, in pixels.
        interpolation: of the warp, ``"nearest"`` or ``"bilinear"``.
        fill: what a warp shows outside the image, one value or one per channel in the images' units; ``None`` is black
            at the border too, where a value weighs in twice at a bilinear border (as in torchvision).
        mean: per channel (or one for all), of values from 0 to 1; ``None`` is no normalisation.
        std: likewise; given exactly where ``mean`` is.
        dtype: uint8 (0 to 255), float32, float16, bfloat16 (0 to 1, or normalised); by default the images'.
            uint8 rounds as torchvision's last op would: down after a colour op, else to nearest.
        resize: of the crop, ``"bilinear"`` or ``"bicubic"``, with antialias.
        erase: what an erased box shows unless its row says noise, one value or one per channel in the output's units;
            ``None`` is 0.
        out: what to write into, [B, C, *size], contiguous or channels_last, on ``images``' device and of ``dtype`` (by
            default its own), sharing no memory with ``images``. A large output that is used again saves as much time
            as the kernel takes: the system need not find and clear new pages.

    Returns:
        [B, C, *size]; ``out`` where it was given, else contiguous.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit.
        RuntimeError: for a row that is not a number, or whose crop lies outside the image; it names image and column.
            On CUDA, where the host does not look at the rows, the view of that image is NaN instead (uint8: 0).
    """
    name = "augment_apply"
    _check_images(name, images)
    _check_view(name, "", images, params, size)
    dtype = _check_dtype(name, images, dtype, out)
    how = _check_how(name, images, interpolation, fill, mean, std, dtype, resize, erase)
    if out is None:
        *first, resize, erased = how
        return op(name, images)(images, params, *size, *first, dtype, resize, erased)  # type: ignore[no-any-return]
    _check_out(name, "out", images, size, dtype, out)
    op("augment_apply_out", images)(images, params, *how[:4], out, *how[4:])
    return out


def augment_views(
    images: Tensor,
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
    """Makes several views of each image, image by image, so that an image is read from memory once.

    Args:
        images: as :func:`augment_apply`'s.
        params: one table for each view.
        sizes: height and width of each view.
        interpolation: as :func:`augment_apply`'s, for all views; so are those below that are not described.
        fill: see interpolation.
        mean: see interpolation.
        std: see interpolation.
        dtype: see interpolation.
        resize: see interpolation.
        erase: see interpolation.
        out: one tensor for each view, no two sharing memory.

    Returns:
        What :func:`augment_apply` would give for each table and size.

    Raises:
        TypeError: as :func:`augment_apply`.
        ValueError: as :func:`augment_apply`, and for lists of different lengths.
        RuntimeError: as :func:`augment_apply`; it names the view too.
    """
    name = "augment_views"
    _check_images(name, images)
    params, sizes = list(params), list(sizes)
    if len(sizes) != len(params) or (out is not None and len(out) != len(params)):
        got = f"{len(params)}, {len(sizes)}{'' if out is None else f' and {len(out)}'}"
        raise ValueError(f"{name}: params, sizes and out must have one entry for each view, got {got}")
    for view, (table, size) in enumerate(zip(params, sizes, strict=True)):
        _check_view(name, f"[{view}]", images, table, size)
    dtype = _check_dtype(name, images, dtype, out[0] if out else None)
    how = _check_how(name, images, interpolation, fill, mean, std, dtype, resize, erase)
    if out is None:
        heights, widths = [height for height, _ in sizes], [width for _, width in sizes]
        *first, resize, erased = how
        made = op(name, images)(images, params, heights, widths, *first, dtype, resize, erased)
        return list(made)
    for view, (tensor, size) in enumerate(zip(out, sizes, strict=True)):
        _check_out(name, f"out[{view}]", images, size, dtype, tensor)
    op("augment_views_out", images)(images, params, *how, list(out))
    return list(out)


def _check_draw(recipe: Tensor, index: Tensor, epoch: int, view: int) -> None:
    if not isinstance(recipe, Tensor) or recipe.dtype != torch.float64 or recipe.shape != (len(RECIPE_NAMES),):
        got = f"{recipe.dtype} {list(recipe.shape)}" if isinstance(recipe, Tensor) else type(recipe).__name__
        raise TypeError(f"augment_sample: recipe must be float64 [{len(RECIPE_NAMES)}], got {got}")
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        got = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"augment_sample: index must be int64 [n], got {got}")
    if not 0 <= epoch < 1 << 32 or not 0 <= view < 1 << 16:
        raise ValueError(f"augment_sample: epoch must be in [0, 2^32) and view in [0, 2^16), got {epoch} and {view}")


def _check_images(name: str, images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype not in (torch.uint8, torch.float32, torch.float64):
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{name}: images must be a uint8, float32 or float64 Tensor, got {got}")
    if images.dim() != 4 or 0 in images.shape[1:]:
        raise ValueError(f"{name}: images must be [B, C, H, W], C, H, W not 0, got {list(images.shape)}")


def _check_view(name: str, at: str, images: Tensor, params: Tensor, size: tuple[int, int]) -> None:
    """One view's table and size; `at` is its place in the lists."""
    if not isinstance(params, Tensor) or params.dtype != torch.float32:
        got = params.dtype if isinstance(params, Tensor) else type(params).__name__
        raise TypeError(f"{name}: params{at} must be a float32 Tensor, got {got}")
    if params.shape != (len(images), len(PARAM_NAMES)):
        raise ValueError(f"{name}: params{at} must be [{len(images)}, {len(PARAM_NAMES)}], got {list(params.shape)}")
    if params.device != images.device:
        raise ValueError(f"{name}: params{at} must be on images' device {images.device}, got {params.device}")
    (height, width), (rows, columns) = size, images.shape[2:]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and rows <= MAX_SIDE and columns <= MAX_SIDE):
        raise ValueError(
            f"{name}: sides must be from 1 to {MAX_SIDE}, got images {list(images.shape)}, size{at} {tuple(size)}"
        )


def _check_dtype(name: str, images: Tensor, dtype: torch.dtype | None, out: Tensor | None) -> torch.dtype:
    if out is not None and not isinstance(out, Tensor):
        raise TypeError(f"{name}: out must be a Tensor, got {type(out).__name__}")
    if dtype is None:
        dtype = images.dtype if out is None else out.dtype
    if dtype not in OUTPUT_DTYPES or (dtype == torch.float64) > (images.dtype == torch.float64):
        raise TypeError(f"{name}: dtype must be uint8, float32, float16 or bfloat16, got {dtype}")
    return dtype


def _check_how(
    name: str,
    images: Tensor,
    interpolation: str,
    fill: Sequence[float] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype,
    resize: str,
    erase: Sequence[float] | None,
) -> tuple[Any, ...]:
    """What the ops take after their sizes: interpolation, fill, mean, std, resize, erase."""
    check = _check_settings if torch.compiler.is_compiling() else _check_settings_once
    lists = [values if values is None else tuple(values) for values in (fill, mean, std, erase)]
    return check(name, images.shape[1], interpolation, dtype, resize, *lists)


def _check_settings(
    name: str,
    channels: int,
    interpolation: str,
    dtype: torch.dtype,
    resize: str,
    fill: tuple[float, ...] | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    erase: tuple[float, ...] | None,
) -> tuple[Any, ...]:
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"{name}: interpolation must be nearest or bilinear, got {interpolation!r}")
    if resize not in RESIZES:
        raise ValueError(f"{name}: resize must be bilinear or bicubic, got {resize!r}")
    lists = []
    for argument, values in (("fill", fill), ("mean", mean), ("std", std), ("erase", erase)):
        numbers = [float(v) for v in values] if values is not None else []
        if values is not None and len(numbers) not in (1, channels):
            raise ValueError(f"{name}: {argument} must have 1 or {channels} values, got {len(numbers)}")
        if not all(map(math.isfinite, numbers)) or (argument == "std" and 0.0 in numbers):
            raise ValueError(f"{name}: {argument} must be finite{' and not 0' * (argument == 'std')}, got {values}")
        lists.append(numbers)
    if (mean is None) != (std is None):
        raise ValueError(f"{name}: mean and std must be given together, got one of them")
    if mean is not None and dtype == torch.uint8:
        raise TypeError(f"{name}: mean and std need a floating dtype, got torch.uint8")
    if dtype == torch.uint8 and not all(0 <= value <= 255 for value in lists[3]):
        raise ValueError(f"{name}: erase must be from 0 to 255 in uint8, got {erase}")
    return interpolation, *lists[:3], resize, lists[3]


# A training loop's settings stay the same.
_check_settings_once = functools.lru_cache(maxsize=64)(_check_settings)


def _check_out(
    name: str, argument: str, images: Tensor, size: tuple[int, int], dtype: torch.dtype, out: Tensor
) -> None:
    if not isinstance(out, Tensor):
        raise TypeError(f"{name}: {argument} must be a Tensor, got {type(out).__name__}")
    want = (*images.shape[:2], *size)
    dense = out.is_contiguous() or (out.dim() == 4 and out.is_contiguous(memory_format=torch.channels_last))
    if out.shape != want or out.dtype != dtype or out.device != images.device or not dense:
        raise ValueError(
            f"{name}: {argument} must be contiguous or channels_last {list(want)} of {dtype} on {images.device}, got "
            f"{'' if dense else 'strided '}{list(out.shape)} of {out.dtype} on {out.device}"
        )


register("augment_sample", sample_reference, sample_fake)
register("augment_apply", pixels.apply_reference, pixels.apply_fake)
register("augment_apply_out", pixels.apply_out_reference, pixels.out_fake)
register("augment_views", pixels.views_reference, pixels.views_fake)
register("augment_views_out", pixels.views_out_reference, pixels.out_fake)
