from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastcl import transforms as T
from fastcl.ops.augment import augment_apply
from fastcl.ops.augment_table import IDENTITY_RECIPE, PARAM_NAMES, RECIPE_NAMES, sample_reference, uniforms
from fastcl.transforms.auto import AUTO_OPS, auto_rows

SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
SIZE = (37, 52)
OWN_DRAWS = 128  # the first block of numbers that a transform draws for itself


@pytest.fixture(scope="module")
def v2():
    return pytest.importorskip("torchvision.transforms.v2", reason="torchvision, the peer, is absent")


def photograph() -> Tensor:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn, whose photographs are used, is absent")
    picture = torch.tensor(datasets.load_sample_image("china.jpg")).permute(2, 0, 1)
    return picture[:, 100 : 100 + 2 * SIZE[0] : 2, 200 : 200 + 2 * SIZE[1] : 2].contiguous()


def unchanged(n: int, size: tuple[int, int]) -> Tensor:
    recipe = torch.tensor([IDENTITY_RECIPE[name] for name in RECIPE_NAMES], dtype=torch.float64)
    return sample_reference(recipe, torch.arange(n), 0, 0, 0, *size, *size)


def theirs(v2, kind: str, image: Tensor, op: str, magnitude: float, **how) -> Tensor:
    """What torchvision's class does for an op it has drawn."""
    transform = getattr(v2, kind)(**how)
    return transform._apply_image_or_video_transform(image, op, magnitude, transform.interpolation, transform._fill)


def magnitudes(v2, kind: str, op: str, size: tuple[int, int]) -> list[float]:
    made, signed = getattr(v2, kind)._AUGMENTATION_SPACE[op]
    assert signed == (op in SIGNED)
    values = made(31, *size)
    return [0.0] if values is None else [float(value) for value in values]


# Levels that uint8 may differ by; as the single ops' (docs/augmentation.md).
LEVELS = {"Posterize": 0, "Solarize": 0, "Equalize": 0, "Identity": 0}


@pytest.mark.parametrize("kind", ["RandAugment", "TrivialAugmentWide"])
@pytest.mark.parametrize("op", AUTO_OPS)
def test_every_op_is_torchvision_s(backend, v2, op, kind):
    image = photograph()
    levels = magnitudes(v2, kind, op, SIZE)
    values = [
        sign * levels[i] for i in {0, len(levels) // 3, len(levels) - 1} for sign in (1, -1)[: 1 + (op in SIGNED)]
    ]
    n = len(values)
    ops = torch.full((n,), AUTO_OPS.index(op))
    table = auto_rows(ops, torch.tensor(values, dtype=torch.float64), unchanged(n, SIZE), SIZE)
    got = augment_apply(image.expand(n, -1, -1, -1), table, SIZE, interpolation="bilinear", fill=[90.0])
    for value, mine in zip(values, got, strict=True):
        want = theirs(v2, kind, image, op, value, interpolation="bilinear", fill=90)
        assert (mine.int() - want.int()).abs().max() <= LEVELS.get(op, 1), value


@pytest.mark.parametrize("op", AUTO_OPS[1:6])
def test_geometry_to_the_nearest_pixel_is_torchvision_s(backend, v2, op):
    image = photograph()
    value = magnitudes(v2, "RandAugment", op, SIZE)[17]
    table = auto_rows(torch.tensor([AUTO_OPS.index(op)]), torch.tensor([value]).double(), unchanged(1, SIZE), SIZE)
    got = augment_apply(image[None], table, SIZE, interpolation="nearest")[0]
    want = theirs(v2, "RandAugment", image, op, value)
    m = table[0, PARAM_NAMES.index("map_0") :][:6].double()
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in SIZE)
    near = torch.zeros(SIZE, dtype=torch.bool)  # torchvision's positions are float32
    for row, side in ((m[:3], SIZE[1]), (m[3:], SIZE[0])):
        position = row[0] * x[None] + row[1] * y[:, None] + row[2] + (side - 1) / 2
        near |= (position - position.floor() - 0.5).abs() < 1e-4
    assert near.double().mean() < 0.05
    assert torch.equal(got[:, ~near], want[:, ~near])


@pytest.mark.parametrize("kind", ["RandAugment", "TrivialAugmentWide"])
def test_the_magnitudes_are_torchvision_s(v2, kind):
    step = getattr(T, kind)().alternatives()[0][1][0]
    mine = step.magnitudes(SIZE)
    for number, op in enumerate(AUTO_OPS):
        want = magnitudes(v2, kind, op, SIZE)
        assert mine[number].tolist() == (want if len(want) == 31 else [0.0] * 31), op
    assert set(getattr(v2, kind)._AUGMENTATION_SPACE) == set(AUTO_OPS)


def drawn(step, n: int, number: int, seed: int) -> tuple[list[str], Tensor]:
    """What a pass draws for samples 0 to n - 1, from the numbers themselves."""
    u = uniforms(torch.arange(n), seed, 0, 0, number, OWN_DRAWS, 1)[:, 1:]
    ops = [AUTO_OPS[int(value * 14)] for value in u[:, 0]]
    bins = step.magnitudes(SIZE)
    levels = [step.magnitude if step.magnitude is not None else int(value * 31) for value in u[:, 1]]
    values = [bins[AUTO_OPS.index(op), level] for op, level in zip(ops, levels, strict=True)]
    signs = [-1 if op in SIGNED and value < 0.5 else 1 for op, value in zip(ops, u[:, 2], strict=True)]
    return ops, torch.stack(values) * torch.tensor(signs)


@pytest.mark.parametrize("num_ops", [0, 1, 2, 3])
def test_drawn_ops_are_applied_in_turn(backend, v2, num_ops):
    """On float images, where torchvision does not round in between either."""
    n = 60
    image = photograph() / 255
    t = T.Compose([T.RandAugment(num_ops, interpolation="bilinear", fill=0.4)], seed=7)
    assert len(t.passes) == max(1, num_ops)
    got = t(image.expand(n, -1, -1, -1), torch.arange(n))
    steps = T.RandAugment(num_ops).alternatives()[0][1]
    draws = [drawn(step, n, number, 7) for number, step in enumerate(steps)]
    for sample in range(n):
        want, exact = image, True
        for ops, values in draws:
            # Where a step of a level follows, or a stretch by the extremes, 1e-4 of a value in a warp may become more.
            exact &= ops[sample] not in ("Posterize", "Solarize", "Equalize", "AutoContrast")
            want = theirs(
                v2, "RandAugment", want, ops[sample], float(values[sample]), interpolation="bilinear", fill=0.4
            )
        differs = (got[sample] - want).abs()
        assert differs.max() < 1e-3 if exact or num_ops < 2 else (differs > 5e-3).double().mean() < 0.01


def test_every_op_and_sign_is_as_likely(backend):
    n = 7000
    ops, values = drawn(T.RandAugment(magnitude=20).alternatives()[0][1][0], n, 0, 3)
    for op in AUTO_OPS:
        count = ops.count(op)
        assert abs(count - n / 14) < 5 * math.sqrt(n / 14 * 13 / 14)
        negative = sum(1 for name, value in zip(ops, values, strict=True) if name == op and value < 0)
        assert abs(negative - count / 2 * (op in SIGNED)) < 5 * math.sqrt(count / 4)
    # And these are the ops of the table.
    rotated = T.Compose([T.RandAugment(1, magnitude=20)], seed=3).sample(n, SIZE)[:, PARAM_NAMES.index("map_3")] != 0
    assert rotated.tolist() == [op in ("Rotate", "ShearY") for op in ops]


def test_trivial_draws_every_magnitude():
    n = 3100
    u = uniforms(torch.arange(n), 5, 0, 0, 0, OWN_DRAWS, 1)
    counts = torch.bincount((u[:, 2] * 31).long(), minlength=31)
    assert (counts - n / 31).abs().max() < 5 * math.sqrt(n / 31)
    step = T.TrivialAugmentWide().alternatives()[0][1][0]
    brightness = T.Compose([T.TrivialAugmentWide()], seed=5).sample(n, SIZE)[:, PARAM_NAMES.index("brightness")]
    ops, values = drawn(step, n, 0, 5)
    want = torch.tensor([1 + value if op == "Brightness" else 1 for op, value in zip(ops, values, strict=True)])
    torch.testing.assert_close(brightness, want.float())


def test_two_ops_of_a_recipe_take_two_passes():
    t = T.Compose([T.RandomResizedCrop(16), T.RandomHorizontalFlip(), T.RandAugment(), T.Normalize([0.5], [0.5])])
    assert len(t.passes) == 2
    assert len(T.Compose([T.TrivialAugmentWide(), T.RandomErasing()]).passes) == 1
