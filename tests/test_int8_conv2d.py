from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastcl
from fastcl.ops import int8_conv2d, int8_linear, int8_pack_weight

KERNELS = ("portable", "avx2", "avx_vnni", "avx512_vnni")
# images [B, C, H, W], kernel, then what F.conv2d calls them
CASES = {
    "1x1": ((3, 5, 4, 6), (1, 1), {}),
    "3x3": ((2, 5, 9, 7), (3, 3), {"padding": 1}),
    "first_layer": ((4, 1, 28, 28), (3, 3), {"padding": 1}),
    "strided_1x1": ((2, 3, 7, 8), (1, 1), {"stride": 2}),
    "padded_1x1": ((1, 3, 4, 4), (1, 1), {"padding": 2}),
    "dilated": ((2, 4, 9, 11), (3, 2), {"dilation": (2, 3), "padding": (2, 3)}),
    "uneven": ((1, 3, 12, 10), (2, 5), {"stride": (3, 2), "padding": (1, 4)}),
    "kernel_is_the_image": ((5, 2, 3, 4), (3, 4), {}),
    "mostly_padding": ((1, 2, 1, 1), (3, 3), {"padding": 3}),
    "many_rows": ((3, 40, 20, 20), (3, 3), {"padding": 1}),
}


def problem(images: tuple[int, ...], kernel: tuple[int, int], n: int = 37) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight = torch.randint(-127, 128, (n, *kernel, images[1]), dtype=torch.int8)
    return torch.randn(images), weight, 0.02 * torch.rand(n), torch.randn(n)


WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"mode": "static", "x_range": torch.tensor([0.013, 101.0])},  # cuts off what is above 2
}


def by_unfold(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation: str, how: dict[str, Any], **geometry: Any
) -> Tensor:
    """The reference of int8_linear on torch's own patches, whose inputs stand in another order."""
    kernel = weight.shape[1:3]
    sizes = functional.conv2d(x[:1].float(), weight.float().permute(0, 3, 1, 2), **geometry).shape[2:]
    patches = functional.unfold(x.float(), kernel, **geometry).transpose(1, 2)
    with fastcl.use_backend("reference"):
        rows = int8_linear(patches, weight.permute(0, 3, 1, 2).flatten(1), scale, bias, activation=activation, **how)
    return rows.transpose(1, 2).unflatten(2, sizes).to(x.dtype)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bits_equal_the_reference_on_patches(kernel, how, case):
    if fastcl.backends()["int8_conv2d"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    images, size, geometry = case
    x, weight, scale, bias = problem(images, size)
    try:
        packed = int8_pack_weight(weight.flatten(1), kernel)
    except RuntimeError as error:
        if "kernel must be" not in str(error):
            raise
        pytest.skip(f"this machine has no {kernel}")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = int8_conv2d(x.to(dtype), weight, scale, bias, **geometry, activation="relu", packed=packed, **how)
        want = by_unfold(x.to(dtype), weight, scale, bias, "relu", how, **geometry)
        assert got.dtype == dtype
        assert torch.equal(got, want)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_layouts_and_paddings(backend, case, layout, how):
    images, size, geometry = case
    x, weight, scale, bias = problem(images, size)
    want = by_unfold(x, weight, scale, bias, "none", how, **geometry)
    got = int8_conv2d(x.to(memory_format=layout), weight, scale, bias, **geometry, **how)
    assert torch.equal(got, want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    pad = geometry.get("padding", 0)
    vertical, horizontal = (pad, pad) if isinstance(pad, int) else pad
    uneven = functional.pad(x, (1, 0, 0, 2))
    rest = {name: value for name, value in geometry.items() if name != "padding"}
    padded = functional.pad(uneven, (horizontal, horizontal, vertical, vertical))
    want = by_unfold(padded, weight, scale, bias, "none", how, **rest)
    pads = (horizontal + 1, horizontal, vertical, vertical + 2)
    got = int8_conv2d(x, weight, scale, bias, **rest, padding=pads, **how)
    assert torch.equal(got, want)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
def test_a_bad_pixel_spoils_the_patches_that_see_it(backend, how, bad):
    x, weight, scale, bias = problem((1, 2, 6, 6), (3, 3))
    clean = int8_conv2d(x, weight, scale, bias, **how)
    x[0, 1, 1, 1] = bad
    got = int8_conv2d(x, weight, scale, bias, **how)
    assert got[0, :, :2, :2].isnan().all()
    got[0, :, :2, :2] = clean[0, :, :2, :2]
    assert torch.equal(got, clean)
    torch.testing.assert_close(int8_conv2d(0 * clean[:, :2], weight, scale, bias)[0, :, 0, 0], bias, rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("case", ["3x3", "dilated", "uneven"])
def test_gradients_go_straight_through_the_quantiser(backend, case, activation):
    images, size, geometry = CASES[case]
    x, weight, scale, bias = problem(images, size, 6)
    x.requires_grad_()
    bias.requires_grad_()
    got = int8_conv2d(x, weight, scale, bias, **geometry, activation=activation)
    grad = torch.randn_like(got)
    got = torch.autograd.grad(got, [x, bias], grad)
    at = by_unfold(x.detach(), weight, scale, bias.detach(), "none", {}, **geometry).double()
    w = (weight * scale[:, None, None, None]).permute(0, 3, 1, 2).double()
    exact, b = (t.detach().double().requires_grad_() for t in (x, bias))
    pre = functional.conv2d(exact, w, b, **geometry)
    pre = pre + (at - pre).detach()  # the value that the quantised layer has
    want = torch.autograd.grad(pre if activation == "none" else functional.silu(pre), [exact, b], grad.double())
    for g, e in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
def test_same_bits_for_every_thread_count(how):
    x, weight, scale, bias = problem((4, 16, 15, 15), (3, 3))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(int8_conv2d(x, weight, scale, bias, padding=1, **how))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("namespace", ["fastcl", "fastcl_reference"])
def test_opcheck(namespace):
    x, weight, scale, bias = problem((2, 3, 6, 5), (3, 2), 4)
    rows = x.permute(0, 2, 3, 1).requires_grad_()
    inputs = (rows, weight, scale, bias, None, *[None] * 4, "asymmetric", [1, 2], [1, 0, 2, 1], [2, 1], "gelu")
    torch.library.opcheck(getattr(torch.ops, namespace).int8_conv2d.default, inputs)


X, W, S = torch.ones(1, 2, 5, 5), torch.ones(3, 3, 3, 2, dtype=torch.int8), torch.ones(3)
BAD = {
    "weight_dtype": ((X, W.float(), S), {}, TypeError, "weight must be int8, got torch.float32"),
    "weight_shape": ((X, W[0], S), {}, ValueError, r"weight must be \[N, kernel height, kernel width, C\]"),
    "channels": ((X[:, :1], W, S), {}, ValueError, r"x must be \[B, 2, H, W\], got \[1, 1, 5, 5\]"),
    "integers": ((X.int(), W, S), {}, TypeError, "x must be float32, .* got torch.int32"),
    "dims": ((X[0], W, S), {}, ValueError, r"x must be \[B, 2, H, W\]"),
    "small": ((X[:, :, :2], W, S), {}, ValueError, "at least 3 high, got 2"),
    "scale": ((X, W, S[:2]), {}, ValueError, r"weight_scale must be \[3\], got \[2\]"),
    "stride": ((X, W, S), {"stride": 0}, ValueError, "stride must be one or two numbers from 1 up, got 0"),
    "padding": ((X, W, S), {"padding": (1, 2, 3)}, ValueError, "padding must be"),
    "activation": ((X, W, S), {"activation": "tanh"}, ValueError, "activation must be one of"),
}


@pytest.mark.parametrize(("arguments", "options", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(backend, arguments, options, kind, message):
    with pytest.raises(kind, match=f"int8_conv2d: .*{message}"):
        int8_conv2d(*arguments, **options)


def test_the_kernel_itself_refuses_what_does_not_fit():
    if fastcl.backends()["int8_conv2d"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    rows = X.permute(0, 2, 3, 1)
    ones, none = [1, 1], [0, 0, 0, 0]
    for x, weight, stride, padding, message in [
        (rows, W[:, :, :, :1], ones, none, r"x must be \[B, H, W, 1\]"),
        (rows[:, :2], W, ones, none, "at least as large as the kernel"),
        (rows, W, [0, 1], none, "from 1 to 2147483647, got 0"),
        (rows, W, [2**39, 2**39], none, "from 1 to 2147483647, got 5"),
        (rows, W, ones, [0, 0, 0], "padding 4, got 2, 2, 2 and 3"),
        (rows, W, ones, [0, 0, 0, -1], "padding must be from 0 to"),
    ]:
        with pytest.raises(RuntimeError, match=f"int8_conv2d: .*{message}"):
            torch.ops.fastcl.int8_conv2d(x, weight, S, *[None] * 6, "dynamic", stride, padding, ones, "none")


def test_a_packed_layer_gives_the_ops_bits():
    if fastcl.backends()["int8_conv2d_packed"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    run = torch.ops.fastcl.int8_conv2d_packed
    for shape, kernel, geometry in (
        ((2, 5, 9, 7), (3, 2), ([1, 2], [1, 0, 2, 1], [2, 1])),
        ((3, 1, 8, 8), (1, 1), ([2, 2], [0, 0, 0, 0], [1, 1])),
        ((0, 4, 5, 5), (3, 3), ([1, 1], [1, 1, 1, 1], [1, 1])),
    ):
        x, weight, scale, bias = problem(shape, kernel)
        x = x.to(memory_format=torch.channels_last)
        block = torch.ops.fastcl.int8_pack_weight(weight.flatten(1), "auto", scale, activation="gelu")
        stride, padding, dilation = geometry
        for b in (bias, None):
            inputs = (x, block, b, len(weight), kernel, *geometry)
            got, want = run(*inputs), int8_conv2d(x, weight, scale, b, stride, padding, dilation, activation="gelu")
            assert torch.equal(got, want)
            assert got.stride() == want.stride()
            torch.library.opcheck(run.default, inputs)


RANGES = {"read": torch.tensor([0.013, 101.0]), "given": torch.tensor([0.11, 37.0])}


def integers(values: Tensor, x_range: Tensor) -> Tensor:
    """What a static layer quantises values to, its zero point added: the product exact, rounded once."""
    inverse = (torch.ones(()) / x_range[0]).double()
    return ((values.double() * inverse).round().clamp(-x_range[1], 255 - x_range[1]) + x_range[1]).to(torch.uint8)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_integers_in_and_out_stand_for_the_floats(kernel, activation, case):
    if fastcl.backends()["int8_conv2d_packed"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    if kernel not in kernels():
        pytest.skip(f"this machine has no {kernel}")
    run, pack = torch.ops.fastcl.int8_conv2d_packed, torch.ops.fastcl.int8_pack_weight
    shape, size, geometry = case
    for channels in {shape[1], 16}:  # in fours and not
        x, weight, scale, bias = problem((shape[0], channels, *shape[2:]), size)
        blocks = {
            name: pack(weight.flatten(1), kernel, scale, x_range, mode="static", activation=activation)
            for name, x_range in RANGES.items()
        }
        x = (3 * x).to(memory_format=torch.channels_last)
        numbers = {name: [0, 0] if name == "padding" else [1, 1] for name in ("stride", "padding", "dilation")}
        numbers.update({name: [v, v] if isinstance(v, int) else list(v) for name, v in geometry.items()})
        vertical, horizontal = numbers["padding"]
        where = (size, numbers["stride"], [horizontal, horizontal, vertical, vertical], numbers["dilation"])
        how = {"mode": "static", "x_range": RANGES["read"]}
        got = run(x, blocks["read"], bias, len(weight), *where)
        if activation != "gelu":
            assert torch.equal(got, by_unfold(x, weight, scale, bias, activation, how, **geometry))
        bytes_in = integers(x, RANGES["read"])
        assert torch.equal(run(bytes_in, blocks["read"], bias, len(weight), *where), got)
        for images in (x, bytes_in):
            given = run(images, blocks["read"], bias, len(weight), *where, blocks["given"])
            assert given.dtype == torch.uint8
            assert given.stride() == got.stride()
            assert torch.equal(given, integers(got, RANGES["given"]))


def kernels() -> list[str]:
    with pytest.raises(RuntimeError) as error:
        int8_pack_weight(torch.ones(1, 1, dtype=torch.int8), "none")
    return str(error.value).partition("(")[2].partition(")")[0].split(", ")


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_cannot_be_integers_comes_as_floats(kernel):
    if fastcl.backends()["int8_conv2d_packed"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    if kernel not in kernels():
        pytest.skip(f"this machine has no {kernel}")
    x, weight, scale, bias = problem((2, 4, 6, 5), (3, 3))
    x = x.to(memory_format=torch.channels_last)
    where = ((3, 3), [1, 1], [1, 1, 1, 1], [1, 1])

    def block(scale: Tensor = scale, **how: Any) -> Tensor:
        return torch.ops.fastcl.int8_pack_weight(weight.flatten(1), kernel, scale, **how)

    def run(x: Tensor, packed: Tensor, reader: Tensor | None = None, bias: Tensor = bias) -> Tensor:
        return torch.ops.fastcl.int8_conv2d_packed(x, packed, bias, len(weight), *where, reader)

    static = {"mode": "static", "x_range": RANGES["read"]}
    plain, smoothed = block(**static), block(**static, x_multiplier=torch.ones(36))
    assert run(x, plain, plain).dtype == torch.uint8
    assert run(x[:0], plain, plain).dtype == torch.uint8
    for packed, reader in ((plain, smoothed), (smoothed, plain), (plain, block()), (block(), plain)):
        assert torch.equal(run(x, packed, reader), run(x, packed))
    assert torch.equal(run(x.half(), plain, plain), run(x.half(), plain))
    for bad in (float("nan"), float("inf")):
        spoilt = x.clone()
        spoilt[1, 2, 3, 3] = bad
        torch.testing.assert_close(run(spoilt, plain, plain), run(spoilt, plain), equal_nan=True, rtol=0, atol=0)
    for value in (float("nan"), float("inf"), 3.4e38):
        other = bias.clone()
        other[5] = value
        large = block(scale * 1e31, **static)
        got, want = run(x, large, plain, other), run(x, large, bias=other)
        torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=0)


def test_integers_that_a_layer_does_not_take_are_refused():
    if fastcl.backends()["int8_conv2d_packed"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    block = torch.ops.fastcl.int8_pack_weight(W.flatten(1), "auto", S, torch.tensor([0.1, 0.0]), mode="static")
    dynamic = torch.ops.fastcl.int8_pack_weight(W.flatten(1), "auto", S)
    images = X.to(memory_format=torch.channels_last)
    where = ((3, 3), [1, 1], [0, 0, 0, 0], [1, 1])
    for x, packed, reader, message in [
        (images.to(torch.uint8), dynamic, None, "x may be uint8 where the layer is static"),
        (images.to(torch.int8), block, None, "x must be float32"),
        (images, block, block[:32], "reader must be a packed layer"),
        (images, block, block.float(), "reader must be Byte"),
        (images, block, block.view(2, -1), "reader must be a packed layer"),
        (images, block, int8_pack_weight(W.flatten(1)), "reader must be a packed layer"),
    ]:
        with pytest.raises(RuntimeError, match=f"int8_conv2d_packed: .*{message}"):
            torch.ops.fastcl.int8_conv2d_packed(x, packed, None, 3, *where, reader)
    inputs = (images, block, S, 3, *where, block)
    torch.library.opcheck(torch.ops.fastcl.int8_conv2d_packed.default, inputs)
    torch.library.opcheck(torch.ops.fastcl.int8_conv2d_packed.default, (images.to(torch.uint8), *inputs[1:8]))


def test_a_packed_layer_that_does_not_fit_is_refused():
    if fastcl.backends()["int8_conv2d_packed"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    block = torch.ops.fastcl.int8_pack_weight(W.flatten(1), "auto", S)
    images, ones, none = X.to(memory_format=torch.channels_last), [1, 1], [0, 0, 0, 0]
    for x, packed, n, kernel, message in [
        (X, block, 3, [3, 3], "channels-last"),
        (X[0], block, 3, [3, 3], "channels-last"),
        (images, block, 3, [3, 2], "packed must be"),
        (images, block, 4, [3, 3], "packed must be"),
        (images, block, -1, [3, 3], "n must be"),
        (images, block, 3, [0, 3], "from 1 to 2147483647, got 0"),
        (images, block, 3, [3], "kernel, stride and dilation must have 2"),
        (images, block, 3, [2**62, 4], "from 1 to 2147483647, got 4"),
        (images, block[1:], 3, [3, 3], "packed must be"),
        (images, int8_pack_weight(W.flatten(1)), 3, [3, 3], "packed must be a layer's"),
    ]:
        with pytest.raises(RuntimeError, match=f"int8_conv2d_packed: .*{message}"):
            torch.ops.fastcl.int8_conv2d_packed(x, packed, None, n, kernel, ones, none, ones)


@pytest.mark.parametrize("mode", ["asymmetric", "static", "int16"])
def test_every_mode_is_that_of_the_linear_layer_on_patches(backend, mode):
    x, weight, scale, bias = problem((2, 5, 9, 7), (3, 2))
    k = weight[0].numel()
    columns = torch.tensor([7, 2])
    how = {
        "mode": mode,
        "x_range": torch.tensor([0.02, 120.0]) if mode == "static" else None,
        "x_multiplier": (0.5 + torch.rand(k)).index_fill(0, columns, 0),
        "outlier_columns": columns,
        "outlier_weight": torch.randn(2, len(weight)),
    }
    got = int8_conv2d(x, weight, scale, bias, padding=(1, 0), **how)
    patches = (
        functional.unfold(x, (3, 2), padding=(1, 0)).transpose(1, 2).unflatten(2, (5, 6)).transpose(2, 3).flatten(2)
    )
    want = int8_linear(patches, weight.flatten(1), scale, bias, **how)
    torch.testing.assert_close(got.flatten(2).transpose(1, 2), want, rtol=1e-6, atol=1e-6)
