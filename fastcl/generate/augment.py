"""Differentiable augmentation (Zhao et al. 2020): what a table of the fused transforms does, with gradients to images.

Shown a few images again and again, a discriminator learns them by heart. One that sees real and generated images
through the same random shifts, cuts and colours cannot, and the generator learns through them, if they have gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.ops.augment_table import COLOR_OPS, PARAM_NAMES
from fastcl.transforms import ColorJitter, Compose, RandomAffine, RandomErasing

__all__ = ["apply_differentiably", "gan_transform"]

_LUMA = (0.2989, 0.587, 0.114)
_MAP = tuple(f"map_{i}" for i in range(9))
_PLACES = tuple(name for name in PARAM_NAMES if name.startswith("color_op"))
_BOX = ("erase_top", "erase_left", "erase_height", "erase_width")
_USED = {*_MAP, *_PLACES, *_BOX, "hflip", "vflip", "brightness", "contrast", "saturation"}


def gan_transform(translate: float, cutout: float, color: float, seed: int) -> Compose:
    """What the discriminator sees images through; its :meth:`~fastcl.transforms.Compose.sample` draws the table.

    Args:
        translate: largest shift, as a share of the side.
        cutout: probability of erasing a box of a tenth to a quarter of the image.
        color: strength of the change of brightness, contrast and saturation.
        seed: of the draws.
    """
    return Compose(
        [
            RandomAffine(0, translate=(translate, translate), interpolation="bilinear"),
            ColorJitter(color, color, color),
            RandomErasing(cutout, scale=(0.1, 0.25), ratio=(0.5, 2.0)),
        ],
        seed=seed,
    )


def apply_differentiably(images: Tensor, params: Tensor) -> Tensor:
    """What :func:`fastcl.ops.augment.augment_apply` does with bilinear interpolation, with gradients to the images.

    Colours are not cut off at 0 and 1, which would cut off the gradient: there the fused op differs.

    Args:
        images: floating [B, C, H, W], from 0 to 1.
        params: the table, float32 [B, len(PARAM_NAMES)], of flips, an affine map, brightness, contrast, saturation and
            an erased box of zeros.

    Returns:
        Of the images' shape and dtype.

    Raises:
        ValueError: for a table that does anything else, or does not fit the images.
    """
    if images.dim() != 4 or params.shape != (len(images), len(PARAM_NAMES)):
        raise ValueError(
            f"apply_differentiably: images must be [B, C, H, W] and params [B, {len(PARAM_NAMES)}], got "
            f"{list(images.shape)} and {list(params.shape)}"
        )
    columns = dict(zip(PARAM_NAMES, params.to(images.dtype).unbind(1), strict=True))
    _refuse_others(columns, images)
    value = _warp(images, columns)
    value = _color(value, columns)
    return value * _kept(value, columns)


def _refuse_others(columns: dict[str, Tensor], images: Tensor) -> None:
    height, width = images.shape[2:]
    still = {"crop_height": height, "crop_width": width, "hue": 0, "sharpness": None, "solarize_threshold": None}
    for name, column in columns.items():
        neutral = still.get(name, 0)
        if name not in _USED and neutral is not None and not bool((column == neutral).all()):
            raise ValueError(f"apply_differentiably: params has {name}, which it does not apply")
    if bool((columns["map_6"] != 0).any() | (columns["map_7"] != 0).any()):
        raise ValueError("apply_differentiably: params has a perspective map, which it does not apply")


def _warp(images: Tensor, columns: dict[str, Tensor]) -> Tensor:
    """Flips and the map, sampled once; black outside."""
    height, width = images.shape[2:]
    m = [columns[name] / columns["map_8"] for name in _MAP[:6]]
    # affine_grid counts from -1 to 1 across the image, the table in pixels from its centre.
    flip_x, flip_y = 1 - 2 * columns["hflip"], 1 - 2 * columns["vflip"]
    rows = [
        [flip_x * m[0], flip_x * m[1] * (height / width), flip_x * m[2] * (2 / width)],
        [flip_y * m[3] * (width / height), flip_y * m[4], flip_y * m[5] * (2 / height)],
    ]
    theta = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _gray(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return sum(weight * images[:, i : i + 1] for i, weight in enumerate(_LUMA))  # type: ignore[return-value]


def _color(images: Tensor, columns: dict[str, Tensor]) -> Tensor:
    """The colour ops in each image's own order."""
    factors = {name: columns[name][:, None, None, None] for name in ("brightness", "contrast", "saturation")}
    for place in _PLACES:
        which = columns[place][:, None, None, None]
        for name, factor in factors.items():
            chosen = which == COLOR_OPS.index(name)
            if (name == "saturation" and images.shape[1] == 1) or not bool(chosen.any()):
                continue
            # Each is a blend of the image with black, its mean grey, or itself in grey.
            if name == "brightness":
                blended = images * factor
            else:
                gray = _gray(images)
                gray = gray.mean((1, 2, 3), keepdim=True) if name == "contrast" else gray
                blended = images * factor + (1 - factor) * gray
            images = torch.where(chosen, blended, images)
    return images


def _kept(images: Tensor, columns: dict[str, Tensor]) -> Tensor:
    """0 in each image's box, [B, 1, H, W]."""
    top, left, box_height, box_width = (columns[name][:, None] for name in _BOX)
    y, x = (torch.arange(side, device=images.device, dtype=images.dtype) for side in images.shape[2:])
    rows, cells = (y >= top) & (y < top + box_height), (x >= left) & (x < left + box_width)
    return (~(rows[:, None, :, None] & cells[:, None, None, :])).to(images.dtype)
