"""The emulator of tests/emulator: right kernels give right results under every schedule, planted bugs are caught."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from emulator import build, device
from emulator.samples import gemm, row_sums, total_sum

try:
    device.runtime()
except build.Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

RNG = np.random.default_rng(0)


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """Of float32 values that bfloat16 holds exactly."""
    bits = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    assert np.array_equal(bf16_values(bits), x)
    return bits


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def operands(product: str, m: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both operands as the kernel takes them, and the product in float64: whole numbers, so every sum is exact."""
    a, b = (RNG.integers(-16, 17, (rows, k)).astype(np.float32) for rows in (m, n))
    types = {"s8": np.int8, "tf32": np.float32, "f16": np.float16, "f16 of sm_75": np.float16}
    convert = bf16_bits if product == "bf16" else lambda x: x.astype(types[product])
    return convert(a), convert(b), a.astype(np.float64) @ b.astype(np.float64).T


@pytest.mark.parametrize("schedule", device.SCHEDULES)
@pytest.mark.parametrize("product", ["bf16", "f16", "f16 of sm_75", "tf32", "s8"])
def test_products_on_tensor_cores(product, schedule):
    a, b, expected = operands(product, 100, 70, 144)
    with device.schedule(schedule), device.statistics() as counted:
        assert np.array_equal(gemm(a, b, product), expected)
    assert counted.mma > 0
    assert counted.ldmatrix_phases > 0
    assert counted.ldmatrix_conflicts == 0


@pytest.mark.parametrize("schedule", device.SCHEDULES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 501), (5, 128)])
def test_row_sums(shape, schedule):
    x = RNG.integers(-8, 9, shape).astype(np.float32)
    with device.schedule(schedule):
        assert np.array_equal(row_sums(x), x.sum(axis=1))


@pytest.mark.parametrize("schedule", device.SCHEDULES)
def test_the_last_block_adds_up(schedule):
    x = RNG.integers(-8, 9, 3001).astype(np.float32)
    with device.schedule(schedule):
        assert total_sum(x, blocks=6) == x.sum()


def test_sm_75_has_no_bf16_product_but_an_int8_one():
    with device.compute_capability(75):
        with pytest.raises(RuntimeError, match=r"mma\.m16n8k16\.bf16 needs sm_80"):
            gemm(*operands("bf16", 64, 64, 64)[:2])
        a, b, expected = operands("s8", 100, 70, 144)
        assert np.array_equal(gemm(a, b, "s8"), expected)


def test_fragment_layouts_are_cutes(tmp_path):
    try:
        cute = build.cutlass_include()
    except build.Unavailable as reason:
        pytest.skip(str(reason))
    includes = [f"-isystem{folder}" for folder in (cute, *build.cuda_includes())]
    # CuTe wants cuda/std as well, which stands beside nv/target.
    includes += [f"-isystem{folder / 'cccl'}" for folder in build.cuda_includes()]
    source, program = build.EMULATOR / "layouts" / "fragment_layouts.cpp", tmp_path / "fragment_layouts"
    subprocess.run(["g++", "-std=c++17", "-w", f"-I{build.EMULATOR}", *includes, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_empty_grid_is_refused_as_cuda_does():
    with pytest.raises(RuntimeError, match="invalid launch configuration"):
        total_sum(np.ones(4, np.float32), blocks=0)


def test_unknown_schedules_and_devices_are_refused():
    with (
        pytest.raises(ValueError, match=r"forward, reverse or random:SEED, got 'sideways'"),
        device.schedule("sideways"),
    ):
        pass
    with device.compute_capability(10), pytest.raises(RuntimeError, match="no device of compute capability 10"):
        gemm(*operands("s8", 64, 64, 64)[:2], "s8")
