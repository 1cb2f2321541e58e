"""The tables that recipes draw: the same bits everywhere, and torchvision's distributions."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from augment_helpers import EVERYTHING, SIZES, SMOOTH, STEPS, recipe

import fastcl
from fastcl.ops.augment import augment_sample
from fastcl.ops.augment_table import COLOR_OPS, PARAM_NAMES, RECIPE_NAMES, philox

HEADER = Path(__file__).parents[1] / "csrc" / "augment" / "augment.h"


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [  # the known answers that Random123 1.14 ships for philox4x32-10
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_numbers(counter, key, want):
    assert [word.item() for word in philox([torch.tensor([word]) for word in counter], key)] == want


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("seed", [0, -5, 2**62 + 12345])
def test_kernels_draw_the_reference_s_bits(backend, size, seed):
    if backend == "reference":
        pytest.skip("it is the reference")
    some = torch.arange(300 if backend == "emulated" else 3000)
    index = torch.cat([some, torch.tensor([2**32 - 1, 2**32, 2**62, -1])])
    for entries in (
        {**EVERYTHING, **STEPS, **SMOOTH},
        {**EVERYTHING, **SMOOTH, "perspective": 0.7},
        {**EVERYTHING, "hflip_at": 0, "vflip_at": 2, "center_given": 1, "center_x": 3},
    ):
        arguments = {"seed": seed, "epoch": 2**32 - 1, "view": 65535, "size": size[0], "out_size": size[1]}
        drawn = augment_sample(recipe(**entries), index, **arguments)
        with fastcl.use_backend("reference"):
            reference = augment_sample(recipe(**entries), index, **arguments)
        differ = (drawn.view(torch.int32) != reference.view(torch.int32)).any(dim=0)
        assert not differ.any(), [PARAM_NAMES[column] for column in differ.nonzero().flatten()]


def test_a_draw_depends_on_nothing_but_its_key(backend):
    stream = {"seed": 7, "epoch": 1, "view": 0, "size": (50, 60), "out_size": (32, 32)}
    whole = augment_sample(recipe(**EVERYTHING), torch.arange(64), **stream)
    order = torch.randperm(64)
    parts = [augment_sample(recipe(**EVERYTHING), part, **stream) for part in order.split([1, 20, 43])]
    assert torch.equal(torch.cat(parts), whole[order])
    for change in ({"seed": 8}, {"epoch": 2}, {"view": 1}):
        other = augment_sample(recipe(**EVERYTHING), torch.arange(64), **{**stream, **change})
        assert (other[:, 3] != whole[:, 3]).any(), change
    other = augment_sample(recipe(**EVERYTHING, **{"pass": 1}), torch.arange(64), **stream)
    assert (other[:, 3] != whole[:, 3]).any()


def test_a_setting_shifts_no_other_draw(backend):
    stream = {"seed": 7, "size": (50, 60), "out_size": (32, 32)}
    column = PARAM_NAMES.index("blur_sigma")
    one = augment_sample(recipe(**EVERYTHING), torch.arange(64), **stream)
    other = augment_sample(recipe(**{**EVERYTHING, "crop": 0, "jitter_p": 0}), torch.arange(64), **stream)
    assert torch.equal(one[:, column], other[:, column])


def fields(struct: str) -> list[str]:
    """The fields of a struct of the header, arrays spelled out."""
    body = re.search(rf"struct {struct} {{(.*?)\n}};", HEADER.read_text(), re.DOTALL)
    assert body is not None
    code = re.sub(r"//.*", "", body[1])
    names = []
    for declaration in re.findall(r"(?:float|double)\s+([^;]+);", code):
        for name in declaration.split(","):
            array = re.fullmatch(r"\s*(\w+)\[(\d+)\]\s*", name)
            names += [f"{array[1]}_{i}" for i in range(int(array[2]))] if array else [name.strip()]
    return names


@pytest.mark.skipif(not HEADER.exists(), reason="the C++ sources are not beside the tests")
def test_both_languages_name_the_same_columns():
    assert fields("AugmentParams") == list(PARAM_NAMES)
    assert fields("AugmentRecipe") == list(RECIPE_NAMES)
    enum = re.search(r"enum ColorOp {([^}]*)}", HEADER.read_text())
    assert enum is not None
    assert [name.strip()[1:].lower() for name in enum[1].split(",")][1:-1] == list(COLOR_OPS[1:])


@pytest.mark.parametrize("size", [(50, 60), (1, 1), (3, 200), (200, 3)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.01, 0.02), (40.0, 90.0)])
def test_a_crop_always_lies_inside(backend, size, ratio):
    entries = {"crop_ratio_min": ratio[0], "crop_ratio_max": ratio[1]}
    entries |= {"crop_log_ratio_min": math.log(ratio[0]), "crop_log_ratio_max": math.log(ratio[1])}
    table = augment_sample(recipe(**{**EVERYTHING, **entries}), torch.arange(500), seed=1, size=size, out_size=(8, 8))
    top, left, height, width = table[:, :4].unbind(1)
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert ((top >= 0) & (top + height <= size[0])).all()
    assert ((left >= 0) & (left + width <= size[1])).all()


# ------------------------------------------------------------------------------------------------------- distributions


@pytest.fixture(scope="module")
def their_draws():
    """Parameters that torchvision draws for an image of 60 x 80."""
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision, the peer, is absent")
    torch.manual_seed(1)
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)

    def draw(transform, n=2000):
        return [transform.make_params([image]) for _ in range(n)]

    return {
        "crop": draw(v2.RandomResizedCrop(32)),
        "affine": draw(v2.RandomAffine(30, translate=(0.2, 0.1), scale=(0.7, 1.3))),
        "shear": draw(v2.RandomAffine(0, shear=(-10, 10, -5, 20))),
        "jitter": draw(v2.ColorJitter(0.8, 0.4, (0.5, 3.0), 0.2)),
        "blur": draw(v2.GaussianBlur(5, (0.1, 2.0))),
        "perspective": draw(v2.RandomPerspective(0.6)),
        "erase": draw(v2.RandomErasing()),
    }


def test_draws_are_distributed_as_torchvision_s(backend, their_draws):
    stats = pytest.importorskip("scipy.stats", reason="scipy is absent")
    ratios = {"crop_ratio_min": 3 / 4, "crop_ratio_max": 4 / 3}
    ratios |= {f"crop_log_{name[5:]}": math.log(value) for name, value in ratios.items()}
    entries = {
        **{"crop": 1, "crop_scale_min": 0.08, "crop_scale_max": 1.0, **ratios},
        **{"warp_p": 1, "angle_from": -30, "angle_to": 30, "translate_x": 0.2, "translate_y": 0.1},
        **{"zoom_min": 0.7, "zoom_max": 1.3, "jitter_p": 1, "brightness_min": 0.2, "brightness_max": 1.8},
        **{"contrast_min": 0.6, "contrast_max": 1.4, "saturation_min": 0.5, "saturation_max": 3.0},
        **{"hue_min": -0.2, "hue_max": 0.2, "blur_p": 1, "blur_sigma_min": 0.1, "blur_sigma_max": 2},
        **{**SMOOTH, "rot90_p": 0, "erase_p": 1},
    }
    n = 20000
    table = augment_sample(recipe(**entries), torch.arange(n), seed=5, size=(60, 80), out_size=(60, 80))
    ours = dict(zip(PARAM_NAMES, table.double().unbind(1), strict=True))
    zoom = (ours["map_0"] * ours["map_4"] - ours["map_1"] * ours["map_3"]) ** -0.5
    shift = torch.linalg.solve(
        torch.stack([ours[f"map_{i}"] for i in (0, 1, 3, 4)], 1).reshape(-1, 2, 2),
        -torch.stack([ours["map_2"], ours["map_5"]], 1),
    )
    pairs = {
        **{name: (ours[f"crop_{name}"], "crop", name) for name in ("top", "left", "height", "width")},
        "angle": (torch.rad2deg(torch.atan2(ours["map_1"], ours["map_0"])), "affine", "angle"),
        "scale": (zoom, "affine", "scale"),
        **{name: (ours[name], "jitter", f"{name}_factor") for name in ("brightness", "contrast", "saturation", "hue")},
    }
    theirs = {name: [draw[key] for draw in their_draws[group]] for name, (_, group, key) in pairs.items()}
    samples = {name: (values, theirs[name]) for name, (values, _, _) in pairs.items()}
    samples["sigma"] = (ours["blur_sigma"], [draw["sigma"][0] for draw in their_draws["blur"]])
    for axis in range(2):
        samples[f"shift_{axis}"] = (shift[:, axis].round(), [d["translate"][axis] for d in their_draws["affine"]])
    for name, key in (("top", "i"), ("left", "j"), ("height", "h"), ("width", "w")):
        samples[f"erase_{name}"] = (ours[f"erase_{name}"], [draw[key] for draw in their_draws["erase"]])
    corners = recipe(warp_p=1, perspective=0.6)
    maps = augment_sample(corners, torch.arange(n), seed=5, size=(60, 80), out_size=(60, 80))[:, 6:15].double()
    for number in range(8):  # theirs counts from the upper left corner and ends with 1 there
        shown = maps.reshape(-1, 3, 3)
        shift = torch.tensor([[1.0, 0, -40], [0, 1, -30], [0, 0, 1]]).double()
        shown = torch.linalg.inv(shift) @ shown @ shift
        values = (shown / shown[:, 2:, 2:]).flatten(1)[:, number]
        samples[f"corners_{number}"] = (values, [draw["coefficients"][number] for draw in their_draws["perspective"]])
    sheared = recipe(warp_p=1, shear_x_min=-10, shear_x_max=10, shear_y_min=-5, shear_y_max=20)
    sheared = augment_sample(sheared, torch.arange(n), seed=5, size=(60, 80), out_size=(60, 80)).double()
    for axis, column in enumerate(("map_1", "map_3")):  # the inverse map's [[., tan x], [tan y, 1]]
        angle = torch.rad2deg(torch.atan(sheared[:, PARAM_NAMES.index(column)]))
        samples[f"shear_{axis}"] = (angle, [draw["shear"][axis] for draw in their_draws["shear"]])
    # Of 27 comparisons at 1e-4 each, one in 370 runs would fail by chance; the seeds are fixed, so this is one run.
    for name, (mine, other) in samples.items():
        assert stats.ks_2samp(mine.numpy(), other).pvalue > 1e-4, name
    orders = torch.stack([ours[f"color_op_{i}"] for i in range(4)], 1) @ torch.tensor([1000.0, 100, 10, 1]).double()
    counts = orders.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_probabilities(backend):
    entries = {"hflip_p": 0.3, "vflip_p": 0.0, "grayscale_p": 1.0, "jitter_p": 0.8, "blur_p": 0.5, "blur_sigma_min": 1}
    entries |= {"brightness_max": 2.0, "blur_sigma_max": 1.0}
    n = 20000
    table = augment_sample(recipe(**entries), torch.arange(n), seed=5, size=(9, 9), out_size=(9, 9))
    happened = dict(zip(PARAM_NAMES, (table != 0).double().mean(0).tolist(), strict=True))
    jitter = sum(happened[f"color_op_{i}"] for i in range(4))  # brightness alone, at one of four places
    assert happened["vflip"] == 0
    assert happened["grayscale"] == 1
    for got, p in ((happened["hflip"], 0.3), (jitter, 0.8), (happened["blur_sigma"], 0.5)):
        assert abs(got - p) < 5 * math.sqrt(p * (1 - p) / n)


def test_probabilities_of_what_follows_the_colours(backend):
    names = ("sharpen", "invert", "posterize", "solarize", "autocontrast", "equalize", "erase", "vflip", "warp")
    shares = {name: 0.1 + 0.08 * number for number, name in enumerate(names)}
    entries = {f"{name}_p": p for name, p in shares.items()}
    entries |= {"posterize_levels": 4, "angle_from": 5, "angle_to": 6, "erase_scale_min": 0.1, "erase_scale_max": 0.2}
    n = 20000
    table = augment_sample(recipe(**entries), torch.arange(n), seed=5, size=(30, 30), out_size=(30, 30))
    happened = {
        name: table[:, PARAM_NAMES.index({"erase": "erase_height", "warp": "map_1"}.get(name, name))] != 0
        for name in names
    }
    for name, p in shares.items():
        assert abs(happened[name].double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n), name
    both = torch.stack([happened[name] for name in names]).double()
    assert (torch.corrcoef(both) - torch.eye(len(names))).abs().max() < 5 / math.sqrt(n)  # each by itself
    turned = augment_sample(recipe(rot90_p=0.6), torch.arange(n), seed=5, size=(30, 30), out_size=(30, 30))
    linear = turned[:, [PARAM_NAMES.index(f"map_{i}") for i in (0, 1, 3, 4)]]
    ways, counts = linear.unique(dim=0, return_counts=True)
    assert len(ways) == 4
    for way, count in zip(ways.tolist(), counts.tolist(), strict=True):
        p = 0.6 / 4 + 0.4 * (way == [1, 0, 0, 1])
        assert abs(count / n - p) < 5 * math.sqrt(p * (1 - p) / n)
