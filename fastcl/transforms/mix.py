"""Mixes of an image with its neighbour in the batch, with torchvision.transforms.v2's names and arguments."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fastcl.ops.augment_table import PARAM_NAMES
from fastcl.transforms.compose import Compose, OwnDraws, as_batch, size_of
from fastcl.transforms.passes import Pass, Size

_TRIES = 8  # of a gamma's draw; all fail once in 10^10
_GAMMA_DRAWS = 3 * _TRIES + 1


class _Mix(OwnDraws):
    needs_batch = True
    blocks = -(-(1 + 2 * _GAMMA_DRAWS + 2) // 4)

    def __init__(self, *, alpha: float = 1.0, num_classes: int | None = None, labels_getter: Any = "default") -> None:
        owner = type(self).__name__
        if not 0 < alpha < math.inf:
            raise ValueError(f"{owner}: alpha must be positive, got {alpha}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"{owner}: num_classes must be positive, got {num_classes}")
        if labels_getter != "default":
            raise ValueError(f"{owner}: labels_getter must be 'default' (labels are the second argument)")
        self.alpha, self.num_classes = float(alpha), num_classes

    def __call__(  # type: ignore[override]  # the labels second, as torchvision's callers have them
        self, images: Any, labels: Tensor | None = None, index: Any = None, epoch: int = 0, view: int = 0
    ) -> Any:
        """Mixes a batch, and its labels where there are some.

        Args:
            images: uint8 (or float32) [B, C, H, W].
            labels: class numbers, int64 [B], or probabilities [B, classes].
            index: as :meth:`Compose.__call__`.
            epoch: as :meth:`Compose.__call__`.
            view: as :meth:`Compose.__call__`.

        Returns:
            The images; with labels a tuple, the labels then being float32 [B, classes].

        Raises:
            ValueError: for labels that do not fit.
        """
        if self._alone is None:
            self._alone = Compose([type(self)(alpha=self.alpha)])
        batch, _ = as_batch(images)
        numbers, seed = self._alone._numbers(len(batch), index, batch.device)
        params = self._alone._sample(numbers, size_of(batch), seed, epoch, view)
        mixed = self._alone.apply(images, params)
        return mixed if labels is None else (mixed, self.mix_labels(labels, params, (mixed.shape[2], mixed.shape[3])))

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if self.num_classes is not None:
            owner = type(self).__name__
            raise ValueError(f"{owner}: num_classes is for labels, which {owner} mixes only where it is called itself")
        return plan.take_outside(self, p)

    def share(self, params: Tensor, size: Size) -> Tensor:
        """How much of each image is its own, from 0 to 1: float32 [B].

        Args:
            params: the table that :meth:`Compose.sample` gave, float32 [B, columns].
            size: height and width of the images.
        """
        raise NotImplementedError

    def mix_labels(self, labels: Tensor, params: Tensor, size: Size) -> Tensor:
        """Mixes labels as a table mixes the images.

        Args:
            labels: class numbers, int64 [B], or probabilities [B, classes].
            params: see :meth:`share`.
            size: see :meth:`share`.

        Returns:
            Probabilities, [B, classes].

        Raises:
            ValueError: for labels that do not fit.
        """
        owner = type(self).__name__
        if labels.dim() not in (1, 2) or len(labels) != len(params):
            raise ValueError(
                f"{owner}: labels must be [{len(params)}] or [{len(params)}, classes], got {list(labels.shape)}"
            )
        if labels.dim() == 1:
            if self.num_classes is None:
                raise ValueError(f"{owner}: num_classes must be given where labels are class numbers")
            labels = torch.nn.functional.one_hot(labels, self.num_classes)
        elif self.num_classes is not None and labels.shape[1] != self.num_classes:
            raise ValueError(f"{owner}: labels must have num_classes = {self.num_classes}, got {labels.shape[1]}")
        labels = labels if labels.dtype.is_floating_point else labels.float()
        own = self.share(params, size)[:, None].to(labels.dtype)
        return labels.roll(1, 0) * (1 - own) + labels * own

    def outside(self, images: Tensor, params: Tensor, fill: list[float] | None) -> Tensor:
        """See :meth:`OwnDraws.outside`."""
        return self._mixed(images, images.roll(1, 0), params)

    def _mixed(self, images: Tensor, others: Tensor, params: Tensor) -> Tensor:
        raise NotImplementedError

    def _beta(self, u: Tensor) -> Tensor:
        """Beta(alpha, alpha) of numbers in [0, 1), [n, 2 * _GAMMA_DRAWS]: a gamma's share of two."""
        first, second = (self._log_gamma(part) for part in u.split(_GAMMA_DRAWS, 1))
        return torch.sigmoid(first - second)

    def _log_gamma(self, u: Tensor) -> Tensor:
        """The logarithm of a gamma(alpha, 1), [n] (Marsaglia and Tsang 2000; of alpha + 1, then taken down by one)."""
        d = self.alpha + 1 - 1 / 3
        radius = (-2 * (1 - u[:, :_TRIES]).log()).sqrt()
        normal = radius * (2 * math.pi * u[:, _TRIES : 2 * _TRIES]).cos()
        v = (1 + normal / math.sqrt(9 * d)) ** 3
        log_v = v.clamp_min(1e-300).log()
        accepted = (v > 0) & ((1 - u[:, 2 * _TRIES : 3 * _TRIES]).log() < normal**2 / 2 + d * (1 - v + log_v))
        first = accepted.to(torch.int8).argmax(1, keepdim=True)
        return math.log(d) + log_v.gather(1, first)[:, 0] + (1 - u[:, -1]).log() / self.alpha


class MixUp(_Mix):
    """Blends each image with the one before it in the batch, the first with the last (Zhang et al. 2018).

    As torchvision's, but every image draws its own weight from Beta(alpha, alpha). What an image is blended with
    depends on the batch. Labels are mixed where it is called by itself, not in a
    :class:`Compose` or another container, which take no `num_classes`.

    Args:
        alpha: of the Beta distribution.
        num_classes: how many classes there are; needed where labels are class numbers.
        labels_getter: ``"default"``.
    """

    columns = MappingProxyType({"mixup_share": 1.0})

    def draw(self, u: Tensor, table: Tensor, size: Size) -> Tensor:
        """See :meth:`OwnDraws.draw`."""
        share = self._beta(u[:, : 2 * _GAMMA_DRAWS])[:, None]
        return torch.cat([table[:, : len(PARAM_NAMES)], share.to(table.dtype)], 1)

    def share(self, params: Tensor, size: Size) -> Tensor:
        """See :meth:`_Mix.share`."""
        return params[:, -1]

    def _mixed(self, images: Tensor, others: Tensor, params: Tensor) -> Tensor:
        own = params[:, 0, None, None, None].to(images.dtype)
        return others * (1 - own) + images * own


class CutMix(_Mix):
    """Puts a box of the image before it in the batch into each image, of the last into the first (Yun et al. 2019).

    As torchvision's, but every image draws its own box: its area is what a draw from Beta(alpha, alpha) leaves of the
    image's, where it does not reach over the border. What an image gets depends on the batch. Labels are
    mixed by the box's area where it is called by itself, not in a :class:`Compose` or another container, which take no
    `num_classes`.

    Args:
        alpha: of the Beta distribution.
        num_classes: how many classes there are; needed where labels are class numbers.
        labels_getter: ``"default"``.
    """

    columns = MappingProxyType({"cutmix_top": 0.0, "cutmix_left": 0.0, "cutmix_bottom": 0.0, "cutmix_right": 0.0})

    def draw(self, u: Tensor, table: Tensor, size: Size) -> Tensor:
        """See :meth:`OwnDraws.draw`."""
        half = 0.5 * (1 - self._beta(u[:, : 2 * _GAMMA_DRAWS])).sqrt()
        box = []
        for axis, side in enumerate(size):
            middle, reach = torch.floor(u[:, 2 * _GAMMA_DRAWS + axis] * side), torch.floor(half * side)
            box.append(((middle - reach).clamp_min(0), (middle + reach).clamp_max(side)))
        (top, bottom), (left, right) = box
        columns = torch.stack([top, left, bottom, right], dim=1).to(table.dtype)
        return torch.cat([table[:, : len(PARAM_NAMES)], columns], 1)

    def share(self, params: Tensor, size: Size) -> Tensor:
        """See :meth:`_Mix.share`."""
        top, left, bottom, right = params[:, -4:].unbind(1)
        return 1 - (bottom - top) * (right - left) / (size[0] * size[1])

    def _mixed(self, images: Tensor, others: Tensor, params: Tensor) -> Tensor:
        top, left, bottom, right = params[:, :, None, None].unbind(1)
        y = torch.arange(images.shape[2], device=images.device)[None, :, None]
        x = torch.arange(images.shape[3], device=images.device)[None, None]
        box = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        return torch.where(box[:, None], others, images)
