"""Warps beyond the affine: a cube's face, a sphere, an elastic sheet."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.ops.augment import INTERPOLATIONS
from fastcl.ops.augment_table import PARAM_NAMES, _sin_cos, philox
from fastcl.transforms.compose import OwnDraws
from fastcl.transforms.passes import Pass, Size
from fastcl.transforms.single import _interpolation, _probability, _symmetric

_MAP = PARAM_NAMES.index("map_0")
_WIDEST = 80.0  # degrees of a fisheye of strength 1, from the axis to the image's corners


def put_map(table: Tensor, own: Tensor) -> Tensor:
    """The rows with `own`, float64 [n, 3, 3], before the flips and turns that their maps hold already."""
    drawn = table[:, _MAP : _MAP + 9].double().reshape(-1, 3, 3)
    # Not a matmul: its sums would depend on the processor.
    product = (own[:, :, :, None] * drawn[:, None]).unbind(2)
    maps = (product[0] + product[1] + product[2]).flatten(1).to(table.dtype)
    return torch.cat([table[:, :_MAP], maps, table[:, _MAP + 9 :]], 1)


def _positions(size: Size, like: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, W] and y [H, 1] of the pixels from the image's middle, in pixels."""
    y, x = (torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2 for side in size)
    return x[None], y[:, None]


def _resample(owner: str, images: Tensor, x: Tensor, y: Tensor, interpolation: str, fill: list[float] | None) -> Tensor:
    """The images at positions [B, H, W] from their middles, in pixels.

    As torchvision's warps: what lies outside is 0, and at a bilinear border the fill weighs by what is missing.
    """
    channels, height, width = images.shape[1:]
    if fill is not None and len(fill) not in (1, channels):
        raise ValueError(f"{owner}: fill must have 1 or {channels} values, got {len(fill)}")
    grid = images.new_empty(*x.shape, 2)
    grid[..., 0], grid[..., 1] = x * (2 / width), y * (2 / height)
    how: dict[str, Any] = {"mode": interpolation, "padding_mode": "zeros", "align_corners": False}
    out = functional.grid_sample(images, grid, **how)
    if fill is None:
        return out
    mask = functional.grid_sample(images.new_ones(1, 1, height, width).expand(len(images), -1, -1, -1), grid, **how)
    background = torch.tensor(fill, dtype=images.dtype, device=images.device)[:, None, None]
    if interpolation == "nearest":
        return torch.where(mask < 0.5, background, out)
    return out.sub_(background).mul_(mask).add_(background)


class RandomCube(OwnDraws):
    """Shows the image on the front face of a cube that has turned, in perspective. Not in torchvision.

    The cube turns about its upright axis, then about the horizontal one, each by an angle drawn uniformly. Unturned,
    its face fills the image. It is one of the maps of the fused pass.

    Args:
        degrees: range of both angles; one number is the range from -it to it. Positive ones move the face right and
            down. The face must stay in sight: cos² of the largest must be above 1 / distance.
        distance: of the eye from the cube's middle, in halves of the cube's edge.
        p: the probability.
        interpolation: ``"nearest"`` or ``"bilinear"``.
        fill: what shows beside the face, one value or one per channel, in the images' units.
    """

    def __init__(
        self,
        degrees: float | Sequence[float] = 45.0,
        distance: float = 4.0,
        p: float = 0.5,
        interpolation: Any = "bilinear",
        fill: float | Sequence[float] | None = 0,
    ) -> None:
        owner = type(self).__name__
        self.degrees = _symmetric(owner, "degrees", degrees)
        if not 2 <= distance < math.inf:
            raise ValueError(f"{owner}: distance must be at least 2, got {distance}")
        most = max(map(abs, self.degrees))
        if most >= 90 or math.cos(math.radians(most)) ** 2 * distance <= 1:
            raise ValueError(
                f"{owner}: degrees must leave the face in sight (cos² above 1 / {distance:g}), got {degrees}"
            )
        self.distance = float(distance)
        self.p = _probability(owner, p)
        self.interpolation = _interpolation(owner, interpolation, INTERPOLATIONS)
        self.fill = fill

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if not plan.take_warp(self.interpolation, self.fill):
            return False
        plan.take_own(self, p * self.p)
        return True

    def draw(self, u: Tensor, table: Tensor, size: Size) -> Tensor:
        """See :meth:`OwnDraws.draw`."""
        low, high = self.degrees
        (sin_yaw, cos_yaw), (sin_pitch, cos_pitch) = (_sin_cos(low + (high - low) * u[:, i]) for i in (0, 1))
        half = max(size) / 2
        # The face's point (x, y, -half) turns to (X, Y, Z), and is seen at (focus X, focus Y) / (Z + distance half).
        focus, zero = (self.distance - 1) * half, torch.zeros_like(sin_yaw)
        a, b, c = focus * cos_yaw, zero, focus * half * sin_yaw
        d, e, f = -focus * sin_pitch * sin_yaw, focus * cos_pitch, focus * half * sin_pitch * cos_yaw
        g, h = cos_pitch * sin_yaw, sin_pitch
        i = half * (self.distance - cos_pitch * cos_yaw)
        inverse = [e * i - f * h, c * h - b * i, b * f - c * e]
        inverse += [f * g - d * i, a * i - c * g, c * d - a * f]
        inverse += [d * h - e * g, b * g - a * h, a * e - b * d]
        matrix = torch.stack([value / inverse[8] for value in inverse], dim=1)
        return put_map(table, matrix.reshape(-1, 3, 3))


class RandomSpherize(OwnDraws):
    """Bulges the image as a sphere would, or bends it as a fisheye lens does. Not in torchvision.

    With r the distance from the image's middle, a pixel at r shows what was at r' on the same ray:

    * ``"bulge"``: r' = (1 - s) r + s (2 / pi) asin(r) within the largest circle (r = 1), as if the image lay around
      half a ball; pixels outside stay. A negative s is a dent: r' = (1 - |s|) r + |s| sin(r pi / 2).
    * ``"fisheye"``: r' = tan(r t) / tan(t), r being 1 at the corners, which stay: a photograph that reaches t = 80 s
      degrees from the axis, seen through an equidistant fisheye. A negative s undoes what the positive one does.

    Args:
        strength: range of s within -1 and 1; one number is the range from -it to it.
        kind: ``"bulge"`` or ``"fisheye"``.
        p: the probability.
        interpolation: ``"nearest"`` or ``"bilinear"``.
        fill: what shows outside the image, one value or one per channel, in the images' units.
    """

    columns = MappingProxyType({"sphere_strength": 0.0})

    def __init__(
        self,
        strength: float | Sequence[float] = 0.7,
        kind: str = "bulge",
        p: float = 0.5,
        interpolation: Any = "bilinear",
        fill: float | Sequence[float] | None = 0,
    ) -> None:
        owner = type(self).__name__
        self.strength = _symmetric(owner, "strength", strength)
        if max(map(abs, self.strength)) > 1:
            raise ValueError(f"{owner}: strength must be within -1 and 1, got {strength}")
        if kind not in ("bulge", "fisheye"):
            raise ValueError(f"{owner}: kind must be bulge or fisheye, got {kind!r}")
        self.kind = kind
        self.p = _probability(owner, p)
        self.interpolation = _interpolation(owner, interpolation, INTERPOLATIONS)
        self.fill = fill

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        return plan.take_outside(self, p * self.p)

    def draw(self, u: Tensor, table: Tensor, size: Size) -> Tensor:
        """See :meth:`OwnDraws.draw`."""
        low, high = self.strength
        strength = (low + (high - low) * u[:, :1]).to(table.dtype)
        return torch.cat([table[:, : len(PARAM_NAMES)], strength], 1)

    def outside(self, images: Tensor, params: Tensor, fill: list[float] | None) -> Tensor:
        """See :meth:`OwnDraws.outside`."""
        x, y = _positions((images.shape[2], images.shape[3]), images)
        strength = params[:, 0, None, None].to(images.dtype)
        share = self._bulge(x, y, strength) if self.kind == "bulge" else self._fisheye(x, y, strength)
        return _resample(type(self).__name__, images, x * share, y * share, self.interpolation, fill)

    @staticmethod
    def _bulge(x: Tensor, y: Tensor, strength: Tensor) -> Tensor:
        """r' / r, [B, H, W]."""
        r = (x * x + y * y).sqrt() / (min(x.shape[1], y.shape[0]) / 2)
        within = r.clamp(1e-6, 1)
        ball = torch.where(strength > 0, within.asin() * (2 / math.pi), (within * (math.pi / 2)).sin()) / within
        return torch.where(r < 1, 1 + strength.abs() * (ball - 1), 1)

    @staticmethod
    def _fisheye(x: Tensor, y: Tensor, strength: Tensor) -> Tensor:
        """r' / r, [B, H, W]."""
        r = ((x * x + y * y).sqrt() / (math.hypot(x.shape[1], y.shape[0]) / 2)).clamp_min(1e-6)
        angle = (strength.abs() * math.radians(_WIDEST)).clamp_min(1e-3)  # below, nothing is to be seen
        bent = torch.where(strength > 0, (r * angle).tan() / angle.tan(), (r * angle.tan()).atan() / angle)
        return bent / r


class ElasticTransform(OwnDraws):
    """Moves every pixel by smooth noise, as on an elastic sheet (Simard et al. 2003).

    The noise is uniform in [-1, 1], blurred with a Gaussian, and follows from the image's own draw. The arguments and
    their meaning are torchvision's.

    Args:
        alpha: what the blurred noise is multiplied by, in half pixels: one number, or (x, y).
        sigma: of the blur, in pixels: one number, or (x, y); 0 does not blur.
        interpolation: ``"nearest"`` or ``"bilinear"``.
        fill: what shows outside the image, one value or one per channel, in the images' units.
    """

    columns = MappingProxyType({"elastic_seed": 0.0})

    def __init__(
        self,
        alpha: float | Sequence[float] = 50.0,
        sigma: float | Sequence[float] = 5.0,
        interpolation: Any = "bilinear",
        fill: float | Sequence[float] | None = 0,
    ) -> None:
        owner = type(self).__name__
        self.alpha, self.sigma = self._two("alpha", alpha), self._two("sigma", sigma)
        if min(self.sigma) < 0 or (min(self.sigma) == 0) != (max(self.sigma) == 0):
            raise ValueError(f"{owner}: sigma must be two positive numbers or 0, got {sigma}")
        self.interpolation = _interpolation(owner, interpolation, INTERPOLATIONS)
        self.fill = fill

    @classmethod
    def _two(cls, name: str, value: float | Sequence[float]) -> tuple[float, float]:
        two = [value] * 2 if isinstance(value, (int, float)) else [*value] * (2 if len(value) == 1 else 1)
        if len(two) != 2 or not all(map(math.isfinite, two)):
            raise ValueError(f"{cls.__name__}: {name} must be one or two finite numbers, got {value}")
        return float(two[0]), float(two[1])

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        return plan.take_outside(self, p)

    def draw(self, u: Tensor, table: Tensor, size: Size) -> Tensor:
        """See :meth:`OwnDraws.draw`."""
        seed = 1.0 + torch.floor(u[:, :1] * 16777215.0)  # as much as float32 holds
        return torch.cat([table[:, : len(PARAM_NAMES)], seed.to(table.dtype)], 1)

    def displacement(self, params: Tensor, size: Size) -> Tensor:
        """How far each pixel's source lies from it.

        Args:
            params: the table's last column, float32 [B, 1].
            size: height and width of the images.

        Returns:
            float32 [B, H, W, 2], x and y in halves of the image's width and height: torchvision's displacement.
        """
        height, width = size
        x, y = self._shifts(params, size)
        return torch.stack([x * (2 / width), y * (2 / height)], dim=3)

    def _shifts(self, params: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """The same as x and y in pixels, [B, H, W] each."""
        height, width = size
        block = torch.arange(-(-height * width // 4), device=params.device)[None]  # of four pixels, 16 bits for an axis
        zero = torch.zeros_like(block)
        words = torch.stack(philox([block, params[:, :1].to(torch.int64), zero, zero], [0, 1]), dim=1)
        shifts = []
        for axis, bits in enumerate((words & 0xFFFF, words >> 16)):
            noise = bits.to(torch.float32).add_(0.5).mul_(2.0**-15).sub_(1)
            plane = noise.flatten(1)[:, : height * width].reshape(-1, height, width)
            if self.sigma[axis] > 0:
                blur_matrix = _blur_matrix if torch.compiler.is_compiling() else _kept_blur_matrix
                radius = (int(8 * self.sigma[axis] + 1) | 1) // 2
                rows, columns = (
                    blur_matrix(n, radius, sigma, plane.device).expand(len(plane), -1, -1)
                    for n, sigma in ((height, self.sigma[1]), (width, self.sigma[0]))
                )
                plane = rows.bmm(plane).bmm(columns.mT)
            shifts.append(plane * (self.alpha[axis] / 2))
        return shifts[0], shifts[1]

    def outside(self, images: Tensor, params: Tensor, fill: list[float] | None) -> Tensor:
        """See :meth:`OwnDraws.outside`."""
        height, width = images.shape[2:]
        x, y = _positions((height, width), images)
        shift_x, shift_y = (shift.to(images.dtype) for shift in self._shifts(params, (height, width)))
        return _resample(type(self).__name__, images, x + shift_x, y + shift_y, self.interpolation, fill)


def _blur_matrix(n: int, radius: int, sigma: float, device: torch.device) -> Tensor:
    """What blurs n pixels, reflected at both ends as often as it takes: float32 [n, n]."""
    offset = torch.arange(-radius, radius + 1, device=device)
    weight = torch.softmax(-(offset.double() ** 2) / (2 * sigma * sigma), dim=0)
    period = max(2 * n - 2, 1)
    at = (torch.arange(n, device=device)[:, None] + offset).remainder(period)
    at = torch.minimum(at, period - at)
    matrix = torch.zeros(n, n, dtype=torch.float64, device=device)
    return matrix.scatter_add_(1, at, weight.expand(n, -1)).to(torch.float32)


_kept_blur_matrix = functools.lru_cache(maxsize=16)(_blur_matrix)
