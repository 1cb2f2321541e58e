"""Every code path of the augmentation's CUDA kernel, on the emulator: planes in shared memory and in scratch memory,
resizes and blurs in tiles and without, more images than blocks, more channels than one launch has room for. What the
ops promise is tested by test_augment*.py and test_ragged.py, there on the default paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from augment_helpers import EVERYTHING, SMOOTH, STEPS, check_refused, error, noise, recipe, row
from conftest import add_emulated
from emulator import device
from torch import Tensor

import fastcl
from fastcl.data import RaggedBatch
from fastcl.ops import augment_sample_ragged, augment_views_ragged
from fastcl.ops.augment import augment_apply, augment_sample, augment_views

GEOMETRY = {**EVERYTHING, **SMOOTH, "jitter_p": 0, "grayscale_p": 0}


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    if absent := add_emulated():
        pytest.skip(absent)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
    try:
        with fastcl.use_backend("emulated"):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def draw(entries: dict[str, float], n: int, size: tuple[int, int], out: tuple[int, int], seed: int = 3) -> Tensor:
    return augment_sample(recipe(**entries), torch.arange(n), seed=seed, size=size, out_size=out)


# images, channels, size, output, compute capability, entries, launches. sm_75 has 64 KiB of shared memory for a block.
PATHS: dict[str, tuple[int, int, tuple[int, int], tuple[int, int], int, dict[str, float], int]] = {
    "in_shared_memory": (4, 3, (31, 22), (21, 27), 80, {**EVERYTHING, **SMOOTH}, 1),
    "in_scratch_memory": (3, 3, (31, 22), (50, 49), 75, {**EVERYTHING, **SMOOTH}, 1),
    "one_channel_in_scratch_memory": (3, 1, (31, 22), (100, 80), 75, {**EVERYTHING, **SMOOTH}, 1),
    "resized_in_tiles_of_columns": (2, 3, (6, 6000), (5, 300), 80, {**EVERYTHING, "crop": 0}, 1),
    "resized_row_by_row": (2, 3, (40, 3900), (7, 3), 80, {**EVERYTHING, "crop": 0}, 1),
    "resized_without_a_tile": (2, 3, (2, 13000), (2, 1), 80, {**EVERYTHING, "crop": 0}, 1),
    "blurred_in_groups_of_rows": (2, 3, (9, 15), (24, 900), 80, {**EVERYTHING, "blur_p": 1}, 1),
    "blurred_without_groups": (2, 3, (5, 40), (3, 3100), 80, {**EVERYTHING, "blur_p": 1}, 1),
    "more_channels_than_a_launch": (1, 131, (9, 8), (7, 7), 80, GEOMETRY, 3),
}


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_every_path_matches_fp64(path: Any, resize: str) -> None:
    """Within the bound of test_everything_at_once_matches_fp64; cubic weights add up to 1.3 in each direction."""
    n, channels, size, out, capability, entries, launches = path
    images, params = noise(n, channels, size) / 255, draw(entries, n, size, out)
    how = {"resize": resize, "interpolation": "bilinear", "fill": [0.5]}
    with device.compute_capability(capability), device.statistics() as counted:
        got = augment_apply(images, params, out, **how)
    assert counted.launches == launches
    with fastcl.use_backend("reference"):
        exact = augment_apply(images.double(), params, out, **how)
        plain = augment_apply(images, params, out, **how)
    assert error(got, exact) <= 2 * error(plain, exact) + (2e-6 if resize == "bilinear" else 4e-6)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_every_path_cuts_bytes_off_where_the_reference_does(path: Any) -> None:
    """The cubic filter overshoots where noise is all black and white."""
    n, channels, size, out, capability, entries, _ = path
    geometry = {name: value for name, value in entries.items() if "crop" in name or "flip" in name}
    images, params = noise(n, channels, size) // 128 * 255, draw(geometry, n, size, out)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = images.contiguous(memory_format=layout)
        with device.compute_capability(capability):
            got = augment_apply(given, params, out, dtype=torch.float32, resize="bicubic")
        with fastcl.use_backend("reference"):
            want = augment_apply(images, params, out, dtype=torch.float32, resize="bicubic")
        # Weights to float32 and sums of up to 26,000 taps whose sizes add up to 1.3, in each direction.
        assert (got - want).abs().max() <= 1e-5


@pytest.mark.parametrize("path", ["in_shared_memory", "in_scratch_memory", "one_channel_in_scratch_memory"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
def test_same_bits_under_every_schedule(path: str, dtype: torch.dtype) -> None:
    """A missing barrier shows as a difference; so does a sum whose order is left to chance."""
    _, channels, size, out, capability, entries, _ = PATHS[path]
    images, params = noise(5, channels, size), draw({**entries, **STEPS}, 5, size, out, seed=1)
    ragged = RaggedBatch.of([noise(channels, 1, size)[:, 0], noise(1, channels, (7, 9))[0]])
    recipe_ = recipe(**EVERYTHING)

    def run() -> list[Tensor]:
        drawn = augment_sample_ragged(recipe_, torch.arange(2), seed=5, shapes=ragged.shapes, out_size=(8, 9))
        return [
            drawn,
            augment_apply(images, params, out, dtype=dtype),
            augment_apply(images, params, out, dtype=dtype, resize="bicubic"),
            *augment_views_ragged(ragged, [drawn], [(8, 9)], dtype=dtype, interpolation="bilinear"),
        ]

    with device.compute_capability(capability):
        device.same_under_every_schedule(run)


def test_images_share_the_blocks_of_scratch_memory() -> None:
    """More images than blocks: a block takes one after another, and what one leaves is not seen by the next."""
    n = 11  # two blocks for each of the emulator's four multiprocessors, and some more
    images, out = noise(n, 1, (4, 5)), (100, 80)
    params = draw({**EVERYTHING, "blur_p": 0.5}, n, (4, 5), out)
    with device.compute_capability(75), device.statistics() as counted:
        got = augment_apply(images, params, out, dtype=torch.float32)
    assert counted.blocks == 8
    with device.compute_capability(75):
        for i in range(n):
            assert torch.equal(augment_apply(images[i : i + 1], params[i : i + 1], out, dtype=torch.float32)[0], got[i])


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_neither_images_nor_output_need_be_aligned(dtype: torch.dtype, offset: int) -> None:
    images, size = noise(3, 3, (13, 11)), (8, 10)
    params = draw(EVERYTHING, 3, (13, 11), size)
    want = augment_apply(images, params, size, dtype=dtype)
    memory = torch.zeros(images.numel() + offset, dtype=torch.uint8)
    moved = memory[offset:].view(images.shape).copy_(images)
    room = torch.zeros(want.numel() + offset, dtype=dtype)
    got = augment_apply(moved, params, size, out=room[offset:].view(want.shape))
    assert torch.equal(got, want)
    assert not room[:offset].any()


def test_nothing_is_read_before_it_is_written() -> None:
    """Scratch memory holds what an earlier tensor left there."""
    images, params = noise(2, 3, (20, 30)), draw({**EVERYTHING, **STEPS, **SMOOTH}, 2, (20, 30), (60, 50))
    with device.compute_capability(75):
        want = augment_apply(images, params, (60, 50), dtype=torch.float32)
        torch.use_deterministic_algorithms(False)
        for value in (1e30, float("nan")):
            left = [torch.full((1 << 16,), value) for _ in range(4)]
            del left
            assert torch.equal(augment_apply(images, params, (60, 50), dtype=torch.float32), want)


def test_each_view_is_one_launch() -> None:
    images, sizes = noise(3, 3, (20, 30)), [(16, 16), (8, 9), (70, 60)]
    tables = [draw(EVERYTHING, 3, (20, 30), size) for size in sizes]
    with device.statistics() as counted:
        augment_views(images, tables, sizes, dtype=torch.float32)
    assert counted.launches == len(sizes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("capability", [75, 80])
def test_an_impossible_row_gives_a_view_of_nothing(dtype: torch.dtype, capability: int) -> None:
    """Whatever it says, it reaches no memory: `make test-sanitized` runs the cases under ASan."""
    images = noise(4, 3, (9, 9))
    params = torch.cat([row((9, 9)), row((9, 9), crop_left=2**30), row((9, 9), blur_sigma=1, blur_radius_x=1e9)])
    params = torch.cat([params, row((9, 9), erase_top=1e9, erase_height=2, erase_width=3)])
    with device.compute_capability(capability):
        for bad in (1, 2, 3):
            chosen = params[[0, bad]]
            check_refused(
                "emulated", 1, "", lambda chosen=chosen: augment_apply(images[:2], chosen, (70, 71), dtype=dtype)
            )


def test_a_view_too_large_is_refused() -> None:
    with pytest.raises(RuntimeError, match="on CUDA a view must have at most 268435456 pixels, got 16385 x 16384"):
        augment_apply(noise(0, 1, (4, 4)), row((4, 4))[:0], (16385, 16384))


def test_the_host_reads_nothing_back_from_the_device() -> None:
    """So the launches can be captured in a CUDA graph, and replayed with other images and rows."""
    folder = Path(__file__).parents[1] / "csrc" / "augment"
    for name in ("augment_cuda.cu", "augment_cuda_ops.cpp"):
        assert not any(word in (folder / name).read_text() for word in ("cudaMemcpy", "Synchronize", "cudaMalloc"))
