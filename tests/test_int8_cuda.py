"""Every code path of the CUDA kernels of int8_linear and int8_conv2d, on the emulator: up to 16 rows, small and large
tiles, rows that one warp or a whole block quantises, weights that have to be padded. What the ops promise is tested by
test_int8_linear.py and test_int8_conv2d.py as well, there on the default device.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import add_emulated
from emulator import device
from test_int8_linear import ACTIVATIONS, DTYPES, problem, reference, same, ways
from torch import Tensor

import fastcl
from fastcl.ops import int8_conv2d, int8_linear, int8_pack_weight
from fastcl.ops.int8_linear import MODES

# rows, inputs, outputs. The emulated device has four multiprocessors, so large tiles (128 x 128) are taken from four of
# them on; small ones are 64 x 64, and the form for up to 16 rows takes 16 outputs. A step is 64 inputs.
SHAPES = {
    "one_of_each": (1, 1, 1),
    "vector": (1, 768, 40),
    "few_rows_deep": (9, 2100, 20),
    "few_rows": (16, 64, 33),
    "past_few_rows": (17, 17, 33),
    "small_tiles": (70, 257, 70),
    "long_rows": (18, 1040, 8),
    "large_tiles": (131, 208, 140),
}
DEVICES = {"sm_75": 75, "sm_80": 80}


@pytest.fixture(autouse=True, params=DEVICES.values(), ids=DEVICES.keys())
def emulated(request: pytest.FixtureRequest) -> Iterator[None]:
    if absent := add_emulated():
        pytest.skip(absent)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
    try:
        with fastcl.use_backend("emulated"), device.compute_capability(request.param):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_sums_equal_int64_arithmetic(shape):
    m, k, n = shape
    x, weight = torch.randint(-127, 128, (m, k)), torch.randint(-128, 128, (n, k), dtype=torch.int8)
    x[:, k // 2] = 127  # every row's scale is then 1, and its integers are x itself
    with device.statistics() as counted:
        got = int8_linear(x.float(), weight, torch.ones(n))
    assert torch.equal(got, (x @ weight.long().T).float())
    assert counted.launches == 2
    assert counted.mma > 0
    assert (counted.ldmatrix_phases > 0) == (m > 16)
    assert counted.ldmatrix_conflicts == 0


@pytest.mark.parametrize("mode", ["asymmetric", "static", "int16"])
def test_sums_of_every_mode_equal_int64_arithmetic(mode):
    """Inputs whose integers are they themselves: the range of each mode, scale 1."""
    for m, k, n in [(8, 130, 20), (9, 64, 20), (21, 257, 70)]:
        low, high = {"asymmetric": (-100, 155), "static": (-30, 225), "int16": (-32767, 32767)}[mode]
        x, weight = torch.randint(low, high + 1, (m, k)), torch.randint(-128, 128, (n, k), dtype=torch.int8)
        x[:, 0], x[:, 1] = low, high  # every row then has the whole range
        x_range = torch.tensor([1.0, 30.0]) if mode == "static" else None
        got = int8_linear(x.float(), weight, torch.ones(n), mode=mode, x_range=x_range)
        if mode == "int16":  # both sums are exact, and are put together in float32
            first, second = ((part @ weight.long().T).float() for part in (x >> 8, x & 255))
            assert torch.equal(got, 256 * first + second)
        else:
            assert torch.equal(got, (x @ weight.long().T).float())


@pytest.mark.parametrize("mode", MODES)
def test_the_greatest_sums_do_not_saturate(mode):
    """Every product at its extreme, at the greatest depth: 131072 * 127 * 128 and 65536 * 255 * 128 are under 2^31."""
    k = 131072 if mode == "dynamic" else 65536
    x = torch.full((2, k), {"dynamic": 127.0, "int16": 32767.0}.get(mode, 255.0))
    x[1] = 0.0 if mode in ("asymmetric", "static") else -x[0]
    weight = torch.full((2, k), -128, dtype=torch.int8)
    weight[1] = 127
    x_range = torch.tensor([1.0, 0.0]) if mode == "static" else None
    got = int8_linear(x, weight, torch.ones(2), mode=mode, x_range=x_range)
    torch.testing.assert_close(got.double(), x.double() @ weight.double().T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_the_references_bits(mode, dtype):
    """Rows of zeros, of one sign, NaN, infinity among them. Outlier columns are float sums in another order: off by at
    most J + 2 roundings of their largest partial sum, and by one of the output's dtype."""
    for m, k, n in SHAPES.values():
        x, weight, scale, bias = problem(m, k, n)
        x = x.to(dtype)
        if m > 5:
            x[0], x[1, k // 2], x[2, 0] = 0, float("nan"), -float("inf")
            x[3], x[4] = x[3].abs(), -x[4].abs()
        for name, how in ways(k, n).items():
            if not name.startswith(mode):
                continue
            got = int8_linear(x, weight, scale, bias, activation="relu", **how)
            want = reference(x, weight, scale, bias, activation="relu", **how)
            if "outliers" not in name:
                assert same(got, want), (m, k, n, name)
                continue
            partial = x.float()[:, how["outlier_columns"]].abs() @ how["outlier_weight"].abs() + want.float().abs() + 3
            bound = (len(how["outlier_columns"]) + 2) * 2.0**-23 * partial + torch.finfo(dtype).eps * want.float().abs()
            assert torch.equal(got.isnan(), want.isnan())
            assert ((got.float() - want.float()).abs() <= bound)[~want.isnan()].all(), (m, k, n, name)


def test_rounding_is_half_to_even_and_once():
    """Rows whose products with 127 / absmax fall on, and next to, halves; rows of every magnitude."""
    halves = torch.arange(-126.5, 127, 1.0).repeat(8, 1)
    nudged = torch.stack([halves[0].nextafter(torch.tensor(float(to))) for to in (-1000, 0, 1000)])
    rows = torch.cat([halves, nudged])
    rows = torch.cat([rows, torch.full((len(rows), 1), 127.0)], dim=1)
    x = torch.cat([rows * factor for factor in (1.0, 3.0, 1e-3, 2.0**-90, 1e30, 1.7)])
    weight = torch.eye(x.shape[1], dtype=torch.int8)
    one = torch.ones(x.shape[1])
    got = int8_linear(x, weight, one)
    assert same(got, reference(x, weight, one))
    assert torch.equal(got[0, :-1], halves[0].round())


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_activations_match_fp64(activation, dtype):
    """Within test_int8_linear.py's bound of the same name."""
    values = torch.cat([torch.linspace(-20, 20, 301), torch.linspace(-0.01, 0.01, 30), torch.tensor([-90.0, 90, 3000])])
    for rows in (1, 18):
        x, weight = torch.zeros(rows, 1, dtype=dtype), torch.zeros(len(values), 1, dtype=torch.int8)
        got = int8_linear(x, weight, values, values, activation=activation)
        v = values.double()
        want = ACTIVATIONS[activation](v)
        rounding = 0.5 * torch.finfo(dtype).eps * want.abs() if dtype != torch.float32 else 0
        smallest = 2.0**-25 if dtype == torch.float16 else 0  # half of float16's least step
        assert (got.double() - want).abs().le(5e-7 * (1 + v.abs()) + 1.01 * rounding + smallest).all()


def test_weights_that_start_anywhere():
    """A view of a larger weight: contiguous, but at no multiple of 16 bytes."""
    x, weight, scale, bias = problem(19, 32, 40)
    moved = torch.cat([weight.new_zeros(3), weight.flatten()])[3:].view(40, 32)
    assert moved.data_ptr() % 16
    assert same(int8_linear(x, moved, scale, bias), reference(x, weight, scale, bias))
    x = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(19, 32)  # and inputs at no multiple of 16
    assert same(int8_linear(x, weight, scale, bias), reference(x, weight, scale, bias))


@pytest.mark.parametrize("rows", [3, 20])
def test_what_the_host_cannot_check_gives_nan(rows):
    """Refused on the CPU, where reading the values costs no wait for the device."""
    x, weight, scale, bias = problem(rows, 21, 6)
    for values in [(0.0, 3.0), (-1.0, 3.0), (float("nan"), 3.0), (1.0, 0.5), (1.0, 256.0), (1.0, -1.0)]:
        assert int8_linear(x, weight, scale, bias, mode="static", x_range=torch.tensor(values)).isnan().all()
    for column in (-1, 21, 2**40):
        outliers = {"outlier_columns": torch.tensor([0, column]), "outlier_weight": torch.ones(2, 6)}
        assert int8_linear(x, weight, scale, bias, **outliers).isnan().all()


def test_the_weight_is_read_as_it_stands():
    x, weight, scale, _ = problem(3, 21, 6)
    assert int8_pack_weight(weight) is None
    with fastcl.use_backend("auto"):
        packed = int8_pack_weight(weight)
    if packed is None:
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    with pytest.raises(RuntimeError, match="int8_linear: packed must be None on CUDA"):
        int8_linear(x, weight, scale, packed=packed)


def every_path() -> list[dict[str, Any]]:
    problems = []
    for m, k, n in [(5, 1100, 20), (21, 150, 70), (131, 100, 140)]:
        forms = ways(k, n)
        for name in ("dynamic", "asymmetric_outliers", "int16_multiplied"):
            if m < 100 or name != "int16_multiplied":
                problems.append({"arguments": problem(m, k, n), "how": forms[name]})
    return problems


def test_same_bits_under_every_schedule():
    """A missing barrier or wait shows as a difference."""
    problems = every_path()
    images, scale = torch.randn(2, 5, 6, 7), torch.rand(9)
    weight = torch.randint(-127, 128, (9, 3, 2, 5), dtype=torch.int8)

    def run() -> list[Tensor]:
        results = [int8_linear(*p["arguments"], activation="gelu", **p["how"]) for p in problems]
        return [*results, int8_conv2d(images, weight, scale, padding=1, mode="asymmetric")]

    device.same_under_every_schedule(run)


def test_the_host_reads_nothing_back_from_the_device():
    """So that a CUDA graph may hold the op."""
    for path in (Path(__file__).parents[1] / "csrc").rglob("int8_*cuda*"):
        assert not any(word in path.read_text() for word in ("cudaMemcpy", "Synchronize", "cudaMalloc")), path
