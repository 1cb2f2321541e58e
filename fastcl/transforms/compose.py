"""From a list of transforms to as few fused passes as their order allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fastcl.ops.augment import augment_apply, augment_sample
from fastcl.ops.augment_ragged import augment_sample_ragged, augment_views_ragged
from fastcl.ops.augment_table import FLIP_AT, IDENTITY_RECIPE, PARAM_NAMES, RECIPE_NAMES
from fastcl.ragged import RaggedBatch

Size = tuple[int, int]  # height, width


@dataclass
class Pass:
    """One fused pass: what transforms have put into it. They add themselves in order; see :meth:`Transform.add_to`.

    Attributes:
        recipe: entries of RECIPE_NAMES that differ from the identity's.
        size: of the output, or what gives it for an input's; None keeps it.
        interpolation: of the warp.
        fill: what the warp shows outside the image, in the units of the images where it stands.
        warps_floats: whether a ToDtype stands before the warp.
        mean: of the normalisation, with std; None for none.
        std: see mean.
        dtype: of the output; None keeps the input's.
        unscaled: whether uint8 becomes floats from 0 to 255 instead of 0 to 1.
        transforms: what is in it.
        has: the stages that are taken.
    """

    recipe: dict[str, float] = field(default_factory=dict)
    size: Callable[[Size], Size] | Size | None = None
    interpolation: str = "nearest"
    fill: list[float] | None = None
    warps_floats: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    dtype: torch.dtype | None = None
    unscaled: bool = False
    transforms: list[Transform] = field(default_factory=list)
    has: set[str] = field(default_factory=set)

    def take(self, stage: str, after: Sequence[str]) -> bool:
        """Takes a stage for a transform, unless it or one of the stages that it cannot follow is taken."""
        if self.has & {stage, *after}:
            return False
        self.has.add(stage)
        return True

    def take_flip(self, name: str, p: float) -> bool:
        """Takes a flip: it commutes with all that is not geometry, and crop and warp can absorb it."""
        if not self.take(name, ()):
            return False
        at = "after_warp" if "warp" in self.has else "after_crop"
        self.recipe |= {f"{name}_p": p, f"{name}_at": float(FLIP_AT.index(at))}
        return True

    def take_crop(self, size: Callable[[Size], Size] | Size) -> bool:
        """Takes the crop or resize: only flips may have gone before."""
        if not self.take("crop", ("warp", "jitter", "grayscale", "blur", "solarize", "normalize")):
            return False
        self.recipe |= {f"{name}_at": float(FLIP_AT.index("before_crop")) for name in ("hflip", "vflip")}
        self.size = size
        return True

    def recipe_tensor(self, number: int) -> Tensor:
        """The recipe of the pass of this number, float64 [len(RECIPE_NAMES)]."""
        values = {**IDENTITY_RECIPE, **self.recipe, "pass": float(number)}
        return torch.tensor([values[name] for name in RECIPE_NAMES], dtype=torch.float64, device="cpu")

    def output_size(self, size: Size | Tensor) -> Size:
        """Height and width that come out where those of `size` go in; a Tensor is a RaggedBatch's shapes.

        Raises:
            ValueError: where images of different sizes stay so.
        """
        if isinstance(self.size, tuple):
            return self.size
        if not isinstance(size, Tensor):
            return self.size(size) if self.size else size
        sizes = {self.output_size((height, width)) for height, width, _ in size.tolist()}
        if len(sizes) > 1:
            raise ValueError(
                "Compose: images of different sizes need a crop or resize to one (height, width) in their first pass, "
                f"got {len(sizes)} sizes after {self.transforms}"
            )
        return sizes.pop() if sizes else (1, 1)


class Transform:
    """What all transforms share: called alone, one is a :class:`Compose` of itself."""

    _alone: Compose | None = None

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """Adds itself to a pass, to happen with probability `p`; False where it cannot follow what is there.

        Raises:
            ValueError: where it cannot be left to chance and `p` is not 1.
        """
        raise NotImplementedError

    def __call__(self, images: Any, index: Any = None, epoch: int = 0, view: int = 0) -> Tensor:
        """As :meth:`Compose.__call__`; the seed is drawn from torch's global generator at the first call."""
        if self._alone is None:
            self._alone = Compose([self])
        return self._alone(images, index, epoch, view)

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"


def size_of(images: Tensor | RaggedBatch) -> Size | Tensor:
    """Height and width of a batch [B, C, H, W]; the shapes of images of different sizes."""
    return images.shapes if isinstance(images, RaggedBatch) else (images.shape[2], images.shape[3])


def as_batch(images: Any) -> tuple[Tensor | RaggedBatch, bool]:
    """[B, C, H, W] of a batch, one image or a PIL image, and whether it was one image; a RaggedBatch as it is.

    Raises:
        TypeError: for anything else.
        ValueError: for a tensor of other dimensions.
    """
    if isinstance(images, RaggedBatch):
        return images, False
    if not isinstance(images, Tensor) and hasattr(images, "getbands"):  # a PIL image
        import numpy as np

        picture = images if images.mode in ("L", "RGB") else images.convert("RGB")
        images = torch.from_numpy(np.array(picture))
        images = images[None] if images.dim() == 2 else images.permute(2, 0, 1)
    if not isinstance(images, Tensor):
        raise TypeError(f"transforms: images must be a Tensor or a PIL image, got {type(images).__name__}")
    if images.dim() not in (3, 4):
        raise ValueError(f"transforms: images must be [B, C, H, W] or [C, H, W], got {list(images.shape)}")
    return (images[None], True) if images.dim() == 3 else (images, False)


class Compose:
    """Runs transforms one after another, fused into as few passes as their order allows.

    Flips commute with everything but geometry, ToDtype with everything, blur with grayscale. Another pass is needed for
    a second transform of one kind, for geometry after colour, jitter after blur and anything but flips after Normalize.
    The passes hand each other float32, so several give what the transforms give one by one. ``repr`` shows the passes.

    Args:
        transforms: transforms of this package, in order.
        seed: of all draws, 64 bits; by default drawn from torch's global generator, so that
            :func:`torch.manual_seed` makes it reproducible.

    Attributes:
        transforms: as given.
        seed: as given or drawn.
        passes: the fused passes, in order.
        recipe: what may happen, float64 [passes, len(RECIPE_NAMES)].
        param_names: the columns of :meth:`sample`'s table.

    Raises:
        TypeError: for a transform that is not this package's.
        ValueError: for a seed of more than 64 bits.
    """

    def __init__(self, transforms: Sequence[Transform], seed: int | None = None) -> None:
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise TypeError(
                    f"Compose: transforms must be fastcl.transforms', got {type(transform).__module__}."
                    f"{type(transform).__qualname__}"
                )
        self.transforms = list(transforms)
        self.seed = int(torch.randint(2**63 - 1, (), device="cpu").item()) if seed is None else int(seed)
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"Compose: seed must be in [-2^63, 2^63), got {seed}")
        self.passes: list[Pass] = [Pass()]
        for transform in self.transforms:
            if not transform.add_to(self.passes[-1]):
                self.passes.append(Pass())
                transform.add_to(self.passes[-1])
            self.passes[-1].transforms.append(transform)
        self._recipes = [plan.recipe_tensor(number) for number, plan in enumerate(self.passes)]
        self.recipe = torch.stack(self._recipes)
        many = len(self.passes) > 1
        self.param_names = tuple(
            f"pass{number}.{name}" if many else name for number in range(len(self.passes)) for name in PARAM_NAMES
        )
        self._next = torch.zeros(
            (), dtype=torch.int64, device="cpu"
        )  # the sample number of the next image that comes without one

    def __repr__(self) -> str:
        lines = [
            f"  pass {number}: " + (", ".join(map(repr, plan.transforms)) or "nothing")
            for number, plan in enumerate(self.passes, 1)
        ]
        return "\n".join(["Compose(", *lines, f"  seed={self.seed}", ")"])

    def __call__(
        self, images: Any, index: Any = None, epoch: int = 0, view: int = 0, *, out: Tensor | None = None
    ) -> Tensor:
        """Draws for every image and applies.

        Args:
            images: uint8 (or float32 from 0 to 1) [B, C, H, W] or [C, H, W], a PIL image, or images of different sizes
                as a :class:`fastcl.data.RaggedBatch`.
            index: the images' sample numbers in the data set, int64 [B] (one number for one image): the draws then
                depend on (seed, epoch, index, view) alone. Without, a counter runs on, so that each call draws anew.
            epoch: changes all draws.
            view: likewise, for several views of one image.
            out: a contiguous tensor of the result's shape and dtype to write into, as an earlier call gave it: large
                results that are made anew cost as much again in fresh memory.

        Returns:
            [B, C, height, width] or [C, height, width], of the images' dtype, ToDtype's, or float32 after Normalize;
            ``out`` where it was given.
        """
        return self._views(images, [view], index, epoch, None if out is None else [out])[0]

    def views(
        self,
        images: Any,
        count: int,
        index: Any = None,
        epoch: int = 0,
        *,
        first: int = 0,
        out: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Several views of every image: what calls with view = first, first + 1, ... would give for one index.

        Args:
            images: as in a call.
            count: of the views.
            index: as in a call.
            epoch: as in a call.
            first: the first view's number.
            out: one tensor for each view, as in a call.

        Returns:
            ``count`` tensors, as of a call.
        """
        return self._views(images, range(first, first + count), index, epoch, out)

    def sample(self, index: Any, size: Size | Tensor, epoch: int = 0, view: int = 0) -> Tensor:
        """The params table that a call draws.

        Args:
            index: sample numbers, int64 [n], or their count n for 0 to n - 1.
            size: height and width of the images, or a :class:`fastcl.data.RaggedBatch`'s shapes.
            epoch: as in a call.
            view: as in a call.

        Returns:
            float32 [n, len(param_names)].
        """
        index = (
            torch.arange(index, device="cpu") if isinstance(index, int) else torch.as_tensor(index, dtype=torch.int64)
        )
        size = size if isinstance(size, Tensor) else (size[0], size[1])
        return self._sample(index, size, self.seed, epoch, view)

    def apply(self, images: Any, params: Tensor, *, pictures: bool = False, out: Tensor | None = None) -> Tensor:
        """Replays a params table, as :meth:`sample` gave it or edited.

        Args:
            images: as in a call.
            params: float32 [B, len(param_names)].
            pictures: leaves normalisation out and gives uint8, to be looked at.
            out: as in a call.

        Returns:
            As a call.
        """
        batch, single = as_batch(images)
        if params.dim() != 2 or params.shape[1] != len(self.param_names):
            raise ValueError(f"Compose: params must be [B, {len(self.param_names)}], got {list(params.shape)}")
        given = [plan.dtype for plan in self.passes if plan.dtype]
        floating = batch.dtype if batch.dtype != torch.uint8 else torch.float32
        dtype = given[-1] if given else floating if any(plan.mean for plan in self.passes) else batch.dtype
        bytes_in = batch.dtype == torch.uint8
        value: Tensor | RaggedBatch = batch
        for number, (plan, table) in enumerate(zip(self.passes, torch.split(params, len(PARAM_NAMES), 1), strict=True)):
            last = number == len(self.passes) - 1
            # A fill is in the units that the images have where the warp stands in the list; the pass may hold others.
            meant = 255.0 if bytes_in and not plan.warps_floats else 1.0
            held = 255.0 if value.dtype == torch.uint8 else 1.0
            fill = None if plan.fill is None else [value * held / meant for value in plan.fill]
            mean, std = plan.mean, plan.std
            if plan.unscaled and bytes_in:
                mean, std = ([value / 255 for value in values] for values in (mean or [0.0], std or [1.0]))
            if pictures:
                mean = std = None
            bytes_in = bytes_in and not (plan.dtype or plan.mean)
            into = None if out is None or not last else out[None] if single else out
            size = plan.output_size(size_of(value))
            how: dict[str, Any] = {
                "interpolation": plan.interpolation,
                "fill": fill,
                "mean": mean,
                "std": std,
                "dtype": floating if not last else torch.uint8 if pictures else dtype,
            }
            if isinstance(value, RaggedBatch):
                value = augment_views_ragged(value, [table], [size], **how, out=None if into is None else [into])[0]
            else:
                value = augment_apply(value, table, size, **how, out=into)
        if out is not None:
            return out
        assert isinstance(value, Tensor)  # after the first pass
        return value[0] if single else value

    def _views(
        self, images: Any, views: Sequence[int], index: Any, epoch: int, out: Sequence[Tensor] | None
    ) -> list[Tensor]:
        batch, single = as_batch(images)
        if out is not None and len(out) != len(views):
            raise ValueError(f"Compose: out must have one tensor for each of {len(views)} views, got {len(out)}")
        index, seed = self._numbers(len(batch), index, batch.device)
        size = size_of(batch)
        image, given = batch[0] if single else batch, [None] * len(views) if out is None else out
        return [
            self.apply(image, self._sample(index, size, seed, epoch, view), out=into)
            for view, into in zip(views, given, strict=True)
        ]

    def _numbers(self, n: int, index: Any, device: torch.device) -> tuple[Tensor, int]:
        """The sample numbers of a call's images, and the seed."""
        if index is not None:
            numbers = torch.as_tensor(index, dtype=torch.int64, device=device).reshape(-1)
            if len(numbers) != n:
                raise ValueError(f"Compose: index must have one number for each of {n} images, got {len(numbers)}")
            return numbers, self.seed
        numbers = (self._next + torch.arange(n, device="cpu")).to(device)
        self._next += n
        # Each worker of a DataLoader has a copy of the counter; its own seed, new in every epoch, tells them apart.
        worker = None if torch.compiler.is_compiling() else get_worker_info()
        return numbers, self.seed if worker is None else (self.seed + worker.seed) % 2**63

    def _sample(self, index: Tensor, size: Size | Tensor, seed: int, epoch: int, view: int) -> Tensor:
        tables = []
        for plan, recipe in zip(self.passes, self._recipes, strict=True):
            out_size = plan.output_size(size)
            stream = {"seed": seed, "epoch": epoch, "view": view}
            if isinstance(size, Tensor):
                table = augment_sample_ragged(recipe, index, **stream, shapes=size, out_size=out_size)
            else:
                table = augment_sample(recipe, index, **stream, size=size, out_size=out_size)
            tables.append(table)
            size = out_size
        return tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)
