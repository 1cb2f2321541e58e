"""What a row of parameters does to images, beside torchvision's and torch's own functions."""

from __future__ import annotations

import pytest
import torch
from augment_helpers import check, noise, recipe, row
from torch import Tensor

from fastcl.ops.augment import augment_apply, augment_sample
from fastcl.ops.augment_table import COLOR_OPS, PARAM_NAMES


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
        # torchvision rounds between its two passes and has weights of 15 bits: half a level and some of a tie; half a
        # level comes through cubic weights whose sizes sum to 1.3.
        most = 0 if out == (box[2], box[3]) else 1
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
    depth = m[6] * x + m[7] * y + m[8]
    return (m[0] * x + m[1] * y + m[2]) / depth + (w - 1) / 2, (m[3] * x + m[4] * y + m[5]) / depth + (h - 1) / 2


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
