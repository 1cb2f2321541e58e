from __future__ import annotations

import importlib
import inspect
import math
import os
import pickle
import shutil

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader, Dataset

import fastcl.losses
from fastcl import transforms as T
from fastcl.data import RaggedBatch

NORMALIZE = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def noise(n: int, channels: int = 3, size: tuple[int, int] = (20, 24)) -> Tensor:
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8)


def pipeline(seed: int | None = 3) -> T.Compose:
    return T.Compose(
        [
            T.RandomResizedCrop(16),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(5)], p=0.5),
            T.ToDtype(torch.float32, scale=True),
            T.Normalize(**NORMALIZE),
        ],
        seed=seed,
    )


# --------------------------------------------------------------------------------------------------------- the stream


def test_same_views_for_any_batch_and_order(backend):
    images, t = noise(12), pipeline()
    index = torch.arange(100, 112)
    whole = t(images, index=index, epoch=2, view=1)
    order = torch.randperm(12)
    parts = [t(images[part], index=index[part], epoch=2, view=1) for part in order.split([1, 4, 7])]
    assert torch.equal(torch.cat(parts), whole[order])
    assert torch.equal(t(images[3], index=103, epoch=2, view=1), whole[3])
    assert torch.equal(pipeline()(images, index=index, epoch=2, view=1), whole)
    for other in (t(images, index=index, epoch=3, view=1), t(images, index=index, epoch=2), pipeline(4)(images, index)):
        assert not torch.equal(other, whole)


def test_without_an_index_each_call_draws_anew(backend):
    images = noise(4)
    t = pipeline()
    first, second = t(images), t(images)
    assert not torch.equal(first, second)
    assert torch.equal(first, pipeline()(images, index=torch.arange(4)))
    assert torch.equal(second, pipeline()(images, index=torch.arange(4, 8)))


def test_manual_seed_fixes_a_transform_without_a_seed():
    images = noise(4)
    views = []
    for _ in range(2):
        torch.manual_seed(11)
        views.append((pipeline(None)(images), T.ColorJitter(0.5)(images)))
    assert torch.equal(views[0][0], views[1][0])
    assert torch.equal(views[0][1], views[1][1])
    assert pipeline(None).seed != pipeline(None).seed


def test_simclr_gives_two_views_of_the_index(backend):
    images = noise(5)
    t = T.SimCLRTransform(16, seed=1)
    first, second = t(images, index=torch.arange(5), epoch=1)
    assert first.shape == second.shape == (5, 3, 16, 16)
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    assert torch.equal(first, t.transform(images, index=torch.arange(5), epoch=1, view=0))
    assert torch.equal(second, t.transform(images, index=torch.arange(5), epoch=1, view=1))
    again = t(images)
    assert not torch.equal(again[0], t(images)[0])
    assert [view.shape for view in t(images[0])] == [(3, 16, 16)] * 2


class Samples(Dataset[Tensor]):
    def __init__(self, indexed: bool) -> None:
        self.transform, self.indexed = T.Compose([T.RandomResizedCrop(8)], seed=1), indexed

    def __len__(self) -> int:
        return 8

    def __getitem__(self, item: int) -> Tensor:
        ramp = torch.arange(400, dtype=torch.float32).reshape(1, 20, 20) / 400
        return self.transform(ramp, index=item if self.indexed else None)


def test_a_copy_goes_on_alike():
    """Pickled, as for the workers of a DataLoader that are started afresh."""
    images, t = noise(4), T.SimCLRTransform(16, rr_prob=0.5, seed=1)
    t(images)
    copy = pickle.loads(pickle.dumps(t))
    assert torch.equal(torch.cat(copy(images)), torch.cat(t(images)))


def test_workers_draw_the_same_with_an_index_and_apart_without():
    def load(indexed: bool, workers: int) -> Tensor:
        return torch.cat(list(DataLoader(Samples(indexed), batch_size=2, num_workers=workers)))

    assert torch.equal(load(True, 0), load(True, 2))
    assert len(load(False, 2).flatten(1).unique(dim=0)) == 8


# ----------------------------------------------------------------------------------------------------------- fusion


def one_by_one(t: T.Compose, images: Tensor, index: Tensor) -> Tensor:
    """The transforms of one pass, each alone: their draws have numbers of their own, so they are the same."""
    for transform in t.transforms:
        images = T.Compose([transform], seed=t.seed)(images, index=index)
    return images


CROP, HFLIP, VFLIP = T.RandomResizedCrop((12, 10)), T.RandomHorizontalFlip(), T.RandomVerticalFlip()
TURN = T.RandomRotation(40, interpolation="bilinear", fill=0.4)
AFFINE = T.RandomAffine(20, (0.2, 0.3), (0.7, 1.2), 10, interpolation="bilinear", fill=0.4)
CORNERS, TURNS, ERASE = T.RandomPerspective(0.4, 1.0, fill=0.4), T.RandomRot90(), T.RandomErasing(0.7)
JITTER, GRAY, BLUR = T.ColorJitter(0.8, 0.8, 0.8, 0.2), T.RandomGrayscale(0.5), T.GaussianBlur((5, 3))
NORM = T.Normalize(**NORMALIZE)
ONE_PASS = {
    "simclr": [CROP, HFLIP, VFLIP, TURN, JITTER, GRAY, BLUR, NORM],
    "flips_first": [HFLIP, VFLIP, CROP, TURN, JITTER],
    "flips_around_the_crop": [VFLIP, CROP, HFLIP, TURN],
    "flips_after_the_warp": [CROP, TURN, HFLIP, VFLIP, JITTER],
    "a_flip_on_each_side_of_the_affine": [HFLIP, AFFINE, VFLIP],
    "flips_last": [CROP, AFFINE, JITTER, NORM, HFLIP, VFLIP],
    "blur_before_gray": [CROP, BLUR, GRAY, HFLIP],
    "resize": [T.Resize(9), HFLIP, BLUR],
    "perspective": [CROP, HFLIP, CORNERS, VFLIP, JITTER],
    "quarter_turns": [T.Resize((12, 12)), VFLIP, TURN, TURNS, HFLIP, JITTER],
    "half_turns": [HFLIP, TURNS, VFLIP],
    "effects": [BLUR, T.RandomAdjustSharpness(2.5), T.RandomInvert(), T.RandomAutocontrast(), NORM, ERASE],
    "containers_of_one": [T.RandomOrder([HFLIP]), T.RandomChoice([GRAY]), T.RandomApply([BLUR], 1.0)],
    "center_crop": [HFLIP, T.CenterCrop((9, 12)), JITTER],
    "a_jitter_of_nothing": [CROP, T.ColorJitter(), TURN, JITTER],
}
SEVERAL = {
    "two_jitters": ([JITTER, JITTER], 2),
    "crop_after_colour": ([JITTER, CROP], 2),
    "warp_before_crop": ([TURN, CROP], 2),
    "two_warps": ([CROP, TURN, AFFINE], 2),
    "jitter_after_blur": ([BLUR, JITTER, GRAY], 2),
    "colour_after_normalise": ([NORM, JITTER, BLUR], 2),
    "flip_after_erase": ([ERASE, HFLIP], 2),
    "normalise_after_erase": ([ERASE, NORM], 2),
    "turns_between_flips": ([TURN, HFLIP, TURNS], 2),
    "contrast_after_equalize": ([T.RandomEqualize(1.0), T.RandomAutocontrast()], 2),
    "resize_and_crop": ([T.Resize(18), T.CenterCrop(12)], 2),
    "everything_twice": ([*ONE_PASS["simclr"], *ONE_PASS["simclr"]], 2),
}


@pytest.mark.parametrize("steps", ONE_PASS.values(), ids=ONE_PASS.keys())
def test_one_pass_gives_what_the_transforms_give_one_by_one(backend, steps):
    images, index = noise(16) / 255, torch.arange(16)
    t = T.Compose(steps, seed=5)
    assert len(t.passes) == 1
    # Values up to 2.7 (normalised) that were rounded once per stage more; a position in a warp is rounded in float64.
    torch.testing.assert_close(t(images, index=index), one_by_one(t, images, index), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("steps", "passes"), SEVERAL.values(), ids=SEVERAL.keys())
def test_several_passes_where_the_order_needs_them(backend, steps, passes):
    images = noise(16) / 255
    t = T.Compose(steps, seed=5)
    assert len(t.passes) == passes
    assert repr(t).count("pass ") == passes
    params = t.sample(16, (20, 24))
    assert params.shape == (16, passes * len(T.PARAM_NAMES)) == (16, len(t.param_names))
    want = images
    for number, plan in enumerate(t.passes):
        table = params[:, number * len(T.PARAM_NAMES) :][:, : len(T.PARAM_NAMES)]
        want = T.Compose(plan.transforms, seed=5).apply(want, table)
    assert torch.equal(t(images, index=torch.arange(16)), want)


# name: (containers, what an image may become, their probabilities, passes)
CONTAINERS = {
    "choice": (
        [
            T.RandomChoice(
                [T.RandomHorizontalFlip(1.0), T.RandomVerticalFlip(1.0), T.RandomInvert(1.0)], [0.2, 0.3, 0.5]
            )
        ],
        [lambda x: x.flip(2), lambda x: x.flip(1), lambda x: 255 - x],
        [0.2, 0.3, 0.5],
        1,
    ),
    "all_or_none": (
        [T.RandomApply([T.RandomHorizontalFlip(1.0), T.RandomInvert(1.0)], 0.7)],
        [lambda x: x, lambda x: 255 - x.flip(2)],
        [0.3, 0.7],
        1,
    ),
    "order": (  # does not commute: 3 bits of the inverted, or the inverted 3 bits
        [T.RandomOrder([T.RandomInvert(1.0), T.RandomPosterize(3, 1.0)])],
        [lambda x: (255 - x) & 0xE0, lambda x: 255 - (x & 0xE0)],
        [0.5, 0.5],
        2,
    ),
    "nested": (
        [
            T.RandomChoice(
                [T.Compose([T.RandomInvert(1.0), T.RandomPosterize(2, 1.0)]), T.RandomApply([BLUR, GRAY], 0.0)]
            )
        ],
        [lambda x: (255 - x) & 0xC0, lambda x: x],
        [0.5, 0.5],
        1,
    ),
    "two": (
        [
            T.RandomChoice([T.RandomHorizontalFlip(1.0), T.RandomVerticalFlip(1.0)]),
            T.RandomApply([T.RandomInvert(1.0), T.RandomSolarize(300.0, 1.0)], 0.5),
        ],
        [lambda x: x.flip(2), lambda x: x.flip(1), lambda x: 255 - x.flip(2), lambda x: 255 - x.flip(1)],
        [0.25] * 4,
        1,
    ),
    "unlike_warps": (
        [T.RandomChoice([T.RandomRotation((90, 90)), T.RandomRotation((180, 180), interpolation="bilinear")])],
        [lambda x: x.rot90(1, (1, 2)), lambda x: x.rot90(2, (1, 2))],
        [0.5, 0.5],
        2,
    ),
}


@pytest.mark.parametrize(("steps", "outcomes", "weights", "passes"), CONTAINERS.values(), ids=CONTAINERS.keys())
def test_containers_draw_for_each_image(backend, steps, outcomes, weights, passes):
    n = 400
    image = noise(1, size=(5, 5))[0]
    t = T.Compose(steps, seed=5)
    assert len(t.passes) == passes
    got = t(image.expand(n, -1, -1, -1), index=torch.arange(n))
    became = torch.stack([(got == outcome(image)).flatten(1).all(1) for outcome in outcomes])
    assert (became.sum(0) == 1).all()
    for share, p in zip(became.double().mean(1).tolist(), weights, strict=True):
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n)
    order = torch.randperm(n)[:50]
    assert torch.equal(t(image.expand(50, -1, -1, -1), index=order), got[order])


def test_erasing(backend):
    images, index = noise(64), torch.arange(64)
    erased = T.Compose([T.RandomErasing(1.0, value=(7, 8, 9))], seed=2)(images, index)
    box = (erased == torch.tensor([7, 8, 9])[:, None, None]).all(1)
    assert torch.equal(erased.where(~box[:, None], images), images)
    assert 0.1 < box.double().mean() < 0.25  # 0.175 on average
    unit = T.Compose([T.RandomErasing(1.0, value=(7, 8, 9)), T.ToDtype(torch.float32, scale=True)], seed=2)
    torch.testing.assert_close(unit(images, index), erased / 255, rtol=0, atol=1e-6)
    noisy = T.Compose([T.Normalize([0.5], [0.5]), T.RandomErasing(1.0, value="random")], seed=2)
    values = noisy(images, index).transpose(0, 1)[:, box]
    assert abs(values.mean()) < 5 / math.sqrt(values.numel())
    assert abs(values.std() - 1) < 5 / math.sqrt(values.numel())
    assert abs(torch.corrcoef(values)[0, 1]) < 5 / math.sqrt(values.shape[1])


@pytest.mark.parametrize("steps", [[CROP, JITTER], [JITTER, JITTER]], ids=["one_pass", "two_passes"])
def test_results_go_where_they_are_told(backend, steps):
    images, index = noise(4), torch.arange(4)
    t = T.Compose([*steps, NORM], seed=5)
    want = t.views(images, 2, index)
    buffers = [torch.zeros_like(view) for view in want]
    for got, into, view in zip(t.views(images, 2, index, out=buffers), buffers, want, strict=True):
        assert got is into
        assert torch.equal(got, view)
    one = torch.zeros_like(want[0][0])
    assert t(images[1], index=1, out=one) is one
    assert torch.equal(one, want[0][1])
    with pytest.raises(ValueError, match="one tensor for each of 2 views, got 1"):
        t.views(images, 2, index, out=buffers[:1])


def test_a_solarize_threshold_above_1_is_of_bytes(backend):
    images = noise(4)
    for steps, unit in (([T.RandomSolarize(100, 1.0)], 1), ([NORM, T.RandomSolarize(100, 1.0)], None)):
        t = T.Compose(steps, seed=0)
        assert len(t.passes) == (1 if unit else 2)
        if unit:
            assert torch.equal(t(images), torch.where(images >= 100, 255 - images, images))
    unit = T.Compose([T.ToDtype(torch.float32, scale=True), T.RandomSolarize(0.4, 1.0)])(images)
    torch.testing.assert_close(unit, torch.where(images >= 102, 255 - images, images) / 255, rtol=0, atol=1e-6)


def test_two_transforms_of_one_kind_draw_apart():
    t = T.Compose([JITTER, JITTER], seed=5)
    table = dict(zip(t.param_names, t.sample(50, (8, 8)).unbind(1), strict=True))
    assert (table["pass0.brightness"] != table["pass1.brightness"]).all()


def test_passes_of_uint8_keep_the_images_units(backend):
    """Fill values are in the user's units in every pass, and the last pass gives uint8 again."""
    images = torch.full((1, 3, 9, 9), 100, dtype=torch.uint8)
    shift = T.RandomAffine((180, 180), scale=(0.5, 0.5), fill=200)
    t = T.Compose([shift, shift], seed=0)
    got = t(images)
    assert got.dtype == torch.uint8
    assert set(got.unique().tolist()) == {100, 200}


def test_a_fill_is_in_the_units_that_images_have_where_it_stands(backend):
    images = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    to_float = T.ToDtype(torch.float32, scale=True)
    for steps in (
        [T.RandomAffine((180, 180), scale=(0.5, 0.5), fill=51), to_float],
        [to_float, T.RandomAffine((180, 180), scale=(0.5, 0.5), fill=0.2)],
        [T.RandomGrayscale(), T.RandomAffine((180, 180), scale=(0.5, 0.5), fill=51), to_float],
        [to_float, T.RandomGrayscale(), T.RandomAffine((180, 180), scale=(0.5, 0.5), fill=0.2)],
    ):
        got = T.Compose(steps, seed=0)(images)
        torch.testing.assert_close(got.max(), torch.tensor(0.2))
        assert got.min() == 0


@pytest.mark.parametrize(
    ("steps", "dtype", "high"),
    [
        ([HFLIP], torch.uint8, 255.0),
        ([HFLIP, T.ToDtype(torch.float32, scale=True)], torch.float32, 1.0),
        ([T.ToDtype(torch.float32, scale=True), HFLIP], torch.float32, 1.0),
        ([HFLIP, T.ToDtype(torch.float32)], torch.float32, 255.0),
        ([T.ToDtype(torch.float32), T.Normalize([10.0], [2.0])], torch.float32, 122.5),
        ([T.Normalize([0.5], [0.5])], torch.float32, 1.0),
        ([T.Normalize([0.5], [0.5]), T.ToDtype(torch.bfloat16, scale=True)], torch.bfloat16, 1.0),
        ([T.ToDtype(torch.float16, scale=True), JITTER, CROP], torch.float16, 1.0),
        ([T.Normalize([0.0], [0.5]), CROP], torch.float32, 2.0),
    ],
)
def test_dtypes(backend, steps, dtype, high):
    images = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    got = T.Compose(steps, seed=0)(images)
    assert got.dtype == dtype
    if JITTER not in steps:
        torch.testing.assert_close(got, torch.full_like(got, high))  # 255 * (1 / 255) rounds


def test_a_table_can_be_edited_and_replayed(backend):
    images = noise(3)
    t = T.Compose([T.RandomHorizontalFlip(0.0)], seed=0)
    params = t.sample(3, (20, 24))
    assert torch.equal(t.apply(images, params), images)
    params[1, t.param_names.index("hflip")] = 1
    got = t.apply(images, params)
    assert torch.equal(got[1], images[1].flip(2))
    assert torch.equal(got[::2], images[::2])


# --------------------------------------------------------------------------------------------- against torchvision


def test_names_arguments_and_defaults_are_torchvision_s():
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision, the peer, is absent")
    for name in T.__all__:
        theirs = getattr(v2, name, None)
        if theirs is None or name in ("Compose", "Transform"):
            continue
        want, got = (inspect.signature(c.__init__).parameters for c in (theirs, getattr(T, name)))
        assert list(got) == list(want), name
        for argument, parameter in want.items():
            assert got[argument].default == parameter.default, (name, argument)


LIGHTLY = ["SimCLR", "MoCoV1", "MoCoV2", "BYOL", "BYOLView1", "BYOLView2", "DINO"]


@pytest.mark.parametrize("name", LIGHTLY)
def test_arguments_are_lightly_s(name):
    transforms = pytest.importorskip("lightly.transforms", reason="lightly, the peer, is absent")
    theirs = {
        "MoCoV1": "moco_transform",
        "BYOLView1": "byol_transform",
        "BYOLView2": "byol_transform",
        "MoCoV2": "moco_transform",
    }.get(name)
    owner = importlib.import_module(f"lightly.transforms.{theirs}") if theirs else transforms
    name += "Transform"
    want, got = (inspect.signature(getattr(c, name).__init__).parameters for c in (owner, T))
    assert list(got)[: len(want)] == list(want)
    assert all(got[name].default == parameter.default for name, parameter in want.items())


@pytest.mark.parametrize("kind", [T.MoCoV1Transform, T.MoCoV2Transform, T.BYOLTransform])
def test_two_views(backend, kind):
    if kind is T.BYOLTransform:
        t = kind(T.BYOLView1Transform(16, seed=1), T.BYOLView2Transform(16, seed=1))
    else:
        t = kind(16, seed=1)
    images = noise(4)
    first, second = t(images, index=torch.arange(4))
    assert first.shape == second.shape == (4, 3, 16, 16)
    assert not torch.equal(first, second)
    assert torch.equal(t(images, index=torch.arange(4))[1], second)
    counted = t(images)  # numbers 0 to 3 in every group
    assert torch.equal(counted[0], first)
    assert torch.equal(counted[1], second)
    assert not torch.equal(t(images)[1], second)


def test_dino_s_views_are_of_two_sizes(backend):
    t, images, index = T.DINOTransform(16, (0.4, 1.0), 8, n_local_views=3, seed=1), noise(4), torch.arange(4)
    views = t(images, index=index)
    assert [view.shape[-1] for view in views] == [16, 16, 8, 8, 8]
    assert len(torch.stack(views[2:]).flatten(1).unique(dim=0)) == 3
    assert all(len(plan.passes) == 1 for plan, _ in t.groups)
    areas = [plan.sample(500, (40, 40))[:, 2:4].prod(1) / 1600 for plan, _ in t.groups]
    assert areas[0].min() > 0.37  # sides are rounded
    assert areas[2].max() < 0.43
    solarized = [plan.sample(500, (40, 40))[:, T.PARAM_NAMES.index("solarize")].mean() for plan, _ in t.groups]
    assert solarized[0] == solarized[2] == 0
    assert abs(solarized[1] - 0.2) < 0.1  # 5 standard deviations
    buffers = [torch.zeros_like(view) for view in views]
    assert all(a is b for a, b in zip(t(images, index=index, out=buffers), buffers, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(views, buffers, strict=True))
    with pytest.raises(ValueError, match="out must have 5 tensors, got 4"):
        t(images, out=buffers[1:])
    assert repr(t).startswith("DINOTransform(1 view of Compose(")


DETERMINISTIC = {
    "resize_shorter": ("Resize", (15,), {}),
    "resize_at_most": ("Resize", (15,), {"max_size": 17}),
    "resize_to": ("Resize", ((7, 30),), {}),
    "center_crop": ("CenterCrop", ((9, 14),), {}),
    "odd_center_crop": ("CenterCrop", (11,), {}),
    "flip": ("RandomHorizontalFlip", (1.0,), {}),
    "quarter": ("RandomRotation", ((90, 90),), {}),
    "turn": ("RandomRotation", ((33, 33),), {"interpolation": "bilinear", "fill": 7}),
    "off_center": ("RandomRotation", ((-50, -50),), {"interpolation": "bilinear", "center": [3, 4]}),
    "affine": ("RandomAffine", ((20, 20), None, (0.8, 0.8), (5, 5, 7, 7)), {"interpolation": "bilinear"}),
    "brightness": ("ColorJitter", ((1.4, 1.4),), {}),
    "hue": ("ColorJitter", (), {"hue": (0.3, 0.3)}),
    "gray": ("RandomGrayscale", (1.0,), {}),
    "blur": ("GaussianBlur", ((5, 3), 1.3), {}),
    "solarize": ("RandomSolarize", (0.3, 1.0), {}),
    "normalize": ("Normalize", ([0.4], [0.3]), {}),
    "cubic": ("Resize", ((9, 40),), {"interpolation": "bicubic"}),
    "posterize": ("RandomPosterize", (3, 1.0), {}),
    "invert": ("RandomInvert", (1.0,), {}),
    "sharper": ("RandomAdjustSharpness", (2.5, 1.0), {}),
    "autocontrast": ("RandomAutocontrast", (1.0,), {}),
    "equalize": ("RandomEqualize", (1.0,), {}),
}


@pytest.mark.parametrize("size", [(20, 24), (31, 19), (16, 16)])
@pytest.mark.parametrize(("name", "arguments", "named"), DETERMINISTIC.values(), ids=DETERMINISTIC.keys())
def test_what_leaves_nothing_to_chance_is_torchvision_s(backend, name, arguments, named, size):
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision, the peer, is absent")
    image = noise(1, size=size)[0] / 255
    want = getattr(v2, name)(*arguments, **named)(image)
    got = getattr(T, name)(*arguments, **named)(image)
    # As in test_augment_torchvision.py: positions of a warp to 1e-4 pixels and so values, the rest to a few roundings.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["ColorJitter", "RandomGrayscale"])
def test_a_gray_image_keeps_its_one_channel(backend, name):
    images = noise(2, 1)
    t = T.ColorJitter(hue=0.5, saturation=0.9) if name == "ColorJitter" else T.RandomGrayscale(1.0)
    assert torch.equal(t(images), images)


def test_pil_images(backend):
    image = pytest.importorskip("PIL.Image", reason="Pillow is absent")
    picture = noise(1)[0]
    for mode, want in (("RGB", picture), ("L", picture[:1]), ("RGBA", picture)):
        array = want.permute(1, 2, 0).numpy() if mode != "L" else want[0].numpy()
        given = image.fromarray(array).convert(mode)
        assert torch.equal(T.RandomHorizontalFlip(1.0)(given), want.flip(2))


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    t, images = T.SimCLRTransform(16, seed=1), noise(4)
    compiled = torch.compile(lambda x, i: torch.cat(t(x, index=i)), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images, torch.arange(4)), torch.cat(t(images, index=torch.arange(4))))
    counted = torch.compile(lambda x: t(x)[0], fullgraph=True, backend="aot_eager")
    first, second = counted(images), counted(images)  # the counter runs on inside the graph
    assert torch.equal(first, t(images, index=torch.arange(4))[0])
    assert torch.equal(second, t(images, index=torch.arange(4, 8))[0])


def test_a_new_epoch_compiles_nothing_new():
    torch._dynamo.reset()
    t, images, index = T.SimCLRTransform(16, seed=1), noise(4), torch.arange(4)
    counter = CompileCounter()
    compiled = torch.compile(lambda x, i, epoch: t(x, i, epoch)[0], fullgraph=True, backend=counter)
    for epoch in range(10):
        assert torch.equal(compiled(images, index, epoch), t(images, index, epoch)[0])
    assert counter.frame_count <= 2  # the first epoch, and any


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
def test_transform_model_and_loss_are_one_graph_of_inductor_s():
    """A training step with torch.compile's own backend; more epochs, and views that take several passes."""
    torch._dynamo.reset()
    t = T.Compose([T.RandomResizedCrop(8), T.RandomRotation(20), T.RandomAffine(10), T.Normalize([0.5], [0.5])], seed=1)
    model, loss_of = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 8)), fastcl.losses.NTXentLoss(0.2)

    def step(images: Tensor, index: Tensor, epoch: int) -> Tensor:
        return loss_of(*(model(view) for view in t.views(images, 2, index, epoch)))

    compiled, images, index = torch.compile(step, fullgraph=True), noise(6), torch.arange(6)
    for epoch in range(3):
        model.zero_grad()
        want = step(images, index, epoch)
        want.backward()
        gradient = model[1].weight.grad.clone()
        model.zero_grad()
        got = compiled(images, index, epoch)
        got.backward()
        # Of sums of 192 and of logits up to 5, in another order.
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
        torch.testing.assert_close(model[1].weight.grad, gradient, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- preview


@pytest.mark.parametrize("channels", [1, 3])
def test_preview_grid(backend, channels):
    images = noise(2, channels)
    grid = T.preview_grid(images, T.SimCLRTransform(16, seed=1), views=3)
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, 2 * 18 + 2, 4 * 18 + 2)
    assert (grid[:, :2] == 255).all()
    unchanged = T.preview_grid(images, T.Compose([T.Normalize([0.5], [0.5])]), views=1)
    assert torch.equal(unchanged[:, 2:22, 2:26], images[0].expand(3, -1, -1))
    assert torch.equal(unchanged[:, 2:22, 28:52], images[0].expand(3, -1, -1))
    with pytest.raises(TypeError, match="preview_grid: transform must be"):
        T.preview_grid(images, lambda x: x)


# -------------------------------------------------------------------------------------------------------- bad input


def edited(row: int, column: str, value: float) -> Tensor:
    params = pipeline().sample(4, (20, 24))
    params[row, T.PARAM_NAMES.index(column)] = value
    return pipeline().apply(noise(4), params)


def test_an_empty_batch_gives_empty_views(backend):
    assert [view.shape for view in T.SimCLRTransform(8)(noise(0))] == [(0, 3, 8, 8)] * 2
    assert T.ElasticTransform()(noise(0)).shape == (0, 3, 20, 24)


BAD = {
    "seed": (lambda: T.Compose([], seed=2**63), ValueError, "seed must be in"),
    "foreign": (lambda: T.Compose([torch.nn.ReLU()]), TypeError, "must be fastcl.transforms', got torch.nn"),
    "apply_foreign": (lambda: T.RandomApply([torch.nn.ReLU()]), TypeError, "must be fastcl.transforms'"),
    "apply_none": (lambda: T.RandomApply([]), ValueError, "must not be empty"),
    "choice_weights": (lambda: T.RandomChoice([HFLIP], [0.5, 0.5]), ValueError, "one weight for each of 1"),
    "choice_zero": (lambda: T.RandomChoice([HFLIP, VFLIP], [0, 0]), ValueError, "not all 0"),
    "choice_crop": (lambda: T.Compose([T.RandomChoice([CROP, VFLIP])]), ValueError, "RandomResizedCrop cannot be left"),
    "order_many": (lambda: T.RandomOrder([HFLIP] * 6), ValueError, "must be 1 to 5, got 6"),
    "order_foreign": (lambda: T.RandomOrder([torch.nn.ReLU()]), TypeError, "must be fastcl.transforms'"),
    "bits": (lambda: T.RandomPosterize(9), ValueError, "bits must be a whole number from 0 to 8"),
    "sharpness": (lambda: T.RandomAdjustSharpness(-1), ValueError, "sharpness_factor must not be negative"),
    "distortion": (lambda: T.RandomPerspective(1.5), ValueError, "distortion_scale must be from 0 to 1"),
    "erase_scale": (lambda: T.RandomErasing(scale=(0.5, 1.5)), ValueError, "scale must be within 0 and 1"),
    "erase_value": (lambda: T.RandomErasing(value="noise"), ValueError, "numbers or 'random', got 'noise'"),
    "apply_crop": (lambda: T.RandomApply([CROP]), ValueError, "RandomResizedCrop cannot be left to chance"),
    "p": (lambda: T.RandomHorizontalFlip(1.5), ValueError, "p must be from 0 to 1"),
    "size": (lambda: T.RandomResizedCrop(0), ValueError, "size must be"),
    "scale": (lambda: T.RandomResizedCrop(8, (1, 0.5)), ValueError, "scale must be"),
    "ratio": (lambda: T.RandomResizedCrop(8, ratio=(0, 1)), ValueError, "ratio positive"),
    "bicubic": (
        lambda: T.RandomResizedCrop(8, interpolation="lanczos"),
        ValueError,
        "bilinear or bicubic, got lanczos",
    ),
    "antialias": (lambda: T.Resize(8, antialias=False), ValueError, "antialias must be True"),
    "degrees": (lambda: T.RandomRotation(-3), ValueError, "degrees must not be negative"),
    "expand": (lambda: T.RandomRotation(3, expand=True), ValueError, "expand must be False"),
    "translate": (lambda: T.RandomAffine(3, (2, 0)), ValueError, "translate must be"),
    "zoom": (lambda: T.RandomAffine(3, scale=(0, 1)), ValueError, "scale must be positive"),
    "brightness": (lambda: T.ColorJitter(-1), ValueError, "brightness must not be negative"),
    "hue": (lambda: T.ColorJitter(hue=0.6), ValueError, "hue must be within"),
    "even": (lambda: T.GaussianBlur(4), ValueError, "kernel_size must be odd"),
    "sigma": (lambda: T.GaussianBlur(3, 0.0), ValueError, "sigma must be positive"),
    "nan": (lambda: T.GaussianBlur(3, (0.1, math.nan)), ValueError, "sigma must be two finite"),
    "threshold": (lambda: T.RandomSolarize(math.inf), ValueError, "threshold must be finite"),
    "std": (lambda: T.Normalize([0.5], [0.0]), ValueError, "std not 0"),
    "dtype": (lambda: T.ToDtype(torch.int64, scale=True), ValueError, "dtype must be"),
    "images": (lambda: HFLIP([1, 2]), TypeError, "images must be a Tensor or a PIL image, got list"),
    "no_rows": (lambda: HFLIP(noise(2, size=(0, 4))), ValueError, r"images must be .* not 0, got \[2, 3, 0, 4\]"),
    "no_channels": (lambda: T.ElasticTransform()(noise(2, 0)), ValueError, r"images must be .* got \[2, 0, 20, 24\]"),
    "other_channels": (lambda: pipeline()(noise(2, 2)), ValueError, "mean must have 1 or 2 values, got 3"),
    "empty_ragged": (lambda: CROP(RaggedBatch.of([])), ValueError, "images must hold at least one image"),
    "nan_row": (lambda: edited(1, "hue", math.nan), RuntimeError, r"params\[1\] has hue = nan"),
    "crop_outside": (lambda: edited(2, "crop_left", 24), RuntimeError, r"params\[2\] has crop_left = 24"),
    "dims": (lambda: HFLIP(torch.zeros(4, 4)), ValueError, r"got \[4, 4\]"),
    "integers": (lambda: HFLIP(torch.zeros(1, 3, 4, 4).long()), TypeError, "got torch.int64"),
    "index": (lambda: HFLIP(noise(3), index=torch.arange(2)), ValueError, "one number for each of 3 images, got 2"),
    "small": (lambda: T.CenterCrop(50)(noise(1)), ValueError, "size must not be above the image's"),
    "blur": (lambda: T.GaussianBlur(49)(noise(1)), RuntimeError, "blur_radius_x = 24"),
    "params": (lambda: pipeline().apply(noise(1), torch.zeros(1, 3)), ValueError, r"params must be \[B, 40\]"),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_the_transforms_run_on_the_backend_that_is_asked_for():
    images = noise(2)
    with fastcl.use_backend("reference"):
        want = pipeline()(images, index=torch.arange(2))
    assert torch.allclose(pipeline()(images, index=torch.arange(2)), want, rtol=0, atol=2e-5)
