from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastcl import transforms as T

SIZE = (20, 24)


def noise(n: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, channels, *SIZE), dtype=torch.uint8)


@pytest.fixture
def v2():
    return pytest.importorskip("torchvision.transforms.v2", reason="torchvision, the peer, is absent")


def compose(transform: T.Transform) -> T.Compose:
    return T.Compose([transform], seed=3)


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixup_is_torchvision_s(backend, v2, share, one_hot):
    images, labels = noise(5) / 255, torch.tensor([0, 2, 1, 2, 0])
    labels = torch.nn.functional.one_hot(labels, 4).float() if one_hot else labels
    mixup, pixels = T.MixUp(num_classes=4), compose(T.MixUp())
    params = pixels.sample(5, SIZE)
    params[:, -1] = share
    given = {"labels": labels, "batch_size": 5, "lam": share}
    peer = v2.MixUp(num_classes=4)
    got = pixels.apply(images, params)
    torch.testing.assert_close(got, peer.transform(images, given), rtol=0, atol=2e-7)  # a product and a sum each
    torch.testing.assert_close(mixup.mix_labels(labels, params, SIZE), peer.transform(labels, given))


@pytest.mark.parametrize("box", [(0, 0, 24, 20), (3, 2, 11, 9), (5, 5, 5, 9)], ids=["whole", "part", "none"])
def test_cutmix_is_torchvision_s(backend, v2, box):
    images, labels = noise(5), torch.tensor([0, 2, 1, 2, 0])
    left, top, right, bottom = box
    cutmix, pixels = T.CutMix(num_classes=3), compose(T.CutMix())
    params = pixels.sample(5, SIZE)
    params[:, -4:] = torch.tensor([top, left, bottom, right])
    share = 1 - (right - left) * (bottom - top) / (20 * 24)
    given = {"labels": labels, "batch_size": 5, "box": box, "lam_adjusted": share}
    peer = v2.CutMix(num_classes=3)
    assert torch.equal(pixels.apply(images, params), peer.transform(images, given))
    torch.testing.assert_close(cutmix.mix_labels(labels, params, SIZE), peer.transform(labels, given))


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha):
    stats = pytest.importorskip("scipy.stats", reason="scipy, whose Beta distribution is the judge, is absent")
    n = 4000
    share = compose(T.MixUp(alpha=alpha)).sample(n, SIZE)[:, -1].double().sort().values
    assert ((share >= 0) & (share <= 1)).all()
    want = torch.from_numpy(stats.beta(alpha, alpha).cdf(share.numpy()))
    steps = torch.arange(n + 1) / n
    worst = torch.maximum((want - steps[1:]).abs(), (want - steps[:-1]).abs())
    # Shares that float32 rounds to 1 are ties, the upper end of which counts.
    assert worst[(share > 1e-30) & (share < 1)].max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, p < 0.001


def test_boxes_are_distributed_as_torchvision_s(v2):
    n = 3000
    cutmix = T.CutMix(alpha=1.0)
    params = compose(cutmix).sample(n, SIZE)
    top, left, bottom, right = params[:, -4:].unbind(1)
    assert ((top >= 0) & (top <= bottom) & (bottom <= 20) & (left >= 0) & (left <= right) & (right <= 24)).all()
    assert torch.equal(params, params.round())
    peer, image = v2.CutMix(num_classes=1), torch.zeros(1, 3, *SIZE)
    drawn = [peer.make_params([image]) for _ in range(n)]
    pairs = {
        "share": (cutmix.share(params, SIZE), [draw["lam_adjusted"] for draw in drawn]),
        **{
            f"box {at}": (column, [draw["box"][at] for draw in drawn])
            for at, column in enumerate((left, top, right, bottom))
        },
    }
    for name, (mine, other) in pairs.items():
        values = torch.cat([mine.double(), torch.tensor(other, dtype=torch.float64)]).round(decimals=9).unique()
        below = [
            (torch.as_tensor(side, dtype=torch.float64).round(decimals=9)[:, None] <= values).double().mean(0)
            for side in (mine, other)
        ]
        assert (below[0] - below[1]).abs().max() < 1.95 * math.sqrt(2 / n), name


@pytest.mark.parametrize("kind", [T.MixUp, T.CutMix])
def test_called_with_labels_or_without(backend, kind):
    images, labels, index = noise(6), torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6)
    torch.manual_seed(1)
    mix = kind(num_classes=3)
    mixed, mixed_labels = mix(images, labels, index, 2, 1)
    assert mixed.dtype == torch.uint8
    assert mixed_labels.shape == (6, 3)
    torch.testing.assert_close(mixed_labels.sum(1), torch.ones(6))
    assert torch.equal(mix(images, index=index, epoch=2, view=1), mixed)
    # The labels say what the images are made of: of images that are one colour each, the mean is the label.
    colours = torch.nn.functional.one_hot(labels, 3).float()[:, :, None, None].expand(-1, -1, *SIZE).contiguous()
    flat, flat_labels = mix(colours, labels, index)
    torch.testing.assert_close(flat.mean((2, 3)), flat_labels, rtol=0, atol=1e-6)
    # In a pipeline it stands anywhere; an image's draw is its own, its partner the one before it in the batch.
    t = T.Compose([T.RandomHorizontalFlip(), kind(), T.Normalize([0.5], [0.5])], seed=3)
    whole, shifted = t.sample(index, SIZE), t.sample(index.roll(2), SIZE)
    assert torch.equal(whole.roll(2, 0), shifted)
    assert torch.equal(t(images.roll(2, 0), index.roll(2)), t(images, index).roll(2, 0))
    assert not torch.equal(t(images, index), T.Compose([t.transforms[0], t.transforms[2]], seed=3)(images, index))


def test_a_batch_of_one_is_its_own_neighbour(backend):
    """As the last batch of an epoch may be."""
    image = noise(1)
    for kind in (T.MixUp, T.CutMix):
        assert torch.equal(kind()(image), image)


def test_one_of_two_mixes_for_each_image(backend):
    """torchvision's examples choose between the two for each batch."""
    n = 400
    t = T.Compose([T.RandomChoice([T.MixUp(), T.CutMix()])], seed=0)
    table = dict(zip(t.param_names, t.sample(n, SIZE).unbind(1), strict=True))
    blended = table["pass0.mixup_share"] < 1
    cut = torch.stack([column for name, column in table.items() if "cutmix" in name]).any(0)
    assert abs(blended.double().mean() - 0.5) < 5 * math.sqrt(0.25 / n)
    assert not (blended & cut).any()
    images = noise(n) / 255
    got = t(images, torch.arange(n))
    share = table["pass0.mixup_share"][:, None, None, None]
    torch.testing.assert_close(
        got[blended], (images * share + images.roll(1, 0) * (1 - share))[blended], rtol=0, atol=2e-7
    )


BAD = {
    "alpha": (lambda: T.MixUp(alpha=0), "MixUp: alpha must be positive, got 0"),
    "classes": (lambda: T.CutMix(num_classes=0), "CutMix: num_classes must be positive, got 0"),
    "getter": (lambda: T.MixUp(labels_getter=lambda x: x), "labels_getter must be 'default'"),
    "no_classes": (lambda: T.MixUp()(noise(3), torch.arange(3)), "num_classes must be given"),
    "other_classes": (lambda: T.MixUp(num_classes=2)(noise(3), torch.ones(3, 4)), "must have num_classes = 2, got 4"),
    "labels": (lambda: T.CutMix(num_classes=3)(noise(3), torch.arange(2)), r"labels must be \[3\] or \[3, classes\]"),
    "labels_in_a_container": (
        lambda: T.RandomChoice([T.CutMix(num_classes=3), T.MixUp(num_classes=3)])(noise(3), torch.arange(3)),
        "CutMix: num_classes is for labels, which CutMix mixes only where it is called itself",
    ),
    "single": (lambda: T.MixUp()(noise(1)[0]), r"MixUp: images must be a batch \[B, C, H, W\], got one image"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
