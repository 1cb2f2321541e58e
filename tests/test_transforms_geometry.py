from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from fastcl import transforms as T
from fastcl.data import RaggedBatch
from fastcl.ops.augment_table import PARAM_NAMES

MAP = slice(PARAM_NAMES.index("map_0"), PARAM_NAMES.index("map_8") + 1)


def noise(n: int, channels: int = 3, size: tuple[int, int] = (20, 24)) -> Tensor:
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8)


def smooth(size: tuple[int, int]) -> Tensor:
    """A gray picture without edges, float64 [H, W] from 0 to 1."""
    y, x = (torch.linspace(0, 1, side, dtype=torch.float64) for side in size)
    return 0.5 + 0.25 * torch.sin(7 * x)[None] + 0.25 * torch.cos(5 * y + 1)[:, None]


def bilinear(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """At positions from the middle, all of them inside; written out, to judge by."""
    height, width = picture.shape
    x, y = x + (width - 1) / 2, y + (height - 1) / 2
    left, upper = x.floor().clamp(0, width - 2).long(), y.floor().clamp(0, height - 2).long()
    right, lower = x - left, y - upper
    top = picture[upper, left] * (1 - right) + picture[upper, left + 1] * right
    bottom = picture[upper + 1, left] * (1 - right) + picture[upper + 1, left + 1] * right
    return top * (1 - lower) + bottom * lower


def positions(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in size)
    return x.expand(size), y[:, None].expand(size)


# ------------------------------------------------------------------------------------------------------------- shared

ALL = {
    "cube": T.RandomCube(p=0.7),
    "bulge": T.RandomSpherize(p=0.7),
    "fisheye": T.RandomSpherize(kind="fisheye", p=0.7),
    "elastic": T.RandomApply([T.ElasticTransform(20, 2)], 0.7),
    "rand_augment": T.RandAugment(),
    "trivial": T.TrivialAugmentWide(),
    "choice": T.RandomChoice([T.RandomCube(p=1.0), T.ElasticTransform(20, 2), T.RandomHorizontalFlip(1.0)]),
    "apply": T.RandomApply([T.RandomSpherize(p=1.0), T.RandAugment()], 0.5),
}


@pytest.mark.parametrize("transform", ALL.values(), ids=ALL.keys())
def test_views_depend_on_the_sample_alone(backend, transform):
    images, index = noise(12), torch.arange(100, 112)
    t = T.Compose([T.RandomResizedCrop(16), transform, T.RandomVerticalFlip(), T.Normalize([0.5], [0.5])], seed=3)
    whole = t(images, index, 2, 1)
    order = torch.randperm(12)
    parts = [t(images[part], index[part], 2, 1) for part in order.split([1, 4, 7])]
    assert torch.equal(torch.cat(parts), whole[order])
    assert torch.equal(t(images[3], 103, 2, 1), whole[3])
    assert torch.equal(pickle.loads(pickle.dumps(t))(images, index, 2, 1), whole)
    assert torch.equal(t.views(images, 2, index, 2)[1], whole)
    buffer = torch.empty_like(whole)
    assert t(images, index, 2, 1, out=buffer) is buffer
    assert torch.equal(buffer, whole)
    assert torch.equal(t.apply(images, t.sample(index, (20, 24), 2, 1)), whole)
    for other in (t(images, index, 3, 1), t(images, index, 2, 0), t(images, index + 50, 2, 1)):
        assert not torch.equal(other, whole)


@pytest.mark.parametrize("transform", ALL.values(), ids=ALL.keys())
def test_not_drawn_is_not_touched(backend, transform):
    """Also where other images of the batch are."""
    images, n = noise(200, size=(12, 12)), 200
    t = T.Compose([T.RandomApply([transform], 0.5)], seed=3)
    got = t(images, torch.arange(n))
    same = (got == images).flatten(1).all(1)
    assert same.double().mean() > 0.5 - 5 * math.sqrt(0.25 / n)
    assert not same.all()


def test_compiles_without_graph_breaks():
    torch._dynamo.reset()
    t = T.Compose([T.RandAugment(1), T.ElasticTransform(2, 2)], seed=1)
    images, index = noise(3), torch.arange(3)
    compiled = torch.compile(lambda x, i: t(x, i), fullgraph=True, backend="eager")
    assert torch.equal(compiled(images, index), t(images, index))


def test_own_maps_keep_their_place_among_flips(backend):
    """In every order, also where it is drawn."""
    images, index = noise(40) / 255, torch.arange(40)
    cube, flip = T.RandomCube(p=1.0), T.RandomHorizontalFlip(1.0)
    mirror = T.RandomVerticalFlip(0.5)
    t = T.Compose([T.RandomChoice([T.Compose([cube, flip]), T.Compose([flip, cube]), flip]), mirror], seed=2)
    assert len(t.passes) == 1
    got = t(images, index)
    turned = T.Compose([cube], seed=2)(images, index)
    before = T.Compose([cube], seed=2)(images.flip(3), index)
    mirrored = (T.Compose([mirror], seed=2)(images, index) != images).flatten(1).any(1)
    outcomes = torch.stack([turned.flip(3), before, images.flip(3)])
    outcomes = torch.where(mirrored[:, None, None, None], outcomes.flip(3), outcomes)
    became = (outcomes - got).abs().flatten(2).amax(2) < 1e-4
    assert (became.sum(0) == 1).all()
    assert became.any(1).all()


@pytest.mark.parametrize(
    "transform",
    [
        T.RandomCube((30, 30), p=1.0, interpolation="nearest", fill=51),
        T.RandomSpherize((-1, -1), "fisheye", p=1.0, interpolation="nearest", fill=51),
        T.ElasticTransform(3000, 5, interpolation="nearest", fill=51),
    ],
    ids=["cube", "sphere", "elastic"],
)
def test_a_fill_is_in_the_units_of_the_images(backend, transform):
    images = torch.full((2, 3, 24, 24), 255, dtype=torch.uint8)
    to_float = T.ToDtype(torch.float32, scale=True)
    got = T.Compose([transform], seed=0)(images)
    assert got.dtype == torch.uint8
    assert got.min() == 51
    for steps in ([transform, to_float], [T.RandomGrayscale(), transform, to_float]):
        torch.testing.assert_close(T.Compose(steps, seed=0)(images).min(), torch.tensor(0.2))
    in_floats = type(transform)(**{**{k: v for k, v in vars(transform).items() if k[0] != "_"}, "fill": 0.2})
    for steps in ([to_float, in_floats], [to_float, T.RandomGrayscale(), in_floats]):
        torch.testing.assert_close(T.Compose(steps, seed=0)(images).min(), torch.tensor(0.2))


def test_images_of_different_sizes_need_one_size_first(backend):
    images = [noise(1, size=(20, 24))[0], noise(1, size=(30, 18))[0]]
    batch = RaggedBatch.of(images)
    assert T.Compose([T.RandomResizedCrop(16), T.ElasticTransform(5, 2)], seed=0)(batch).shape == (2, 3, 16, 16)
    assert T.Compose([T.RandomResizedCrop(16), T.RandomCube()], seed=0)(batch).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="different sizes need a crop or resize before ElasticTransform"):
        T.Compose([T.ElasticTransform(5, 2), T.RandomResizedCrop(16)], seed=0)(batch)


# --------------------------------------------------------------------------------------------------------------- cube


def test_an_unturned_cube_shows_the_image(backend):
    images = noise(3)
    for interpolation in ("nearest", "bilinear"):
        assert torch.equal(T.RandomCube(0, p=1.0, interpolation=interpolation, fill=9)(images), images)


def seen(size: tuple[int, int], yaw: float, pitch: float, distance: float) -> Tensor:
    """Where an eye sees the corners of the face of a turned cube: rotations and a pinhole, [4, 2] from the middle."""
    height, width = size
    half = max(size) / 2
    face = [(x, y, -half) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    points = torch.tensor([(x * width / 2, y * height / 2, z) for x, y, z in face], dtype=torch.float64)
    s, c = math.sin(math.radians(yaw)), math.cos(math.radians(yaw))
    points @= torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]], dtype=torch.float64).T
    s, c = math.sin(math.radians(pitch)), math.cos(math.radians(pitch))
    points @= torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64).T
    points[:, 2] += distance * half
    return points[:, :2] / points[:, 2:] * (distance - 1) * half


@pytest.mark.parametrize("angle", [-50, -10, 25, 58])
@pytest.mark.parametrize("size", [(40, 40), (30, 56)])
def test_the_face_is_seen_where_a_pinhole_shows_it(backend, size, angle):
    t = T.Compose([T.RandomCube((angle, angle), distance=5.0, p=1.0, fill=0)], seed=0)
    matrix = t.sample(1, size)[0, MAP].double().reshape(3, 3)
    corners = seen(size, angle, angle, 5.0)
    source = torch.cat([corners, torch.ones(4, 1)], 1) @ matrix.T
    want = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * torch.tensor([size[1] / 2, size[0] / 2])
    torch.testing.assert_close(source[:, :2] / source[:, 2:], want.double(), rtol=0, atol=1e-3)  # the map is float32
    # White inside the corners, black outside, both a pixel from the edges.
    shown = t(torch.full((1, 1, *size), 255, dtype=torch.uint8), torch.arange(1))[0, 0]
    x, y = positions(size)
    inside = torch.full(size, math.inf, dtype=torch.float64)
    for (ax, ay), (bx, by) in zip(corners.tolist(), corners.roll(-1, 0).tolist(), strict=True):
        across = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
        inside = torch.minimum(inside, across / math.hypot(bx - ax, by - ay))
    assert (inside > 1).any()
    assert (inside < -1).any()
    assert (shown[inside > 1] == 255).all()
    assert (shown[inside < -1] == 0).all()


def test_a_cube_shares_a_pass_with_what_surrounds_it(backend):
    images, index = noise(8) / 255, torch.arange(8)
    cube = T.RandomCube(p=1.0, fill=0.3)
    steps = [T.RandomResizedCrop(16), T.RandomHorizontalFlip(), cube, T.RandomRot90(), T.RandomVerticalFlip()]
    t = T.Compose([*steps, T.ColorJitter(0.4)], seed=5)
    assert len(t.passes) == 1
    want = images
    for step in t.transforms:
        want = T.Compose([step], seed=5)(want, index)
    torch.testing.assert_close(t(images, index), want, rtol=0, atol=1e-4)  # positions from a map rounded to float32
    assert len(T.Compose([cube, T.RandomRotation(10)]).passes) == 2


def test_cube_angles_are_uniform(backend):
    t = T.Compose([T.RandomCube(40, p=0.25)], seed=0)
    maps = t.sample(4000, (32, 32))[:, MAP].double().reshape(-1, 3, 3)
    turned = (maps != torch.eye(3)).flatten(1).any(1)
    assert abs(turned.double().mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)
    # The middle of the face is seen at focus * (cos pitch sin yaw, ...): the angles back from there.
    forward = torch.linalg.inv(maps[turned])
    forward /= forward[:, 1:2, 1:2]  # focus cos pitch
    yaw = torch.atan2(forward[:, 0, 2], 16 * forward[:, 0, 0])
    quantiles = torch.rad2deg(yaw).sort().values / 80 + 0.5
    n = len(quantiles)
    assert (quantiles - torch.arange(1, n + 1) / n).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, p < 0.001


# ------------------------------------------------------------------------------------------------------------- sphere


def sphere(r: Tensor, strength: float, kind: str) -> Tensor:
    """r' of r."""
    if kind == "bulge":
        wrapped = 2 / math.pi * torch.asin(r.clamp(max=1)) if strength > 0 else torch.sin(math.pi / 2 * r)
        return torch.where(r < 1, (1 - abs(strength)) * r + abs(strength) * wrapped, r)
    t = math.radians(80 * abs(strength))
    return torch.tan(r * t) / math.tan(t) if strength > 0 else torch.atan(r * math.tan(t)) / t


@pytest.mark.parametrize("kind", ["bulge", "fisheye"])
@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.3, 1.0])
@pytest.mark.parametrize("size", [(41, 41), (30, 55)])
def test_a_sphere_is_its_formula(backend, size, strength, kind):
    picture = smooth(size)
    t = T.Compose([T.RandomSpherize((strength, strength), kind, p=1.0)], seed=0)
    got = t(picture.float()[None, None])[0, 0].double()
    x, y = positions(size)
    unit = min(size) / 2 if kind == "bulge" else math.hypot(*size) / 2
    r = torch.hypot(x, y) / unit
    share = torch.where(r > 0, sphere(r, strength, kind) / r.clamp(min=1e-9), 1.0)
    inside = ((x * share).abs() <= (size[1] - 1) / 2) & ((y * share).abs() <= (size[0] - 1) / 2)
    want = bilinear(picture, x * share, y * share)
    assert inside.double().mean() > 0.2
    # Positions to about 55 * 2^-22 pixels, of a picture that changes by at most 0.08 a pixel; sums of four to 2^-23.
    assert (got - want)[inside].abs().max() < 1e-5
    if size == (41, 41):
        torch.testing.assert_close(got[20, 20], picture[20, 20], rtol=0, atol=1e-6)  # the middle stays
    if kind == "bulge":
        torch.testing.assert_close(got[r > 1], picture[r > 1], rtol=0, atol=1e-5)  # so does all outside the circle
    else:
        corner = torch.tensor([math.hypot(*size) / 2 / unit])
        torch.testing.assert_close(sphere(corner, strength, kind), corner)


def test_a_sphere_of_strength_0_is_the_image(backend):
    images = noise(3)
    for kind in ("bulge", "fisheye"):
        for interpolation in ("nearest", "bilinear"):
            assert torch.equal(T.RandomSpherize(0, kind, p=1.0, interpolation=interpolation)(images), images)


def test_a_negative_fisheye_undoes_a_positive_one():
    r = torch.linspace(0, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(sphere(sphere(r, 0.8, "fisheye"), -0.8, "fisheye"), r)
    images = smooth((64, 64)).float()[None, None]
    there = T.RandomSpherize((-0.5, -0.5), "fisheye", p=1.0)(images)
    back = T.RandomSpherize((0.5, 0.5), "fisheye", p=1.0)(there)
    # Bilinear interpolation of second derivatives up to 7^2 / 4 / 63^2 a pixel, an eighth of it, in x and y, twice.
    assert (back - images)[..., 16:48, 16:48].abs().max() < 4 * 49 / 4 / 63**2 / 8 * 2


def test_sphere_strengths_are_uniform():
    t = T.Compose([T.RandomSpherize(0.8, p=0.25)], seed=0)
    strength = t.sample(4000, (8, 8))[:, -1].double()
    drawn = strength[strength != 0]
    assert abs(len(drawn) / 4000 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)
    quantiles, n = drawn.sort().values / 1.6 + 0.5, len(drawn)
    assert (quantiles - torch.arange(1, n + 1) / n).abs().max() < 1.95 / math.sqrt(n)


# ------------------------------------------------------------------------------------------------------------ elastic


@pytest.fixture
def tv():
    return pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision, the peer, is absent")


@pytest.mark.parametrize("alpha", [(0.0, 0.0), (50.0, 30.0), (900.0, 1200.0)], ids=["still", "mild", "wild"])
@pytest.mark.parametrize("fill", [None, 0, (200, 100, 50)], ids=["no_fill", "black", "bright"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_elastic_is_torchvision_s(backend, tv, interpolation, fill, alpha):
    images = noise(2, size=(60, 47))
    elastic = T.ElasticTransform(alpha, (5.0, 3.0), interpolation, fill)
    t = T.Compose([elastic], seed=0)
    params = t.sample(2, (60, 47))
    got = t.apply(images, params)
    for image, mine, displacement in zip(images, got, elastic.displacement(params[:, -1:], (60, 47)), strict=True):
        want = tv.elastic(image, displacement[None], interpolation=interpolation, fill=fill)
        differs = (mine.int() - want.int()).abs()
        if interpolation == "bilinear":  # ties in the rounding, where positions differ by 60 * 2^-22
            assert differs.max() <= 1
            continue
        x, y = positions((60, 47))
        near = torch.zeros(60, 47, dtype=torch.bool)  # torchvision's positions are float32
        for at, axis, side in ((x, 0, 47), (y, 1, 60)):
            position = at + displacement[..., axis].double() * (side / 2) + (side - 1) / 2
            near |= (position - position.floor() - 0.5).abs() < 1e-4
        assert near.double().mean() < 0.01
        assert differs[:, ~near].max() == 0


@pytest.mark.parametrize("sigma", [(5.0, 5.0), (1.0, 2.5)])
def test_elastic_blurs_its_noise_as_torchvision_does(tv, sigma):
    size, seeds = (70, 52), torch.tensor([[1.0], [12345.0]])
    raw = T.ElasticTransform((52.0, 70.0), 0.0).displacement(seeds, size)
    got = T.ElasticTransform((52.0, 70.0), sigma).displacement(seeds, size)
    for axis in (0, 1):
        taps = int(8 * sigma[axis] + 1) | 1
        want = tv.gaussian_blur(raw[:, None, ..., axis], [taps, taps], list(sigma))[:, 0]
        torch.testing.assert_close(got[..., axis], want, rtol=0, atol=1e-6)


def test_elastic_noise_is_uniform_and_uncorrelated():
    noises = T.ElasticTransform((40.0, 40.0), 0.0).displacement(torch.tensor([[1.0], [2.0], [3.0]]), (40, 40))
    planes = noises.permute(0, 3, 1, 2).reshape(6, 1600).double()
    n = planes.shape[1]
    for plane in planes:
        quantiles = plane.sort().values / 2 + 0.5
        assert (quantiles - torch.arange(1, n + 1) / n).abs().max() < 1.95 / math.sqrt(n)
    shifted = torch.cat([planes, planes.roll(1, 1), planes.roll(2, 1), planes.roll(40, 1)])
    correlation = torch.corrcoef(shifted) - torch.eye(len(shifted))
    assert correlation.abs().max() < 5 / math.sqrt(n)


def test_elastic_takes_images_that_are_smaller_than_its_blur(backend):
    """torchvision's refuses them: its padding reflects once."""
    for size in ((1, 1), (1, 7), (9, 2)):
        images = torch.full((2, 3, *size), 100, dtype=torch.uint8)
        got = T.ElasticTransform(0.1, 5.0)(images)
        assert got.shape == images.shape
        assert T.ElasticTransform().displacement(torch.tensor([[1.0]]), size).isfinite().all()


# ---------------------------------------------------------------------------------------------------------- bad input

BAD = {
    "degrees": (lambda: T.RandomCube(-1), "degrees must not be negative"),
    "hidden": (lambda: T.RandomCube(70), r"degrees must leave the face in sight .* got 70"),
    "behind": (lambda: T.RandomCube((100, 120)), "degrees must leave the face in sight"),
    "near": (lambda: T.RandomCube(10, distance=1.2), "distance must be at least 2, got 1.2"),
    "strength": (lambda: T.RandomSpherize(1.5), "strength must be within -1 and 1"),
    "kind": (lambda: T.RandomSpherize(kind="ball"), "kind must be bulge or fisheye, got 'ball'"),
    "p": (lambda: T.RandomSpherize(p=2), "RandomSpherize: p must be from 0 to 1"),
    "alpha": (lambda: T.ElasticTransform((1, 2, 3)), "alpha must be one or two finite numbers"),
    "sigma": (lambda: T.ElasticTransform(sigma=(0, 3)), "sigma must be two positive numbers or 0"),
    "bicubic": (lambda: T.ElasticTransform(interpolation="bicubic"), "interpolation must be nearest or bilinear"),
    "fill": (
        lambda: T.ElasticTransform(fill=(1, 2))(noise(1)),
        "ElasticTransform: fill must have 1 or 3 values, got 2",
    ),
    "num_ops": (lambda: T.RandAugment(-1), "num_ops must be a whole number and not negative"),
    "magnitude": (lambda: T.RandAugment(magnitude=31), "magnitude must be a whole number below num_magnitude_bins"),
    "bins": (lambda: T.TrivialAugmentWide(1), "num_magnitude_bins must be a whole number from 2"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integers_are_no_images():
    with pytest.raises(TypeError, match=r"transforms: images must be a uint8, .* got torch\.int64"):
        T.RandomSpherize()(torch.zeros(1, 3, 4, 4).long())


@pytest.mark.parametrize(
    "transform",
    [T.RandomSpherize(), T.RandomSpherize(kind="fisheye"), T.ElasticTransform(1e30, 1), T.MixUp(), T.CutMix()],
    ids=["bulge", "fisheye", "elastic", "mixup", "cutmix"],
)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_edited_tables_that_make_no_sense_do_no_harm(transform, interpolation):
    if hasattr(transform, "interpolation"):
        transform.interpolation = interpolation
    images, t = noise(5), T.Compose([transform], seed=0)
    params = t.sample(5, (20, 24))
    params[:, len(PARAM_NAMES) :] = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e9])[:, None]
    assert t.apply(images, params).shape == images.shape
