"""Images/s of whole pipelines, drawing included: fastcl, its reference, and peers that draw for each image.

All run on one thread, as in a DataLoader's worker, but "fastcl_all_threads". Every call gives a new tensor, but
"fastcl_out", which writes into the same one again.

a: 256 x 32x32x3 -> 32, SimCLR     b: 256 x 28x28x1 -> 28, crop, flip, rotation     c: 64 x 256x256x3 -> 224, SimCLR
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcl
from fastcl import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
WORKLOADS = {  # images, channels, side, output's side, taps of the blur
    "a": (256, 3, 32, 32, 5),
    "b": (256, 1, 28, 28, 0),
    "c": (64, 3, 256, 224, 23),
}


def pictures(n: int, channels: int, side: int) -> Tensor:
    """Smooth images with some noise, as photographs are."""
    coarse = torch.rand(n, channels, 5, 5)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return ((smooth + 0.03 * torch.randn_like(smooth)) * 255).clamp(0, 255).to(torch.uint8)


def steps(t: Any, channels: int, out: int, taps: int) -> list[Any]:
    """The pipeline in the transforms of fastcl or of torchvision."""
    crop_flip = [t.RandomResizedCrop(out), t.RandomHorizontalFlip()]
    last = [t.ToDtype(torch.float32, scale=True), t.Normalize(MEAN[:channels], STD[:channels])]
    if not taps:
        return [*crop_flip, t.RandomRotation(15), *last]
    jitter, blur = t.RandomApply([t.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8), t.RandomApply([t.GaussianBlur(taps)], 0.5)
    return [*crop_flip, jitter, t.RandomGrayscale(0.2), blur, *last]


def of_fastcl(_: Any, images: Tensor, out: int, taps: int) -> Callable[[], Any]:
    batch = transforms.Compose(steps(transforms, images.shape[1], out, taps), seed=0)
    return lambda: batch(images)


def of_fastcl_out(_: Any, images: Tensor, out: int, taps: int) -> Callable[[], Any]:
    batch = transforms.Compose(steps(transforms, images.shape[1], out, taps), seed=0)
    result = batch(images)
    return lambda: batch(images, out=result)


def of_torchvision(load: Callable[[str], ModuleType], images: Tensor, out: int, taps: int) -> Callable[[], Any]:
    v2 = load("torchvision.transforms.v2")
    each = v2.Compose(steps(v2, images.shape[1], out, taps))
    return lambda: torch.stack([each(image) for image in images])


def of_lightly(load: Callable[[str], ModuleType], images: Tensor, out: int, taps: int) -> Callable[[], Any]:
    if not taps:
        pytest.skip("SimCLR's recipe has no such pipeline")
    each = load("lightly.transforms.simclr_transform").SimCLRViewTransform(input_size=out)
    pil = load("torchvision.transforms.v2.functional").to_pil_image
    opened = [pil(image) for image in images]
    return lambda: torch.stack([each(image) for image in opened])


def of_kornia(load: Callable[[str], ModuleType], images: Tensor, out: int, taps: int) -> Callable[[], Any]:
    k = load("kornia.augmentation")
    n = images.shape[1]
    normalize = k.Normalize(torch.tensor(MEAN[:n]), torch.tensor(STD[:n]))
    parts = [k.RandomResizedCrop((out, out)), k.RandomHorizontalFlip()]
    if taps:
        jitter = k.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8)
        parts += [jitter, k.RandomGrayscale(p=0.2), k.RandomGaussianBlur((taps, taps), (0.1, 2.0), p=0.5)]
    else:
        parts += [k.RandomRotation(15.0, p=1.0)]
    batch = torch.nn.Sequential(*parts, normalize)
    return lambda: batch(images.float() / 255)


IMPLEMENTATIONS = {
    "fastcl": (of_fastcl, "native"),
    "fastcl_out": (of_fastcl_out, "native"),
    "fastcl_all_threads": (of_fastcl, "native"),
    "fastcl_reference": (of_fastcl, "reference"),
    "torchvision": (of_torchvision, "auto"),
    "lightly": (of_lightly, "auto"),
    "kornia": (of_kornia, "auto"),
}


@pytest.fixture
def threads():
    """As many as torch was started with, and again after the bench."""
    count = torch.get_num_threads()
    yield count
    torch.set_num_threads(count)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_augment(benchmark, peer, threads, workload, name):
    n, channels, side, out, taps = WORKLOADS[workload]
    make, backend = IMPLEMENTATIONS[name]
    if backend == "native" and fastcl.backends()["augment_apply"]["cpu"] != "native":
        pytest.skip("native kernels were not built")
    torch.manual_seed(0)
    run = make(peer, pictures(n, channels, side), out, taps)
    benchmark.group = f"augment {workload}"
    torch.set_num_threads(threads if name == "fastcl_all_threads" else 1)
    with fastcl.use_backend(backend), torch.no_grad():
        benchmark.pedantic(run, warmup_rounds=1, rounds=30 if backend == "native" else 3)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["images_per_second"] = round(n / benchmark.stats.stats.median)
