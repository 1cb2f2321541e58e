"""SimCLR's views (Chen et al. 2020, appendix A) with lightly's arguments."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastcl.transforms.compose import Compose, Transform
from fastcl.transforms.single import (
    ColorJitter,
    GaussianBlur,
    Normalize,
    RandomApply,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    ToDtype,
)

IMAGENET_NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class SimCLRTransform:
    """Two views of each image: crop, flips, rotation, jitter, grayscale, blur, normalise; one fused pass per view.

    Arguments and defaults are lightly's; the blur is a true Gaussian where lightly's is PIL's approximation.

    Args:
        input_size: height and width of the views, in pixels.
        cj_prob: probability of the colour jitter.
        cj_strength: what the four below are multiplied by.
        cj_bright: brightness of the jitter.
        cj_contrast: contrast of the jitter.
        cj_sat: saturation of the jitter.
        cj_hue: hue of the jitter.
        min_scale: least area of the crop, as a share of the image's.
        random_gray_scale: probability of grayscale.
        gaussian_blur: probability of blur.
        kernel_size: has no effect (as in lightly, where it is deprecated).
        sigmas: range of the blur's standard deviation, in pixels.
        vf_prob: probability of a vertical flip.
        hf_prob: probability of a horizontal flip.
        rr_prob: probability of a rotation.
        rr_degrees: range of the rotation's angle; None is 90 degrees.
        normalize: ``{"mean": ..., "std": ...}``; None gives values from 0 to 1.
        seed: as :class:`Compose`'s.

    Attributes:
        transform: the :class:`Compose` of one view.
    """

    def __init__(
        self,
        input_size: int = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.8,
        cj_contrast: float = 0.8,
        cj_sat: float = 0.8,
        cj_hue: float = 0.2,
        min_scale: float = 0.08,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.5,
        kernel_size: float | None = None,
        sigmas: tuple[float, float] = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: float | tuple[float, float] | None = None,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET_NORMALIZE,
        *,
        seed: int | None = None,
    ) -> None:
        if kernel_size is not None:
            warnings.warn("SimCLRTransform: kernel_size has no effect, use sigmas", DeprecationWarning, stacklevel=2)
        strengths = [cj_strength * share for share in (cj_bright, cj_contrast, cj_sat, cj_hue)]
        steps: list[Transform] = [
            RandomResizedCrop(input_size, scale=(min_scale, 1.0)),
            RandomHorizontalFlip(hf_prob),
            RandomVerticalFlip(vf_prob),
            RandomApply([RandomRotation((90, 90) if rr_degrees is None else rr_degrees)], rr_prob),
            RandomApply([ColorJitter(*strengths)], cj_prob),
            RandomGrayscale(random_gray_scale),
            RandomApply([GaussianBlur(None, sigmas)], gaussian_blur),
            ToDtype(torch.float32, scale=True),
        ]
        if normalize:
            steps.append(Normalize(normalize["mean"], normalize["std"]))
        self.transform = Compose(steps, seed=seed)

    def __call__(
        self, images: Any, index: Any = None, epoch: int = 0, *, out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Draws two views of every image.

        Args:
            images: as :meth:`Compose.__call__`.
            index: as :meth:`Compose.__call__`.
            epoch: as :meth:`Compose.__call__`.
            out: as :meth:`Compose.views`.

        Returns:
            [view0, view1], each [B, C, input_size, input_size] float32 (without B for one image).
        """
        return self.transform.views(images, 2, index, epoch, out=out)

    def __repr__(self) -> str:
        return f"SimCLRTransform(two views of {self.transform!r})"
