"""Fused augmentation: draw a table of parameters, then apply it in one pass; kernels in ``csrc/augment``.

A **recipe** says what may happen (:data:`RECIPE_NAMES`: ranges and probabilities), :func:`augment_sample` draws one row
of :data:`PARAM_NAMES` per image from it, and :func:`augment_apply` is a pure function of images and rows::

    crop, antialiased resize, flips -> warp -> colour jitter in the row's order -> grayscale -> blur -> solarize
    -> normalise

Each stage computes what torchvision's tensor functional of the same parameters computes on float images. Values stay
float32 between the stages where torchvision rounds uint8 images after each: the result is nearer to exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.ops.registry import op, register

# The columns of the params table. The box is in source pixels and taken before the flips; the map takes an output pixel
# to its source, (x, y, 1) counted from the centres of the images, row by row.
PARAM_NAMES = (
    *("crop_top", "crop_left", "crop_height", "crop_width", "hflip", "vflip"),
    *(f"map_{i}" for i in range(9)),
    *(f"color_op_{i}" for i in range(4)),  # an index into COLOR_OPS
    *("brightness", "contrast", "saturation", "hue", "grayscale"),
    *("blur_sigma", "blur_radius_x", "blur_radius_y"),  # sigma 0: no blur
    *("solarize", "solarize_threshold"),  # of values from 0 to 1: these and larger ones are inverted
)
COLOR_OPS = ("none", "brightness", "contrast", "saturation", "hue")
CROPS = ("whole", "random", "center")
FLIP_AT = ("before_crop", "after_crop", "after_warp")
# The entries of a recipe, float64.
RECIPE_NAMES = (
    "pass",  # of several over one image: each draws its own numbers
    *("crop", "crop_scale_min", "crop_scale_max"),  # crop: an index into CROPS; scale: fractions of the image's area
    *("crop_ratio_min", "crop_ratio_max", "crop_log_ratio_min", "crop_log_ratio_max"),  # width / height
    *("hflip_p", "hflip_at", "vflip_p", "vflip_at"),  # at: an index into FLIP_AT
    *("warp_p", "angle_from", "angle_to"),  # degrees, clockwise
    *("translate_x", "translate_y"),  # at most, as a fraction of the side; negative: none
    *("zoom_min", "zoom_max", "shear_x_min", "shear_x_max", "shear_y_min", "shear_y_max"),  # shear in degrees
    *("center_given", "center_x", "center_y"),  # of the warp, in pixels; not given: the image's centre
    "jitter_p",  # a range of nothing but its neutral value (1; hue 0) leaves its op out
    *("brightness_min", "brightness_max", "contrast_min", "contrast_max"),
    *("saturation_min", "saturation_max", "hue_min", "hue_max"),
    "grayscale_p",
    *("blur_p", "blur_sigma_min", "blur_sigma_max", "blur_radius_x", "blur_radius_y"),  # radius -1: ceil(4 sigma)
    *("solarize_p", "solarize_threshold"),
)
# A recipe that does nothing.
IDENTITY_RECIPE = {
    **dict.fromkeys(RECIPE_NAMES, 0.0),
    **dict.fromkeys(("crop_scale_min", "crop_scale_max", "crop_ratio_min", "crop_ratio_max"), 1.0),
    **dict.fromkeys(("hflip_at", "vflip_at"), float(FLIP_AT.index("after_crop"))),
    **dict.fromkeys(("translate_x", "translate_y", "blur_radius_x", "blur_radius_y"), -1.0),
    **dict.fromkeys(("zoom_min", "zoom_max", "brightness_min", "brightness_max"), 1.0),
    **dict.fromkeys(("contrast_min", "contrast_max", "saturation_min", "saturation_max"), 1.0),
}
INTERPOLATIONS = ("nearest", "bilinear")
OUTPUT_DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_SIDE = 1 << 20  # pixels
_IDENTITY_MAP = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_LUMA = (0.2989, 0.587, 0.114)

# The numbers of the draws: four to a block of Philox, whatever the recipe, so that no setting shifts another's draws.
_CROP_TRIES = 10
_CROP_AREA, _CROP_RATIO, _CROP_TOP, _CROP_LEFT = range(4)  # of the first try; + 4 for each later one
_HFLIP, _VFLIP, _GRAYSCALE, _BLUR, _BLUR_SIGMA, _JITTER, _ORDER = range(40, 47)  # _ORDER: and the two after it
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _WARP, _ANGLE, _SHIFT_X, _SHIFT_Y, _ZOOM, _SHEAR_X, _SHEAR_Y = range(49, 60)
_SOLARIZE = 60
_DRAWS = 64


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
    check_draw(recipe, index, epoch, view)
    for name, sides in (("size", size), ("out_size", out_size)):
        if not all(1 <= side <= MAX_SIDE for side in sides):
            raise ValueError(f"augment_sample: {name} must be two numbers from 1 to {MAX_SIDE}, got {tuple(sides)}")
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
    out: Tensor | None = None,
) -> Tensor:
    """Applies one row of parameters to each image.

    Args:
        images: [B, C, H, W], uint8 (0 to 255), float32 or float64 (0 to 1), contiguous or channels_last. Colour jitter
            and grayscale take C = 1 (saturation, hue and grayscale do nothing) or 3; the rest takes any C.
        params: float32 [B, len(PARAM_NAMES)], as :func:`augment_sample` gives it or edited.
        size: height and width of the output, in pixels.
        interpolation: of the warp, ``"nearest"`` or ``"bilinear"``; the crop is resized bilinearly with antialias.
        fill: what a warp shows outside the image, one value or one per channel in the images' units; ``None`` is black
            at the border too, where a value weighs in twice at a bilinear border (as in torchvision).
        mean: per channel (or one for all), of values from 0 to 1; ``None`` is no normalisation.
        std: likewise; given exactly where ``mean`` is.
        dtype: uint8 (0 to 255), float32, float16, bfloat16 (0 to 1, or normalised); by default the images'.
            uint8 rounds as torchvision's last op would: down after a colour op, else to nearest.
        out: what to write into, [B, C, *size], contiguous, on ``images``' device and of ``dtype`` (by default its own),
            sharing no memory with ``images``. A large output that is used again saves as much time as the kernel takes:
            the system need not find and clear new pages.

    Returns:
        [B, C, *size], contiguous; ``out`` where it was given.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit.
        RuntimeError: for a row that is not a number, or whose crop lies outside the image; it names image and column.
    """
    if not isinstance(images, Tensor) or images.dtype not in (torch.uint8, torch.float32, torch.float64):
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"augment_apply: images must be a uint8, float32 or float64 Tensor, got {got}")
    if images.dim() != 4 or 0 in images.shape[1:]:
        raise ValueError(f"augment_apply: images must be [B, C, H, W], C, H, W not 0, got {list(images.shape)}")
    check_params(params, len(images), images.device)
    if not all(1 <= side <= MAX_SIDE for side in (*size, *images.shape[2:])):
        raise ValueError(
            f"augment_apply: sides must be from 1 to {MAX_SIDE}, got images {list(images.shape)}, size {tuple(size)}"
        )
    dtype, how = check_look(images.dtype, images.shape[1], interpolation, fill, mean, std, dtype, out)
    if out is None:
        return op("augment_apply", images)(images, params, *size, *how, dtype)  # type: ignore[no-any-return]
    check_out(out, [*images.shape[:2], *size], dtype, images.device)
    op("augment_apply_out", images)(images, params, *how, out)
    return out


# ------------------------------------------------------------------------------------------------------------- checks
# For images of one size and of many.


def check_draw(recipe: Tensor, index: Tensor, epoch: int, view: int) -> None:
    """Wants what every draw is made of."""
    if not isinstance(recipe, Tensor) or recipe.dtype != torch.float64 or recipe.shape != (len(RECIPE_NAMES),):
        got = f"{recipe.dtype} {list(recipe.shape)}" if isinstance(recipe, Tensor) else type(recipe).__name__
        raise TypeError(f"augment_sample: recipe must be float64 [{len(RECIPE_NAMES)}], got {got}")
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.dim() != 1:
        got = f"{index.dtype} {list(index.shape)}" if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"augment_sample: index must be int64 [n], got {got}")
    if not 0 <= epoch < 1 << 32 or not 0 <= view < 1 << 16:
        raise ValueError(f"augment_sample: epoch must be in [0, 2^32) and view in [0, 2^16), got {epoch} and {view}")


def check_params(params: Tensor, n: int, device: torch.device) -> None:
    """Wants a table of `n` rows on the images' device."""
    if not isinstance(params, Tensor) or params.dtype != torch.float32:
        got = params.dtype if isinstance(params, Tensor) else type(params).__name__
        raise TypeError(f"augment_apply: params must be a float32 Tensor, got {got}")
    if params.shape != (n, len(PARAM_NAMES)):
        raise ValueError(f"augment_apply: params must be [{n}, {len(PARAM_NAMES)}], got {list(params.shape)}")
    if params.device != device:
        raise ValueError(f"augment_apply: params must be on images' device {device}, got {params.device}")


def check_look(
    images_dtype: torch.dtype,
    channels: int,
    interpolation: str,
    fill: Sequence[float] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: torch.dtype | None,
    out: Tensor | None,
) -> tuple[torch.dtype, tuple[str, list[float], list[float], list[float]]]:
    """Gives the output's dtype, and interpolation, fill, mean and std as the ops take them."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"augment_apply: interpolation must be nearest or bilinear, got {interpolation!r}")
    if out is not None and not isinstance(out, Tensor):
        raise TypeError(f"augment_apply: out must be a Tensor, got {type(out).__name__}")
    if dtype is None:
        dtype = images_dtype if out is None else out.dtype
    if dtype not in OUTPUT_DTYPES or (dtype == torch.float64) > (images_dtype == torch.float64):
        raise TypeError(f"augment_apply: dtype must be uint8, float32, float16 or bfloat16, got {dtype}")
    how = {}
    for name, values in (("fill", fill), ("mean", mean), ("std", std)):
        how[name] = [float(v) for v in values] if values is not None else []
        if values is not None and len(how[name]) not in (1, channels):
            raise ValueError(f"augment_apply: {name} must have 1 or {channels} values, got {len(how[name])}")
        if not all(map(math.isfinite, how[name])) or (name == "std" and 0.0 in how[name]):
            raise ValueError(f"augment_apply: {name} must be finite{' and not 0' * (name == 'std')}, got {values}")
    if (mean is None) != (std is None):
        raise ValueError("augment_apply: mean and std must be given together, got one of them")
    if mean is not None and dtype == torch.uint8:
        raise TypeError("augment_apply: mean and std need a floating dtype, got torch.uint8")
    return dtype, (interpolation, how["fill"], how["mean"], how["std"])


def check_out(out: Tensor, want: list[int], dtype: torch.dtype, device: torch.device) -> None:
    """Wants a contiguous tensor to write into."""
    if list(out.shape) != want or out.dtype != dtype or out.device != device or not out.is_contiguous():
        raise ValueError(
            f"augment_apply: out must be contiguous {want} of {dtype} on {device}, got "
            f"{'' if out.is_contiguous() else 'strided '}{list(out.shape)} of {out.dtype} on {out.device}"
        )


# --------------------------------------------------------------------------------------------------------------- draw


def _philox(counter: list[Tensor], key: list[int]) -> list[Tensor]:
    """Philox4x32-10 on int64 tensors that hold 32-bit words."""
    low = 0xFFFFFFFF
    for _ in range(10):
        product0, product1 = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57  # mod 2^64, as int64 wraps
        counter = [
            (product1 >> 32 & low) ^ counter[1] ^ key[0],
            product1 & low,
            (product0 >> 32 & low) ^ counter[3] ^ key[1],
            product0 & low,
        ]
        key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
    return counter


def _exp(x: Tensor) -> Tensor:
    """e^x to 1e-15, by operations that every processor rounds alike; so are the two below."""
    k = torch.round(x * 1.4426950408889634)
    r = (x - k * 0.6931471803691238) - k * 1.9082149292705877e-10  # ln 2 in two parts
    p = torch.zeros_like(x)
    for n in range(13, -1, -1):
        p = p * r + 1.0 / math.factorial(n)
    return p * (k.to(torch.int64) + 1023 << 52).view(torch.float64)


def _sin_cos(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Exact at multiples of 90 degrees."""
    quarter = torch.round(degrees / 90.0)
    r = (degrees - quarter * 90.0) * 0.017453292519943295
    square = r * r
    sin, cos = torch.zeros_like(r), torch.zeros_like(r)
    for n in range(8, -1, -1):
        sin = sin * square + (-1.0) ** n / math.factorial(2 * n + 1)
        cos = cos * square + (-1.0) ** n / math.factorial(2 * n)
    sin = sin * r
    turn = quarter.to(torch.int64) & 3
    odd, negative_sin, negative_cos = turn % 2 == 1, turn >= 2, (turn == 1) | (turn == 2)
    sin, cos = torch.where(odd, cos, sin), torch.where(odd, sin, cos)
    return torch.where(negative_sin, -sin, sin), torch.where(negative_cos, -cos, cos)


def _draw_crop(r: SimpleNamespace, u: Tensor, height: int, width: int, out_height: int, out_width: int) -> list[Tensor]:
    """The box [n] each: top, left, height, width."""
    full = torch.ones_like(u[:, 0])
    if CROPS[int(r.crop)] == "whole":
        return [0 * full, 0 * full, full * height, full * width]
    if CROPS[int(r.crop)] == "center":
        middle = round((height - out_height) / 2), round((width - out_width) / 2)
        return [full * v for v in (*middle, out_height, out_width)]
    # What torchvision falls back to when no try fits: the largest central box of an allowed ratio.
    high, wide = height, width
    if width / height < r.crop_ratio_min:
        high = max(1, round(width / r.crop_ratio_min))
    elif width / height > r.crop_ratio_max:
        wide = max(1, round(height * r.crop_ratio_max))
    top, left, h, w = [full * v for v in ((height - high) // 2, (width - wide) // 2, high, wide)]
    for attempt in range(_CROP_TRIES - 1, -1, -1):  # backwards, so that the first that fits stays
        at = 4 * attempt
        scale = r.crop_scale_min + (r.crop_scale_max - r.crop_scale_min) * u[:, at + _CROP_AREA]
        area = float(height * width) * scale
        spread = (r.crop_log_ratio_max - r.crop_log_ratio_min) * u[:, at + _CROP_RATIO]
        ratio = _exp(r.crop_log_ratio_min + spread)
        w_try, h_try = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
        fits = (w_try > 0) & (w_try <= width) & (h_try > 0) & (h_try <= height)
        top = torch.where(fits, torch.floor(u[:, at + _CROP_TOP] * (height - h_try + 1.0)), top)
        left = torch.where(fits, torch.floor(u[:, at + _CROP_LEFT] * (width - w_try + 1.0)), left)
        h, w = torch.where(fits, h_try, h), torch.where(fits, w_try, w)
    return [top, left, h, w]


def _draw_map(r: SimpleNamespace, u: Tensor, width: int, height: int) -> list[Tensor]:
    """The inverse map of torchvision's affine, [n] each of nine; `width` and `height` are the warped image's."""

    def uniform(low: float, high: float, draw: int) -> Tensor:
        return low + (high - low) * u[:, draw]

    sin_shear_x, cos_shear_x = _sin_cos(uniform(r.shear_x_min, r.shear_x_max, _SHEAR_X))
    shear_y = uniform(r.shear_y_min, r.shear_y_max, _SHEAR_Y)
    angle = uniform(r.angle_from, r.angle_to, _ANGLE)
    (sin, cos), (sin_difference, cos_difference) = _sin_cos(angle), _sin_cos(angle - shear_y)
    tan_shear_x, cos_shear_y = sin_shear_x / cos_shear_x, _sin_cos(shear_y)[1]
    zoom = uniform(r.zoom_min, r.zoom_max, _ZOOM)
    a = cos_difference / cos_shear_y
    b = 0.0 - (a * tan_shear_x + sin)
    c = sin_difference / cos_shear_y
    d = cos - c * tan_shear_x
    shifts = []
    for share, side, draw in ((r.translate_x, width, _SHIFT_X), (r.translate_y, height, _SHIFT_Y)):
        most = share * side
        shifts.append(torch.round(uniform(-most, most, draw)) if share >= 0 else 0 * u[:, 0])
    center_x, center_y = (r.center_x - width * 0.5, r.center_y - height * 0.5) if r.center_given else (0.0, 0.0)
    m0, m1, m3, m4 = d / zoom, (0.0 - b) / zoom, (0.0 - c) / zoom, a / zoom
    x, y = shifts[0] + center_x, shifts[1] + center_y
    m2, m5 = center_x - m0 * x - m1 * y, center_y - m3 * x - m4 * y
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return [m0, m1, m2, m3, m4, m5, zero, zero, one]


def _draw_order(u: Tensor) -> Tensor:
    """A permutation of the four colour ops for each row, [n, 4] (Fisher and Yates' shuffle)."""
    order = torch.arange(1, 5, device=u.device).repeat(len(u), 1)
    for place in (3, 2, 1):
        other = torch.floor(u[:, _ORDER + 3 - place] * (place + 1.0)).to(torch.int64)[:, None]
        mine, theirs = order[:, place : place + 1].clone(), order.gather(1, other)
        order[:, place : place + 1] = theirs
        order.scatter_(1, other, mine)
    return order


def _sample_reference(
    recipe: Tensor,
    index: Tensor,
    seed: int,
    epoch: int,
    view: int,
    height: int,
    width: int,
    out_height: int,
    out_width: int,
) -> Tensor:
    r = SimpleNamespace(**dict(zip(RECIPE_NAMES, recipe.tolist(), strict=True)))
    low = 0xFFFFFFFF
    key = [seed & low, seed >> 32 & low]
    bits = []
    for block in range(_DRAWS // 4):
        last = torch.full_like(index, view << 16 | int(vars(r)["pass"]) << 8 | block)
        bits += _philox([index & low, index >> 32 & low, torch.full_like(index, epoch), last], key)
    u = torch.stack(bits, dim=1).double() * 2.0**-32  # in [0, 1)

    top, left, h, w = _draw_crop(r, u, height, width, out_height, out_width)
    hflip, vflip = u[:, _HFLIP] < r.hflip_p, u[:, _VFLIP] < r.vflip_p
    warp = u[:, _WARP] < r.warp_p
    drawn = _draw_map(r, u, out_width, out_height)
    matrix = [torch.where(warp, m, still) for m, still in zip(drawn, _IDENTITY_MAP, strict=True)]
    # Flips are applied between crop and warp. One before the crop mirrors the box; one after the warp mirrors the map.
    if FLIP_AT[int(r.hflip_at)] == "before_crop":
        left = torch.where(hflip, width - w - left, left)
    if FLIP_AT[int(r.vflip_at)] == "before_crop":
        top = torch.where(vflip, height - h - top, top)
    if FLIP_AT[int(r.hflip_at)] == "after_warp":
        for i in (1, 2, 3):
            matrix[i] = torch.where(hflip, 0.0 - matrix[i], matrix[i])
    if FLIP_AT[int(r.vflip_at)] == "after_warp":
        for i in (1, 3, 5):
            matrix[i] = torch.where(vflip, 0.0 - matrix[i], matrix[i])

    order = _draw_order(u)
    jitter = u[:, _JITTER] < r.jitter_p
    factors = []
    for code, (name, draw) in enumerate(
        zip(COLOR_OPS[1:], (_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE), strict=True), 1
    ):
        least, most, neutral = vars(r)[name + "_min"], vars(r)[name + "_max"], 0.0 if name == "hue" else 1.0
        factors.append(torch.where(jitter, least + (most - least) * u[:, draw], neutral))
        unused = ~jitter | (least == most == neutral)
        order = order.masked_fill((order == code) & unused[:, None], 0)

    blur = u[:, _BLUR] < r.blur_p
    sigma = r.blur_sigma_min + (r.blur_sigma_max - r.blur_sigma_min) * u[:, _BLUR_SIGMA]
    radii = [
        torch.clamp_max(torch.ceil(4.0 * sigma), side - 1.0) if radius < 0 else torch.full_like(sigma, radius)
        for radius, side in ((r.blur_radius_x, out_width), (r.blur_radius_y, out_height))
    ]
    columns = [top, left, h, w, hflip, vflip, *matrix, *order.unbind(1), *factors, u[:, _GRAYSCALE] < r.grayscale_p]
    columns += [torch.where(blur, value, 0.0) for value in (sigma, *radii)]
    columns += [u[:, _SOLARIZE] < r.solarize_p, torch.full_like(sigma, r.solarize_threshold)]
    return torch.stack([column.to(torch.float32) for column in columns], dim=1)


def _sample_fake(
    recipe: Tensor,
    index: Tensor,
    seed: int,
    epoch: int,
    view: int,
    height: int,
    width: int,
    out_height: int,
    out_width: int,
) -> Tensor:
    return index.new_empty((index.shape[0], len(PARAM_NAMES)), dtype=torch.float32)


# -------------------------------------------------------------------------------------------------------------- apply


def _check_rows(params: Tensor, images: Tensor, height: int, width: int) -> None:
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
        "solarize": whole("solarize", 0, 1),
    }
    bad = ~torch.stack([valid[name] for name in PARAM_NAMES], dim=1)
    if bad.any():
        image, column = bad.nonzero()[0].tolist()
        raise RuntimeError(
            f"augment_apply: params[{image}] has {PARAM_NAMES[column]} = {params[image, column]:.6g}, which does not "
            f"fit images {list(images.shape)} and an output of {height} x {width}"
        )


def _crop_resize_flip(image: Tensor, p: SimpleNamespace, size: tuple[int, int]) -> Tensor:
    top, left, height, width = (int(v) for v in (p.crop_top, p.crop_left, p.crop_height, p.crop_width))
    image = image[:, top : top + height, left : left + width]
    if (height, width) != size and size[1] == 1:  # torch 2.14 resizes wrongly to one column, but rightly to one row
        image = functional.interpolate(image.mT[None], (1, size[0]), mode="bilinear", antialias=True)[0].mT
    elif (height, width) != size:
        image = functional.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
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


def _apply_out_reference(
    images: Tensor,
    params: Tensor,
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    out: Tensor,
) -> None:
    height, width, dtype = *out.shape[2:], out.dtype
    _check_rows(params, images, height, width)
    bound = 255.0 if images.dtype == torch.uint8 else 1.0
    working = torch.float64 if images.dtype == torch.float64 else torch.float32
    for image, row, view in zip(images, params.tolist(), out, strict=True):
        p = SimpleNamespace(**dict(zip(PARAM_NAMES, row, strict=True)))
        value = _crop_resize_flip(image.to(working), p, (height, width))
        if tuple(row[6:15]) != _IDENTITY_MAP:
            value = _warp(value, p, interpolation == "nearest", fill)
        value = _color(value, p, bound)
        if p.blur_sigma > 0:
            value = _blur(value, p)
        if p.solarize:  # just below the threshold lies what float's noise alone keeps from it
            value = torch.where(value >= (p.solarize_threshold - 2.0**-18) * bound, bound - value, value)
        value = value * (1 / bound)
        if mean:
            center, spread = (torch.tensor(v, dtype=working, device=images.device)[:, None, None] for v in (mean, std))
            value = (value - center) / spread
        if dtype == torch.uint8:
            colored = (any(row[15:19]) or p.grayscale) and p.blur_sigma == 0
            value = (value * 255 + (2.0**-10 if colored else 0.5)).floor().clamp(0, 255)
        view.copy_(value)


def _apply_reference(
    images: Tensor,
    params: Tensor,
    height: int,
    width: int,
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    out = _apply_fake(images, params, height, width, interpolation, fill, mean, std, dtype)
    _apply_out_reference(images, params, interpolation, fill, mean, std, out)
    return out


def _apply_out_fake(
    images: Tensor,
    params: Tensor,
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    out: Tensor,
) -> None:
    return None


def _apply_fake(
    images: Tensor,
    params: Tensor,
    height: int,
    width: int,
    interpolation: str,
    fill: list[float],
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
) -> Tensor:
    return images.new_empty((images.shape[0], images.shape[1], height, width), dtype=dtype)


register("augment_sample", _sample_reference, _sample_fake)
register("augment_apply", _apply_reference, _apply_fake)
register("augment_apply_out", _apply_out_reference, _apply_out_fake)
