from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastcl
from fastcl.ops.augment import augment_apply, augment_sample, augment_views
from fastcl.ops.augment_table import COLOR_OPS, FLIP_AT, IDENTITY_RECIPE, PARAM_NAMES, RECIPE_NAMES, philox

HEADER = Path(__file__).parents[1] / "csrc" / "augment" / "augment.h"
EVERYTHING = {
    **{"crop": 1, "crop_scale_min": 0.08, "crop_ratio_min": 3 / 4, "crop_ratio_max": 4 / 3},
    **{"crop_log_ratio_min": math.log(3 / 4), "crop_log_ratio_max": math.log(4 / 3)},
    **{"hflip_p": 0.5, "hflip_at": FLIP_AT.index("after_warp"), "vflip_p": 0.3, "vflip_at": 0},
    **{"warp_p": 0.7, "angle_from": -30, "angle_to": 400, "translate_x": 0.2, "translate_y": 0.1},
    **{"zoom_min": 0.7, "zoom_max": 1.3, "shear_x_min": -10, "shear_x_max": 10, "shear_y_min": -5, "shear_y_max": 20},
    **{"jitter_p": 0.8, "brightness_min": 0.2, "brightness_max": 1.8, "contrast_min": 0.2, "contrast_max": 1.8},
    **{"saturation_min": 0.2, "saturation_max": 1.8, "hue_min": -0.2, "hue_max": 0.2, "grayscale_p": 0.2},
    **{"blur_p": 0.5, "blur_sigma_min": 0.1, "blur_sigma_max": 2},
}
# Apart: they turn noise of 1e-7 into whole levels.
SOLARIZE = {"solarize_p": 0.5, "solarize_threshold": 0.5}
STEPS = {**SOLARIZE, "posterize_p": 0.5, "posterize_levels": 8, "equalize_p": 0.5, "sharpen_p": 0.5}
STEPS |= {"sharpness": 2.5, "autocontrast_p": 0.3}  # what autocontrast multiplies noise by has no bound
SMOOTH = {  # what follows the blur without steps
    **{"invert_p": 0.4, "rot90_p": 0.6, "erase_p": 0.5},
    **{"erase_scale_min": 0.02, "erase_scale_max": 0.33, "erase_noise": 1},
    **{"erase_log_ratio_min": math.log(0.3), "erase_log_ratio_max": math.log(3.3)},
}
SIZES = {  # images, output
    "digits": ((28, 28), (28, 28)),
    "shrink": ((97, 131), (64, 50)),
    "enlarge": ((9, 14), (33, 40)),
    "one_pixel": ((1, 1), (1, 1)),
    "from_one_pixel": ((1, 1), (5, 3)),
    "to_one_pixel": ((40, 23), (1, 1)),
    "long": ((3, 200), (7, 5)),
}
ODD_MAP = (1.1, -0.3, 0.7, 0.2, 0.9, -1.3, 0.0, 0.0, 1.0)


def recipe(**entries: float) -> Tensor:
    values = {**IDENTITY_RECIPE, **entries}
    assert set(values) == set(RECIPE_NAMES)
    return torch.tensor([values[name] for name in RECIPE_NAMES], dtype=torch.float64, device="cpu")


def row(size: tuple[int, int], **columns: float) -> Tensor:
    """One row that does nothing but what `columns` say."""
    values = dict(zip(PARAM_NAMES, [0.0] * len(PARAM_NAMES), strict=True))
    values |= {"crop_height": size[0], "crop_width": size[1], "map_0": 1, "map_4": 1, "map_8": 1}
    values |= {"brightness": 1, "contrast": 1, "saturation": 1, "sharpness": 1, **columns}
    assert set(values) == set(PARAM_NAMES)
    return torch.tensor([[values[name] for name in PARAM_NAMES]], dtype=torch.float32)


def noise(n: int, channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=generator, device="cpu")
    return values.to(torch.get_default_device())


def check_refused(backend: str, view: int, message: str, call: Callable[[], Sequence[Tensor]]) -> None:
    """The CPU names the row; a GPU, whose rows the host does not look at, makes a view of nothing."""
    if backend in ("reference", "native"):
        with pytest.raises(RuntimeError, match=message):
            call()
        return
    views = call()
    nothing = views[view].isnan() if views[view].is_floating_point() else views[view] == 0
    assert nothing.all()
    assert all(other.isfinite().all() for number, other in enumerate(views) if number != view)


def require_native() -> None:
    if fastcl.backends()["augment_apply"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")


# --------------------------------------------------------------------------------------------------------------- draws


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
def test_native_draws_the_reference_s_bits(size, seed):
    require_native()
    index = torch.cat([torch.arange(3000), torch.tensor([2**32 - 1, 2**32, 2**62, -1])])
    for entries in (
        {**EVERYTHING, **STEPS, **SMOOTH},
        {**EVERYTHING, **SMOOTH, "perspective": 0.7},
        {**EVERYTHING, "hflip_at": 0, "vflip_at": 2, "center_given": 1, "center_x": 3},
    ):
        arguments = {"seed": seed, "epoch": 2**32 - 1, "view": 65535, "size": size[0], "out_size": size[1]}
        native = augment_sample(recipe(**entries), index, **arguments)
        with fastcl.use_backend("reference"):
            reference = augment_sample(recipe(**entries), index, **arguments)
        differ = (native.view(torch.int32) != reference.view(torch.int32)).any(dim=0)
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


# --------------------------------------------------------------------------------------------------------- one op each


def error(got: Tensor, exact: Tensor) -> float:
    """Largest difference, relative to the largest exact value."""
    return float((got.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_everything_at_once_matches_fp64(backend, size, channels, interpolation):
    images = noise(8, channels, size[0])
    entries = recipe(**EVERYTHING, **SMOOTH, perspective=0.5 if interpolation == "bilinear" else -1)
    params = augment_sample(entries, torch.arange(8), seed=3, size=size[0], out_size=size[1])
    unit = images.double() / 255
    with fastcl.use_backend("reference"):
        exact = augment_apply(unit, params, size[1], interpolation=interpolation, fill=[0.5])
        plain = augment_apply(unit.float(), params, size[1], interpolation=interpolation, fill=[0.5])
    # A hue is a quotient by the chroma: noise of 1e-7 grows where a pixel is nearly gray, to 2e-6 of 1, 0.0005 levels.
    for got in (
        augment_apply(images, params, size[1], interpolation=interpolation, fill=[127.5], dtype=torch.float32),
        augment_apply(unit.float(), params, size[1], interpolation=interpolation, fill=[0.5]),
    ):
        assert error(got, exact) <= 2 * error(plain, exact) + 2e-6


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("source", [torch.uint8, torch.float32])
def test_layouts_and_strides_give_the_same(backend, channels, layout, source):
    size = (23, 17)
    images = noise(4, channels, size)
    images = images if source == torch.uint8 else images / 255
    geometry = recipe(**{**EVERYTHING, "jitter_p": 0, "grayscale_p": 0})
    params = augment_sample(geometry, torch.arange(4), seed=3, size=size, out_size=(12, 14))
    want = augment_apply(images, params, (12, 14))
    assert torch.equal(augment_apply(images.contiguous(memory_format=layout), params, (12, 14)), want)
    wide = torch.zeros(4, channels, 23, 34, dtype=images.dtype)
    wide[..., ::2] = images
    assert torch.equal(augment_apply(wide[..., ::2], params, (12, 14)), want)
    assert torch.equal(augment_apply(images, params.t().contiguous().t(), (12, 14)), want)
    assert want.is_contiguous()


def test_an_identity_row_changes_no_bit(backend):
    images = noise(3, 3, (11, 13))
    params = row((11, 13)).expand(3, -1)
    assert torch.equal(augment_apply(images, params, (11, 13)), images)
    assert torch.equal(augment_apply(images / 255, params, (11, 13)), images / 255)
    flipped = params.clone()
    flipped[:, 4:6] = 1
    assert torch.equal(augment_apply(images, flipped, (11, 13)), images.flip(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_outputs_are_the_float_output_rounded(backend, dtype):
    images = noise(4, 3, (16, 20))
    params = augment_sample(recipe(**EVERYTHING), torch.arange(4), seed=1, size=(16, 20), out_size=(8, 8))
    arguments = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    single = augment_apply(images, params, (8, 8), dtype=torch.float32, **arguments)
    assert torch.equal(augment_apply(images, params, (8, 8), dtype=dtype, **arguments), single.to(dtype))


def test_out_is_written_in_place(backend):
    images = noise(4, 3, (16, 20))
    params = augment_sample(recipe(**EVERYTHING), torch.arange(4), seed=1, size=(16, 20), out_size=(8, 9))
    for dtype in (torch.uint8, torch.float32, torch.bfloat16):
        out = torch.zeros(4, 3, 8, 9, dtype=dtype)
        assert augment_apply(images, params, (8, 9), out=out) is out
        assert torch.equal(out, augment_apply(images, params, (8, 9), dtype=dtype))


def test_normalisation(backend):
    images = noise(2, 3, (5, 6))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    got = augment_apply(images, row((5, 6)).expand(2, -1), (5, 6), dtype=torch.float32, mean=mean, std=std)
    want = (images.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(
        got.double(), want, rtol=0, atol=2e-6
    )  # values up to 2.7, each of three steps rounds once
    one = augment_apply(images, row((5, 6)).expand(2, -1), (5, 6), dtype=torch.float32, mean=[0.5], std=[0.25])
    torch.testing.assert_close(one, (images / 255 - 0.5) / 0.25, rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_solarize_comes_after_blur(backend, dtype):
    images = noise(2, 3, (11, 13))
    blur = {"blur_sigma": 1.5, "blur_radius_x": 3, "blur_radius_y": 2}
    plain = augment_apply(images, row((11, 13), **blur).expand(2, -1), (11, 13), dtype=torch.float32)
    params = row((11, 13), **blur, solarize=1, solarize_threshold=0.4).expand(2, -1)
    arguments = {} if dtype == torch.uint8 else {"mean": [0.2], "std": [0.5]}
    got = augment_apply(images, params, (11, 13), dtype=dtype, **arguments)
    want = torch.where(plain >= 0.4, 1 - plain, plain)
    assert 0.1 < (plain >= 0.4).float().mean() < 0.9
    if dtype == torch.uint8:
        check(got, want * 255, 0.5001)
    else:  # values up to 1.6, whose half a unit in bfloat16 is 2^-8
        check(got, (want - 0.2) / 0.5, 2e-6 if dtype == torch.float32 else 2.0**-8)


def test_perspective_and_degenerate_maps(backend):
    images = noise(1, 3, (9, 9))
    behind = row((9, 9), map_8=0)  # every point at infinity
    assert (augment_apply(images, behind, (9, 9), fill=[7]) == 7).all()
    far = row((9, 9), map_2=1e38)
    assert (augment_apply(images, far, (9, 9), fill=[7], interpolation="bilinear") == 7).all()
    double = row((9, 9), map_0=2, map_4=2, map_8=2)  # homogeneous: the identity
    assert torch.equal(augment_apply(images, double, (9, 9)), images)


# --------------------------------------------------------------------------------------------------------- torchvision


def photograph() -> Tensor:
    np = pytest.importorskip("numpy")
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="scikit-learn, whose sample photographs are used, is absent"
    )
    return (
        torch.from_numpy(np.array(datasets.load_sample_image("china.jpg")))
        .permute(2, 0, 1)[:, 100:220, 200:350]
        .to(torch.get_default_device())
    )


PICTURES = {
    "photograph": photograph,
    "noise": lambda: noise(1, 3, (61, 37))[0],
    "gray": lambda: noise(1, 1, (40, 33))[0],
    "tiny": lambda: noise(1, 3, (2, 3))[0],
    "extremes": lambda: 255 * noise(1, 3, (30, 31))[0].div(128, rounding_mode="floor").to(torch.uint8),
}


@pytest.fixture(params=PICTURES.values(), ids=PICTURES.keys())
def picture(request):
    pytest.importorskip("torchvision", reason="torchvision, the peer, is absent")
    return request.param()


@pytest.fixture
def tv():
    return pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision, the peer, is absent")


def code(name: str) -> int:
    return COLOR_OPS.index(name)


def solarize_at(image: Tensor) -> float:
    return 128 if image.dtype == torch.uint8 else 127.9 / 255


# name: (columns, what torchvision does, levels that uint8 may differ by). Where torchvision's uint8 cuts off, so do we;
# floor(t + d) and floor(t) differ by at most 1 for |d| < 1: d is float noise (brightness), (1 - f) times the cut off
# part of a gray (contrast, saturation), 0.999 of x (hue: torchvision takes floor(255.999 x)). Where both round to
# nearest, only ties can fall differently.
OPS = {
    "hflip": ({"hflip": 1}, lambda F, x: F.horizontal_flip(x), 0),
    "vflip": ({"vflip": 1}, lambda F, x: F.vertical_flip(x), 0),
    "brighter": ({"color_op_0": code("brightness"), "brightness": 1.7}, lambda F, x: F.adjust_brightness(x, 1.7), 1),
    "darker": ({"color_op_2": code("brightness"), "brightness": 0.31}, lambda F, x: F.adjust_brightness(x, 0.31), 1),
    "contrast": ({"color_op_1": code("contrast"), "contrast": 1.8}, lambda F, x: F.adjust_contrast(x, 1.8), 1),
    "flat": ({"color_op_1": code("contrast"), "contrast": 0.2}, lambda F, x: F.adjust_contrast(x, 0.2), 1),
    "saturated": ({"color_op_3": code("saturation"), "saturation": 1.8}, lambda F, x: F.adjust_saturation(x, 1.8), 1),
    "faded": ({"color_op_3": code("saturation"), "saturation": 0.2}, lambda F, x: F.adjust_saturation(x, 0.2), 1),
    "hue": ({"color_op_0": code("hue"), "hue": 0.2}, lambda F, x: F.adjust_hue(x, 0.2), 1),
    "hue_back": ({"color_op_0": code("hue"), "hue": -0.37}, lambda F, x: F.adjust_hue(x, -0.37), 1),
    "hue_half": ({"color_op_0": code("hue"), "hue": 0.5}, lambda F, x: F.adjust_hue(x, 0.5), 1),
    "solarize": ({"solarize": 1, "solarize_threshold": 128 / 255}, lambda F, x: F.solarize(x, solarize_at(x)), 0),
    "grayscale": ({"grayscale": 1}, lambda F, x: F.rgb_to_grayscale(x, x.shape[0]), 1),
    "invert": ({"invert": 1}, lambda F, x: F.invert(x), 0),
    "posterize_1": ({"posterize": 2}, lambda F, x: F.posterize(x, 1), 0),
    "posterize_5": ({"posterize": 32}, lambda F, x: F.posterize(x, 5), 0),
    "sharper": ({"sharpen": 1, "sharpness": 2.7}, lambda F, x: F.adjust_sharpness(x, 2.7), 1),
    "softer": ({"sharpen": 1, "sharpness": 0.3}, lambda F, x: F.adjust_sharpness(x, 0.3), 1),
    "autocontrast": ({"autocontrast": 1}, lambda F, x: F.autocontrast(x), 1),
    "equalize": ({"equalize": 1}, lambda F, x: F.equalize(x), 0),
}


def check(got: Tensor, want: Tensor, most: float) -> None:
    worst = (got.double() - want.double()).abs().max().item()
    assert worst <= most, f"differs by {worst:.3g}"


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_torchvision_s(backend, tv, picture, name):
    columns, theirs, levels = OPS[name]
    size = tuple(picture.shape[1:])
    params = row(size, **columns)
    check(augment_apply(picture[None], params, size)[0], theirs(tv, picture), levels)
    unit = picture / 255
    # Up to eight roundings of values up to 1, each 2^-24, and the mean of a contrast; a hue is up to 6, with roundings
    # of up to 2^-22 that a chroma of 1 carries to the value.
    check(augment_apply(unit[None], params, size)[0], theirs(tv, unit), 4e-6 if "hue" in name else 1e-6)


CROPS = {  # as shares of the image: top, left, height, width; and the output
    "shrink": ((0.1, 0.2, 0.8, 0.7), (17, 13)),
    "enlarge": ((0.3, 0.3, 0.3, 0.4), (64, 50)),
    "whole": ((0, 0, 1, 1), (32, 32)),
    "one_pixel": ((0.5, 0.5, 0, 0), (9, 8)),
    "one_row": ((0.5, 0, 0, 1), (6, 9)),
    "one_column": ((0, 0.99, 1, 0), (40, 3)),
    "to_one": ((0, 0, 1, 1), (1, 1)),
    "one_side_kept": ((0, 0, 1, 0.5), (None, 21)),
    "kept": ((0, 0, 1, 0.5), (None, None)),
}


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", CROPS)
def test_crop_and_resize_are_torchvision_s(backend, tv, picture, name, mode):
    (top, left, height, width), out = CROPS[name]
    _, h, w = picture.shape
    box = [int(top * (h - 1)), int(left * (w - 1)), max(1, int(height * h)), max(1, int(width * w))]
    out = (out[0] or box[2], out[1] or box[3])
    params = row((h, w), **dict(zip(("crop_top", "crop_left", "crop_height", "crop_width"), box, strict=True)))
    if out != (1, 1):  # where torch 2.14 fails on uint8
        want = tv.resized_crop(picture, *box, list(out), mode, antialias=True)
        # torchvision rounds (and clamps) between its two passes and has weights of 15 bits: half a level and some of a
        # tie; half a level comes through cubic weights whose sizes sum to 1.3, and what it clamps between is more.
        clamped = mode == "bicubic" and picture.float().std() > 60
        most = 0 if out == (box[2], box[3]) else 40 if clamped else 1
        check(augment_apply(picture[None], params, out, resize=mode)[0], want, most)
    want = tv.resized_crop(picture / 255, *box, list(out), mode, antialias=True)
    # Sums of up to 2 * 150 weights in float32 that torchvision computes in float32 too: 300 * 2^-24 at the very worst.
    # The sizes of cubic weights sum to up to 1.3 in each direction.
    check(augment_apply((picture / 255)[None], params, out, resize=mode)[0], want, 2e-6 if mode == "bilinear" else 4e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("taps", [(3, 3), (23, 9), (1, 5)])
def test_blur_is_torchvision_s(backend, tv, picture, taps, sigma):
    _, h, w = picture.shape
    if taps[0] // 2 >= w or taps[1] // 2 >= h:
        pytest.skip("the kernel is larger than the image allows")
    params = row((h, w), blur_sigma=sigma, blur_radius_x=taps[0] // 2, blur_radius_y=taps[1] // 2)
    want = tv.gaussian_blur(picture, list(taps), [sigma, sigma])
    check(augment_apply(picture[None], params, (h, w))[0], want, 1)
    want = tv.gaussian_blur(picture / 255, list(taps), [sigma, sigma])
    # Weights and sums in float32 on both sides: 23 * 9 products of weight up to 1 in theirs.
    check(augment_apply((picture / 255)[None], params, (h, w))[0], want, 2e-6)


WARPS = {
    "still": {"angle": 0.0},
    "turned": {"angle": 33.0},
    "shifted": {"angle": 0.0, "translate": (2, -1)},
    "everything": {"angle": -20.0, "translate": (-3, 1), "scale": 0.8, "shear": (10.0, -5.0)},
    "off_center": {"angle": 70.0, "scale": 1.4, "center": [1.0, 2.5]},
}


def affine_columns(size: tuple[int, int], angle, translate=(0, 0), scale=1.0, shear=(0.0, 0.0), center=None):
    """The map that a recipe of nothing but this draws."""
    entries = {"warp_p": 1, "angle_from": angle, "angle_to": angle, "zoom_min": scale, "zoom_max": scale}
    entries |= dict(
        zip(("shear_x_min", "shear_x_max", "shear_y_min", "shear_y_max"), (*shear[:1] * 2, *shear[1:] * 2), strict=True)
    )
    if center:
        entries |= {"center_given": 1, "center_x": center[0], "center_y": center[1]}
    table = augment_sample(recipe(**entries), torch.tensor([0]), seed=0, size=size, out_size=size)
    columns = dict(zip(PARAM_NAMES, table[0].tolist(), strict=True))
    # A shift is drawn from a range about 0; a fixed one moves the source the other way, through the map's linear part.
    for a, b, c in ((0, 1, 2), (3, 4, 5)):
        columns[f"map_{c}"] -= columns[f"map_{a}"] * translate[0] + columns[f"map_{b}"] * translate[1]
    return columns


def source_positions(columns: dict[str, float], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    h, w = size
    y = torch.arange(h, dtype=torch.float64)[:, None] - (h - 1) / 2
    x = torch.arange(w, dtype=torch.float64) - (w - 1) / 2
    m = [columns[f"map_{i}"] for i in range(9)]
    return m[0] * x + m[1] * y + m[2] + (w - 1) / 2, m[3] * x + m[4] * y + m[5] + (h - 1) / 2


@pytest.mark.parametrize("name", WARPS)
@pytest.mark.parametrize("fill", [None, [0.0], [200.0]], ids=["no_fill", "black", "bright"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_warp_is_torchvision_s(backend, tv, picture, name, fill, interpolation):
    size = tuple(picture.shape[1:])
    given = {"translate": (0, 0), "scale": 1.0, "shear": (0.0, 0.0), "center": None, **WARPS[name]}
    columns = affine_columns(size, **given)
    params = row(size, **columns)
    given = {**given, "translate": list(given["translate"]), "shear": list(given["shear"])}

    def both(image: Tensor, unit: float) -> tuple[Tensor, Tensor]:
        values = None if fill is None else [v / unit for v in fill] * len(image)
        got = augment_apply(image[None], params, size, interpolation=interpolation, fill=values)[0]
        return got, tv.affine(image, **given, interpolation=interpolation, fill=values)

    # torchvision computes positions in float32, to about size * 2^-22: a pixel this near to a tie may go either way.
    near = torch.zeros(size, dtype=torch.bool)
    if interpolation == "nearest":
        for position in source_positions(columns, size):
            near |= (position - position.floor() - 0.5).abs() < 1e-4
    got, want = both(picture, 1.0)
    check(got[:, ~near] if (~near).any() else got[:0], want[:, ~near], 0 if interpolation == "nearest" else 1)
    got, want = both(picture / 255, 255.0)
    # A position that is off by 150 * 2^-22 moves a bilinear value by as much where neighbours are 0 and 1, in x and y.
    check(got[:, ~near], want[:, ~near], 1e-6 if interpolation == "nearest" else 1e-4)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_perspective_is_torchvision_s(backend, tv, picture, interpolation):
    """The corners that a recipe draws, given to torchvision."""
    size = tuple(picture.shape[1:])
    last_y, last_x = size[0] - 1, size[1] - 1
    table = augment_sample(recipe(warp_p=1, perspective=0.6), torch.arange(6), seed=2, size=size, out_size=size)
    start = torch.tensor([[0, 0], [last_x, 0], [last_x, last_y], [0, last_y]], dtype=torch.float64)
    for params in table:
        matrix = params[6:15].double().reshape(3, 3)
        # Where a source's corner is shown: through the inverse map, between pixels' corners as torchvision counts.
        middle = torch.tensor([size[1] / 2, size[0] / 2], dtype=torch.float64)
        shown = torch.cat([start - middle, torch.ones(4, 1)], 1) @ torch.linalg.inv(matrix).T
        ends = (shown[:, :2] / shown[:, 2:] + middle).round()
        if min(size) < 5:  # corners in one line have no such map
            continue
        got = augment_apply((picture / 255)[None], params[None], size, interpolation=interpolation, fill=[0.3])[0]
        fill = [0.3] * len(picture)
        want = tv.perspective(picture / 255, start.tolist(), ends.tolist(), interpolation=interpolation, fill=fill)
        # Theirs has positions in float32, divided by a depth of down to 0.4: this near to a tie either may be nearest,
        # and where neighbours are 0 and 1 a bilinear value is off by as much.
        near = torch.zeros(size, dtype=torch.bool)
        y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in size)
        places = torch.stack([x.expand(size), y[:, None].expand(size), torch.ones(size, dtype=torch.float64)], -1)
        places = places @ matrix.T
        for axis, side in ((0, size[1]), (1, size[0])):
            position = places[..., axis] / places[..., 2] + (side - 1) / 2
            near |= (position - position.floor() - 0.5).abs() < 5e-4
        if interpolation == "bilinear":
            check(got, want, 2e-3)
        else:
            check(got[:, ~near], want[:, ~near], 1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rot90_is_exact(backend, interpolation):
    for size, turns in (((8, 8), {0, 1, 2, 3}), ((9, 9), {0, 1, 2, 3}), ((6, 9), {0, 2})):
        images = noise(1, 3, size).expand(40, -1, -1, -1)
        table = augment_sample(recipe(rot90_p=1), torch.arange(40), seed=0, size=size, out_size=size)
        seen = set()
        for got in augment_apply(images, table, size, interpolation=interpolation):
            seen |= {k for k in turns if torch.equal(got, torch.rot90(images[0], k, (1, 2)))}
        assert seen == turns


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_views_are_those_of_single_calls(backend, dtype):
    images = noise(3, 3, (20, 30))
    sizes = [(16, 16), (8, 9), (16, 16)]
    entries = recipe(**EVERYTHING, **SMOOTH)
    tables = [
        augment_sample(entries, torch.arange(3), seed=1, view=view, size=(20, 30), out_size=size)
        for view, size in enumerate(sizes)
    ]
    how = {"interpolation": "bilinear", "resize": "bicubic", "erase": [7.0], "fill": [9.0], "dtype": dtype}
    want = [augment_apply(images, table, size, **how) for table, size in zip(tables, sizes, strict=True)]
    got = augment_views(images, tables, sizes, **how)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    out = [torch.zeros_like(view) for view in want]
    assert all(a is b for a, b in zip(augment_views(images, tables, sizes, **how, out=out), out, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))
    tables[1][2, 0] = torch.nan
    refused = r"params\[1\]\[2\] has crop_top = nan"
    check_refused(backend, 2, refused, lambda: augment_views(images, tables, sizes, **how)[1])
    with pytest.raises(ValueError, match="one entry for each view, got 3, 2"):
        augment_views(images, tables, sizes[:2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("last", [True, False], ids=["blurred", "sharpened"])
def test_rows_of_a_large_image_are_shared_out(dtype, last):
    """One image on several threads has the bits that it has in a batch."""
    require_native()
    entries = {**EVERYTHING, "blur_p": 1} if last else {**EVERYTHING, **SMOOTH, "sharpen_p": 1, "blur_p": 0.5}
    images = noise(1, 3, (70, 90)).expand(8, -1, -1, -1).contiguous()
    threads = torch.get_num_threads()
    for index in range(6):
        params = augment_sample(recipe(**entries), torch.tensor([index]), seed=3, size=(70, 90), out_size=(203, 211))
        try:
            torch.set_num_threads(1)
            want = augment_apply(images, params.expand(8, -1), (203, 211), interpolation="bilinear", dtype=dtype)
            torch.set_num_threads(3)
            got = augment_apply(images[:1], params, (203, 211), interpolation="bilinear", dtype=dtype)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(got[0], want[7])


@pytest.mark.parametrize("angle", [0, 90, 180, 270, -90, 450])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_quarter_turns_are_exact(backend, angle, interpolation):
    images = noise(1, 3, (8, 8))
    entries = {"warp_p": 1, "angle_from": -angle, "angle_to": -angle}
    table = augment_sample(recipe(**entries), torch.tensor([0]), seed=0, size=(8, 8), out_size=(8, 8))
    got = augment_apply(images, table, (8, 8), interpolation=interpolation)
    assert torch.equal(got, torch.rot90(images, angle // 90, (2, 3)))


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3), (3, 0, 2, 0), (2, 2, 0, 4)])
def test_colour_ops_run_in_the_row_s_order(backend, tv, picture, order):
    size = tuple(picture.shape[1:])
    factors = {"brightness": 1.3, "contrast": 0.6, "saturation": 1.5, "hue": -0.1}
    params = row(size, **{f"color_op_{i}": op for i, op in enumerate(order)}, **factors, grayscale=0)
    want = picture / 255
    for op in order:
        if op:
            want = getattr(tv, f"adjust_{COLOR_OPS[op]}")(want, factors[COLOR_OPS[op]])
    # A hue after three ops: the roundings of all before it, over the chroma (see above).
    check(augment_apply((picture / 255)[None], params, size)[0], want, 5e-6)


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
    # Of 25 comparisons at 1e-4 each, one in 400 runs would fail by chance; the seeds are fixed, so this is one run.
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


# ----------------------------------------------------------------------------------------------------------- bad input


BAD_ROWS = {
    "nan": ({"hue": float("nan")}, "hue = nan"),
    "inf": ({"map_2": float("inf")}, "map_2 = inf"),
    "above": ({"crop_top": 5}, "crop_top = 5"),
    "outside": ({"crop_top": 3}, "crop_height = 5"),
    "negative": ({"crop_left": -1}, "crop_left = -1"),
    "empty_crop": ({"crop_width": 0}, "crop_width = 0"),
    "too_wide": ({"crop_width": 8}, "crop_width = 8"),
    "half_pixel": ({"crop_height": 4, "crop_top": 0.5}, "crop_top = 0.5"),
    "solarize": ({"solarize": 0.5}, "solarize = 0.5"),
    "posterize": ({"posterize": 257}, "posterize = 257"),
    "sharpness": ({"sharpness": -1}, "sharpness = -1"),
    "equalize": ({"equalize": 2}, "equalize = 2"),
    "erase": ({"erase_top": 2, "erase_height": 4}, "erase_height = 4"),
    "erase_beyond": ({"erase_left": 10}, "erase_left = 10"),
    "erase_seed": ({"erase_seed": 0.5}, "erase_seed = 0.5"),
    "unknown_op": ({"color_op_1": 5}, "color_op_1 = 5"),
    "half_op": ({"color_op_1": 1.5}, "color_op_1 = 1.5"),
    "negative_factor": ({"contrast": -0.1}, "contrast = -0.1"),
    "hue": ({"hue": 0.6}, "hue = 0.6"),
    "radius": ({"blur_sigma": 1, "blur_radius_x": 9}, "blur_radius_x = 9"),
    "huge": ({"crop_left": 1e30}, "crop_left = 1"),
}


@pytest.mark.parametrize(("columns", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named(backend, columns, message):
    images = noise(2, 3, (5, 7))
    params = torch.cat([row((5, 7)), row((5, 7), **columns)])
    refused = rf"augment_apply: params\[1\] has {re.escape(message)}"
    check_refused(backend, 1, refused, lambda: augment_apply(images, params, (5, 9), dtype=torch.float32))
    if backend in ("emulated", "cuda"):
        check_refused(backend, 1, refused, lambda: augment_apply(images, params, (5, 9)))


def test_colour_needs_one_or_three_channels(backend):
    images = noise(1, 2, (4, 4))
    check_refused(backend, 0, "grayscale = 1", lambda: augment_apply(images, row((4, 4), grayscale=1), (4, 4)))
    assert torch.equal(augment_apply(images, row((4, 4), hflip=1), (4, 4)), images.flip(3))


def test_random_tables_are_refused_or_applied_alike():
    require_native()
    generator = torch.Generator().manual_seed(4)
    applied = refused = 0
    for _ in range(400):
        height, width, channels = (int(torch.randint(1, most, (), generator=generator)) for most in (12, 12, 4))
        size = tuple(torch.randint(1, 12, (2,), generator=generator).tolist())
        images = noise(1, channels, (height, width))
        params = augment_sample(
            recipe(**{**EVERYTHING, **SMOOTH, "jitter_p": channels != 2, "grayscale_p": 0}),
            torch.randint(2**60, (1,), generator=generator),
            seed=9,
            size=(height, width),
            out_size=size,
        )
        wild = torch.tensor([float("nan"), float("inf"), -1.0, 0.5, 3.0, 1e30, -1e30, 1e-30, 7.0, 2.0**31])
        for _ in range(int(torch.randint(0, 3, (), generator=generator))):
            column = int(torch.randint(len(PARAM_NAMES), (), generator=generator))
            params[0, column] = wild[int(torch.randint(len(wild), (), generator=generator))]
        results = []
        for name in ("native", "reference"):
            with fastcl.use_backend(name):
                try:
                    results.append(augment_apply(images, params, size, interpolation="bilinear", dtype=torch.float32))
                except RuntimeError as error:
                    results.append(str(error))
        if isinstance(results[0], str) or isinstance(results[1], str):
            assert results[0] == results[1]
            refused += 1
        else:
            torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)
            applied += 1
    assert applied > 50
    assert refused > 50


IMAGES, PARAMS = noise(2, 3, (4, 4)), row((4, 4)).expand(2, -1)
BAD = {
    "dims": ((IMAGES[0], PARAMS, (4, 4)), {}, ValueError, r"images must be \[B, C, H, W\]"),
    "empty": ((IMAGES[:, :, :0], PARAMS, (4, 4)), {}, ValueError, "not 0"),
    "integers": ((IMAGES.int(), PARAMS, (4, 4)), {}, TypeError, "got torch.int32"),
    "list": (([1], PARAMS, (4, 4)), {}, TypeError, "got list"),
    "rows": ((IMAGES, PARAMS[:1], (4, 4)), {}, ValueError, r"params must be \[2, 40\], got \[1, 40\]"),
    "columns": ((IMAGES, PARAMS[:, :5], (4, 4)), {}, ValueError, r"params must be \[2, 40\], got \[2, 5\]"),
    "double": ((IMAGES, PARAMS.double(), (4, 4)), {}, TypeError, "params must be a float32 Tensor"),
    "size": ((IMAGES, PARAMS, (0, 4)), {}, ValueError, "sides must be from 1"),
    "huge": ((IMAGES, PARAMS, (4, 2**40)), {}, ValueError, "sides must be from 1"),
    "cubic": ((IMAGES, PARAMS, (4, 4)), {"interpolation": "bicubic"}, ValueError, "nearest or bilinear, got 'bicubic'"),
    "fill": ((IMAGES, PARAMS, (4, 4)), {"fill": [1, 2]}, ValueError, "fill must have 1 or 3 values, got 2"),
    "mean": ((IMAGES, PARAMS, (4, 4)), {"mean": [0.5]}, ValueError, "given together"),
    "std": ((IMAGES, PARAMS, (4, 4)), {"mean": [0.5], "std": [0.0]}, ValueError, "std must be finite and not 0"),
    "bytes": ((IMAGES, PARAMS, (4, 4)), {"mean": [0.5], "std": [1.0]}, TypeError, "floating dtype"),
    "out_list": ((IMAGES, PARAMS, (4, 4)), {"out": [1]}, TypeError, "out must be a Tensor, got list"),
    "out_shape": (
        (IMAGES, PARAMS, (4, 5)),
        {"out": torch.zeros(2, 3, 5, 4)},
        ValueError,
        r"out must be contiguous \[2, 3, 4, 5\] of torch.float32 on cpu, got \[2, 3, 5, 4\]",
    ),
    "out_strided": ((IMAGES, PARAMS, (4, 5)), {"out": torch.zeros(2, 3, 5, 4).mT}, ValueError, "got strided"),
    "out_dtype": (
        (IMAGES, PARAMS, (4, 4)),
        {"out": torch.zeros(2, 3, 4, 4), "dtype": torch.uint8},
        ValueError,
        "of torch.uint8",
    ),
    "dtype": ((IMAGES, PARAMS, (4, 4)), {"dtype": torch.int32}, TypeError, "dtype must be"),
}


@pytest.mark.parametrize(("arguments", "named", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(backend, arguments, named, kind, message):
    with pytest.raises(kind, match=f"augment_apply: .*{message}"):
        augment_apply(*arguments, **named)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"recipe": torch.zeros(3, dtype=torch.float64)}, TypeError, "recipe must be float64"),
        ({"index": torch.zeros(3)}, TypeError, "index must be int64"),
        ({"epoch": -1}, ValueError, "epoch must be in"),
        ({"view": 1 << 16}, ValueError, "view in"),
        ({"size": (0, 4)}, ValueError, "size must be two numbers from 1"),
        ({"out_size": (4, 1 << 30)}, ValueError, "out_size must be"),
    ],
)
def test_bad_streams(backend, changes, kind, message):
    arguments = {"recipe": recipe(), "index": torch.arange(2), "seed": 0, "size": (4, 4), "out_size": (4, 4)}
    with pytest.raises(kind, match=f"augment_sample: .*{message}"):
        augment_sample(**{**arguments, **changes})


def test_the_kernel_itself_refuses_what_does_not_fit():
    require_native()
    apply, tail = torch.ops.fastcl.augment_apply, ("nearest", [], [], [], torch.uint8)
    with pytest.raises(RuntimeError, match=r"params must be \[2, 40\]"):
        apply(IMAGES, PARAMS[:1], 4, 4, *tail)
    with pytest.raises(RuntimeError, match="images must be uint8 or float32"):
        apply(IMAGES.bfloat16(), PARAMS, 4, 4, *tail)
    with pytest.raises(RuntimeError, match="sides must be"):
        apply(IMAGES, PARAMS, -1, 4, *tail)
    with pytest.raises(RuntimeError, match="fill must have 1 or 3 values"):
        apply(IMAGES, PARAMS, 4, 4, "nearest", [1.0, 2.0], [], [], torch.uint8)
    for out in (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4).mT, torch.zeros(4)):
        with pytest.raises(RuntimeError, match="out must be"):
            torch.ops.fastcl.augment_apply_out(IMAGES, PARAMS, *tail[:-1], out)
    with pytest.raises(RuntimeError, match="recipe must be"):
        torch.ops.fastcl.augment_sample(torch.zeros(3).double(), torch.arange(2), 0, 0, 0, 4, 4, 4, 4)


def test_an_empty_batch_gives_an_empty_batch(backend):
    table = augment_sample(recipe(), torch.arange(0), seed=0, size=(4, 4), out_size=(2, 2))
    assert table.shape == (0, len(PARAM_NAMES))
    assert augment_apply(IMAGES[:0], table, (2, 2)).shape == (0, 3, 2, 2)


# ----------------------------------------------------------------------------------------------------------- machinery


@pytest.mark.parametrize("namespace", ["fastcl", "fastcl_reference"])
def test_opcheck(namespace):
    ops = getattr(torch.ops, namespace)
    sample = (recipe(**EVERYTHING), torch.arange(3), 5, 1, 0, 12, 10, 8, 8)
    torch.library.opcheck(ops.augment_sample.default, sample)
    images, params = noise(3, 3, (12, 10)), ops.augment_sample(*sample)
    for tail in (("nearest", [], [], [], torch.uint8), ("bilinear", [1.0], [0.5], [0.5], torch.bfloat16)):
        torch.library.opcheck(ops.augment_apply.default, (images, params, 8, 8, *tail))
        out = torch.zeros(3, 3, 8, 8, dtype=tail[-1])
        torch.library.opcheck(ops.augment_apply_out.default, (images, params, *tail[:-1], out))
        rest = ("bilinear", [7.0])
        torch.library.opcheck(ops.augment_views.default, (images, [params, params], [8, 5], [8, 6], *tail, *rest))
        outs = [torch.zeros(3, 3, 8, 8, dtype=tail[-1]) for _ in range(2)]
        torch.library.opcheck(ops.augment_views_out.default, (images, [params, params], *tail[:-1], *rest, outs))


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()

    def views(images: Tensor, index: Tensor) -> Tensor:
        params = augment_sample(recipe_, index, seed=1, size=(12, 10), out_size=(8, 8))
        return augment_apply(images, params, (8, 8), mean=[0.5], std=[0.2], dtype=torch.float32) * 2

    recipe_ = recipe(**EVERYTHING)
    compiled = torch.compile(views, fullgraph=True, backend="aot_eager")
    arguments = noise(3, 3, (12, 10)), torch.arange(3)
    assert torch.equal(compiled(*arguments), views(*arguments))

    def into(images: Tensor, params: Tensor, out: Tensor) -> Tensor:
        return augment_apply(images, params, (8, 8), out=out) + 1

    params = augment_sample(recipe_, torch.arange(3), seed=1, size=(12, 10), out_size=(8, 8))
    out, compiled = torch.zeros(3, 3, 8, 8), torch.compile(into, fullgraph=True, backend="aot_eager")
    want = augment_apply(arguments[0], params, (8, 8), dtype=torch.float32)
    assert torch.equal(compiled(arguments[0], params, out), want + 1)
    assert torch.equal(out, want)


def test_a_large_output_has_the_bits_of_small_ones():
    """Large outputs are written past the caches; widths of 223 leave rows that are not aligned for that."""
    for side in (224, 223):
        images = noise(29, 3, (40, 50))
        params = augment_sample(recipe(**EVERYTHING), torch.arange(29), seed=3, size=(40, 50), out_size=(side, side))
        whole = augment_apply(images, params, (side, side), dtype=torch.float32)
        assert whole.numel() * 4 > 16 << 20
        for i in range(0, 29, 4):
            one = augment_apply(images[i : i + 1], params[i : i + 1], (side, side), dtype=torch.float32)
            assert torch.equal(whole[i], one[0])


def test_the_same_bits_on_any_number_of_threads():
    images = noise(9, 3, (20, 30))
    params = augment_sample(recipe(**EVERYTHING), torch.arange(9), seed=3, size=(20, 30), out_size=(16, 16))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = augment_apply(images, params, (16, 16))
        torch.set_num_threads(3)
        assert torch.equal(augment_apply(images, params, (16, 16)), one)
    finally:
        torch.set_num_threads(threads)
