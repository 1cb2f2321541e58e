"""uint8 pixels beside torchvision's, on photographs and noise of random sizes from 1 to 1,000 and in every layout.

test_augment_torchvision.py has chosen cases; these are drawn. ``FASTCL_PARITY=1000`` takes so many of each op
(``make parity``) and prints the worst difference.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable

import pytest
import torch
from augment_helpers import row
from test_augment_torchvision import OPS, affine_columns, source_positions
from torch import Tensor

from fastcl.ops.augment import augment_apply

np = pytest.importorskip("numpy")
F = pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision, the peer, is absent")
_get_perspective_coeffs = pytest.importorskip("torchvision.transforms.functional")._get_perspective_coeffs
datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn, whose photographs are used, is absent")

CASES = int(os.environ.get("FASTCL_PARITY", "30"))
PHOTOGRAPHS = [
    torch.from_numpy(np.array(datasets.load_sample_image(name))).permute(2, 0, 1)
    for name in ("china.jpg", "flower.jpg")
]
LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda image: image.contiguous()[None],
    lambda image: image[None].contiguous(memory_format=torch.channels_last),
    lambda image: torch.cat([image, image], 2)[None, :, :, : image.shape[2]],  # neither
]


def side(draw: random.Random) -> int:
    return min(1000, int(10 ** draw.uniform(0, 3.001)))


def picture(draw: random.Random, size: tuple[int, int]) -> Tensor:
    kind = draw.choice(["photograph", "photograph", "noise", "black_and_white"])
    if kind == "photograph":
        image = draw.choice(PHOTOGRAPHS)
        image = image.repeat(1, -(-size[0] // image.shape[1]), -(-size[1] // image.shape[2]))
        top, left = (draw.randrange(have - want + 1) for have, want in zip(image.shape[1:], size, strict=True))
        return image[:, top : top + size[0], left : left + size[1]]
    noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    return noise if kind == "noise" else noise // 128 * 255


def compare(draw: random.Random, image: Tensor, want: Tensor, counted: Tensor | None = None, **how: object) -> int:
    """The largest difference in levels of what is counted, of one layout of the image."""
    columns, size = how.pop("columns"), tuple(want.shape[1:])
    params = row(tuple(image.shape[1:]), **columns)
    got = augment_apply(draw.choice(LAYOUTS)(image), params, size, **how)[0]
    differs = (got.int() - want.int()).abs()
    if counted is not None:
        differs = differs[:, counted]
    return int(differs.max()) if differs.numel() else 0


def single_op(name: str, draw: random.Random) -> int:
    columns, theirs, _ = OPS[name]
    image = picture(draw, (side(draw), side(draw)))
    return compare(draw, image, theirs(F, image), columns=columns)


def resized(mode: str, draw: random.Random) -> int:
    """Among the crops are single pixels, and rows and columns of one."""
    size, out = (side(draw), side(draw)), [min(side(draw), 400), min(side(draw), 400)]
    box = [1 if draw.random() < 0.2 else draw.randint(1, most) for most in size]
    corner = [draw.randint(0, most - length) for most, length in zip(size, box, strict=True)]
    out[1] += out == [1, 1]  # where torch 2.14 fails
    image = picture(draw, size)
    columns = dict(zip(("crop_top", "crop_left", "crop_height", "crop_width"), (*corner, *box), strict=True))
    want = F.resized_crop(image, *corner, *box, out, mode, antialias=True)
    return compare(draw, image, want, columns=columns, resize=mode)


def cropped(draw: random.Random) -> int:
    size = (side(draw), side(draw))
    box = [1 if draw.random() < 0.2 else draw.randint(1, most) for most in size]
    corner = [draw.randint(0, most - length) for most, length in zip(size, box, strict=True)]
    image = picture(draw, size)
    columns = dict(zip(("crop_top", "crop_left", "crop_height", "crop_width"), (*corner, *box), strict=True))
    return compare(draw, image, F.crop(image, *corner, *box), columns=columns)


def blurred(draw: random.Random) -> int:
    size = (side(draw), side(draw))
    taps = [draw.randrange(min(most - 1, 15) + 1) * 2 + 1 for most in size[::-1]]
    sigma, image = draw.uniform(0.1, 3), picture(draw, size)
    columns = {"blur_sigma": sigma, "blur_radius_x": taps[0] // 2, "blur_radius_y": taps[1] // 2}
    return compare(draw, image, F.gaussian_blur(image, taps, [sigma, sigma]), columns=columns)


def warped(interpolation: str, draw: random.Random) -> int:
    size = (side(draw), side(draw))
    given = {
        **{"angle": draw.uniform(-180, 180), "translate": [draw.randint(-most // 3, most // 3) for most in size[::-1]]},
        **{"scale": draw.uniform(0.5, 2), "shear": [draw.uniform(-20, 20), draw.uniform(-20, 20)]},
    }
    image, columns = picture(draw, size), affine_columns(size, **given)
    counted = torch.ones(size, dtype=torch.bool)
    if interpolation == "nearest":  # torchvision has positions to 1000 * 2^-22: so near to a tie either may be nearest
        for position in source_positions(columns, size):
            counted &= (position - position.floor() - 0.5).abs() > 1e-3
    want = F.affine(image, **given, interpolation=interpolation)
    return compare(draw, image, want, counted, columns=columns, interpolation=interpolation)


def in_perspective(interpolation: str, draw: random.Random) -> int:
    size = (max(side(draw), 9), max(side(draw), 9))  # smaller ones have corners in one line
    height, width = size
    start = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    reach = [[draw.randint(0, most // 3) for most in (width, height)] for _ in start]
    ends = [[abs(x - dx), abs(y - dy)] for (x, y), (dx, dy) in zip(start, reach, strict=True)]
    coefficients = _get_perspective_coeffs(start, ends)
    # From the upper left corner, as theirs counts, to the middle.
    to_corner = torch.tensor([[1.0, 0, width / 2], [0, 1, height / 2], [0, 0, 1]], dtype=torch.float64)
    matrix = torch.tensor([*coefficients, 1.0], dtype=torch.float64).reshape(3, 3)
    matrix = torch.linalg.inv(to_corner) @ matrix @ to_corner
    matrix = (matrix / matrix[2, 2]).to(torch.float32).double()
    columns = {f"map_{i}": value for i, value in enumerate(matrix.flatten().tolist())}
    image, counted = picture(draw, size), torch.ones(size, dtype=torch.bool)
    if interpolation == "nearest":  # as above, divided by a depth
        for position in source_positions(columns, size):
            counted &= (position - position.floor() - 0.5).abs() > 4e-3
    want = F.perspective(image, None, None, interpolation=interpolation, coefficients=coefficients)
    return compare(draw, image, want, counted, columns=columns, interpolation=interpolation)


# name: (one drawn case, the levels that it may differ by)
DRAWN: dict[str, tuple[Callable[[random.Random], int], int]] = {
    **{name: (lambda draw, name=name: single_op(name, draw), levels) for name, (_, _, levels) in OPS.items()},
    "crop": (cropped, 0),
    "resize_bilinear": (lambda draw: resized("bilinear", draw), 1),
    "resize_bicubic": (lambda draw: resized("bicubic", draw), 1),
    "blur": (blurred, 1),
    "affine_nearest": (lambda draw: warped("nearest", draw), 0),
    "affine_bilinear": (lambda draw: warped("bilinear", draw), 1),
    "perspective_nearest": (lambda draw: in_perspective("nearest", draw), 0),
    "perspective_bilinear": (lambda draw: in_perspective("bilinear", draw), 1),
}


@pytest.mark.parametrize("name", DRAWN)
def test_pixels_are_torchvision_s(name):
    case, levels = DRAWN[name]
    worst = 0
    for number in range(CASES):
        seed = zlib.crc32(f"{name} {number}".encode())
        torch.manual_seed(seed)
        differs = case(random.Random(seed))
        assert differs <= levels, f"case {number} differs by {differs} levels"
        worst = max(worst, differs)
    print(f"{name}: {worst} of {CASES} cases")
