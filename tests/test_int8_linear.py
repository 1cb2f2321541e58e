from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastcl
from fastcl.ops import int8_linear, int8_pack_weight
from fastcl.ops.int8_linear import MODES

KERNELS = ("portable", "avx2", "avx_vnni", "avx512_vnni")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ACTIVATIONS = {"none": lambda v: v, "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}
# rows, inputs, outputs: around the kernels' tiles (6 or 14 rows, 16 or 32 columns, 16 inputs), and where threads split
SHAPES = {
    "one_of_each": (1, 1, 1),
    "one_input": (5, 1, 40),
    "one_output": (40, 70, 1),
    "vector": (1, 768, 96),
    "tile": (14, 16, 32),
    "past_the_tile": (15, 17, 33),
    "odd": (13, 257, 70),
    "split_by_column": (41, 100, 300),
    "split_by_row": (42, 100, 30),
    "several_blocks": (300, 2048, 96),
    "deep": (2, 9001, 3),
}


# How x is quantised; tensors for K = 21, and N = 5 where they have one.
WAYS = {
    "dynamic": {},
    "asymmetric": {"mode": "asymmetric"},
    "static": {"mode": "static", "x_range": torch.tensor([0.013, 101.0])},
    "int16": {"mode": "int16", "x_multiplier": torch.linspace(0.3, 3, 21)},
    "outliers": {
        "x_multiplier": torch.linspace(0.3, 3, 21).index_fill(0, torch.tensor([4, 20]), 0),
        "outlier_columns": torch.tensor([20, 4]),
        "outlier_weight": torch.linspace(-1, 1, 10).view(2, 5),
    },
}


def pack(weight: Tensor, kernel: str) -> Tensor:
    """The weight packed for a kernel; a machine or an install without it is a skip with the reason."""
    if fastcl.backends()["int8_linear"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    try:
        packed = int8_pack_weight(weight, kernel)
    except RuntimeError as error:
        if "kernel must be" not in str(error):
            raise
        pytest.skip(f"this machine has no {kernel}")
    assert packed is not None
    return packed


def problem(m: int, k: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    return torch.randn(m, k), weight, 0.02 * torch.rand(n) / k**0.5, torch.randn(n)


def reference(*arguments: Tensor | None, **options: Any) -> Tensor:
    with fastcl.use_backend("reference"):
        return int8_linear(*arguments, **options)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in every element, a NaN being equal to a NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all()) and a.dtype == b.dtype and a.shape == b.shape


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_sums_equal_int64_arithmetic(kernel, shape):
    m, k, n = shape
    x, weight = torch.randint(-127, 128, (m, k)), torch.randint(-128, 128, (n, k), dtype=torch.int8)
    x[:, k // 2] = 127  # every row's scale is then 1, and its integers are x itself
    got = int8_linear(x.float(), weight, torch.ones(n), packed=pack(weight, kernel))
    assert torch.equal(got, (x @ weight.long().T).float())


@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_equal_int64_arithmetic_at_every_tile_height(kernel):
    for m in range(1, 32):
        k, n = (int(torch.randint(1, 40, ())) for _ in range(2))
        x, weight = torch.randint(-127, 128, (m, k)), torch.randint(-128, 128, (n, k), dtype=torch.int8)
        x[:, 0] = -127
        got = int8_linear(x.float(), weight, torch.ones(n), packed=pack(weight, kernel))
        assert torch.equal(got, (x @ weight.long().T).float()), (m, k, n)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_greatest_sums_do_not_saturate(kernel):
    """Every product at its extreme, at the greatest depth: where 16 bits saturate, and u8 times s8 passes 2^31."""
    k = 131072
    x = torch.full((3, k), 127.0)
    x[1] *= -1
    x[2, ::2] *= -1
    weight = torch.empty(3, k, dtype=torch.int8)
    weight[0], weight[1], weight[2, ::2], weight[2, 1::2] = 127, -128, -127, 127
    got = int8_linear(x, weight, torch.ones(3), packed=pack(weight, kernel))
    assert torch.equal(got, (x.long() @ weight.long().T).float())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_bits_equal_the_reference(kernel, dtype, activation):
    """Quantiser, sums and epilogue are the same float32 operations everywhere."""
    for m, k, n in SHAPES.values():
        x, weight, scale, bias = problem(m, k, n)
        x = x.to(dtype)
        packed = pack(weight, kernel)
        for b in (bias, None):
            got = int8_linear(x, weight, scale, b, activation=activation, packed=packed)
            assert same(got, reference(x, weight, scale, b, activation=activation)), (m, k, n)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rounding_is_half_to_even_and_once(kernel):
    """Rows whose products with 127 / absmax fall on, and next to, halves; rows of every magnitude."""
    halves = torch.arange(-126.5, 127, 1.0).repeat(8, 1)
    nudged = torch.stack([halves[0].nextafter(torch.tensor(float(to))) for to in (-1000, 0, 1000)])
    rows = torch.cat([halves, nudged])
    rows = torch.cat([rows, torch.full((len(rows), 1), 127.0)], dim=1)
    x = torch.cat([rows * factor for factor in (1.0, 3.0, 1e-3, 2.0**-90, 1e30, 1.7)])
    weight = torch.eye(x.shape[1], dtype=torch.int8)
    one = torch.ones(x.shape[1])
    got = int8_linear(x, weight, one, packed=pack(weight, kernel))
    assert same(got, reference(x, weight, one))
    assert torch.equal(got[0, :-1], halves[0].round())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_activations_match_fp64(kernel, dtype, activation):
    """|error| <= 5e-7 (1 + |v|) for the value v before the activation: the erfc used errs by 2e-7, and float32 rounds;
    then comes the rounding to the output's dtype."""
    values = torch.cat([torch.linspace(-20, 20, 301), torch.linspace(-0.01, 0.01, 30), torch.tensor([-90.0, 90, 3000])])
    x, weight = torch.zeros(20, 1, dtype=dtype), torch.zeros(len(values), 1, dtype=torch.int8)
    got = int8_linear(x, weight, values, values, activation=activation, packed=pack(weight, kernel))
    v = values.double()
    want = ACTIVATIONS[activation](v)
    rounding = 0.5 * torch.finfo(dtype).eps * want.abs() if dtype != torch.float32 else 0
    smallest = 2.0**-25 if dtype == torch.float16 else 0  # half of float16's least step
    assert (got.double() - want).abs().le(5e-7 * (1 + v.abs()) + 1.01 * rounding + smallest).all()


def ways(k: int, n: int) -> dict[str, dict[str, Any]]:
    """What the op takes beside x and the weight, in every mode, with and without a multiplier."""
    columns = torch.randperm(k)[: max(1, k // 9)]
    multiplier = 0.5 + torch.rand(k)
    forms: dict[str, dict[str, Any]] = {}
    for mode in MODES:
        forms[mode] = {"mode": mode}
        if mode == "static":
            forms[mode]["x_range"] = torch.tensor([0.011, 101.0])  # cuts off at -1.1 and 1.7
        forms[f"{mode}_multiplied"] = {**forms[mode], "x_multiplier": multiplier}
        forms[f"{mode}_outliers"] = {
            **forms[mode],
            "x_multiplier": multiplier.index_fill(0, columns, 0),
            "outlier_columns": columns,
            "outlier_weight": torch.randn(len(columns), n),
        }
    return forms


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_the_references_bits(kernel, dtype, mode):
    """Rows of zeros, of one sign, NaN, infinity among them. Outlier columns are float sums in another order: off by at
    most J + 2 roundings of their largest partial sum, and by one of the output's dtype."""
    for m, k, n in SHAPES.values():
        x, weight, scale, bias = problem(m, k, n)
        x = x.to(dtype)
        if m > 5:
            x[0], x[1, k // 2], x[2, 0] = 0, float("nan"), -float("inf")
            x[3], x[4] = x[3].abs(), -x[4].abs()
        packed = pack(weight, kernel)
        for name, how in ways(k, n).items():
            if not name.startswith(mode):
                continue
            got = int8_linear(x, weight, scale, bias, activation="relu", packed=packed, **how)
            want = reference(x, weight, scale, bias, activation="relu", **how)
            if "outliers" not in name:
                assert same(got, want), (m, k, n, name)
                continue
            partial = x.float()[:, how["outlier_columns"]].abs() @ how["outlier_weight"].abs() + want.float().abs() + 3
            bound = (len(how["outlier_columns"]) + 2) * 2.0**-23 * partial + torch.finfo(dtype).eps * want.float().abs()
            assert torch.equal(got.isnan(), want.isnan())
            assert ((got.float() - want.float()).abs() <= bound)[~want.isnan()].all(), (m, k, n, name)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", ["asymmetric", "static", "int16"])
def test_sums_of_every_mode_equal_int64_arithmetic(kernel, mode):
    """Inputs whose integers are they themselves: the range of each mode, scale 1."""
    for m, k, n in [(1, 1, 1), (9, 300, 40), (50, 257, 70)]:
        low, high = {"asymmetric": (-100, 155), "static": (-30, 225), "int16": (-32767, 32767)}[mode]
        x, weight = torch.randint(low, high + 1, (m, k)), torch.randint(-128, 128, (n, k), dtype=torch.int8)
        if k > 1:
            x[:, 0], x[:, 1] = low, high  # every row then has the whole range
        elif mode != "static":
            x[:] = high
        x_range = torch.tensor([1.0, 30.0]) if mode == "static" else None
        got = int8_linear(x.float(), weight, torch.ones(n), mode=mode, x_range=x_range, packed=pack(weight, kernel))
        if mode == "asymmetric" and k == 1:
            assert got.item() == pytest.approx(
                (x @ weight.long().T).item(), rel=1e-6
            )  # 155 / 255 is not a whole number
        elif mode == "int16":  # both sums are exact, and are put together in float32
            high_sum, low_sum = ((part @ weight.long().T).float() for part in (x >> 8, x & 255))
            assert torch.equal(got, 256 * high_sum + low_sum)
        else:
            assert torch.equal(got, (x @ weight.long().T).float())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", ["asymmetric", "static", "int16"])
def test_the_greatest_sums_of_every_mode_do_not_saturate(kernel, mode):
    """Every product at its extreme, at the greatest depth: 65536 * 255 * 128 is just under 2^31."""
    k = 65536
    x = torch.full((2, k), 255.0 if mode != "int16" else 32767.0)
    x[1] = 0.0 if mode != "int16" else -32767.0
    weight = torch.full((2, k), -128, dtype=torch.int8)
    weight[1] = 127
    x_range = torch.tensor([1.0, 0.0]) if mode == "static" else None
    got = int8_linear(x, weight, torch.ones(2), mode=mode, x_range=x_range, packed=pack(weight, kernel))
    torch.testing.assert_close(got.double(), x.double() @ weight.double().T, rtol=1e-6, atol=0)


def test_static_cuts_off_what_lies_outside_its_range(backend):
    x = torch.tensor([[-1e30, -3.0, -0.26, 0.24, 2.0, 1e30]])
    got = int8_linear(x, torch.eye(6, dtype=torch.int8), torch.ones(6), mode="static", x_range=torch.tensor([0.5, 2.0]))
    assert got.tolist() == [[-1.0, -1.0, -0.5, 0.0, 2.0, 126.5]]


def test_sixteen_bits_are_as_good_as_float_activations(backend):
    """The error left is the weight's alone: of x, 2^-16 of the row's largest magnitude."""
    x, weight, scale, _ = problem(32, 768, 64)
    exact = x.double() @ dequantised(weight, scale).double().T
    assert (int8_linear(x, weight, scale, mode="int16") - exact).norm() <= 1e-4 * exact.norm()


def test_a_zero_point_halves_the_error_of_positive_inputs(backend):
    x, weight, scale, _ = problem(64, 512, 64)
    x = x.relu()
    exact = x.double() @ dequantised(weight, scale).double().T
    errors = [(int8_linear(x, weight, scale, mode=m) - exact).norm() for m in ("dynamic", "asymmetric")]
    assert errors[1] < 0.55 * errors[0]


def dequantised(weight: Tensor, scale: Tensor) -> Tensor:
    return weight * scale[:, None]


@pytest.mark.parametrize("shape", [(64, 768, 256), (32, 2048, 128)], ids=str)
def test_error_against_float_is_at_most_1_2_percent(backend, shape):
    """The whole layer on Gaussian data, weight rounded too, against float64."""
    m, k, n = shape
    x, w = torch.randn(m, k), torch.randn(n, k)
    scale = w.abs().amax(dim=1) / 127
    weight = (w / scale[:, None]).round().to(torch.int8)
    exact = x.double() @ w.double().T
    assert (int8_linear(x, weight, scale) - exact).norm() <= 0.012 * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [4, 60])
def test_bad_rows_are_defined_and_stay_alone(backend, rows, activation, dtype):
    x, weight, scale, bias = problem(rows, 37, 50)
    x = x.to(dtype)
    clean = int8_linear(x, weight, scale, bias, activation=activation)
    x[0] = 0
    x[1, 36] = float("nan")
    x[2, 0] = float("inf")
    x[3, 7] = -float("inf")
    got = int8_linear(x, weight, scale, bias, activation=activation)
    torch.testing.assert_close(got[0].float(), ACTIVATIONS[activation](bias), atol=2e-6, rtol=torch.finfo(dtype).eps)
    assert got[1:4].isnan().all()
    assert torch.equal(got[4:], clean[4:])


def test_rows_too_small_to_scale_count_as_zeros(backend):
    x = torch.tensor([[1e-38, 0.0], [2.0**-101, 0.0], [2.0**-100, 0.0]])
    got = int8_linear(x, torch.full((1, 2), 127, dtype=torch.int8), torch.full((1,), 1 / 127))
    torch.testing.assert_close(got, torch.tensor([[0.0], [0.0], [2.0**-100]]), atol=0, rtol=1e-6)


def test_a_fp64_input_is_computed_in_fp64(backend):
    x, weight, scale, bias = problem(9, 60, 7)
    got = int8_linear(x.double(), weight, scale, bias)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.float(), int8_linear(x, weight, scale, bias), rtol=1e-5, atol=1e-5)


def test_shapes(backend):
    x, weight, scale, bias = problem(24, 10, 6)
    want = int8_linear(x, weight, scale, bias)
    assert torch.equal(int8_linear(x.view(2, 3, 4, 10), weight, scale, bias), want.view(2, 3, 4, 6))
    assert torch.equal(int8_linear(x[0], weight, scale, bias), want[0])
    assert int8_linear(x[:0], weight, scale, bias).shape == (0, 6)
    assert int8_linear(x.new_empty(3, 0, 10), weight, scale, bias).shape == (3, 0, 6)


def test_strided_arguments(backend):
    x, weight, scale, bias = problem(24, 20, 12)
    wide, tall = torch.randn(24, 40), weight.T.contiguous()
    wide[:, ::2] = x
    got = int8_linear(wide[:, ::2], tall.T, scale.repeat_interleave(2)[::2], bias.repeat_interleave(2)[::2])
    assert torch.equal(got, int8_linear(x, weight, scale, bias))


@pytest.mark.parametrize("kernel", KERNELS)
def test_same_bits_for_every_thread_count_and_call(kernel):
    before = torch.get_num_threads()
    try:
        for m, k, n in [(1, 700, 1600), (20, 300, 200), (200, 300, 200)]:
            x, weight, scale, bias = problem(m, k, n)
            packed = pack(weight, kernel)
            results = []
            for threads in (1, 2, 3, 2):
                torch.set_num_threads(threads)
                results.append(int8_linear(x, weight, scale, bias, activation="gelu", packed=packed))
            assert all(torch.equal(result, results[0]) for result in results)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_outputs(kernel):
    """Past the size from which outputs are written around the cache: 8 MB for two threads."""
    x, weight, scale, bias = problem(1100, 5, 2048)
    got = int8_linear(x, weight, scale, bias, activation="relu", packed=pack(weight, kernel))
    assert torch.equal(got, reference(x, weight, scale, bias, activation="relu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_go_straight_through_the_quantiser(backend, activation, dtype):
    x, weight, scale, bias = problem(11, 30, 9)
    x, grad = x.to(dtype), torch.randn(11, 9).to(dtype)
    x.requires_grad_()
    bias.requires_grad_()
    got = torch.autograd.grad(int8_linear(x, weight, scale, bias, activation=activation), [x, bias], grad)

    w = dequantised(weight, scale).double()
    at = reference(x.detach().float(), weight, scale).double() + bias.detach()  # the value before the activation
    exact = x.detach().double().requires_grad_()
    b = bias.detach().double().requires_grad_()
    pre = exact @ w.T + b
    want = torch.autograd.grad(ACTIVATIONS[activation](pre + (at - pre).detach()), [exact, b], grad.double())
    assert got[0].dtype == dtype
    eps = torch.finfo(dtype).eps
    for g, e in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=eps, atol=max(eps, 1e-6) * e.abs().max().item())


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
def test_gradients_are_those_of_the_float_weight(backend, how):
    x, weight, scale, bias = problem(11, 21, 5)
    how = {name: value.to(x.device) if isinstance(value, Tensor) else value for name, value in how.items()}
    x.requires_grad_()
    grad = torch.randn(11, 5)
    (got,) = torch.autograd.grad(int8_linear(x, weight, scale, bias, **how), [x], grad)
    w = dequantised(weight, scale) * how.get("x_multiplier", 1)
    for j, column in enumerate(how.get("outlier_columns", [])):
        w[:, column] += how["outlier_weight"][j]
    torch.testing.assert_close(got, grad @ w, rtol=1e-5, atol=1e-6)


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()

    def step(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return int8_linear(x, weight, scale, bias, activation="silu", packed=int8_pack_weight(weight))

    arguments = problem(8, 20, 6)
    inputs = [arguments[0].clone().requires_grad_() for _ in range(2)]
    eager = step(inputs[0], *arguments[1:])
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(inputs[1], *arguments[1:])
    eager.sum().backward()
    compiled.sum().backward()
    assert torch.equal(eager, compiled)
    assert torch.equal(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("namespace", ["fastcl", "fastcl_reference"])
def test_opcheck(namespace, activation):
    x, weight, scale, bias = problem(6, 21, 5)
    ops = getattr(torch.ops, namespace)
    torch.library.opcheck(ops.int8_pack_weight.default, (weight, "auto"))
    for how in WAYS.values():
        given = [how.get(name) for name in ("x_range", "x_multiplier", "outlier_columns", "outlier_weight")]
        layer = (weight, "auto", scale, *given, how.get("mode", "dynamic"), activation)
        torch.library.opcheck(ops.int8_pack_weight.default, layer)
    packed = int8_pack_weight(weight) if namespace == "fastcl" else None
    for dtype, b, p in ((torch.float32, bias, packed), (torch.bfloat16, None, None)):
        for how in WAYS.values():
            given = [how.get(name) for name in ("x_range", "x_multiplier", "outlier_columns", "outlier_weight")]
            rest = (*given, how.get("mode", "dynamic"), activation)
            inputs = (x.to(dtype).requires_grad_(), weight, scale, b, p, *rest)
            torch.library.opcheck(ops.int8_linear.default, inputs)
    inputs = (x[:, None], weight, scale, bias.requires_grad_(), None, *[None] * 4, "dynamic", activation)
    torch.library.opcheck(ops.int8_linear.default, inputs)


X, W, S = torch.ones(3, 4), torch.ones(2, 4, dtype=torch.int8), torch.ones(2)
BAD = {
    "x_width": ((X[:, :3], W, S), {}, ValueError, r"x must be \[..., 4\], got \[3, 3\]"),
    "x_scalar": ((X[0, 0], W, S), {}, ValueError, "x must be"),
    "x_integers": ((X.int(), W, S), {}, TypeError, "x must be .* got torch.int32"),
    "x_list": (([1.0], W, S), {}, TypeError, "x must be a Tensor, got list"),
    "weight_float": ((X, W.float(), S), {}, TypeError, "weight must be int8, got torch.float32"),
    "weight_uint8": ((X, W.byte(), S), {}, TypeError, "weight must be int8, got torch.uint8"),
    "weight_empty": ((X, W[:0], S[:0]), {}, ValueError, r"weight must be \[N, K\], not empty"),
    "weight_deep": ((X, W.new_zeros(1, 131073), S), {}, ValueError, "K at most 131072"),
    "scale_shape": ((X, W, S[:1]), {}, ValueError, r"weight_scale must be \[2\], got \[1\]"),
    "scale_dtype": ((X, W, S.double()), {}, TypeError, "weight_scale must be float32"),
    "bias_shape": ((X, W, S, torch.ones(3)), {}, ValueError, r"bias must be \[2\], got \[3\]"),
    "bias_dtype": ((X, W, S, W[:, 0]), {}, TypeError, "bias must be float32"),
    "activation": ((X, W, S), {"activation": "tanh"}, ValueError, "activation must be one of none, .* got 'tanh'"),
    "mode": ((X, W, S), {"mode": "w4"}, ValueError, "mode must be one of dynamic, .* got 'w4'"),
    "mode_deep": (
        (X, W.new_zeros(1, 65537), S[:1]),
        {"mode": "int16"},
        ValueError,
        "K must be at most 65536, got 65537",
    ),
    "no_range": ((X, W, S), {"mode": "static"}, ValueError, "x_range must be given in mode 'static'"),
    "range": ((X, W, S), {"x_range": torch.ones(2)}, ValueError, "x_range must be given in mode 'static' and no other"),
    "multiplier": ((X, W, S), {"x_multiplier": torch.ones(3)}, ValueError, r"x_multiplier must be \[4\], got \[3\]"),
    "one_outlier": ((X, W, S), {"outlier_columns": torch.tensor([1])}, ValueError, "must be given together"),
    "outliers": (
        (X, W, S),
        {"outlier_columns": torch.tensor([1]), "outlier_weight": torch.ones(2, 1)},
        ValueError,
        r"outlier_weight must be \[1, 2\], got \[2, 1\]",
    ),
    "device": ((X, W.to("meta"), S), {}, ValueError, "weight must be on x's device cpu, got meta"),
}


@pytest.mark.parametrize(("arguments", "options", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(backend, arguments, options, kind, message):
    with pytest.raises(kind, match=f"int8_linear: .*{message}"):
        int8_linear(*arguments, **options)


@pytest.mark.parametrize(
    "values", [(0.0, 3.0), (-1.0, 3.0), (float("nan"), 3.0), (1.0, 0.5), (1.0, 256.0), (1.0, -1.0)]
)
def test_the_kernel_refuses_ranges_that_cannot_be(values):
    packed = pack(W, "auto")
    with pytest.raises(RuntimeError, match="x_range must hold a scale from 2"):
        int8_linear(X, W, S, mode="static", x_range=torch.tensor(values), packed=packed)


@pytest.mark.parametrize("column", [-1, 4, 2**40])
def test_outlier_columns_outside_the_input_are_refused(column):
    packed = pack(W, "auto")
    options = {"outlier_columns": torch.tensor([0, column]), "outlier_weight": torch.ones(2, 2)}
    with pytest.raises(RuntimeError, match=f"outlier_columns must be from 0 to 3, got {column}"):
        int8_linear(X, W, S, packed=packed, **options)


def test_a_packed_weight_that_does_not_fit_is_refused():
    packed = pack(W, "auto")
    with pytest.raises(RuntimeError, match=r"packed must be int8_pack_weight's for a weight \[2, 5\]"):
        int8_linear(torch.ones(3, 5), torch.ones(2, 5, dtype=torch.int8), S, packed=packed)
    with pytest.raises(RuntimeError, match=r"packed must be .* weight \[3, 4\]"):
        int8_linear(X, torch.ones(3, 4, dtype=torch.int8), torch.ones(3), packed=packed)
    with pytest.raises(RuntimeError, match="a kernel of this machine"):
        int8_linear(X, W, S, packed=torch.zeros_like(packed))
    other = packed.clone()
    other[:8] = torch.tensor(list(b"elsewher"))
    with pytest.raises(RuntimeError, match="a kernel of this machine"):
        int8_linear(X, W, S, packed=other)
    with pytest.raises(RuntimeError, match="packed must be Byte"):
        int8_linear(X, W, S, packed=packed.view(torch.int8))
    with pytest.raises(RuntimeError, match="got nonsense"):
        int8_pack_weight(W, "nonsense")


def pack_layer(kernel: str, weight: Tensor, scale: Tensor, activation: str = "none", **how: Any) -> Tensor:
    """The block of :func:`torch.ops.fastcl.int8_linear_packed`."""
    pack(weight, kernel)
    given = [how.get(name) for name in ("x_range", "x_multiplier", "outlier_columns", "outlier_weight")]
    rest = (scale, *given, how.get("mode", "dynamic"), activation)
    return torch.ops.fastcl.int8_pack_weight(weight, kernel, *rest)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("way", WAYS)
def test_a_packed_layer_gives_the_ops_bits(kernel, way):
    x, weight, scale, bias = problem(6, 21, 5)
    for activation in ("none", "relu", "gelu", "silu"):
        block = pack_layer(kernel, weight, scale, activation, **WAYS[way])
        for rows, b in ((x, bias), (x[:1].bfloat16(), None), (x.half().view(2, 3, 21), bias), (x[:0], bias)):
            got = torch.ops.fastcl.int8_linear_packed(rows, block, b, 5)
            packed = pack(weight, kernel)
            assert same(got, int8_linear(rows, weight, scale, b, activation=activation, packed=packed, **WAYS[way]))
            assert same(got, int8_linear(rows, weight, scale, b, activation=activation, packed=block, **WAYS[way]))


def test_large_results_share_no_memory():
    """Past the size from which results stand in memory that an earlier one has left: 4 MB."""
    x, weight, scale, bias = problem(1100, 21, 1024)
    block, rows = pack_layer("auto", weight, scale), x.flip(0)
    torch.ops.fastcl.int8_linear_packed(rows, block, bias, 1024)  # whose memory the first takes
    first = torch.ops.fastcl.int8_linear_packed(x, block, bias, 1024)
    second = torch.ops.fastcl.int8_linear_packed(rows, block, bias, 1024)
    assert torch.equal(first, torch.cat([int8_linear(part, weight, scale, bias) for part in x.split(100)]))
    assert torch.equal(second, first.flip(0))


def test_a_packed_layer_that_does_not_fit_is_refused():
    run = torch.ops.fastcl.int8_linear_packed
    columns, rows = torch.tensor([3, 0]), torch.ones(2, 2)
    block = pack_layer("auto", W, S, outlier_columns=columns, outlier_weight=rows)
    for x, b, n, said in (
        (torch.ones(3, 5), block, 2, "packed must be"),
        (X, block, 3, "packed must be"),
        (X, block[:-8], 2, "packed must be"),
        (X, pack(W, "auto"), 2, "packed must be a layer's"),
        (X, block, 0, "n the rows"),
        (X, block, 2**62, "n the rows"),
        (torch.ones(()), block, 2, "x must be"),
        (torch.ones(3, 0), block, 2, "x must be"),
        (X.double(), block, 2, "x must be float32, bfloat16 or float16"),
    ):
        with pytest.raises(RuntimeError, match=said):
            run(x, b, None, n)
    with pytest.raises(RuntimeError, match=r"bias must be \[2\]"):
        run(X, block, torch.ones(3), 2)
    with pytest.raises(RuntimeError, match="outlier_columns must be from 0 to 3, got 4"):
        pack_layer("auto", W, S, outlier_columns=columns + 1, outlier_weight=rows)
    with pytest.raises(RuntimeError, match="the native CPU kernels"):
        torch.ops.fastcl_reference.int8_linear_packed(X, block, None, 2)
    for way in WAYS.values():
        _, weight, scale, bias = problem(1, 21, 5)
        inputs = (torch.randn(2, 21), pack_layer("auto", weight, scale, **way), bias, 5)
        torch.library.opcheck(torch.ops.fastcl.int8_linear_packed.default, inputs)


def test_the_reference_needs_no_packing():
    with fastcl.use_backend("reference"):
        assert int8_pack_weight(W) is None


@pytest.mark.parametrize("limit", ["portable", "avx2", "sse9"])
def test_fastcl_cpu_limits_the_kernels(limit):
    pack(W, "auto")
    code = (
        "import torch; from fastcl.ops import int8_pack_weight as pack;"
        "print(bytes(pack(torch.ones(2, 4, dtype=torch.int8))[:16].tolist()).rstrip(b'\\0').decode())"
    )
    environment = {**os.environ, "FASTCL_CPU": limit, "FASTCL_BACKEND": "auto"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if limit == "sse9":
        assert done.returncode != 0
        assert "FASTCL_CPU: expected portable, avx2, avx512 or avx512_bf16, got 'sse9'" in done.stderr
    else:
        assert done.stdout.strip() in (("portable",) if limit == "portable" else ("portable", "avx2")), done.stderr
