"""From a torchvision or lightly pipeline to fastcl's: :func:`convert`.

Nothing of torchvision or lightly is imported: transforms are recognised by the names of their classes, which v1, v2 and
lightly share, and read by their attributes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastcl import transforms as T

# What only moves an image from one container to another.
_CONTAINERS = ("ToImage", "PILToTensor", "ToPureTensor", "ToPILImage", "Identity")
_SAME_NAME = (
    *("CenterCrop", "ColorJitter", "GaussianBlur", "Normalize", "RandomAffine", "RandomGrayscale"),
    *("RandomHorizontalFlip", "RandomResizedCrop", "RandomRotation", "RandomSolarize", "RandomVerticalFlip", "Resize"),
    *("RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize", "RandomInvert", "RandomPerspective"),
    *("RandomErasing", "RandomPosterize", "ElasticTransform", "RandAugment", "TrivialAugmentWide", "MixUp", "CutMix"),
)


@dataclass(frozen=True)
class Conversion:
    """What :func:`convert` made of a pipeline.

    Attributes:
        transform: fastcl's: one view, or several where the pipeline gives several.
        differences: where its results differ from the pipeline's by more than rounding.
        left_out: the pipeline's transforms that have no counterpart and were left out.
    """

    transform: T.Compose | T.MultiViewTransform
    differences: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def passes(self) -> int:
        """Fused passes over the images, of all views together."""
        if isinstance(self.transform, T.Compose):
            return len(self.transform.passes)
        return sum(len(view.passes) * count for view, count in self.transform.groups)

    @property
    def not_fused(self) -> tuple[str, ...]:
        """What could not join the pass before it: each transform that begins a further pass, and which one."""
        transform = self.transform
        views = [transform] if isinstance(transform, T.Compose) else [view for view, _ in transform.groups]
        begun = [
            f"{plan.transforms[0]} begins pass {number}"
            for view in views
            for number, plan in enumerate(view.passes[1:], 2)
        ]
        return tuple(dict.fromkeys(begun))


def convert(pipeline: Any, *, seed: int | None = None, strict: bool = True) -> Conversion:
    """Turns an existing pipeline into fastcl's, as far as it goes.

    Args:
        pipeline: a ``Compose`` (or one transform) of torchvision.transforms or torchvision.transforms.v2, or a
            transform of lightly, of one view or several.
        seed: as :class:`fastcl.transforms.Compose`'s.
        strict: whether a transform without counterpart is an error; else it is left out and listed.

    Returns:
        The :class:`Conversion`. ``print(conversion.transform)`` shows how it was fused, and ``not_fused`` what was not.

    Raises:
        ValueError: for transforms without counterpart, all of them named, unless ``strict`` is False.
    """
    reader = _Reader()
    if type(pipeline).__name__ != "Compose" and isinstance(getattr(pipeline, "transforms", None), (list, tuple)):
        views = list(pipeline.transforms)
        if type(pipeline).__name__ in ("RandomApply", "RandomChoice", "RandomOrder"):
            views = [pipeline]
    else:
        views = [pipeline]
    groups: list[tuple[T.Compose, int]] = []
    for number, view in enumerate(views):
        if number and view is views[number - 1]:
            groups[-1] = (groups[-1][0], groups[-1][1] + 1)
            continue
        compose = T.Compose(reader.steps(view), seed=groups[0][0].seed if groups else seed)
        groups.append((compose, 1))
    if strict and reader.left_out:
        raise ValueError(f"convert: no counterpart for {'; '.join(dict.fromkeys(reader.left_out))}")
    transform = groups[0][0] if len(views) == 1 else T.MultiViewTransform(groups)
    return Conversion(transform, tuple(dict.fromkeys(reader.differences)), tuple(dict.fromkeys(reader.left_out)))


class _Reader:
    """Reads a pipeline, keeping count of what does not carry over."""

    def __init__(self) -> None:
        self.differences: list[str] = []
        self.left_out: list[str] = []

    def steps(self, theirs: Any) -> list[T.Transform]:
        """The counterparts of one transform of theirs, in order."""
        name = type(theirs).__name__
        try:
            return self._steps(name, theirs)
        except (AttributeError, TypeError, ValueError) as error:
            self.left_out.append(f"{name} ({error})")
            return []

    def _steps(self, name: str, theirs: Any) -> list[T.Transform]:
        special: dict[str, Callable[[], list[T.Transform]]] = {
            "Compose": lambda: [step for part in theirs.transforms for step in self.steps(part)],
            "RandomApply": lambda: self._chance(theirs.transforms, theirs.p),
            "RandomChoice": lambda: [T.RandomChoice([self._one(part) for part in theirs.transforms], theirs.p)],
            "RandomOrder": lambda: [T.RandomOrder([self._one(part) for part in theirs.transforms])],
            "Grayscale": lambda: self._grayscale(theirs.num_output_channels),
            "ToTensor": lambda: [T.ToDtype(torch.float32, scale=True)],
            "ConvertImageDtype": lambda: [T.ToDtype(theirs.dtype, scale=True)],
            "ToDtype": lambda: [T.ToDtype(theirs.dtype, scale=theirs.scale)],
            "RandomSolarization": lambda: [T.RandomSolarize(theirs.threshold, theirs.prob)],
            "RandomRotate": lambda: [T.RandomApply([T.RandomRotation((theirs.angle, theirs.angle))], theirs.prob)],
            "RandomRotateDegrees": lambda: self.steps(theirs.transform),
        }
        if name in _CONTAINERS:
            return []
        if name in special:
            return special[name]()
        if name == "GaussianBlur" and hasattr(theirs, "sigmas"):  # lightly's
            self.differences.append("GaussianBlur: a true Gaussian instead of PIL's approximation")
            return [T.RandomApply([T.GaussianBlur(None, theirs.sigmas)], theirs.prob)]
        if name in _SAME_NAME:
            return [self._same(name, theirs)]
        if name.endswith("Transform") and "transform" in getattr(theirs, "__dict__", ()):  # lightly's views
            return self.steps(theirs.transform)
        raise TypeError("not known")

    def _same(self, name: str, theirs: Any) -> T.Transform:
        """The transform of the same name, from attributes of the arguments' names."""
        kind = getattr(T, name)
        given = {
            argument: getattr(theirs, argument)
            for argument in inspect.signature(kind).parameters
            if hasattr(theirs, argument)
        }
        if name in ("RandomResizedCrop", "Resize"):
            mode = str(getattr(given["interpolation"], "value", given["interpolation"]))
            if mode not in ("bilinear", "bicubic"):
                self.differences.append(f"{name}: bilinear instead of {mode} interpolation")
                mode = "bilinear"
            if given.get("antialias") is False:
                self.differences.append(f"{name}: with antialias")
            given |= {"interpolation": mode, "antialias": True}
        if name == "RandomErasing" and given["value"] is None:  # v2's way to say noise
            given["value"] = "random"
        if name in ("MixUp", "CutMix"):
            given.pop("num_classes")
            self.differences.append(f"{name}: a draw for each image, not for the batch; no labels")
        transform: T.Transform = kind(**given)
        return transform

    def _grayscale(self, channels: int) -> list[T.Transform]:
        if channels != 3:
            raise ValueError("num_output_channels must be 3")
        return [T.RandomGrayscale(1.0)]

    def _one(self, theirs: Any) -> Any:
        """One transform as one, also where several stand in for it."""
        steps = self.steps(theirs)
        return steps[0] if len(steps) == 1 else T.Compose(steps, seed=0)

    def _chance(self, theirs: Sequence[Any], p: float) -> list[T.Transform]:
        """RandomApply of what is left of theirs."""
        steps = [step for part in theirs for step in self.steps(part)]
        return [T.RandomApply(steps, p)] if steps else []
