"""From a list of transforms to as few fused passes as their order allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fastcl.ops.augment import _check_images, augment_apply, augment_sample, augment_views
from fastcl.ops.augment_ragged import augment_sample_ragged, augment_views_ragged
from fastcl.ops.augment_table import CROPS, FLIP_AT, IDENTITY_RECIPE, PARAM_NAMES, RECIPE_NAMES, uniforms
from fastcl.ragged import RaggedBatch
from fastcl.transforms.passes import Branching, Pass, Size, as_list

Alternatives = list[tuple[float, list["Transform"]]]  # the probability of each, and what it does in turn
_FLIPS = [PARAM_NAMES.index(name) for name in ("hflip", "vflip")]
_FLIPS_AT = [RECIPE_NAMES.index(name) for name in ("hflip_at", "vflip_at")]
_MAP = slice(PARAM_NAMES.index("map_0"), PARAM_NAMES.index("map_8") + 1)
_OWN_BLOCKS, _OUTSIDE_BLOCKS = 128, 192  # the recipe's draws take the blocks of numbers before
_CACHED_VALUES = 1 << 17  # of images: a few tensors of so many floats stay in the second-level cache


class Transform:
    """What all transforms share: called alone, one is a :class:`Compose` of itself."""

    _alone: Compose | None = None

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """Adds itself to a pass, to happen with probability `p`; False where it cannot follow what is there.

        Raises:
            ValueError: where it cannot be left to chance and `p` is not 1.
        """
        raise NotImplementedError

    def alternatives(self) -> Alternatives:
        """What it may come down to for an image: itself, unless it is a container."""
        return [(1.0, [self])]

    def __call__(self, images: Any, index: Any = None, epoch: int = 0, view: int = 0) -> Tensor:
        """As :meth:`Compose.__call__`; the seed is drawn from torch's global generator at the first call."""
        if self._alone is None:
            self._alone = Compose([self])
        return self._alone(images, index, epoch, view)

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"


class OwnDraws(Transform):
    """A transform that draws by itself and writes what it drew into the table of a pass.

    Attributes:
        columns: names of further columns of the table, and what changes nothing.
        blocks: how many blocks of four numbers it draws from.
        needs_batch: whether an image alone is refused.
    """

    columns: Mapping[str, float] = MappingProxyType({})
    blocks: int = 1
    needs_batch: bool = False

    def draw(self, u: Tensor, table: Tensor, size: Size) -> Tensor:
        """Draws for every image.

        Args:
            u: numbers in [0, 1), float64 [n, 4 * blocks - 1].
            table: the rows as drawn so far, float32 [n, columns].
            size: height and width of the images: of the pass's output, or of its input for what comes before it.

        Returns:
            The rows with its own draws in.
        """
        raise NotImplementedError

    def outside(self, images: Tensor, params: Tensor, fill: list[float] | None) -> Tensor:
        """What one with further columns does to a batch, before the fused op.

        Args:
            images: floats [B, C, H, W].
            params: float32 [B, len(columns)].
            fill: the transform's, in the images' units.

        Returns:
            As the images.
        """
        raise NotImplementedError


def sequence_alternatives(transforms: Sequence[Any]) -> Alternatives:
    """What transforms (or a :class:`Compose` among them), one after another, may come down to for an image."""
    found: Alternatives = [(1.0, [])]
    for transform in transforms:
        parts = (
            sequence_alternatives(transform.transforms) if isinstance(transform, Compose) else transform.alternatives()
        )
        found = [(p * q, steps + more) for p, steps in found for q, more in parts if p * q > 0]
    return found


def require_transforms(owner: str, transforms: Sequence[Any], composes: bool = True) -> list[Any]:
    """The list of them.

    Raises:
        TypeError: for a transform that is not this package's.
    """
    for transform in transforms:
        if not isinstance(transform, Transform) and not (composes and isinstance(transform, Compose)):
            kind = type(transform)
            raise TypeError(
                f"{owner}: transforms must be fastcl.transforms', got {kind.__module__}.{kind.__qualname__}"
            )
    return list(transforms)


def size_of(images: Tensor | RaggedBatch) -> Size | Tensor:
    """Height and width of a batch [B, C, H, W]; the shapes of images of different sizes."""
    return images.whole_shapes if isinstance(images, RaggedBatch) else (images.shape[2], images.shape[3])


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

    One pass runs crop, warp, quarter turns, jitter, grayscale, blur, sharpness, invert, posterize, solarize,
    autocontrast, equalize, normalise and erase, in this order; elastic, spherical and mixing transforms stand before
    them. Flips commute with everything but geometry and erasing, ToDtype with everything but erasing, blur with
    grayscale. Another pass is needed for a second transform of one kind and for every other order. The passes hand each
    other float32, so several give what the transforms give one by one. ``repr`` shows the passes. What RandomChoice,
    RandomOrder and RandomApply draw goes into as few passes as it can.

    Args:
        transforms: transforms of this package, in order.
        seed: of all draws, 64 bits; by default drawn from torch's global generator, so that
            :func:`torch.manual_seed` makes it reproducible.

    Attributes:
        transforms: as given.
        seed: as given or drawn.
        passes: the fused passes, in order.
        recipe: what may happen, float64 [passes, len(RECIPE_NAMES)]; where a container draws what an image goes
            through, a row for each combination.
        param_names: the columns of :meth:`sample`'s table.

    Raises:
        TypeError: for a transform that is not this package's.
        ValueError: for a seed of more than 64 bits.
    """

    def __init__(self, transforms: Sequence[Transform], seed: int | None = None) -> None:
        self.transforms: list[Transform] = require_transforms("Compose", transforms, composes=False)
        self.seed = int(torch.randint(2**63 - 1, (), device="cpu").item()) if seed is None else int(seed)
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"Compose: seed must be in [-2^63, 2^63), got {seed}")
        self.passes: list[Pass] = [Pass()]
        for number, transform in enumerate(self.transforms):
            alternatives = transform.alternatives()
            if len(alternatives) > 1:
                self._branch(number, alternatives)
            for step in alternatives[0][1] if len(alternatives) == 1 else []:
                if not step.add_to(self.passes[-1]):
                    self.passes.append(Pass())
                    step.add_to(self.passes[-1])
            self.passes[-1].transforms.append(transform)
        self._arguments: dict[tuple[torch.dtype, bool], list[dict[str, Any]]] = {}
        self._recipes = [plan.recipes(number) for number, plan in enumerate(self.passes)]
        self._rows = [recipes.unbind() for recipes, _ in self._recipes]
        self.recipe = torch.cat([recipes for recipes, _ in self._recipes])
        many = len(self.passes) > 1
        self.param_names = tuple(
            f"pass{number}.{name}" if many else name
            for number, plan in enumerate(self.passes)
            for name in plan.param_names
        )
        # The sample number of the next image that comes without one, and those of a batch from 0 on.
        self._next = torch.zeros((), dtype=torch.int64, device="cpu")
        self._count = torch.arange(0, device="cpu")

    def _branch(self, number: int, alternatives: Alternatives) -> None:
        """Each alternative goes through the passes from the last one on; the others' images pass unchanged."""
        branching = Branching(number, [weight for weight, _ in alternatives], set(), [], [])
        first = len(self.passes) - 1
        for which, (_, steps) in enumerate(alternatives):
            at = first
            for step in steps:
                while not self.passes[at].add_branch(branching, which, step):
                    at += 1
                    if at == len(self.passes):
                        self.passes.append(Pass())

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
            out: a tensor of the result's shape and dtype to write into, contiguous or channels_last: large results that
                are made anew cost as much again in fresh memory.

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
        value: Tensor | RaggedBatch = batch
        tables = torch.split(params, [len(plan.param_names) for plan in self.passes], 1)
        hows = self.pass_arguments(batch.dtype, pictures)
        for number, (plan, table, how) in enumerate(zip(self.passes, tables, hows, strict=True)):
            into = None if out is None or number < len(self.passes) - 1 else out[None] if single else out
            size = plan.output_size(size_of(value))
            outside_fill = how.get("outside_fill")
            how = {name: value for name, value in how.items() if name != "outside_fill"}
            if plan.outside and isinstance(value, Tensor):
                _check_images("transforms", value)
                if single and plan.outside.transform.needs_batch:
                    name = type(plan.outside.transform).__name__
                    raise ValueError(f"{name}: images must be a batch [B, C, H, W], got one image")
                value = _outside(plan.outside.transform, value, table[:, len(PARAM_NAMES) :], outside_fill)
                table = table[:, : len(PARAM_NAMES)].contiguous()
            if isinstance(value, RaggedBatch):
                value = augment_views_ragged(value, [table], [size], **how, out=None if into is None else [into])[0]
            else:
                value = augment_apply(value, table, size, **how, out=into)
        if out is not None:
            return out
        assert isinstance(value, Tensor)  # after the first pass
        return value[0] if single else value

    def pass_arguments(self, images: torch.dtype, pictures: bool = False) -> list[dict[str, Any]]:
        """What :func:`fastcl.ops.augment_apply` takes for each pass, beside images, table, size and out.

        Also ``outside_fill`` where something comes before it, in the units of the images that this takes.
        """
        if torch.compiler.is_compiling():
            return self._pass_arguments(images, pictures)
        if (images, pictures) not in self._arguments:
            self._arguments[images, pictures] = self._pass_arguments(images, pictures)
        return self._arguments[images, pictures]

    def _pass_arguments(self, images: torch.dtype, pictures: bool) -> list[dict[str, Any]]:
        given = [plan.dtype for plan in self.passes if plan.dtype]
        floating = images if images != torch.uint8 else torch.float32
        dtype = given[-1] if given else floating if any(plan.mean for plan in self.passes) else images
        bytes_in, held, hows = images == torch.uint8, images, []
        for number, plan in enumerate(self.passes):
            last = number == len(self.passes) - 1
            gives = floating if not last else torch.uint8 if pictures else dtype
            # A fill is in the units that the images have where the warp stands in the list; the pass may hold others.
            outside: dict[str, Any] = {}
            if plan.outside:
                meant = 255.0 if bytes_in and not plan.outside.floats else 1.0
                given_fill = as_list(getattr(plan.outside.transform, "fill", None))
                outside["outside_fill"] = given_fill and [value / meant for value in given_fill]
                held = floating
            meant = 255.0 if bytes_in and not plan.warps_floats else 1.0
            fill = plan.fill and [value * (255.0 if held == torch.uint8 else 1.0) / meant for value in plan.fill]
            mean, std, erase = plan.mean, plan.std, plan.erase
            if plan.unscaled and bytes_in:
                mean, std = ([value / 255 for value in values] for values in (mean or [0.0], std or [1.0]))
            bytes_in = bytes_in and not (plan.dtype or plan.mean)
            if erase and bytes_in and gives != torch.uint8:
                erase = [value / 255 for value in erase]
            if pictures:
                if erase and not bytes_in:
                    scales, shifts = std or [1.0], mean or [0.0]
                    wide = max(len(erase), len(scales))
                    erase, scales, shifts = (v * wide if len(v) == 1 else v for v in (erase, scales, shifts))
                    erase = [255 * (v * scale + shift) for v, scale, shift in zip(erase, scales, shifts, strict=True)]
                erase = erase and [min(max(value, 0.0), 255.0) for value in erase]
                mean = std = None
            how = {"interpolation": plan.interpolation, "resize": plan.resize, "fill": fill, "mean": mean, "std": std}
            hows.append({**how, "erase": erase, "dtype": gives, **outside})
            held = floating
        return hows

    def _views(
        self, images: Any, views: Sequence[int], index: Any, epoch: int, out: Sequence[Tensor] | None
    ) -> list[Tensor]:
        if out is not None and len(out) != len(views):
            raise ValueError(f"Compose: out must have one tensor for each of {len(views)} views, got {len(out)}")
        return draw_views([(self, view) for view in views], images, index, epoch, out)

    def _numbers(self, n: int, index: Any, device: torch.device) -> tuple[Tensor, int]:
        """The sample numbers of a call's images, and the seed."""
        if index is not None:
            numbers = torch.as_tensor(index, dtype=torch.int64, device=device).reshape(-1)
            if len(numbers) != n:
                raise ValueError(f"Compose: index must have one number for each of {n} images, got {len(numbers)}")
            return numbers, self.seed
        compiling = torch.compiler.is_compiling()
        if len(self._count) != n and not compiling:
            self._count = torch.arange(n, device="cpu")
        numbers = self._next + (torch.arange(n, device="cpu") if compiling else self._count)
        self._next += n
        if device.type != "cpu":
            numbers = numbers.to(device)
        # Each worker of a DataLoader has a copy of the counter; its own seed, new in every epoch, tells them apart.
        worker = None if compiling else get_worker_info()
        return numbers, self.seed if worker is None else (self.seed + worker.seed) % 2**63

    def _sample(self, index: Tensor, size: Size | Tensor, seed: int, epoch: int, view: int) -> Tensor:
        tables = []
        stream = {"seed": seed, "epoch": epoch, "view": view}
        for number, (plan, (recipes, which)) in enumerate(zip(self.passes, self._recipes, strict=True)):
            out_size = plan.output_size(size)
            rows = [_sample_pass(recipe, index, size, out_size, stream) for recipe in self._rows[number]]
            own = [*plan.own, *([plan.outside] if plan.outside else [])]
            table = rows[0]
            chosen: tuple[Tensor, ...] = ()
            if len(rows) > 1 or any(entry.when for entry in own):
                chosen = tuple(_draw_alternative(branching, index, stream) for branching in plan.branchings)
            if len(rows) > 1:
                numbers = torch.arange(len(index), device=index.device)
                table = torch.stack(rows)[which.to(index.device)[chosen], numbers]
            if own:
                late = recipes[:, _FLIPS_AT].to(index.device) == FLIP_AT.index("after_warp")
                late = late[which.to(index.device)[chosen]] if chosen else late
                table = _mirror_maps(table, late)  # own maps are drawn as if no flip followed
                if plan.outside:
                    neutral = torch.tensor(
                        [*plan.outside.transform.columns.values()], dtype=table.dtype, device=table.device
                    )
                    table = torch.cat([table, neutral.expand(len(table), -1)], 1)
                for entry in own:
                    first, seen = (_OUTSIDE_BLOCKS, size) if entry is plan.outside else (_OWN_BLOCKS, out_size)
                    assert not isinstance(seen, Tensor)  # output_size has refused it
                    u = uniforms(index, seed, epoch, view, number, first, entry.transform.blocks)
                    happens = u[:, 0] < entry.p
                    if entry.when:
                        happens &= chosen[entry.when[0]] == entry.when[1]
                    table = torch.where(happens[:, None], entry.transform.draw(u[:, 1:], table, seen), table)
                table = _mirror_maps(table, late)
            tables.append(table)
            size = out_size
        return tables[0] if len(tables) == 1 else torch.cat(tables, dim=1)


def _outside(transform: OwnDraws, images: Tensor, params: Tensor, fill: list[float] | None) -> Tensor:
    """What a transform that comes before the fused op makes of images: floats from 0 to 1.

    On the CPU only where something happens, and so few at a time that they stay in the cache through its many steps.
    """
    floats = images / 255 if images.dtype == torch.uint8 else images
    if transform.needs_batch:
        return transform.outside(floats, params, fill)
    neutral = torch.tensor([*transform.columns.values()], dtype=params.dtype, device=params.device)
    changed = (params != neutral).any(1)
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.where(changed[:, None, None, None], transform.outside(floats, params, fill), floats)
    out = floats.clone() if floats is images else floats
    for rows in changed.nonzero()[:, 0].split(max(1, _CACHED_VALUES // images.shape[1:].numel())):
        out[rows] = transform.outside(floats[rows], params[rows], fill)
    return out


def _sample_pass(recipe: Tensor, index: Tensor, size: Size | Tensor, out_size: Size, stream: dict[str, int]) -> Tensor:
    """One table for one recipe."""
    if isinstance(size, Tensor):
        return augment_sample_ragged(recipe, index, **stream, shapes=size, out_size=out_size)
    return augment_sample(recipe, index, **stream, size=size, out_size=out_size)


def _mirror_maps(table: Tensor, late: Tensor) -> Tensor:
    """The maps as seen from the other side of flips that come after them, bool [n, 2]: horizontal, vertical.

    Flips are applied before the warp. F M F does after it what M does before, and the other way round.
    """
    flipped = table[:, _FLIPS] * late
    signs = torch.cat([1 - 2 * flipped, torch.ones_like(flipped[:, :1])], 1)
    maps = table[:, _MAP] * (signs[:, :, None] * signs[:, None]).flatten(1)
    return torch.cat([table[:, : _MAP.start], maps, table[:, _MAP.stop :]], 1)


def _draw_alternative(branching: Branching, index: Tensor, stream: dict[str, int]) -> Tensor:
    """The alternative of each image, int64 [n]; drawn as a blur's sigma would be, in a pass that nothing else has."""
    entries = {"blur_p": 1.0, "blur_sigma_max": 1.0, "pass": 255.0 - branching.number}
    values = {**IDENTITY_RECIPE, **entries}
    recipe = torch.tensor([values[name] for name in RECIPE_NAMES], dtype=torch.float64, device="cpu")
    table = augment_sample(recipe, index, **stream, size=(1, 1), out_size=(1, 1))
    bounds = torch.tensor(branching.weights[:-1], dtype=torch.float64, device=index.device).cumsum(0)
    return (table[:, PARAM_NAMES.index("blur_sigma"), None] >= bounds).sum(1)


def draw_views(
    views: Sequence[tuple[Compose, int]], images: Any, index: Any, epoch: int, out: Sequence[Tensor] | None
) -> list[Tensor]:
    """One view for each transform and view number; in one call of the op where all are of one pass and alike in it.

    Args:
        views: transforms, and the numbers that tell their views apart.
        images: as in a :class:`Compose`'s call.
        index: likewise; without, each transform counts on, once for all its views.
        epoch: likewise.
        out: one tensor for each view.

    Returns:
        The views.
    """
    batch, single = as_batch(images)
    if isinstance(batch, Tensor):
        _check_images("transforms", batch)
    size = size_of(batch)
    numbers: dict[int, tuple[Tensor, int]] = {}
    tables = []
    for transform, view in views:
        if id(transform) not in numbers:
            numbers[id(transform)] = transform._numbers(len(batch), index, batch.device)
        tables.append(transform._sample(numbers[id(transform)][0], size, numbers[id(transform)][1], epoch, view))
    hows = [transform.pass_arguments(batch.dtype) for transform, _ in views]
    one_call = len(hows[0]) == 1 and "outside_fill" not in hows[0][0] and all(how == hows[0] for how in hows[1:])
    if one_call:
        sizes = [transform.passes[0].output_size(size) for transform, _ in views]
        into = [view[None] for view in out] if out is not None and single else out
        if isinstance(batch, RaggedBatch):
            made = augment_views_ragged(batch, tables, sizes, **hows[0][0], out=into)
        elif len(views) == 1:
            made = [augment_apply(batch, tables[0], sizes[0], **hows[0][0], out=None if into is None else into[0])]
        else:
            made = augment_views(batch, tables, sizes, **hows[0][0], out=into)
        return list(out) if out is not None else [view[0] for view in made] if single else made
    image, given = batch[0] if single else batch, [None] * len(views) if out is None else out
    return [
        transform.apply(image, table, out=view)
        for (transform, _), table, view in zip(views, tables, given, strict=True)
    ]


def crops_first(transform: Compose) -> bool:
    """Whether it looks at no more of an image than a crop that it draws."""
    first = transform.passes[0]
    return first.outside is None and first.recipe.get("crop", 0.0) != CROPS.index("whole")


def crop_of_views(
    views: Sequence[tuple[Compose, int]], seeds: Sequence[int], index: int, size: Size, epoch: int
) -> tuple[int, ...]:
    """The smallest box that holds the crops of all views of one image.

    Args:
        views: as :func:`draw_views`'s, all of which :func:`crops_first`.
        seeds: one for each view, in place of its transform's.
        index: the image's sample number.
        size: its height and width.
        epoch: as in a :class:`Compose`'s call.

    Returns:
        Top, left, height and width, in pixels.
    """
    numbers = torch.tensor([index], dtype=torch.int64, device="cpu")
    boxes = []
    for (transform, view), seed in zip(views, seeds, strict=True):
        stream = {"seed": seed, "epoch": epoch, "view": view}
        recipe, out_size = transform.recipe[0], transform.passes[0].output_size(size)
        boxes.append(augment_sample(recipe, numbers, **stream, size=size, out_size=out_size)[0, :4].tolist())
    top, left, bottom, right = (
        int(end(values))
        for end, values in (
            (min, [top for top, _, _, _ in boxes]),
            (min, [left for _, left, _, _ in boxes]),
            (max, [top + height for top, _, height, _ in boxes]),
            (max, [left + width for _, left, _, width in boxes]),
        )
    )
    return top, left, bottom - top, right - left
