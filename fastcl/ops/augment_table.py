"""The table of parameters: its columns, the recipe that they are drawn from, and the reference of the draw."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor

# The columns of the params table. The box is in source pixels and taken before the flips; the map takes an output pixel
# to its source, (x, y, 1) counted from the centres of the images, row by row.
PARAM_NAMES = (
    *("crop_top", "crop_left", "crop_height", "crop_width", "hflip", "vflip"),
    *(f"map_{i}" for i in range(9)),
    *(f"color_op_{i}" for i in range(4)),  # an index into COLOR_OPS
    *("brightness", "contrast", "saturation", "hue", "grayscale"),
    *("blur_sigma", "blur_radius_x", "blur_radius_y"),  # sigma 0: no blur
    *("sharpen", "sharpness", "invert"),  # 0 or 1; a factor, 1: unchanged; 0 or 1
    "posterize",  # how many levels are left, 0: all
    *("solarize", "solarize_threshold"),  # of values from 0 to 1: these and larger ones are inverted
    *("autocontrast", "equalize"),  # 0 or 1
    *("erase_top", "erase_left", "erase_height", "erase_width"),  # box in output pixels; a side of 0: nothing is erased
    "erase_seed",  # 0: the value given; else of normal noise, below 2^24
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
    *("warp_p", "perspective"),  # share of half a side by which a corner moves at most; negative: an affine map
    *("angle_from", "angle_to"),  # degrees, clockwise
    *("translate_x", "translate_y"),  # at most, as a fraction of the side; negative: none
    *("zoom_min", "zoom_max", "shear_x_min", "shear_x_max", "shear_y_min", "shear_y_max"),  # shear in degrees
    *("center_given", "center_x", "center_y"),  # of the warp, in pixels; not given: the image's centre
    "rot90_p",  # quarter turns after the warp; of an output that is not square, half turns
    "jitter_p",  # a range of nothing but its neutral value (1; hue 0) leaves its op out
    *("brightness_min", "brightness_max", "contrast_min", "contrast_max"),
    *("saturation_min", "saturation_max", "hue_min", "hue_max"),
    "grayscale_p",
    *("blur_p", "blur_sigma_min", "blur_sigma_max", "blur_radius_x", "blur_radius_y"),  # radius -1: ceil(4 sigma)
    *("sharpen_p", "sharpness", "invert_p", "posterize_p", "posterize_levels", "solarize_p", "solarize_threshold"),
    *("autocontrast_p", "equalize_p", "erase_p", "erase_scale_min", "erase_scale_max"),  # scale: as crop's
    *("erase_log_ratio_min", "erase_log_ratio_max", "erase_noise"),  # height / width; noise: 0 or 1
)
# A recipe that does nothing.
IDENTITY_RECIPE = {
    **dict.fromkeys(RECIPE_NAMES, 0.0),
    **dict.fromkeys(("crop_scale_min", "crop_scale_max", "crop_ratio_min", "crop_ratio_max"), 1.0),
    **dict.fromkeys(("hflip_at", "vflip_at"), float(FLIP_AT.index("after_crop"))),
    **dict.fromkeys(("perspective", "translate_x", "translate_y", "blur_radius_x", "blur_radius_y"), -1.0),
    **dict.fromkeys(("zoom_min", "zoom_max", "brightness_min", "brightness_max"), 1.0),
    **dict.fromkeys(("contrast_min", "contrast_max", "saturation_min", "saturation_max"), 1.0),
}
IDENTITY_MAP = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

# The numbers of the draws: four to a block of Philox, whatever the recipe, so that no setting shifts another's draws.
_CROP_TRIES = 10
_CROP_AREA, _CROP_RATIO, _CROP_TOP, _CROP_LEFT = range(4)  # of the first try; + 4 for each later one
_HFLIP, _VFLIP, _GRAYSCALE, _BLUR, _BLUR_SIGMA, _JITTER, _ORDER = range(40, 47)  # _ORDER: and the two after it
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _WARP, _ANGLE, _SHIFT_X, _SHIFT_Y, _ZOOM, _SHEAR_X, _SHEAR_Y = range(49, 60)
_SOLARIZE, _INVERT, _POSTERIZE, _SHARPEN, _AUTOCONTRAST, _EQUALIZE, _ROT90, _TURNS = range(60, 68)
_CORNERS = 68  # and the seven after it: x, y of the upper left, upper right, lower right, lower left
_ERASE, _ERASE_SEED = 76, 77
_ERASE_BOX = 80  # as the crop's, for each of its tries
_DRAWS = 120


def philox(counter: list[Tensor], key: list[int]) -> list[Tensor]:
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


def uniforms(index: Tensor, seed: int, epoch: int, view: int, number: int, first: int, blocks: int) -> Tensor:
    """The numbers in [0, 1) of pass `number`, from block `first` on, four to a block: float64 [n, 4 * blocks]."""
    low = 0xFFFFFFFF
    last = (view << 16 | number << 8 | first) + torch.arange(blocks, device=index.device)
    sample = index[:, None]
    counter = [sample & low, sample >> 32 & low, torch.full_like(sample, epoch), last[None]]
    words = philox(counter, [seed & low, seed >> 32 & low])
    return torch.stack(words, dim=2).flatten(1).double() * 2.0**-32


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


def _draw_affine(r: SimpleNamespace, u: Tensor, width: int, height: int) -> list[Tensor]:
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


def _draw_erase(r: SimpleNamespace, u: Tensor, height: int, width: int) -> list[Tensor]:
    """The box [n] each: top, left, height, width; and the seed of the noise."""
    top, left, h, w = (torch.zeros_like(u[:, 0]) for _ in range(4))
    for attempt in range(_CROP_TRIES - 1, -1, -1):  # backwards, so that the first that fits stays
        at = _ERASE_BOX + 4 * attempt
        scale = r.erase_scale_min + (r.erase_scale_max - r.erase_scale_min) * u[:, at + _CROP_AREA]
        area = float(height * width) * scale
        spread = (r.erase_log_ratio_max - r.erase_log_ratio_min) * u[:, at + _CROP_RATIO]
        ratio = _exp(r.erase_log_ratio_min + spread)
        h_try, w_try = torch.round(torch.sqrt(area * ratio)), torch.round(torch.sqrt(area / ratio))
        fits = (h_try < height) & (w_try < width)
        top = torch.where(fits, torch.floor(u[:, at + _CROP_TOP] * (height - h_try + 1.0)), top)
        left = torch.where(fits, torch.floor(u[:, at + _CROP_LEFT] * (width - w_try + 1.0)), left)
        h, w = torch.where(fits, h_try, h), torch.where(fits, w_try, w)
    erase = (u[:, _ERASE] < r.erase_p) & (h > 0) & (w > 0)
    seed = (1.0 + torch.floor(u[:, _ERASE_SEED] * 16777215.0)) * r.erase_noise
    return [torch.where(erase, value, 0.0) for value in (top, left, h, w, seed)]


def _draw_perspective(r: SimpleNamespace, u: Tensor, width: int, height: int) -> list[Tensor]:
    """The inverse map of torchvision's perspective: it takes the drawn corners to the image's, [n] each of nine."""
    reach_x = math.floor(r.perspective * (width // 2)) + 1.0
    reach_y = math.floor(r.perspective * (height // 2)) + 1.0
    x, y = [], []
    for corner in range(4):
        right, lower = corner in (1, 2), corner in (2, 3)
        x.append(torch.floor(u[:, _CORNERS + 2 * corner] * reach_x) + (width - reach_x if right else 0.0))
        y.append(torch.floor(u[:, _CORNERS + 2 * corner + 1] * reach_y) + (height - reach_y if lower else 0.0))
    # The map of the unit square to these corners (Heckbert 1989, section 2.2.3), then its adjugate, in pixels.
    dx1, dx2, sx = x[1] - x[2], x[3] - x[2], x[0] - x[1] + x[2] - x[3]
    dy1, dy2, sy = y[1] - y[2], y[3] - y[2], y[0] - y[1] + y[2] - y[3]
    denominator = dx1 * dy2 - dx2 * dy1
    g, h = (sx * dy2 - dx2 * sy) / denominator, (dx1 * sy - sx * dy1) / denominator
    a, b, c = x[1] - x[0] + g * x[1], x[3] - x[0] + h * x[3], x[0]
    d, e, f = y[1] - y[0] + g * y[1], y[3] - y[0] + h * y[3], y[0]
    last_x, last_y = width - 1.0, height - 1.0
    m = [(e - f * h) * last_x, (c * h - b) * last_x, (b * f - c * e) * last_x]
    m += [(f * g - d) * last_y, (a - c * g) * last_y, (c * d - a * f) * last_y]
    m += [d * h - e * g, b * g - a * h, a * e - b * d]
    # Between positions of which torchvision takes the pixels' centres to be at + 0.5; ours count from the middle.
    middle_x, middle_y = width * 0.5, height * 0.5
    for row in (0, 3, 6):
        m[row + 2] = m[row + 2] + m[row] * middle_x + m[row + 1] * middle_y
    for i in range(3):
        m[i], m[3 + i] = m[i] - middle_x * m[6 + i], m[3 + i] - middle_y * m[6 + i]
    m = [value / m[8] for value in m]
    exists = torch.stack([value.abs() <= 1e30 for value in m]).all(0)  # not NaN: the corners span an area
    return [torch.where(exists, value, still) for value, still in zip(m, IDENTITY_MAP, strict=True)]


def _draw_order(u: Tensor) -> Tensor:
    """A permutation of the four colour ops for each row, [n, 4] (Fisher and Yates' shuffle)."""
    order = torch.arange(1, 5, device=u.device).repeat(len(u), 1)
    for place in (3, 2, 1):
        other = torch.floor(u[:, _ORDER + 3 - place] * (place + 1.0)).to(torch.int64)[:, None]
        mine, theirs = order[:, place : place + 1].clone(), order.gather(1, other)
        order[:, place : place + 1] = theirs
        order.scatter_(1, other, mine)
    return order


def sample_reference(
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
    """``augment_sample``."""
    r = SimpleNamespace(**dict(zip(RECIPE_NAMES, recipe.tolist(), strict=True)))
    u = uniforms(index, seed, epoch, view, int(vars(r)["pass"]), 0, _DRAWS // 4)

    top, left, h, w = _draw_crop(r, u, height, width, out_height, out_width)
    hflip, vflip = u[:, _HFLIP] < r.hflip_p, u[:, _VFLIP] < r.vflip_p
    warp = u[:, _WARP] < r.warp_p
    drawn = (_draw_affine if r.perspective < 0 else _draw_perspective)(r, u, out_width, out_height)
    matrix = [torch.where(warp, m, still) for m, still in zip(drawn, IDENTITY_MAP, strict=True)]
    turns = torch.floor(u[:, _TURNS] * 4.0) if out_height == out_width else 2.0 * torch.floor(u[:, _TURNS] * 2.0)
    turns = torch.where(u[:, _ROT90] < r.rot90_p, turns, 0.0)
    for i in (0, 3, 6):
        x, y = matrix[i], matrix[i + 1]
        for turn, column in ((1, (y, 0.0 - x)), (2, (0.0 - x, 0.0 - y)), (3, (0.0 - y, x))):
            matrix[i], matrix[i + 1] = (
                torch.where(turns == turn, new, old)
                for new, old in zip(column, (matrix[i], matrix[i + 1]), strict=True)
            )
    # Flips are applied between crop and warp. One before the crop mirrors the box; one after the warp mirrors the map.
    if FLIP_AT[int(r.hflip_at)] == "before_crop":
        left = torch.where(hflip, width - w - left, left)
    if FLIP_AT[int(r.vflip_at)] == "before_crop":
        top = torch.where(vflip, height - h - top, top)
    if FLIP_AT[int(r.hflip_at)] == "after_warp":
        for i in (1, 2, 3, 6):
            matrix[i] = torch.where(hflip, 0.0 - matrix[i], matrix[i])
    if FLIP_AT[int(r.vflip_at)] == "after_warp":
        for i in (1, 3, 5, 7):
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
    columns += [u[:, _SHARPEN] < r.sharpen_p, torch.full_like(sigma, r.sharpness), u[:, _INVERT] < r.invert_p]
    columns += [torch.where(u[:, _POSTERIZE] < r.posterize_p, r.posterize_levels, 0.0)]
    columns += [u[:, _SOLARIZE] < r.solarize_p, torch.full_like(sigma, r.solarize_threshold)]
    columns += [u[:, _AUTOCONTRAST] < r.autocontrast_p, u[:, _EQUALIZE] < r.equalize_p]
    columns += _draw_erase(r, u, out_height, out_width)
    return torch.stack([column.to(torch.float32) for column in columns], dim=1)


def sample_fake(
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
    """The result's shape and dtype."""
    return index.new_empty((index.shape[0], len(PARAM_NAMES)), dtype=torch.float32)
