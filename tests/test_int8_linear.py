from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastcl
from fastcl.ops import int8_linear, int8_pack_weight

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


def reference(*arguments: Tensor | None, activation: str = "none") -> Tensor:
    with fastcl.use_backend("reference"):
        return int8_linear(*arguments, activation=activation)


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
        for m, k, n in [(1, 700, 600), (20, 300, 200), (200, 300, 200)]:
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
    "device": ((X, W.to("meta"), S), {}, ValueError, "weight must be on x's device cpu, got meta"),
}


@pytest.mark.parametrize(("arguments", "options", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(backend, arguments, options, kind, message):
    with pytest.raises(kind, match=f"int8_linear: .*{message}"):
        int8_linear(*arguments, **options)


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
