"""The transforms: torchvision.transforms.v2's names, arguments, defaults and meanings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fastcl.ops.augment import OUTPUT_DTYPES, RESIZES
from fastcl.ops.augment_table import CROPS
from fastcl.transforms.compose import Transform
from fastcl.transforms.passes import Pass, Size

Range = tuple[float, float]


def _pair(owner: str, name: str, value: int | Sequence[int]) -> Size:
    pair = (value, value) if isinstance(value, int) else tuple(value) * (2 if len(value) == 1 else 1)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"{owner}: {name} must be one or two positive whole numbers, got {value}")
    return pair[0], pair[1]


def _range(owner: str, name: str, value: Sequence[float]) -> Range:
    if len(value) != 2 or not all(math.isfinite(v) for v in value) or value[0] > value[1]:
        raise ValueError(f"{owner}: {name} must be two finite numbers, the smaller first, got {value}")
    return float(value[0]), float(value[1])


def _symmetric(owner: str, name: str, value: float | Sequence[float]) -> Range:
    """A range of degrees; one number is the range from -it to it."""
    if isinstance(value, (int, float)):
        if value < 0:
            raise ValueError(f"{owner}: {name} must not be negative where it is one number, got {value}")
        value = (-value, value)
    return _range(owner, name, value)


def _probability(owner: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: p must be from 0 to 1, got {value}")
    return float(value)


def _interpolation(owner: str, value: Any, allowed: Sequence[str]) -> str:
    name = str(getattr(value, "value", value))  # torchvision's InterpolationMode
    if name not in allowed:
        raise ValueError(f"{owner}: interpolation must be {' or '.join(allowed)}, got {name}")
    return name


def _always(transform: Transform, p: float) -> None:
    if p != 1:
        raise ValueError(f"RandomApply: {type(transform).__name__} cannot be left to chance within a batch")


class RandomResizedCrop(Transform):
    """Crops a box of random area and ratio, and resizes it with antialias.

    Args:
        size: of the output, (height, width) or one number for both.
        scale: range of the box's area, as a share of the image's.
        ratio: range of the box's width / height, uniform in its logarithm.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        antialias: ``True``.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3.0 / 4.0, 4.0 / 3.0),
        interpolation: Any = "bilinear",
        antialias: bool | None = True,
    ) -> None:
        owner = type(self).__name__
        self.size = _pair(owner, "size", size)
        self.scale = _range(owner, "scale", scale)
        self.ratio = _range(owner, "ratio", ratio)
        if self.scale[0] < 0 or self.ratio[0] <= 0:
            raise ValueError(f"{owner}: scale must not be negative and ratio positive, got {scale} and {ratio}")
        self.interpolation = _interpolation(owner, interpolation, RESIZES)
        self.antialias = _antialias(owner, antialias)

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        _always(self, p)
        if not plan.take_crop(self.size):
            return False
        plan.resize = self.interpolation
        plan.recipe |= {
            "crop": float(CROPS.index("random")),
            **{f"crop_scale_{end}": value for end, value in zip(("min", "max"), self.scale, strict=True)},
            **{f"crop_ratio_{end}": value for end, value in zip(("min", "max"), self.ratio, strict=True)},
            **{f"crop_log_ratio_{end}": math.log(v) for end, v in zip(("min", "max"), self.ratio, strict=True)},
        }
        return True


def _antialias(owner: str, value: bool | None) -> bool:
    if value is not True:
        raise ValueError(f"{owner}: antialias must be True, got {value}")
    return value


class Resize(Transform):
    """Resizes the whole image with antialias.

    Args:
        size: (height, width), or one number for the shorter side, the ratio being kept.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        max_size: at most, for the longer side; only where ``size`` is one number.
        antialias: ``True``.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        interpolation: Any = "bilinear",
        max_size: int | None = None,
        antialias: bool | None = True,
    ) -> None:
        owner = type(self).__name__
        one = isinstance(size, int) or len(size) == 1
        pair = _pair(owner, "size", size)
        self.size: int | Size = pair[0] if one else pair
        if max_size is not None and (not one or max_size < pair[0]):
            raise ValueError(f"{owner}: max_size needs a size of one number that is not larger, got {max_size}, {size}")
        self.max_size = max_size
        self.interpolation = _interpolation(owner, interpolation, RESIZES)
        self.antialias = _antialias(owner, antialias)

    def _output_size(self, size: Size) -> Size:
        assert isinstance(self.size, int)
        short, long = self.size, int(self.size * max(size) / min(size))
        if self.max_size is not None and long > self.max_size:
            short, long = int(self.max_size * short / long), self.max_size
        return (short, long) if size[0] <= size[1] else (long, short)

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        _always(self, p)
        if not plan.take_crop(self._output_size if isinstance(self.size, int) else self.size):
            return False
        plan.resize = self.interpolation
        return True


class CenterCrop(Transform):
    """Crops the centre.

    Args:
        size: (height, width) or one number for both; the image must be at least as large.
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = _pair(type(self).__name__, "size", size)

    def _output_size(self, size: Size) -> Size:
        if self.size[0] > size[0] or self.size[1] > size[1]:
            raise ValueError(f"CenterCrop: size must not be above the image's {tuple(size)}, got {self.size}")
        return self.size

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        _always(self, p)
        if not plan.take_crop(self._output_size):
            return False
        plan.recipe["crop"] = float(CROPS.index("center"))
        return True


class RandomHorizontalFlip(Transform):
    """Mirrors left and right with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = _probability(type(self).__name__, p)

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        return plan.take_flip("hflip", p * self.p)


class RandomVerticalFlip(Transform):
    """Mirrors top and bottom with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = _probability(type(self).__name__, p)

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        return plan.take_flip("vflip", p * self.p)


class _Warp(Transform):
    interpolation: str
    fill: float | Sequence[float] | None

    def _add(self, plan: Pass, p: float, recipe: dict[str, float], center: Sequence[float] | None) -> bool:
        if not plan.take_warp(self.interpolation, self.fill):
            return False
        if center is not None:
            recipe |= {"center_given": 1.0, "center_x": float(center[0]), "center_y": float(center[1])}
        plan.recipe |= {"warp_p": p, **recipe}
        return True


class RandomRotation(_Warp):
    """Rotates counter-clockwise; a multiple of 90 degrees is exact on square images.

    Args:
        degrees: range of the angle; one number is the range from -it to it.
        interpolation: ``"nearest"`` or ``"bilinear"``.
        expand: ``False``.
        center: (x, y) in pixels from the upper left corner; by default the image's centre.
        fill: what shows outside the image, one value or one per channel, in the images' units.
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        interpolation: Any = "nearest",
        expand: bool = False,
        center: Sequence[float] | None = None,
        fill: float | Sequence[float] | None = 0,
    ) -> None:
        owner = type(self).__name__
        self.degrees = _symmetric(owner, "degrees", degrees)
        self.interpolation = _interpolation(owner, interpolation, ("nearest", "bilinear"))
        if expand:
            raise ValueError(f"{owner}: expand must be False (the images of a batch share one size), got {expand}")
        self.expand = expand
        self.center = center
        self.fill = fill

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        return self._add(plan, p, {"angle_from": -self.degrees[0], "angle_to": -self.degrees[1]}, self.center)


class RandomAffine(_Warp):
    """Rotates (clockwise), scales, shears and shifts by whole pixels, in one map.

    Args:
        degrees: range of the angle; one number is the range from -it to it.
        translate: largest shift, as a share of (width, height).
        scale: range of the scale.
        shear: degrees; a number or a range for x, or four numbers, a range for x and one for y.
        interpolation: ``"nearest"`` or ``"bilinear"``.
        fill: what shows outside the image, one value or one per channel, in the images' units.
        center: (x, y) in pixels from the upper left corner; by default the image's centre.
    """

    def __init__(
        self,
        degrees: float | Sequence[float],
        translate: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        shear: float | Sequence[float] | None = None,
        interpolation: Any = "nearest",
        fill: float | Sequence[float] | None = 0,
        center: Sequence[float] | None = None,
    ) -> None:
        owner = type(self).__name__
        self.degrees = _symmetric(owner, "degrees", degrees)
        if translate is not None and not (len(translate) == 2 and all(0 <= v <= 1 for v in translate)):
            raise ValueError(f"{owner}: translate must be two numbers from 0 to 1, got {translate}")
        self.translate = translate
        self.scale = None if scale is None else _range(owner, "scale", scale)
        if self.scale and self.scale[0] <= 0:
            raise ValueError(f"{owner}: scale must be positive, got {scale}")
        self.shear: Sequence[float] | None = None
        if shear is not None:
            four = not isinstance(shear, (int, float)) and len(shear) == 4
            x, y = (shear[:2], shear[2:]) if four and not isinstance(shear, (int, float)) else (shear, (0.0, 0.0))
            self.shear = (*_symmetric(owner, "shear", x), *_symmetric(owner, "shear", y))
        self.interpolation = _interpolation(owner, interpolation, ("nearest", "bilinear"))
        self.fill = fill
        self.center = center

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        recipe = {"angle_from": self.degrees[0], "angle_to": self.degrees[1]}
        for names, values in (
            (("translate_x", "translate_y"), self.translate),
            (("zoom_min", "zoom_max"), self.scale),
            (("shear_x_min", "shear_x_max", "shear_y_min", "shear_y_max"), self.shear),
        ):
            if values is not None:
                recipe |= {name: float(value) for name, value in zip(names, values, strict=True)}
        return self._add(plan, p, recipe, self.center)


class RandomPerspective(_Warp):
    """Moves the image's corners inwards, each by a distance of its own.

    Args:
        distortion_scale: how far at most, as a share of half the side.
        p: the probability.
        interpolation: ``"nearest"`` or ``"bilinear"``.
        fill: what shows outside the image, one value or one per channel, in the images' units.
    """

    def __init__(
        self,
        distortion_scale: float = 0.5,
        p: float = 0.5,
        interpolation: Any = "bilinear",
        fill: float | Sequence[float] | None = 0,
    ) -> None:
        owner = type(self).__name__
        self.p = _probability(owner, p)
        if not 0 <= distortion_scale <= 1:
            raise ValueError(f"{owner}: distortion_scale must be from 0 to 1, got {distortion_scale}")
        self.distortion_scale = distortion_scale
        self.interpolation = _interpolation(owner, interpolation, ("nearest", "bilinear"))
        self.fill = fill

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        return self._add(plan, p * self.p, {"perspective": float(self.distortion_scale)}, None)


class RandomRot90(Transform):
    """Turns by 0, 90, 180 or 270 degrees, each as likely; what is not square by 0 or 180. Not in torchvision.

    Args:
        p: the probability that it turns at all (by 0 in a quarter of cases).
    """

    def __init__(self, p: float = 1.0) -> None:
        self.p = _probability(type(self).__name__, p)

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if "late_flip" in plan.has or not plan.take("rot90"):
            return False
        plan.recipe["rot90_p"] = p * self.p
        return True


class ColorJitter(Transform):
    """Changes brightness, contrast, saturation and hue, in an order drawn for each image.

    Args:
        brightness: the factor is uniform in [max(0, 1 - it), 1 + it], or in the given range; None leaves it out.
        contrast: likewise.
        saturation: likewise; nothing happens to gray images.
        hue: the shift is uniform in [-it, it], or in the given range, within [-0.5, 0.5]; likewise.
    """

    def __init__(
        self,
        brightness: float | Sequence[float] | None = None,
        contrast: float | Sequence[float] | None = None,
        saturation: float | Sequence[float] | None = None,
        hue: float | Sequence[float] | None = None,
    ) -> None:
        self.brightness = self._factors("brightness", brightness)
        self.contrast = self._factors("contrast", contrast)
        self.saturation = self._factors("saturation", saturation)
        self.hue = None if hue is None else _symmetric(type(self).__name__, "hue", hue)
        if self.hue is not None and not -0.5 <= self.hue[0] <= self.hue[1] <= 0.5:
            raise ValueError(f"ColorJitter: hue must be within [-0.5, 0.5], got {hue}")

    def _factors(self, name: str, value: float | Sequence[float] | None) -> Range | None:
        if value is None:
            return None
        if isinstance(value, (int, float)):
            if value < 0:
                raise ValueError(f"ColorJitter: {name} must not be negative, got {value}")
            value = (max(0.0, 1.0 - value), 1.0 + value)
        least, most = _range(type(self).__name__, name, value)
        if least < 0:
            raise ValueError(f"ColorJitter: {name} must not be negative, got {value}")
        return least, most

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if self.brightness is self.contrast is self.saturation is self.hue is None:
            return True  # changes nothing, wherever it stands
        if not plan.take("jitter"):
            return False
        plan.recipe["jitter_p"] = p
        for name in ("brightness", "contrast", "saturation", "hue"):
            given = getattr(self, name)
            if given is not None:
                plan.recipe |= {f"{name}_min": given[0], f"{name}_max": given[1]}
        return True


class RandomGrayscale(Transform):
    """Makes all three channels the image's gray with probability `p`; nothing happens to gray images."""

    def __init__(self, p: float = 0.1) -> None:
        self.p = _probability(type(self).__name__, p)

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if not plan.take("grayscale", commutes=("blur",)):
            return False
        plan.recipe["grayscale_p"] = p * self.p
        return True


class GaussianBlur(Transform):
    """Blurs with a Gaussian, the image being reflected at its borders.

    Args:
        kernel_size: taps, odd: one number, or (x, y); ``None`` (not in torchvision) reaches 4 sigma to each side.
        sigma: range of the standard deviation in pixels, or one number.
    """

    def __init__(self, kernel_size: int | Sequence[int] | None, sigma: float | Sequence[float] = (0.1, 2.0)) -> None:
        owner = type(self).__name__
        self.kernel_size = None if kernel_size is None else _pair(owner, "kernel_size", kernel_size)
        if self.kernel_size and not all(taps % 2 for taps in self.kernel_size):
            raise ValueError(f"{owner}: kernel_size must be odd, got {kernel_size}")
        self.sigma = _range(owner, "sigma", (sigma, sigma) if isinstance(sigma, (int, float)) else sigma)
        if self.sigma[0] <= 0:
            raise ValueError(f"{owner}: sigma must be positive, got {sigma}")

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if not plan.take("blur"):
            return False
        plan.recipe |= {"blur_p": p, "blur_sigma_min": self.sigma[0], "blur_sigma_max": self.sigma[1]}
        if self.kernel_size:
            x, y = (float(taps // 2) for taps in self.kernel_size)
            plan.recipe |= {"blur_radius_x": x, "blur_radius_y": y}
        return True


class RandomSolarize(Transform):
    """Inverts the values from a threshold on, with probability `p`.

    Args:
        threshold: one above 1 is of values up to 255, any other of values from 0 to 1, whatever the images hold.
        p: the probability.
    """

    def __init__(self, threshold: float, p: float = 0.5) -> None:
        owner = type(self).__name__
        self.threshold = float(threshold)
        self.p = _probability(owner, p)
        if not math.isfinite(self.threshold):
            raise ValueError(f"{owner}: threshold must be finite, got {threshold}")

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if not plan.take("solarize"):
            return False
        unit = 255.0 if self.threshold > 1 else 1.0
        if p * self.p > 0:
            plan.recipe |= {"solarize_p": p * self.p, "solarize_threshold": self.threshold / unit}
        return True


class Normalize(Transform):
    """(x - mean) / std per channel; uint8 images become float32 from 0 to 1 first.

    Args:
        mean: one value, or one per channel.
        std: likewise.
        inplace: has no effect.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        self.mean = [float(v) for v in mean]
        self.std = [float(v) for v in std]
        self.inplace = inplace
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"Normalize: mean and std must have as many values, got {len(self.mean)}, {len(self.std)}")
        if 0.0 in self.std or not all(map(math.isfinite, self.mean + self.std)):
            raise ValueError(f"Normalize: mean and std must be finite and std not 0, got {self.mean} and {self.std}")

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        _always(self, p)
        # After an unscaling ToDtype the stage is taken, but by no mean and std.
        follows = plan.unscaled and plan.mean is None and "erase" not in plan.has
        if not plan.take("normalize") and not follows:
            return False
        plan.mean, plan.std = self.mean, self.std
        return True


class ToDtype(Transform):
    """Converts to a dtype.

    Args:
        dtype: uint8, float32, float16 or bfloat16.
        scale: whether 255 becomes 1 where uint8 becomes floats.
    """

    def __init__(self, dtype: torch.dtype, scale: bool = False) -> None:
        if dtype not in OUTPUT_DTYPES[:-1]:
            raise ValueError(f"ToDtype: dtype must be uint8, float32, float16 or bfloat16, got {dtype}")
        if dtype == torch.uint8 and not scale:
            raise ValueError("ToDtype: uint8 needs scale=True")
        self.dtype = dtype
        self.scale = scale

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        _always(self, p)
        if "erase" in plan.has:
            return False
        if self.dtype == torch.uint8 and "normalize" in plan.has:
            raise ValueError("ToDtype: normalised values cannot become uint8")
        if not self.scale and plan.dtype is None and plan.mean is None:
            plan.unscaled = True
            plan.has.add("normalize")
        plan.dtype = self.dtype
        return True
