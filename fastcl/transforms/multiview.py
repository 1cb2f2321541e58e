"""Views for self-supervised learning with lightly's arguments: SimCLR, MoCo, BYOL, DINO.

SimCLR: Chen et al. 2020, appendix A. MoCo: He et al. 2020; Chen et al. 2020, "Improved baselines". BYOL: Grill et al.
2020, appendix B. DINO: Caron et al. 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastcl.transforms.compose import Compose, Transform, draw_views
from fastcl.transforms.containers import RandomApply
from fastcl.transforms.single import (
    ColorJitter,
    GaussianBlur,
    Normalize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomSolarize,
    RandomVerticalFlip,
    ToDtype,
)

IMAGENET_NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def _view(arguments: Mapping[str, Any], **changes: Any) -> list[Transform]:
    """The transforms of one view from lightly's arguments by name; others among them are not looked at."""
    a = SimpleNamespace(**{"solarization_prob": 0.0, "interpolation": "bilinear", **arguments, **changes})
    scale = a.scale if hasattr(a, "scale") else (a.min_scale, 1.0)
    jitter = ColorJitter(*(a.cj_strength * share for share in (a.cj_bright, a.cj_contrast, a.cj_sat, a.cj_hue)))
    steps: list[Transform] = [
        RandomResizedCrop(a.input_size, scale=scale, interpolation=a.interpolation),
        RandomHorizontalFlip(a.hf_prob),
        RandomVerticalFlip(a.vf_prob),
        RandomApply([RandomRotation((90, 90) if a.rr_degrees is None else a.rr_degrees)], a.rr_prob),
        RandomApply([jitter], a.cj_prob),
        RandomGrayscale(a.random_gray_scale),
        RandomApply([GaussianBlur(None, a.sigmas)], a.gaussian_blur),
        RandomSolarize(128, a.solarization_prob),
        ToDtype(torch.float32, scale=True),
    ]
    return [*steps, Normalize(a.normalize["mean"], a.normalize["std"])] if a.normalize else steps


def _arguments(of_init: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments among an ``__init__``'s locals."""
    return {name: value for name, value in of_init.items() if name not in ("self", "__class__")}


class MultiViewTransform:
    """Several views of each image, which may be of different kinds.

    Args:
        groups: (the :class:`Compose` of a view, how many such views) each.

    Attributes:
        groups: as given.
    """

    def __init__(self, groups: Sequence[tuple[Compose, int]]) -> None:
        self.groups = list(groups)

    def __call__(
        self, images: Any, index: Any = None, epoch: int = 0, *, out: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Draws every view of every image.

        Args:
            images: as :meth:`Compose.__call__`.
            index: as :meth:`Compose.__call__`.
            epoch: as :meth:`Compose.__call__`.
            out: one tensor for each view, as :meth:`Compose.__call__`'s.

        Returns:
            The views in the groups' order, each [B, C, height, width] (without B for one image).
        """
        views = self.numbered_views()
        if out is not None and len(out) != len(views):
            raise ValueError(f"{type(self).__name__}: out must have {len(views)} tensors, got {len(out)}")
        return draw_views(views, images, index, epoch, out)

    def numbered_views(self) -> list[tuple[Compose, int]]:
        """The :class:`Compose` of each view in turn, and the view's number."""
        views = [transform for transform, number in self.groups for _ in range(number)]
        return [(transform, number) for number, transform in enumerate(views)]

    def __repr__(self) -> str:
        parts = "; ".join(f"{number} view{'s' * (number > 1)} of {transform!r}" for transform, number in self.groups)
        return f"{type(self).__name__}({parts})"


class SimCLRTransform(MultiViewTransform):
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
        sigmas: tuple[float, float] = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: float | tuple[float, float] | None = None,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET_NORMALIZE,
        *,
        seed: int | None = None,
    ) -> None:
        self.transform = Compose(_view(locals()), seed=seed)
        super().__init__([(self.transform, 2)])


class MoCoV1Transform(SimCLRTransform):
    """MoCo's two views: :class:`SimCLRTransform` with lightly's defaults for MoCo v1."""

    def __init__(
        self,
        input_size: int = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.4,
        cj_contrast: float = 0.4,
        cj_sat: float = 0.4,
        cj_hue: float = 0.4,
        min_scale: float = 0.2,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.0,
        sigmas: tuple[float, float] = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: float | tuple[float, float] | None = None,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET_NORMALIZE,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(**_arguments(locals()))


class MoCoV2Transform(SimCLRTransform):
    """MoCo v2's two views: :class:`SimCLRTransform` with lightly's defaults for MoCo v2."""

    def __init__(
        self,
        input_size: int = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.4,
        cj_contrast: float = 0.4,
        cj_sat: float = 0.4,
        cj_hue: float = 0.1,
        min_scale: float = 0.2,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.5,
        sigmas: tuple[float, float] = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: float | tuple[float, float] | None = None,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET_NORMALIZE,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(**_arguments(locals()))


class BYOLView1Transform(Compose):
    """BYOL's first view; arguments as :class:`SimCLRTransform`'s, and the probability of solarization."""

    def __init__(
        self,
        input_size: int = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.4,
        cj_contrast: float = 0.4,
        cj_sat: float = 0.2,
        cj_hue: float = 0.1,
        min_scale: float = 0.08,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 1.0,
        solarization_prob: float = 0.0,
        sigmas: tuple[float, float] = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: float | tuple[float, float] | None = None,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET_NORMALIZE,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(_view(locals()), seed=seed)


class BYOLView2Transform(Compose):
    """BYOL's second view; arguments as :class:`BYOLView1Transform`'s."""

    def __init__(
        self,
        input_size: int = 224,
        cj_prob: float = 0.8,
        cj_strength: float = 1.0,
        cj_bright: float = 0.4,
        cj_contrast: float = 0.4,
        cj_sat: float = 0.2,
        cj_hue: float = 0.1,
        min_scale: float = 0.08,
        random_gray_scale: float = 0.2,
        gaussian_blur: float = 0.1,
        solarization_prob: float = 0.2,
        sigmas: tuple[float, float] = (0.1, 2),
        vf_prob: float = 0.0,
        hf_prob: float = 0.5,
        rr_prob: float = 0.0,
        rr_degrees: float | tuple[float, float] | None = None,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET_NORMALIZE,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(_view(locals()), seed=seed)


class BYOLTransform(MultiViewTransform):
    """BYOL's two views, which differ in how often they are blurred and solarized.

    Args:
        view_1_transform: of the first view; by default ``BYOLView1Transform()``.
        view_2_transform: of the second view; by default ``BYOLView2Transform()``.
        seed: of the views that are not given.
    """

    def __init__(
        self,
        view_1_transform: Compose | None = None,
        view_2_transform: Compose | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        first = view_1_transform or BYOLView1Transform(seed=seed)
        second = view_2_transform or BYOLView2Transform(seed=first.seed if seed is None else seed)
        super().__init__([(first, 1), (second, 1)])


class DINOTransform(MultiViewTransform):
    """DINO's two global views, of which the second may be solarized, and its smaller local views.

    ``cj_strength`` holds for all views, where lightly's second global view ignores it.

    Args:
        global_crop_size: height and width of the global views, in pixels.
        global_crop_scale: range of the global crops' area, as a share of the image's.
        local_crop_size: height and width of the local views, in pixels.
        local_crop_scale: range of the local crops' area.
        n_local_views: how many local views.
        hf_prob: as :class:`SimCLRTransform`'s, as are those below that are not described.
        vf_prob: see hf_prob.
        rr_prob: see hf_prob.
        rr_degrees: see hf_prob.
        cj_prob: see hf_prob.
        cj_strength: see hf_prob.
        cj_bright: see hf_prob.
        cj_contrast: see hf_prob.
        cj_sat: see hf_prob.
        cj_hue: see hf_prob.
        random_gray_scale: see hf_prob.
        gaussian_blur: probabilities of blur in the first global, the second global and the local views.
        sigmas: see hf_prob.
        solarization_prob: of the second global view.
        normalize: see hf_prob.
        seed: as :class:`Compose`'s.
    """

    def __init__(
        self,
        global_crop_size: int = 224,
        global_crop_scale: tuple[float, float] = (0.4, 1.0),
        local_crop_size: int = 96,
        local_crop_scale: tuple[float, float] = (0.05, 0.4),
        n_local_views: int = 6,
        hf_prob: float = 0.5,
        vf_prob: float = 0,
        rr_prob: float = 0,
        rr_degrees: float | tuple[float, float] | None = None,
        cj_prob: float = 0.8,
        cj_strength: float = 0.5,
        cj_bright: float = 0.8,
        cj_contrast: float = 0.8,
        cj_sat: float = 0.4,
        cj_hue: float = 0.2,
        random_gray_scale: float = 0.2,
        gaussian_blur: tuple[float, float, float] = (1.0, 0.1, 0.5),
        sigmas: tuple[float, float] = (0.1, 2),
        solarization_prob: float = 0.2,
        normalize: Mapping[str, Sequence[float]] | None = IMAGENET_NORMALIZE,
        *,
        seed: int | None = None,
    ) -> None:
        arguments = {**locals(), "interpolation": "bicubic", "solarization_prob": 0.0}
        whole = {"input_size": global_crop_size, "scale": global_crop_scale}
        part = {"input_size": local_crop_size, "scale": local_crop_scale}
        kinds = (
            _view(arguments, **whole, gaussian_blur=gaussian_blur[0]),
            _view(arguments, **whole, gaussian_blur=gaussian_blur[1], solarization_prob=solarization_prob),
            _view(arguments, **part, gaussian_blur=gaussian_blur[2]),
        )
        first = Compose(kinds[0], seed=seed)
        second, local = (Compose(steps, seed=first.seed) for steps in kinds[1:])
        super().__init__([(first, 1), (second, 1), (local, n_local_views)])
