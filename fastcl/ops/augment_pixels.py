"""The reference of what a row of parameters does to an image, in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.ops.augment_table import COLOR_OPS, IDENTITY_MAP, PARAM_NAMES, philox

_LUMA = (0.2989, 0.587, 0.114)


def check_rows(
    params: Tensor, images: Tensor, height: int, width: int, op: str = "augment_apply", at: str = ""
) -> None:
    """What no row may say; the native kernel checks the same, with the same words."""
    p = dict(zip(PARAM_NAMES, params.unbind(1), strict=True))
    color = images.shape[1] in (1, 3)

    def whole(name: str, least: float, most: float | Tensor) -> Tensor:
        return (p[name] == p[name].round()) & (p[name] >= least) & (p[name] <= most)

    def between(name: str, least: float, most: float) -> Tensor:
        return (p[name] >= least) & (p[name] <= most)

    finite = torch.finfo(torch.float32).max
    in_height, in_width = images.shape[2:]
    valid = {
        **{name: column.isfinite() for name, column in p.items()},
        "crop_top": whole("crop_top", 0, in_height - 1),
        "crop_left": whole("crop_left", 0, in_width - 1),
        "crop_height": whole("crop_height", 1, in_height - p["crop_top"]),
        "crop_width": whole("crop_width", 1, in_width - p["crop_left"]),
        **{name: whole(name, 0, 1) for name in ("hflip", "vflip")},
        **{name: whole(name, 0, len(COLOR_OPS) - 1 if color else 0) for name in PARAM_NAMES if "color_op" in name},
        **{name: between(name, 0, finite) for name in ("brightness", "contrast", "saturation", "blur_sigma")},
        "hue": between("hue", -0.5, 0.5),
        "grayscale": whole("grayscale", 0, 1 if color else 0),
        "blur_radius_x": whole("blur_radius_x", 0, width - 1),
        "blur_radius_y": whole("blur_radius_y", 0, height - 1),
        **{name: whole(name, 0, 1) for name in ("sharpen", "invert", "solarize", "autocontrast", "equalize")},
        "sharpness": between("sharpness", 0, finite),
        "posterize": whole("posterize", 0, 256),
        "erase_top": whole("erase_top", 0, height),
        "erase_left": whole("erase_left", 0, width),
        "erase_height": whole("erase_height", 0, height - p["erase_top"]),
        "erase_width": whole("erase_width", 0, width - p["erase_left"]),
        "erase_seed": whole("erase_seed", 0, (1 << 24) - 1),
    }
    bad = ~torch.stack([valid[name] for name in PARAM_NAMES], dim=1)
    if bad.any():
        image, column = bad.nonzero()[0].tolist()
        raise RuntimeError(
            f"{op}: params{at}[{image}] has {PARAM_NAMES[column]} = {params[image, column]:.6g}, which does not "
            f"fit images {list(images.shape)} and an output of {height} x {width}"
        )


def _resize(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    if size[1] == 1:  # torch 2.14 resizes wrongly to one column, but rightly to one row
        return functional.interpolate(image.mT[None], (1, size[0]), mode=mode, antialias=True)[0].mT
    return functional.interpolate(image[None], size, mode=mode, antialias=True)[0]


def _crop_resize_flip(image: Tensor, p: SimpleNamespace, size: tuple[int, int], mode: str, bound: float) -> Tensor:
    top, left, height, width = (int(v) for v in (p.crop_top, p.crop_left, p.crop_height, p.crop_width))
    image = image[:, top : top + height, left : left + width]
    if mode == "bicubic" and bound == 255:
        # The cubic filter overshoots: bytes are cut off between the directions and after them, as in torchvision.
        for one in ((height, size[1]), size):
            image = _resize(image, one, mode).clamp(0, bound)
    else:
        image = _resize(image, size, mode)
    flipped = [dim for dim, flip in ((1, p.vflip), (2, p.hflip)) if flip]
    return image.flip(flipped)


def _warp(image: Tensor, p: SimpleNamespace, nearest: bool, fill: list[float]) -> Tensor:
    m = [vars(p)[f"map_{i}"] for i in range(9)]
    height, width = image.shape[1:]
    y = torch.arange(height, dtype=torch.float64, device=image.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float64, device=image.device) - (width - 1) / 2
    depth = m[6] * x + m[7] * y + m[8]
    source_x = (m[0] * x + m[1] * y + m[2]) / depth + (width - 1) / 2
    source_y = (m[3] * x + m[4] * y + m[5]) / depth + (height - 1) / 2

    def pixels(at_x: Tensor, at_y: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels at whole positions, and 1 where there is one (NaN is nowhere)."""
        inside = (at_x >= 0) & (at_x <= width - 1) & (at_y >= 0) & (at_y <= height - 1)
        at_x, at_y = (torch.where(inside, at, 0).to(torch.int64) for at in (at_x, at_y))
        return image[:, at_y, at_x] * inside, inside.to(image.dtype)

    if nearest:
        out, mask = pixels(source_x.round(), source_y.round())
    else:
        out, mask = torch.zeros_like(image), torch.zeros_like(image[0])
        left, upper = source_x.floor(), source_y.floor()
        right, lower = (source_x - left).to(image.dtype), (source_y - upper).to(image.dtype)  # the far pixels' weights
        for dy, weight_y in ((0, 1 - lower), (1, lower)):
            for dx, weight_x in ((0, 1 - right), (1, right)):
                value, inside = pixels(left + dx, upper + dy)
                weight = torch.where(inside > 0, weight_x * weight_y, 0)
                out += value * weight
                mask += weight
    if fill:
        background = torch.tensor(fill, dtype=image.dtype, device=image.device)[:, None, None]
        out = (out - background) * mask + background
    return out


def _gray(image: Tensor) -> Tensor:
    """[1, H, W]."""
    if image.shape[0] == 1:
        return image
    return (_LUMA[0] * image[0] + _LUMA[1] * image[1] + _LUMA[2] * image[2])[None]


def _shift_hue(image: Tensor, shift: float) -> Tensor:
    """Through HSV; the value v and v - v s are the largest and the least of the three."""
    most, least = image.amax(dim=0), image.amin(dim=0)
    red, green, blue = image
    chroma = most - least
    safe = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(most == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    hue = torch.where(most == red, (green - blue) / safe, hue) + 6 * shift  # in sixths of the circle
    sectors = [(hue + offset) % 6 for offset in (5, 3, 1)]
    return torch.stack([most - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in sectors])


def _color(image: Tensor, p: SimpleNamespace, bound: float) -> Tensor:
    for place in range(4):
        name = COLOR_OPS[int(vars(p)[f"color_op_{place}"])]
        if name == "brightness":
            image = (image * p.brightness).clamp(0, bound)
        elif name == "contrast":
            image = (image * p.contrast + (1 - p.contrast) * _gray(image).mean()).clamp(0, bound)
        elif name == "saturation" and image.shape[0] == 3:
            image = (image * p.saturation + (1 - p.saturation) * _gray(image)).clamp(0, bound)
        elif name == "hue" and image.shape[0] == 3:
            image = _shift_hue(image, p.hue)
    return _gray(image).expand_as(image) if p.grayscale else image


def _gaussian(radius: float, sigma: float, like: Tensor) -> Tensor:
    x = torch.arange(-radius, radius + 1, dtype=torch.float64, device=like.device)
    return torch.softmax(-(x * x) / (2 * sigma * sigma), dim=0).to(like.dtype)


def _blur(image: Tensor, p: SimpleNamespace) -> Tensor:
    x, y = int(p.blur_radius_x), int(p.blur_radius_y)
    padded = functional.pad(image, (x, x, y, y), mode="reflect")[:, None]
    rows = functional.conv2d(padded, _gaussian(y, p.blur_sigma, image)[None, None, :, None])
    return functional.conv2d(rows, _gaussian(x, p.blur_sigma, image)[None, None, None, :])[:, 0]


def _sharpen(image: Tensor, p: SimpleNamespace, bound: float) -> Tensor:
    """Blends with a mean of nine pixels, the middle one counting five; pixels at the border stay."""
    if min(image.shape[1:]) <= 2:
        return image
    kernel = torch.ones(1, 1, 3, 3, dtype=image.dtype, device=image.device)
    kernel[0, 0, 1, 1] = 5
    inner = image[:, 1:-1, 1:-1]
    smooth = functional.conv2d(image[:, None], kernel)[:, 0] / 13
    if bound == 255:
        smooth = smooth.round()
    image = image.clone()
    image[:, 1:-1, 1:-1] = inner + (smooth - inner) * (1 - p.sharpness)
    return image.clamp(0, bound)


def _point_ops(image: Tensor, p: SimpleNamespace, bound: float) -> Tensor:
    noise = 2.0**-18 * bound  # below a step by less than this lies what float's noise alone keeps from it
    if p.invert:
        image = bound - image
    if p.posterize:
        step = (bound + (bound == 255)) / p.posterize
        image = ((image + noise) / step).floor().clamp(0, p.posterize - 1) * step
    if p.solarize:
        image = torch.where(image >= p.solarize_threshold * bound - noise, bound - image, image)
    return image


def _autocontrast(image: Tensor, bound: float) -> Tensor:
    least, most = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    scale = torch.where(most == least, 1, (most - least) * (1 / bound))
    return ((image - torch.where(most == least, 0, least)) / scale).clamp(0, bound)


def _equalize(image: Tensor, bound: float, rounding: float) -> Tensor:
    """Pillow's histogram equalisation of 256 levels."""
    levels = (image * 255.999 if bound == 1 else image + rounding).floor().clamp(0, 255).to(torch.int64)
    out = []
    for channel in levels:
        counts = torch.bincount(channel.flatten(), minlength=256)
        step = int(channel.numel() - counts[channel.max()]) // 255
        if step:
            below = counts.cumsum(0) - counts
            channel = ((below + step // 2) // step).clamp(0, 255)[channel]
        out.append(channel)
    return torch.stack(out).to(image.dtype) * (bound / 255)


def _erase(view: Tensor, p: SimpleNamespace, values: list[float]) -> None:
    top, left, height, width = (int(v) for v in (p.erase_top, p.erase_left, p.erase_height, p.erase_width))
    box = view[:, top : top + height, left : left + width]
    if not p.erase_seed:
        box.copy_(torch.tensor(values or [0.0], dtype=torch.float64)[:, None, None])
        return
    y = torch.arange(top, top + height, device=view.device)[:, None]
    pixel = (y * view.shape[2] + torch.arange(left, left + width, device=view.device)).expand(box.shape)
    channel = torch.arange(len(view), device=view.device)[:, None, None].expand(box.shape)
    zero = torch.zeros_like(pixel)
    bits = philox([pixel, channel, zero, zero], [int(p.erase_seed), 0])
    radius = (-2 * ((bits[0] + 1).double() * 2.0**-32).log()).sqrt()
    normal = radius * (2 * math.pi * (bits[1].double() * 2.0**-32)).cos()
    box.copy_(normal if view.dtype.is_floating_point else normal.round().clamp(0, 255))


def apply_out_reference(
    images: Tensor,
    params: Tensor,
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    out: Tensor,
    resize: str = "bilinear",
    erase: Sequence[float] = (),
) -> None:
    """``augment_apply_out``, image by image."""
    height, width, dtype = *out.shape[2:], out.dtype
    check_rows(params, images, height, width)
    bound = 255.0 if images.dtype == torch.uint8 else 1.0
    working = torch.float64 if images.dtype == torch.float64 else torch.float32
    for image, row, view in zip(images, params.tolist(), out, strict=True):
        p = SimpleNamespace(**dict(zip(PARAM_NAMES, row, strict=True)))
        value = _crop_resize_flip(image.to(working), p, (height, width), resize, bound)
        if tuple(row[6:15]) != IDENTITY_MAP:
            value = _warp(value, p, interpolation == "nearest", fill)
        value = _color(value, p, bound)
        if p.blur_sigma > 0:
            value = _blur(value, p)
        if p.sharpen:
            value = _sharpen(value, p, bound)
        value = _point_ops(value, p, bound)
        if p.autocontrast:
            value = _autocontrast(value, bound)
        # As torchvision's last op on uint8: a colour op cuts off (just above float's noise), the others round.
        colored = (any(row[15:19]) or p.grayscale) and p.blur_sigma == 0
        rounding = 2.0**-10 if colored or p.sharpen or p.autocontrast else 0.5
        if p.equalize:
            value = _equalize(value, bound, rounding)
        value = value * (1 / bound)
        if mean:
            center, spread = (torch.tensor(v, dtype=working, device=images.device)[:, None, None] for v in (mean, std))
            value = (value - center) / spread
        if dtype == torch.uint8:
            value = (value * 255 + rounding).floor().clamp(0, 255)
        view.copy_(value)
        if p.erase_height and p.erase_width:
            _erase(view, p, list(erase))


def views_out_reference(
    images: Tensor,
    params: Sequence[Tensor],
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    resize: str,
    erase: list[float],
    out: Sequence[Tensor],
) -> None:
    """``augment_views_out``, view by view."""
    for number, (table, view) in enumerate(zip(params, out, strict=True)):
        check_rows(table, images, view.shape[2], view.shape[3], "augment_views", f"[{number}]")
    for table, view in zip(params, out, strict=True):
        apply_out_reference(images, table, interpolation, fill, mean, std, view, resize, erase)


def apply_reference(
    images: Tensor,
    params: Tensor,
    height: int,
    width: int,
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    resize: str = "bilinear",
    erase: Sequence[float] = (),
) -> Tensor:
    """``augment_apply``."""
    out = apply_fake(images, params, height, width, interpolation, fill, mean, std, dtype)
    apply_out_reference(images, params, interpolation, fill, mean, std, out, resize, erase)
    return out


def views_reference(
    images: Tensor,
    params: Sequence[Tensor],
    heights: Sequence[int],
    widths: Sequence[int],
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    resize: str,
    erase: list[float],
) -> list[Tensor]:
    """``augment_views``."""
    out = views_fake(images, params, heights, widths, interpolation, fill, mean, std, dtype, resize, erase)
    views_out_reference(images, params, interpolation, fill, mean, std, resize, erase, out)
    return out


def out_fake(*_: object) -> None:
    """Of the ops that write into what they are given."""


def apply_fake(images: Tensor, params: Tensor, height: int, width: int, *how: Any) -> Tensor:
    """The result's shape and dtype."""
    return images.new_empty((images.shape[0], images.shape[1], height, width), dtype=how[4])


def views_fake(
    images: Tensor, params: Sequence[Tensor], heights: Sequence[int], widths: Sequence[int], *how: Any
) -> list[Tensor]:
    """The results' shapes and dtype."""
    return [apply_fake(images, params[0], height, width, *how) for height, width in zip(heights, widths, strict=True)]
