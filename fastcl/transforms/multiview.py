"""Views for self-supervised learning with lightly's arguments: SimCLR, MoCo, BYOL, DINO.

SimCLR: Chen et al. 2020, appendix A. MoCo: He et al. 2020; Chen et al. 2020, "Improved baselines". BYOL: Grill et al.
2020, appendix B. DINO: Caron et al. 2021.
"""

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
    RandomSolarize,
    RandomVerticalFlip,
    ToDtype,
)

IMAGENET_NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def _view(
    size: int,
    scale: tuple[float, float],
    jitter: tuple[float, float, float, float, float],
    jitter_p: float,
    grayscale_p: float,
    blur_p: float,
    sigmas: tuple[float, float],
    solarize_p: float,
    hflip_p: float,
    vflip_p: float,
    rotation_p: float,
    rotation: float | tuple[float, float] | None,
    normalize: Mapping[str, Sequence[float]] | None,
) -> list[Transform]:
    """The transforms of one view. `jitter`: strength, then the four that it multiplies."""
    steps: list[Transform] = [
        RandomResizedCrop(size, scale=scale),
        RandomHorizontalFlip(hflip_p),
        RandomVerticalFlip(vflip_p),
        RandomApply([RandomRotation((90, 90) if rotation is None else rotation)], rotation_p),
        RandomApply([ColorJitter(*(jitter[0] * share for share in jitter[1:]))], jitter_p),
        RandomGrayscale(grayscale_p),
        RandomApply([GaussianBlur(None, sigmas)], blur_p),
        RandomSolarize(128, solarize_p),
        ToDtype(torch.float32, scale=True),
    ]
    return [*steps, Normalize(normalize["mean"], normalize["std"])] if normalize else steps


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
        count = sum(number for _, number in self.groups)
        if out is not None and len(out) != count:
            raise ValueError(f"{type(self).__name__}: out must have {count} tensors, got {len(out)}")
        views: list[Tensor] = []
        for transform, number in self.groups:
            first = len(views)
            into = None if out is None else out[first : first + number]
            views += transform.views(images, number, index, epoch, first=first, out=into)
        return views

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
        kernel_size: has no effect (as in lightly up to 1.5, where it is deprecated).
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
        jitter = (cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue)
        steps = _view(
            input_size,
            (min_scale, 1.0),
            jitter,
            cj_prob,
            random_gray_scale,
            gaussian_blur,
            sigmas,
            0.0,
            hf_prob,
            vf_prob,
            rr_prob,
            rr_degrees,
            normalize,
        )
        self.transform = Compose(steps, seed=seed)
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
        super().__init__(
            input_size,
            cj_prob,
            cj_strength,
            cj_bright,
            cj_contrast,
            cj_sat,
            cj_hue,
            min_scale,
            random_gray_scale,
            gaussian_blur,
            None,
            sigmas,
            vf_prob,
            hf_prob,
            rr_prob,
            rr_degrees,
            normalize,
            seed=seed,
        )


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
        super().__init__(
            input_size,
            cj_prob,
            cj_strength,
            cj_bright,
            cj_contrast,
            cj_sat,
            cj_hue,
            min_scale,
            random_gray_scale,
            gaussian_blur,
            None,
            sigmas,
            vf_prob,
            hf_prob,
            rr_prob,
            rr_degrees,
            normalize,
            seed=seed,
        )


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
        jitter = (cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue)
        steps = _view(
            input_size,
            (min_scale, 1.0),
            jitter,
            cj_prob,
            random_gray_scale,
            gaussian_blur,
            sigmas,
            solarization_prob,
            hf_prob,
            vf_prob,
            rr_prob,
            rr_degrees,
            normalize,
        )
        super().__init__(steps, seed=seed)


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
        jitter = (cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue)
        steps = _view(
            input_size,
            (min_scale, 1.0),
            jitter,
            cj_prob,
            random_gray_scale,
            gaussian_blur,
            sigmas,
            solarization_prob,
            hf_prob,
            vf_prob,
            rr_prob,
            rr_degrees,
            normalize,
        )
        super().__init__(steps, seed=seed)


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

    Crops are resized bilinearly, where lightly's are bicubic; ``cj_strength`` holds for all views, where lightly's
    second global view ignores it.

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
        jitter = (cj_strength, cj_bright, cj_contrast, cj_sat, cj_hue)

        def view(size: int, scale: tuple[float, float], blur_p: float, solarize_p: float, seed: int | None) -> Compose:
            steps = _view(
                size,
                scale,
                jitter,
                cj_prob,
                random_gray_scale,
                blur_p,
                sigmas,
                solarize_p,
                hf_prob,
                vf_prob,
                rr_prob,
                rr_degrees,
                normalize,
            )
            return Compose(steps, seed=seed)

        first = view(global_crop_size, global_crop_scale, gaussian_blur[0], 0.0, seed)
        second = view(global_crop_size, global_crop_scale, gaussian_blur[1], solarization_prob, first.seed)
        local = view(local_crop_size, local_crop_scale, gaussian_blur[2], 0.0, first.seed)
        super().__init__([(first, 1), (second, 1), (local, n_local_views)])
