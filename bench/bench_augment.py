"""Images/s of whole pipelines, drawing and Python included: fastcl, its reference, and peers that draw for each image.

    python bench/bench_augment.py            every side in turn, the ratio to the fastest peer, limits, stages, a plot
    pytest bench/bench_augment.py            the same pipelines under pytest-benchmark, one thread each

a: 256 x 32x32x3 -> 32, SimCLR     b: 256 x 28x28x1 -> 28, crop, flip, rotation     c: 64 x 256x256x3 -> 224, SimCLR

fastcl and peers that take batches run on all threads. Peers that take one image at a time run on one thread, and what
they make is multiplied by the number of threads, as if their workers cost nothing and never got in each other's way.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastcl
from fastcl import transforms
from fastcl.data import RaggedBatch

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
WORKLOADS = {  # images, channels, side, output's side, taps of the blur
    "a": (256, 3, 32, 32, 5),
    "b": (256, 1, 28, 28, 0),
    "c": (64, 3, 256, 224, 23),
}
TURN = 0.05  # seconds that each side runs for, at least, before the next one's turn
Load = Callable[[str], ModuleType]
Run = Callable[[], Any]


class NotComparable(Exception):
    """The peer has no such pipeline."""


def pictures(n: int, channels: int, side: int) -> Tensor:
    """Smooth images with some noise, as photographs are."""
    coarse = torch.rand(n, channels, 5, 5)
    smooth = functional.interpolate(coarse, (side, side), mode="bicubic")
    return ((smooth + 0.03 * torch.randn_like(smooth)) * 255).clamp(0, 255).to(torch.uint8)


def steps(t: Any, channels: int, out: int, taps: int) -> list[Any]:
    """The pipeline in the transforms of fastcl or of torchvision."""
    crop_flip = [t.RandomResizedCrop(out), t.RandomHorizontalFlip()]
    last = [t.ToDtype(torch.float32, scale=True), t.Normalize(MEAN[:channels], STD[:channels])]
    if not taps:
        return [*crop_flip, t.RandomRotation(15), *last]
    jitter, blur = t.RandomApply([t.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8), t.RandomApply([t.GaussianBlur(taps)], 0.5)
    return [*crop_flip, jitter, t.RandomGrayscale(0.2), blur, *last]


# ---------------------------------------------------------------------------------------------------------------- sides


def of_fastcl(_: Load, images: Tensor, out: int, taps: int) -> Run:
    batch = transforms.Compose(steps(transforms, images.shape[1], out, taps), seed=0)
    return lambda: batch(images)


def of_fastcl_out(_: Load, images: Tensor, out: int, taps: int) -> Run:
    batch = transforms.Compose(steps(transforms, images.shape[1], out, taps), seed=0)
    result = batch(images)
    return lambda: batch(images, out=result)


def of_fastcl_ragged(_: Load, images: Tensor, out: int, taps: int) -> Run:
    batch = transforms.Compose(steps(transforms, images.shape[1], out, taps), seed=0)
    ragged, result = RaggedBatch.of(list(images)), batch(images)
    return lambda: batch(ragged, out=result)


def of_torchvision(load: Load, images: Tensor, out: int, taps: int) -> Run:
    v2 = load("torchvision.transforms.v2")
    each = v2.Compose(steps(v2, images.shape[1], out, taps))
    return lambda: torch.stack([each(image) for image in images])


def of_lightly(load: Load, images: Tensor, out: int, taps: int) -> Run:
    if not taps:
        raise NotComparable
    each = load("lightly.transforms.simclr_transform").SimCLRViewTransform(input_size=out)
    pil = load("torchvision.transforms.v2.functional").to_pil_image
    opened = [pil(image) for image in images]
    return lambda: torch.stack([each(image) for image in opened])


def of_kornia(load: Load, images: Tensor, out: int, taps: int) -> Run:
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


def of_torchtransform(load: Load, images: Tensor, out: int, taps: int) -> Run:
    t = load("torchtransform")
    n = images.shape[1]
    parts = [t.RandomResizedCrop(out), t.HorizontalFlip(0.5)]
    if taps:
        jitter = t.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-72.0, 72.0), p=0.8)
        parts += [jitter, t.Grayscale(p=0.2), t.GaussianBlur((0.1, 2.0), p=0.5)]
    else:
        parts += [t.Rotate((-15.0, 15.0))]
    batch = t.Compose(*parts, t.Normalize(tuple(MEAN[:n]), tuple(STD[:n])))
    return lambda: batch(images.float() / 255)


def of_pytorch(_: Load, images: Tensor, out: int, taps: int) -> Run:
    """By hand, as somebody would who needs geometry alone: crop, flip and rotation as one map for each image.

    Bilinear without antialias; a crop is tried once and cut off at the image's size; beside it a turn shows the rest of
    the image.
    """
    if taps:
        raise NotComparable
    n, channels, height, width = images.shape
    mean, std = (torch.tensor(values[:channels])[:, None, None] for values in (MEAN, STD))

    def run() -> Tensor:
        area, log_ratio, x, y, flip, turn = torch.rand(6, n).unbind()
        ratio = torch.exp(math.log(4 / 3) * (2 * log_ratio - 1))
        area = height * width * (0.08 + 0.92 * area)
        # Of the box: sides and middle, in halves of the image's; then a turn and a flip about the middle.
        w = ((area * ratio).sqrt().round() / width).clamp(max=1)
        h = ((area / ratio).sqrt().round() / height).clamp(max=1)
        angle = math.radians(15) * (2 * turn - 1)
        cos, sin, mirror = angle.cos(), angle.sin(), 1 - 2 * (flip < 0.5).float()
        rows = [w * cos * mirror, -w * sin, (1 - w) * (2 * x - 1), h * sin * mirror, h * cos, (1 - h) * (2 * y - 1)]
        grid = functional.affine_grid(torch.stack(rows, 1).view(n, 2, 3), [n, channels, out, out], align_corners=False)
        views = functional.grid_sample(images.float(), grid, align_corners=False)
        return views.mul_(1 / 255).sub_(mean).div_(std)

    return run


def of_albumentations(load: Load, images: Tensor, out: int, taps: int) -> Run:
    a = load("albumentations")
    load("cv2").setNumThreads(0)
    n = images.shape[1]
    parts = [a.RandomResizedCrop((out, out)), a.HorizontalFlip(p=0.5)]
    if taps:
        parts += [a.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8), a.ToGray(p=0.2)]
        parts += [a.GaussianBlur(blur_limit=(taps, taps), sigma_limit=(0.1, 2.0), p=0.5)]
    else:
        parts += [a.Rotate(15, p=1.0)]
    each = a.Compose([*parts, a.Normalize(MEAN[:n], STD[:n])])
    arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())
    return lambda: torch.stack([torch.from_numpy(each(image=image)["image"]).permute(2, 0, 1) for image in arrays])


def of_cv2(load: Load, images: Tensor, out: int, taps: int) -> Run:
    """By hand, as somebody would who wants OpenCV's speed: one table per image for all that is linear in the pixels."""
    cv2, np = load("cv2"), load("numpy")
    cv2.setNumThreads(0)
    random, n, side = np.random.default_rng(0), images.shape[1], images.shape[2]
    arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())
    mean, scale = np.float32(MEAN[:n]) * 255, np.float32(1) / (np.float32(STD[:n]) * 255)

    def box() -> tuple[int, int, int, int]:
        for _ in range(10):
            area = side * side * random.uniform(0.08, 1)
            ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
            if 0 < w <= side and 0 < h <= side:
                return int(random.integers(side - h + 1)), int(random.integers(side - w + 1)), h, w
        return 0, 0, side, side

    def jitter(image: Any) -> Any:
        for op in random.permutation(4):
            factor = np.float32(random.uniform(0.2, 1.8))
            if op == 0:
                image = cv2.convertScaleAbs(image, alpha=float(factor))
            elif op == 1:
                middle = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
                image = cv2.LUT(image, np.clip(np.arange(256) * factor + (1 - factor) * middle, 0, 255).astype("u1"))
            elif op == 2:
                gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
                image = cv2.addWeighted(image, float(factor), gray, float(1 - factor), 0)
            else:
                hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
                shift = round(random.uniform(-36, 36))
                hsv[..., 0] = (hsv[..., 0].astype("i2") + shift) % 180
                image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        return image

    def each(image: Any, into: Any) -> None:
        top, left, h, w = box()
        image = cv2.resize(image[top : top + h, left : left + w], (out, out), interpolation=cv2.INTER_LINEAR)
        if random.random() < 0.5:
            image = cv2.flip(image, 1)
        if not taps:
            turn = cv2.getRotationMatrix2D(((out - 1) / 2, (out - 1) / 2), random.uniform(-15, 15), 1)
            image = cv2.warpAffine(image, turn, (out, out), flags=cv2.INTER_NEAREST)
        elif random.random() < 0.8:
            image = jitter(image)
        if taps and random.random() < 0.2:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if taps and random.random() < 0.5:
            image = cv2.GaussianBlur(image, (taps, taps), random.uniform(0.1, 2))
        pixels = (image.reshape(out, out, n) - mean) * scale
        into[...] = pixels.transpose(2, 0, 1)

    result = torch.empty(len(images), n, out, out)
    views = list(result.numpy())

    def run() -> Tensor:
        for image, into in zip(arrays, views, strict=True):
            each(image, into)
        return result

    return run


def of_dali(load: Load, images: Tensor, out: int, taps: int) -> Run:
    """On the CPU, with a thread for each of torch's."""
    dali, fn, types = load("nvidia.dali"), load("nvidia.dali.fn"), load("nvidia.dali.types")
    n = images.shape[1]
    arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())

    @dali.pipeline_def(
        batch_size=len(arrays), num_threads=torch.get_num_threads(), device_id=None, exec_dynamic=False, seed=0
    )
    def pipeline() -> Any:
        x = fn.external_source(lambda: arrays, batch=True, layout="HWC", no_copy=True)
        x = fn.random_resized_crop(x, size=[out, out], random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        if taps:
            jittered = fn.random.coin_flip(probability=0.8)

            def uniform(low: float, high: float, neutral: float) -> Any:
                return jittered * fn.random.uniform(range=[low, high]) + (1 - jittered) * neutral

            colored = fn.random.coin_flip(probability=0.8)
            x = fn.color_twist(
                x,
                brightness=uniform(0.2, 1.8, 1),
                contrast=uniform(0.2, 1.8, 1),
                saturation=uniform(0.2, 1.8, 1) * colored,
                hue=uniform(-72, 72, 0),
            )
            # A sigma of next to nothing leaves the image as it is, and its window is one pixel.
            blurred = fn.random.coin_flip(probability=0.5)
            x = fn.gaussian_blur(x, sigma=blurred * fn.random.uniform(range=[0.1, 2.0]) + (1 - blurred) * 0.01)
        else:
            x = fn.rotate(x, angle=fn.random.uniform(range=[-15.0, 15.0]), keep_size=True, fill_value=0)
        return fn.crop_mirror_normalize(
            x,
            dtype=types.FLOAT,
            output_layout="CHW",
            mirror=fn.random.coin_flip(),
            mean=[255 * v for v in MEAN[:n]],
            std=[255 * v for v in STD[:n]],
        )

    built = pipeline()
    built.build()
    return lambda: built.run()[0]


# What each runs on: fastcl's kernels or reference, and whether it takes a whole batch or one image at a time.
IMPLEMENTATIONS: dict[str, tuple[Callable[[Load, Tensor, int, int], Run], str, bool]] = {
    "fastcl_out": (of_fastcl_out, "native", True),
    "fastcl": (of_fastcl, "native", True),
    "fastcl_ragged": (of_fastcl_ragged, "native", True),
    "fastcl_reference": (of_fastcl, "reference", True),
    "pytorch": (of_pytorch, "auto", True),
    "torchtransform": (of_torchtransform, "auto", True),
    "cv2": (of_cv2, "auto", False),
    "dali": (of_dali, "auto", True),
    "albumentations": (of_albumentations, "auto", False),
    "kornia": (of_kornia, "auto", True),
    "lightly": (of_lightly, "auto", False),
    "torchvision": (of_torchvision, "auto", False),
}


@pytest.fixture
def threads():
    """As many as torch was started with, and again after the bench."""
    count = torch.get_num_threads()
    yield count
    torch.set_num_threads(count)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_augment(benchmark, peer, threads, finish, workload, name):
    n, channels, side, out, taps = WORKLOADS[workload]
    make, backend, batches = IMPLEMENTATIONS[name]
    if torch.get_default_device().type == "cuda" and (not batches or name == "dali"):
        pytest.skip(f"{name} takes images on the CPU here")
    if backend == "native" and fastcl.backends()["augment_apply"][torch.get_default_device().type] != "native":
        pytest.skip("native kernels were not built")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        run = make(peer, pictures(n, channels, side), out, taps)
    except NotComparable:
        pytest.skip(f"{name} has no such pipeline")
    benchmark.group = f"augment {workload}"

    def finished() -> None:
        run()
        finish()

    with fastcl.use_backend(backend), torch.no_grad():
        benchmark.pedantic(finished, warmup_rounds=1, rounds=30 if backend == "native" else 3)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["images_per_second"] = round(n / benchmark.stats.stats.median)


# ---------------------------------------------------------------------------------------------------- the whole picture


def in_turn(runs: dict[str, tuple[Run, str, int]], seconds: float) -> dict[str, float]:
    """Medians of the seconds of a call; (call, backend, threads) of each, TURN seconds at a time, round after round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    with torch.no_grad():
        while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
            for name, (run, backend, threads) in runs.items():
                torch.set_num_threads(threads)
                with fastcl.use_backend(backend):
                    run()  # what the one before has left in the caches is not this one's fault
                    began, repeats = time.perf_counter(), 0
                    while (taken := time.perf_counter() - began) < TURN:
                        run()
                        repeats += 1
                    times[name].append(taken / repeats)
    return {name: statistics.median(taken) for name, taken in times.items()}


def copy_bandwidth() -> float:
    """Bytes/s read plus written by a copy that no cache holds, on all threads."""
    source = torch.ones(64 << 20, dtype=torch.float32)
    target, taken = source.clone(), []
    for _ in range(5):
        began = time.perf_counter()
        target.copy_(source)
        taken.append(time.perf_counter() - began)
    return 2 * source.numel() * 4 / min(taken)


def stages(images: Tensor, out: int, taps: int) -> dict[str, Run]:
    """The pipeline growing step by step, one output reused."""
    whole = steps(transforms, images.shape[1], out, taps)
    middle = ["jitter", "grayscale", "blur"] if taps else ["rotation"]
    runs: dict[str, Run] = {}
    for count in range(len(middle) + 1):
        batch = transforms.Compose([*whole[: 2 + count], *whole[-2:]], seed=0)
        result = batch(images)
        name = f"+ {middle[count - 1]}" if count else "crop, flip, normalise"
        runs[name] = lambda batch=batch, result=result: batch(images, out=result)
    return runs


def compare(seconds: float, plot: Path | None) -> None:
    """Prints the tables; writes the plot."""
    threads = torch.get_num_threads()
    bandwidth = copy_bandwidth()
    print(f"torch {torch.__version__}, {threads} threads, copies at {bandwidth / 1e9:.0f} GB/s\n")
    rates: dict[str, dict[str, float]] = {}
    for workload, (n, channels, side, out, taps) in WORKLOADS.items():
        torch.manual_seed(0)
        images = pictures(n, channels, side)
        runs: dict[str, tuple[Run, str, int]] = {}
        for name, (make, backend, batched) in IMPLEMENTATIONS.items():
            if name == "fastcl_reference":
                continue
            torch.set_num_threads(threads if batched else 1)
            try:
                runs[name] = (make(importlib.import_module, images, out, taps), backend, threads if batched else 1)
            except NotComparable:
                pass
            except ImportError as error:
                print(f"absent: {name} ({error})")
        took = in_turn(runs, seconds)
        rates[workload] = {name: n / took[name] * (threads / runs[name][2]) for name in took}
        best = max((name for name in rates[workload] if "fastcl" not in name), key=rates[workload].__getitem__)
        limit = bandwidth / (channels * (side * side + 4 * out * out))
        print(f"({workload}) {n} x {side}x{side}x{channels} -> {out}; the fastest peer is {best}")
        for name, rate in rates[workload].items():
            ratio = rate / rates[workload][best]
            print(f"  {name:16s}{rate:12,.0f} images/s{ratio:8.2f} x the fastest peer")
        print(f"  {'memory limit':16s}{limit:12,.0f} images/s (computed: bytes in and out at the speed of a copy)")
        took = in_turn({k: (run, "native", 1) for k, run in stages(images, out, taps).items()}, seconds / 4)
        before = 0.0
        for name, stage in took.items():
            each = stage / n
            nanoseconds = 1e9 * (each - before) / (out * out)
            print(f"  1 thread  {name:24s}{1e6 * (each - before):8.2f} us an image{nanoseconds:8.3f} ns a pixel")
            before = each
        print()
        torch.set_num_threads(threads)
    if plot:
        write_plot(rates, threads, plot)


def write_plot(rates: dict[str, dict[str, float]], threads: int, path: Path) -> None:
    """Bars of images/s, one panel a workload."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastcl"  # the same file for the same numbers
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(rates), figsize=(11, 3.4), layout="constrained")
    for panel, (workload, rate) in zip(panels, rates.items(), strict=True):
        names = sorted(rate, key=rate.__getitem__)
        colors = ["tab:blue" if "fastcl" in name else "0.65" for name in names]
        bars = panel.barh(names, [rate[name] for name in names], color=colors)
        panel.bar_label(bars, [f"{rate[name]:,.0f}" for name in names], padding=3, fontsize=8)
        n, channels, side, out, _ = WORKLOADS[workload]
        panel.set(xscale="log", title=f"({workload}) {n} x {side}x{side}x{channels} to {out}x{out}")
        panel.set_xlim(min(rate.values()) / 2, max(rate.values()) * 8)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"images/s, {threads} threads, logarithmic", fontsize=9)
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each workload")
    parser.add_argument("--plot", type=Path, help="an SVG file to write")
    given = parser.parse_args()
    if fastcl.backends()["augment_apply"]["cpu"] != "native":
        sys.exit("native kernels were not built")
    compare(given.seconds, given.plot)
