"""Automatic augmentation with torchvision.transforms.v2's arguments, spaces and ops, drawn for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastcl.ops.augment import INTERPOLATIONS
from fastcl.ops.augment_table import COLOR_OPS, PARAM_NAMES, _sin_cos
from fastcl.transforms.compose import Alternatives, OwnDraws
from fastcl.transforms.containers import Container
from fastcl.transforms.geometry import put_map
from fastcl.transforms.passes import Pass, Size
from fastcl.transforms.single import _interpolation

# The ops in torchvision's order.
AUTO_OPS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
_SIGNED = AUTO_OPS[1:10]
_STAGES = ("warp", "jitter", "sharpen", "posterize", "solarize", "autocontrast", "equalize")


def auto_rows(op: Tensor, magnitude: Tensor, table: Tensor, size: Size) -> Tensor:
    """The rows that do torchvision's automatic ops.

    Args:
        op: places in AUTO_OPS, int64 [n].
        magnitude: signed, as torchvision's of the op, float64 [n].
        table: rows that have none of it yet, float32 [n, len(PARAM_NAMES)] (or more columns).
        size: height and width of the images.

    Returns:
        The rows with the ops in.
    """
    chosen = {name: op == number for number, name in enumerate(AUTO_OPS)}
    height, width = size
    zero, one = torch.zeros_like(magnitude), torch.ones_like(magnitude)

    def where(name: str, value: Tensor, other: Tensor) -> Tensor:
        return torch.where(chosen[name], value, other)

    sin, cos = _sin_cos(magnitude)
    turn = chosen["Rotate"]
    matrix = [
        torch.where(turn, cos, one),
        where("ShearX", magnitude, torch.where(turn, -sin, zero)),
        where("ShearX", magnitude * (height / 2), where("TranslateX", -magnitude.trunc(), zero)),  # shears from corner
        where("ShearY", magnitude, torch.where(turn, sin, zero)),
        torch.where(turn, cos, one),
        where("ShearY", magnitude * (width / 2), where("TranslateY", -magnitude.trunc(), zero)),
        *(zero, zero, one),
    ]
    table = put_map(table, torch.stack(matrix, dim=1).reshape(-1, 3, 3)).clone()

    def put(column: str, name: str, value: Tensor) -> None:
        at = PARAM_NAMES.index(column)
        table[:, at] = where(name, value.to(table.dtype), table[:, at])

    for name, column in (("Brightness", "brightness"), ("Color", "saturation"), ("Contrast", "contrast")):
        put("color_op_0", name, one * COLOR_OPS.index(column))
        put(column, name, 1 + magnitude)
    put("sharpen", "Sharpness", one)
    put("sharpness", "Sharpness", 1 + magnitude)
    put("posterize", "Posterize", 2.0 ** magnitude.trunc())
    put("solarize", "Solarize", one)
    put("solarize_threshold", "Solarize", magnitude)
    put("autocontrast", "AutoContrast", one)
    put("equalize", "Equalize", one)
    return table


class _AutoOp(OwnDraws):
    """One op for each image, each as likely, and so its magnitude's bin unless it is given.

    Args:
        most: the largest magnitude of each op; of a shift below 1, a share of the side, else pixels.
        bins: of magnitudes.
        magnitude: a bin, or None.
        interpolation: see :class:`RandAugment`.
        fill: see :class:`RandAugment`.
    """

    def __init__(
        self,
        most: dict[str, float],
        bins: int,
        magnitude: int | None,
        interpolation: str,
        fill: float | Sequence[float] | None,
    ) -> None:
        self.most, self.bins, self.magnitude = most, bins, magnitude
        self.interpolation, self.fill = interpolation, fill

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if not plan.take_warp(self.interpolation, self.fill):
            return False
        plan.has |= {*_STAGES}
        plan.take_own(self, p)
        return True

    def magnitudes(self, size: Size) -> Tensor:
        """Of each op in each bin, unsigned: float64 [len(AUTO_OPS), bins]."""
        rows = []
        for name in AUTO_OPS:
            most = self.most.get(name, 0.0)
            if name in ("TranslateX", "TranslateY") and most < 1:
                most *= size[name == "TranslateX"]
            if name == "Posterize":
                steps = (self.bins - 1) / most if self.bins > 1 else 1.0
                rows.append((8 - torch.arange(self.bins, device="cpu") / steps).round())
            elif name == "Solarize":
                rows.append(torch.linspace(1.0, 0.0, self.bins, device="cpu"))
            else:
                rows.append(torch.linspace(0.0, most, self.bins, device="cpu"))
        return torch.stack(rows).double()

    def draw(self, u: Tensor, table: Tensor, size: Size) -> Tensor:
        """See :meth:`OwnDraws.draw`."""
        op = torch.floor(u[:, 0] * len(AUTO_OPS)).to(torch.int64)
        drawn = torch.floor(u[:, 1] * self.bins).to(torch.int64)
        level = drawn if self.magnitude is None else torch.full_like(drawn, self.magnitude)
        magnitude = self.magnitudes(size).to(u.device)[op, level]
        signed = torch.tensor([name in _SIGNED for name in AUTO_OPS], device=u.device)[op]
        magnitude = torch.where(signed & (u[:, 2] < 0.5), -magnitude, magnitude)
        return auto_rows(op, magnitude, table, size)


class RandAugment(Container):
    """Applies ops of 14 kinds, drawn for each image, all of one magnitude (Cubuk et al. 2020).

    An op is one fused pass with what surrounds it, so `num_ops` of them are as many passes.

    Args:
        num_ops: how many, one after another.
        magnitude: bin of the magnitude, from 0.
        num_magnitude_bins: how many bins there are.
        interpolation: of shear, shift and rotation, ``"nearest"`` or ``"bilinear"``.
        fill: what they show outside the image, one value or one per channel, in the images' units.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: Any = "nearest",
        fill: float | Sequence[float] | None = None,
    ) -> None:
        owner = type(self).__name__
        if not isinstance(num_ops, int) or num_ops < 0:
            raise ValueError(f"{owner}: num_ops must be a whole number and not negative, got {num_ops}")
        if not isinstance(num_magnitude_bins, int) or num_magnitude_bins < 2:
            raise ValueError(f"{owner}: num_magnitude_bins must be a whole number from 2, got {num_magnitude_bins}")
        if not isinstance(magnitude, int) or not 0 <= magnitude < num_magnitude_bins:
            raise ValueError(
                f"{owner}: magnitude must be a whole number below num_magnitude_bins = {num_magnitude_bins}, got "
                f"{magnitude}"
            )
        self.num_ops, self.magnitude, self.num_magnitude_bins = num_ops, magnitude, num_magnitude_bins
        self.interpolation = _interpolation(owner, interpolation, INTERPOLATIONS)
        self.fill = fill

    def alternatives(self) -> Alternatives:
        """See :meth:`Transform.alternatives`."""
        most = dict.fromkeys(("ShearX", "ShearY"), 0.3) | dict.fromkeys(("TranslateX", "TranslateY"), 150.0 / 331.0)
        most |= {"Rotate": 30.0, "Posterize": 4.0} | dict.fromkeys(AUTO_OPS[6:10], 0.9)
        op = _AutoOp(most, self.num_magnitude_bins, self.magnitude, self.interpolation, self.fill)
        return [(1.0, [op] * self.num_ops)]


class TrivialAugmentWide(Container):
    """Applies one op of 14 kinds and any magnitude, drawn for each image (Müller and Hutter 2021).

    Args:
        num_magnitude_bins: how many magnitudes there are, each as likely.
        interpolation: of shear, shift and rotation, ``"nearest"`` or ``"bilinear"``.
        fill: what they show outside the image, one value or one per channel, in the images' units.
    """

    def __init__(
        self,
        num_magnitude_bins: int = 31,
        interpolation: Any = "nearest",
        fill: float | Sequence[float] | None = None,
    ) -> None:
        owner = type(self).__name__
        if not isinstance(num_magnitude_bins, int) or num_magnitude_bins < 2:
            raise ValueError(f"{owner}: num_magnitude_bins must be a whole number from 2, got {num_magnitude_bins}")
        self.num_magnitude_bins = num_magnitude_bins
        self.interpolation = _interpolation(owner, interpolation, INTERPOLATIONS)
        self.fill = fill

    def alternatives(self) -> Alternatives:
        """See :meth:`Transform.alternatives`."""
        most = dict.fromkeys(("ShearX", "ShearY"), 0.99) | dict.fromkeys(("TranslateX", "TranslateY"), 32.0)
        most |= {"Rotate": 135.0, "Posterize": 6.0} | dict.fromkeys(AUTO_OPS[6:10], 0.99)
        return [(1.0, [_AutoOp(most, self.num_magnitude_bins, None, self.interpolation, self.fill)])]
