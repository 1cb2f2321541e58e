from __future__ import annotations

import pytest
import torch

from fastcl import transforms as T
from fastcl.compat.torchvision import convert

torchvision = pytest.importorskip("torchvision", reason="torchvision, whose pipelines are converted, is absent")
from torchvision import transforms as v1
from torchvision.transforms import v2

MODULES = {"v1": v1, "v2": v2}
NORMALIZE = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def images(n: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
def test_a_pipeline_becomes_what_would_have_been_written_by_hand(module):
    def steps(t):
        return [
            t.RandomResizedCrop(12, scale=(0.2, 0.9), ratio=(0.5, 2.0)),
            t.RandomHorizontalFlip(0.3),
            t.RandomVerticalFlip(0.2),
            t.RandomAffine((-10, 20), (0.1, 0.2), (0.8, 1.1), (-3, 3, 4, 5), fill=7),
            t.RandomApply([t.ColorJitter(0.4, (0.5, 1.5), 0.2, 0.1)], p=0.7),
            t.RandomGrayscale(0.3),
            t.GaussianBlur((5, 3), (0.2, 1.5)),
        ]

    to_float = v1.ToTensor() if module is v1 else v2.ToDtype(torch.float32, scale=True)
    theirs = module.Compose([*steps(module), to_float, module.Normalize(*NORMALIZE)])
    ours = T.Compose([*steps(T), T.ToDtype(torch.float32, scale=True), T.Normalize(*NORMALIZE)], seed=3)
    got = convert(theirs, seed=3)
    assert isinstance(got.transform, T.Compose)
    assert (got.differences, got.left_out, got.passes) == ((), (), 1)
    assert torch.equal(got.transform.recipe, ours.recipe)
    assert torch.equal(got.transform(images(), index=torch.arange(4)), ours(images(), index=torch.arange(4)))


CERTAIN = {
    "resize": lambda t: t.Resize(15),
    "center": lambda t: t.CenterCrop((9, 14)),
    "flip": lambda t: t.RandomHorizontalFlip(1.0),
    "turn": lambda t: t.RandomRotation((33, 33), fill=7),
    "solarize": lambda t: t.RandomSolarize(0.3, 1.0),
    "gray": lambda t: t.RandomGrayscale(1.0),
    "all_gray": lambda t: t.Grayscale(3),
    "jitter": lambda t: t.ColorJitter((1.4, 1.4)),
    "blur": lambda t: t.GaussianBlur(5, 1.3),
    "nested": lambda t: t.Compose([t.Compose([t.RandomHorizontalFlip(1.0)]), t.RandomVerticalFlip(1.0)]),
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
@pytest.mark.parametrize("make", CERTAIN.values(), ids=CERTAIN.keys())
def test_what_leaves_nothing_to_chance_gives_the_same_pixels(make, module):
    image = images(1)[0] / 255
    got = convert(make(module))
    assert got.differences == got.left_out == ()
    # A warp's positions to 1e-4 pixels, the rest to a few roundings.
    torch.testing.assert_close(got.transform(image), make(module)(image), rtol=0, atol=1e-4)


def test_what_does_not_carry_over_is_named():
    theirs = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(12, interpolation=v2.InterpolationMode.NEAREST, antialias=False),
            v2.AutoAugment(),
            v2.RandomRotation(10, expand=True),
            v2.GaussianNoise(),
        ]
    )
    with pytest.raises(ValueError, match=r"no counterpart for AutoAugment .*RandomRotation .*GaussianNoise"):
        convert(theirs)
    got = convert(theirs, strict=False)
    assert got.differences == (
        "RandomResizedCrop: bilinear instead of nearest interpolation",
        "RandomResizedCrop: with antialias",
    )
    assert [text.split()[0] for text in got.left_out] == ["AutoAugment", "RandomRotation", "GaussianNoise"]
    assert got.transform(images()).shape == (4, 3, 12, 12)


def test_one_transform_and_foreign_things():
    assert convert(v2.RandomHorizontalFlip(1.0)).passes == 1
    with pytest.raises(ValueError, match="no counterpart for ReLU"):
        convert(torch.nn.ReLU())


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
def test_automatic_and_elastic_transforms_carry_over(module):
    """v1 takes InterpolationMode alone."""
    bilinear = v2.InterpolationMode.BILINEAR

    def steps(t):
        return [
            t.RandAugment(3, 11, 21, interpolation=bilinear, fill=[1.0, 2.0, 3.0]),
            t.TrivialAugmentWide(17),
            t.RandomApply([t.ElasticTransform([30.0, 20.0], [4.0, 3.0], interpolation=bilinear, fill=[7.0])], 0.6),
        ]

    got = convert(module.Compose(steps(module)), seed=3)
    ours = T.Compose(steps(T), seed=3)
    assert got.differences == got.left_out == ()
    assert repr(got.transform) == repr(ours)
    assert got.passes == len(ours.passes) == 5
    assert torch.equal(got.transform(images(), index=torch.arange(4)), ours(images(), index=torch.arange(4)))


def test_mixes_carry_over_without_labels():
    theirs = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomChoice([v2.MixUp(alpha=0.4, num_classes=3), v2.CutMix()])])
    got = convert(theirs, seed=3)
    ours = T.Compose([T.RandomHorizontalFlip(), T.RandomChoice([T.MixUp(alpha=0.4), T.CutMix()])], seed=3)
    assert got.differences == tuple(
        f"{name}: a draw for each image, not for the batch; no labels" for name in ("MixUp", "CutMix")
    )
    assert torch.equal(got.transform(images(), index=torch.arange(4)), ours(images(), index=torch.arange(4)))


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
def test_containers_carry_over(module):
    def steps(t):
        flips = [t.RandomHorizontalFlip(0.9), t.RandomVerticalFlip(0.8)]
        colours = [t.RandomPosterize(3), t.RandomInvert(), t.RandomSolarize(0.5)]
        last = [t.RandomApply([t.ColorJitter(0.4), t.RandomGrayscale()], 0.6), t.RandomErasing(0.9, value=(1, 2, 3))]
        return [t.RandomOrder(flips), t.RandomChoice(colours, p=[0.2, 0.3, 0.5]), *last]

    got = convert(module.Compose(steps(module)), seed=3)
    ours = T.Compose(steps(T), seed=3)
    assert got.differences == got.left_out == ()
    assert torch.equal(got.transform(images(), index=torch.arange(4)), ours(images(), index=torch.arange(4)))


@pytest.mark.parametrize(("name", "passes"), [("SimCLR", 2), ("BYOL", 2), ("DINO", 8), ("MoCoV2", 2)])
def test_lightly_s_transforms(name, passes):
    lightly = pytest.importorskip("lightly.transforms", reason="lightly, whose pipelines are converted, is absent")
    theirs = getattr(lightly, name + "Transform", None)
    if theirs is None:
        theirs = pytest.importorskip("lightly.transforms.moco_transform").MoCoV2Transform
    got = convert(theirs(), seed=1)
    ours = getattr(T, name + "Transform")(seed=1)
    assert got.left_out == ()
    assert got.passes == passes
    assert [count for _, count in got.transform.groups] == [count for _, count in ours.groups]
    for (mine, _), (other, _) in zip(got.transform.groups, ours.groups, strict=True):
        assert torch.equal(mine.recipe, other.recipe)


# Passes of all views together; what begins a further pass; what has no counterpart.
MORE_OF_LIGHTLY = {
    "swav_transform.SwaVTransform": (8, [], []),
    "vicreg_transform.VICRegTransform": (4, ["RandomApply"], []),  # solarizes before it blurs
    "wmse_transform.WMSETransform": (4, ["RandomResizedCrop"], []),  # crops after the colours
    "msn_transform.MSNTransform": (12, [], []),
    "fast_siam_transform.FastSiamTransform": (4, [], []),
    "mae_transform.MAETransform": (1, [], []),
    "pirl_transform.PIRLTransform": (2, [], ["Jigsaw"]),
    "detcon_transform.DetConSTransform": (2, [], ["DetConSViewTransform"]),
}


@pytest.mark.parametrize("name", MORE_OF_LIGHTLY)
def test_what_lightly_s_other_transforms_become_is_told(name):
    file, kind = name.split(".")
    module = pytest.importorskip(
        f"lightly.transforms.{file}", reason="lightly, whose pipelines are converted, is absent"
    )
    passes, begins, left_out = MORE_OF_LIGHTLY[name]
    got = convert(getattr(module, kind)(), strict=False)
    assert got.passes == passes
    assert [text.split("(")[0] for text in got.not_fused] == begins
    assert [text.split()[0] for text in got.left_out] == left_out
