"""One fused pass: what transforms put into it, and the recipes that it is drawn from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastcl.ops.augment_table import FLIP_AT, IDENTITY_RECIPE, PARAM_NAMES, RECIPE_NAMES

if TYPE_CHECKING:
    from fastcl.transforms.compose import OwnDraws, Transform

Size = tuple[int, int]  # height, width
# The order of a pass. Flips stand before the warp or after the quarter turns, and commute with all but geometry and
# erase.
STAGES = (
    *("crop", "warp", "rot90", "jitter", "grayscale", "blur", "sharpen", "invert", "posterize", "solarize"),
    *("autocontrast", "equalize", "normalize", "erase"),
)
_MOST_VARIANTS = 64  # recipes of one pass


@dataclass
class Branching:
    """A draw between alternatives for each image, and what each of them adds to a pass.

    Attributes:
        number: of the draw.
        weights: the alternatives' probabilities.
        before: the stages that were taken before.
        recipes: entries that an alternative changes.
        has: the stages that an alternative takes.
    """

    number: int
    weights: list[float]
    before: set[str]
    recipes: list[dict[str, float]]
    has: list[set[str]]


@dataclass(frozen=True)
class Own:
    """A transform of a pass that draws by itself.

    Attributes:
        transform: the transform.
        p: its probability.
        floats: whether a ToDtype stands before it.
        when: the place of a branching in the pass, and its alternative for which it happens; None for all images.
    """

    transform: OwnDraws
    p: float
    floats: bool
    when: tuple[int, int] | None = None


@dataclass
class Pass:
    """One fused pass: what transforms have put into it. They add themselves in order; see :meth:`Transform.add_to`.

    Attributes:
        recipe: entries of RECIPE_NAMES that differ from the identity's.
        size: of the output, or what gives it for an input's; None keeps it.
        interpolation: of the warp.
        resize: the crop's interpolation.
        fill: what the warp shows outside the image, in the units of the images where it stands.
        warps_floats: whether a ToDtype stands before the warp.
        mean: of the normalisation, with std; None for none.
        std: see mean.
        dtype: of the output; None keeps the input's.
        unscaled: whether uint8 becomes floats from 0 to 255 instead of 0 to 1.
        erase: what an erased box shows, in the units of the images where it stands.
        transforms: what is in it.
        has: the stages that are taken, for some images at least.
        branchings: what differs from image to image beyond the recipe's own draws.
        own: transforms that write into the drawn table.
        outside: a transform that comes before the fused op; its columns follow the op's.
    """

    recipe: dict[str, float] = field(default_factory=dict)
    size: Callable[[Size], Size] | Size | None = None
    interpolation: str = "nearest"
    resize: str = "bilinear"
    fill: list[float] | None = None
    warps_floats: bool = False
    mean: list[float] | None = None
    std: list[float] | None = None
    dtype: torch.dtype | None = None
    unscaled: bool = False
    erase: list[float] | None = None
    transforms: list[Transform] = field(default_factory=list)
    has: set[str] = field(default_factory=set)
    branchings: list[Branching] = field(default_factory=list)
    own: list[Own] = field(default_factory=list)
    outside: Own | None = None

    @property
    def param_names(self) -> tuple[str, ...]:
        """The columns of its table."""
        return (*PARAM_NAMES, *(self.outside.transform.columns if self.outside else ()))

    def take(self, stage: str, commutes: Sequence[str] = ()) -> bool:
        """Takes a stage for a transform, unless it or a later one that it does not commute with is taken."""
        if self.has & {*STAGES[STAGES.index(stage) :]} - {*commutes}:
            return False
        self.has.add(stage)
        return True

    def take_flip(self, name: str, p: float) -> bool:
        """Takes a flip: it commutes with all that is not geometry, and crop and warp can absorb it."""
        if self.has & {name, "erase"}:
            return False
        at = "after_warp" if self.has & {"warp", "rot90"} else "after_crop"
        self.has |= {name, "late_flip"} if at == "after_warp" else {name}
        self.recipe |= {f"{name}_p": p, f"{name}_at": float(FLIP_AT.index(at))}
        return True

    def take_warp(self, interpolation: str, fill: float | Sequence[float] | None) -> bool:
        """Takes the warp."""
        if not self.take("warp"):
            return False
        self.interpolation, self.fill, self.warps_floats = interpolation, as_list(fill), self.floats
        return True

    def take_own(self, transform: OwnDraws, p: float) -> None:
        """Lets a transform that has taken its stages write into the drawn table."""
        self.own.append(Own(transform, p, self.floats))

    def take_outside(self, transform: OwnDraws, p: float) -> bool:
        """Takes what comes before the fused op: nothing may have gone before."""
        if self.has or self.outside:
            return False
        self.has.add("outside")
        self.outside = Own(transform, p, self.floats)
        return True

    @property
    def floats(self) -> bool:
        """Whether uint8 images have become floats so far."""
        return self.dtype is not None and self.dtype != torch.uint8

    def take_crop(self, size: Callable[[Size], Size] | Size) -> bool:
        """Takes the crop or resize: only flips may have gone before."""
        if self.branchings or not self.take("crop"):
            return False
        self.recipe |= {f"{name}_at": float(FLIP_AT.index("before_crop")) for name in ("hflip", "vflip")}
        self.size = size
        return True

    def add_branch(self, branching: Branching, alternative: int, step: Transform) -> bool:
        """Adds a step of one alternative of a branching; False where it cannot follow what is there.

        Raises:
            ValueError: where the step cannot be left to chance.
        """
        own = next((known for known in self.branchings if known.number == branching.number), None)
        if own is None:
            variants = math.prod(len(known.weights) for known in self.branchings) * len(branching.weights)
            if self.branchings and variants > _MOST_VARIANTS:
                return False
            empty = [dict[str, float]() for _ in branching.weights]
            own = replace(branching, before=set(self.has), recipes=empty, has=[set() for _ in branching.weights])
        before = own.before | own.has[alternative]
        trial = replace(self, recipe=self.recipe | own.recipes[alternative], has=before, own=[])
        if not step.add_to(trial):
            return False
        for name in ("size", "mean", "std", "dtype", "unscaled"):
            if getattr(trial, name) != getattr(self, name):
                raise ValueError(f"Compose: {type(step).__name__} cannot be left to chance within a batch")
        for stage, shared in (("warp", ("interpolation", "fill", "warps_floats")), ("erase", ("erase",))):
            others = stage in self.has and stage in trial.has
            if others and any(getattr(trial, name) != getattr(self, name) for name in shared):
                return False
            for name in shared:
                setattr(self, name, getattr(trial, name))
        own.recipes[alternative] = {k: v for k, v in trial.recipe.items() if self.recipe.get(k) != v}
        own.has[alternative] = trial.has - own.before
        self.has |= trial.has
        if own not in self.branchings:
            self.branchings.append(own)
        when = (self.branchings.index(own), alternative)
        self.own += [replace(drawn, when=when) for drawn in trial.own]
        if trial.outside is not self.outside:
            assert trial.outside is not None
            self.outside = replace(trial.outside, when=when)
        return True

    def recipes(self, number: int) -> tuple[Tensor, Tensor]:
        """The different recipes of the pass of this number, and which of them holds for the alternatives drawn.

        Returns:
            float64 [recipes, len(RECIPE_NAMES)], and int64 [len(weights) of each branching].
        """
        rows: list[list[float]] = []
        which = []
        for chosen in itertools.product(*(branching.recipes for branching in self.branchings)):
            values = {**IDENTITY_RECIPE, **self.recipe, "pass": float(number)}
            for changes in chosen:
                values |= changes
            row = [values[name] for name in RECIPE_NAMES]
            if row not in rows:
                rows.append(row)
            which.append(rows.index(row))
        shape = [len(branching.weights) for branching in self.branchings]
        return torch.tensor(rows, dtype=torch.float64, device="cpu"), torch.tensor(which, device="cpu").reshape(shape)

    def output_size(self, size: Size | Tensor) -> Size:
        """Height and width that come out where those of `size` go in; a Tensor is a RaggedBatch's shapes.

        Raises:
            ValueError: where images of different sizes stay so.
        """
        if self.outside and isinstance(size, Tensor):
            raise ValueError(
                f"Compose: images of different sizes need a crop or resize before {self.outside.transform}"
            )
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


def as_list(value: float | Sequence[float] | None) -> list[float] | None:
    """One number or one per channel as a list; None stays."""
    if value is None:
        return None
    return [float(value)] if isinstance(value, (int, float)) else [float(v) for v in value]
