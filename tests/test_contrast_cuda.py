"""Every code path of the losses' CUDA kernels, on the emulator: each kind of product, bounded logits and others, one
and several row blocks, rows that stay in shared memory and rows that stream. What the ops promise is tested by
test_ntxent.py and test_similarity_lse.py, there on the default path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import add_emulated
from emulator import device
from torch import Tensor
from torch.nn import functional

import fastcl
from fastcl.ops import ntxent, similarity_lse

# dtype, precision, compute capability, relative rounding of the products' operands, tensor cores
PRODUCTS = {
    "bf16": (torch.bfloat16, "highest", 80, 0.0, True),
    "fp16": (torch.float16, "highest", 80, 0.0, True),
    "tf32": (torch.float32, "high", 80, 2**-11, True),
    "3xtf32": (torch.float32, "highest", 80, 2**-22, True),
    "fp32 as bf16": (torch.float32, "medium", 90, 2**-9, True),
    "simt": (torch.float32, "highest", 75, 2**-24, False),
    "simt of bf16": (torch.bfloat16, "medium", 75, 0.0, False),
}
# rows, columns (None: symmetric), dim: ragged against blocks of 128 rows and tiles of 64 or 32 columns
SHAPES = {
    "several_blocks": (261, 133, 24),
    "symmetric": (261, None, 24),
    "streamed_rows": (37, 70, 290),
    "longest_rows_that_stay": (20, 33, 128),
}


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


def plain(q: Tensor, k: Tensor | None, scale: Tensor, q_group: Tensor | None, k_group: Tensor | None) -> list[Tensor]:
    s = scale * (q @ (q if k is None else k).T)
    if k is None:
        k_group = q_group = torch.arange(len(q)) if q_group is None else q_group
    if q_group is not None:
        s = s.masked_fill(q_group[:, None] == k_group, float("-inf"))
    return [s.logsumexp(1)] if k is None else [s.logsumexp(1), s.logsumexp(0)]


def weighted(values: list[Tensor]) -> Tensor:
    return sum((v.masked_fill(v.isinf(), 0) * torch.linspace(-0.5, 1, len(v), dtype=v.dtype)).sum() for v in values)


def lse_of(q: Tensor, k: Tensor | None, scale: Tensor, q_group: Any, k_group: Any, precision: str) -> list[Tensor]:
    if k is None:
        return [similarity_lse(q, None, scale, q_group=q_group, precision=precision)]
    return list(similarity_lse(q, k, scale, q_group=q_group, k_group=k_group, columns=True, precision=precision))


def gradients(values: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
    return [v.detach().double() for v in (*values, *torch.autograd.grad(weighted(values), inputs))]


@pytest.mark.parametrize("scale", [2.0, -150.0], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "grouped"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("products", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_similarity_lse_matches_fp64(products, shape, grouped, scale):
    """A logit is off by what rounding both operands costs, at most 2 · rounding · |scale| · |q| |k|, and so is its
    log-sum-exp; a gradient by as much, relatively, and by what rounding G and the result to the inputs' type costs.
    """
    dtype, precision, capability, rounding, on_tensor_cores = products
    rows, cols, dim = shape
    q = (torch.randn(rows, dim) / dim**0.5).to(dtype).requires_grad_()
    k = None if cols is None else (torch.randn(cols, dim) / dim**0.5).to(dtype).requires_grad_()
    groups = [torch.arange(rows) % 7, None if cols is None else torch.arange(cols) % 9] if grouped else [None, None]
    tensors = [t for t in (q, k) if t is not None]
    s = torch.tensor(scale, requires_grad=True)
    with device.compute_capability(capability), device.statistics() as counted:
        got = gradients(lse_of(q, k, s, *groups, precision), [*tensors, s])
    assert (counted.mma > 0) == on_tensor_cores
    assert counted.ldmatrix_conflicts == 0

    exact_tensors = [t.detach().double().requires_grad_() for t in tensors]
    exact_s = s.detach().double().requires_grad_()
    exact = gradients(
        plain(exact_tensors[0], None if k is None else exact_tensors[1], exact_s, *groups), [*exact_tensors, exact_s]
    )
    largest = max(t.norm(dim=1).max().item() for t in exact_tensors)
    logit_error = abs(scale) * largest**2 * (2 * rounding + 8 * torch.finfo(torch.float32).eps)
    operand = 2**-8 if on_tensor_cores and (dtype == torch.bfloat16 or precision == "medium") else 2**-11
    operand = operand if on_tensor_cores and (dtype != torch.float32 or precision != "highest") else 0.0
    stored = torch.finfo(dtype).eps if dtype != torch.float32 else 0.0
    for index, (ours, reference) in enumerate(zip(got, exact, strict=True)):
        assert torch.equal(ours.isfinite(), reference.isfinite())
        finite = reference.isfinite()
        error = (ours - reference)[finite].abs().max().item()
        if index < len(tensors):
            assert error <= logit_error + 2e-6 * (1 + reference[finite].abs().max())
        else:
            relative = 2 * logit_error + 4e-6 + (0 if reference.dim() == 0 else operand + stored)
            # A gradient is a sum of terms of both signs: each is relative to the largest sum of their sizes.
            unit = (rows + (cols or rows)) * largest**2 if reference.dim() == 0 else 2 * abs(scale) * largest
            assert error <= relative * max(unit, reference.abs().max().item())


def check_ntxent(products: Any, n: int, dim: int, scale: float, launches: int) -> None:
    """Within test_similarity_lse_matches_fp64's bounds of float64; `launches` of each pass."""
    dtype, precision, capability, rounding, on_tensor_cores = products
    z0 = torch.randn(n, dim)
    z1 = (z0 + 0.4 * torch.randn(n, dim)).to(dtype).requires_grad_()
    z0 = z0.to(dtype).requires_grad_()
    s = torch.tensor(scale, requires_grad=True)
    with device.compute_capability(capability), device.statistics() as counted:
        got = gradients([ntxent(z0, z1, s, precision=precision)], [z0, z1, s])
    assert (counted.mma > 0) == on_tensor_cores
    assert counted.ldmatrix_conflicts == 0
    assert counted.launches == 2 * launches

    exact_inputs = [t.detach().double().requires_grad_() for t in (z0, z1, s)]
    z = functional.normalize(torch.cat(exact_inputs[:2]), dim=1)
    logits = (exact_inputs[2] * (z @ z.T)).masked_fill(torch.eye(2 * n, dtype=torch.bool), float("-inf"))
    losses = functional.cross_entropy(logits, torch.arange(2 * n).roll(n), reduction="none")
    exact = gradients([losses], exact_inputs)
    logit_error = scale * (2 * rounding + 8 * torch.finfo(torch.float32).eps)
    half = on_tensor_cores and (dtype != torch.float32 or precision != "highest")
    relative = (
        2 * logit_error + 4e-6 + (2**-8 if half else 0) + (torch.finfo(dtype).eps if dtype != torch.float32 else 0)
    )
    units = [1, *(2 * scale / t.norm(dim=1, keepdim=True) for t in exact_inputs[:2]), 2 * n]
    allowed = [logit_error + 2e-6, relative, relative, 2 * logit_error + 4e-6]
    for ours, reference, unit, bound in zip(got, exact, units, allowed, strict=True):
        assert ((ours - reference) / unit).abs().max() <= bound


# samples, dim, launches of each pass: ntxent has a path of its own where a row takes at most four panels of 128 bytes
# and the batch at most 65,536 elements, padded to panels. Ragged against its tiles of 8 samples.
BATCHES = {"small": (97, 36, 1), "of_long_rows": (97, 290, 3)}


@pytest.mark.parametrize("scale", [10.0, 200.0], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("products", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_ntxent_matches_fp64(products, batch, scale):
    check_ntxent(products, *batch[:2], scale, batch[2])


@pytest.mark.parametrize("products", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_the_longest_rows_and_largest_batch_of_one_launch(products):
    """Where the gradient's sums take most registers and most shared memory; an element or a sample more takes three."""
    dtype, precision, capability, *_ = products
    dim = 256 if capability >= 80 and (dtype != torch.float32 or precision == "medium") else 128
    check_ntxent(products, 13, dim, 5.0, launches=1)
    check_ntxent(products, 13, dim + 1, 5.0, launches=3)
    check_ntxent(products, 2**15 // dim + 1, dim, 5.0, launches=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("dim", [20, 270], ids=["small", "of_long_rows"])
def test_nan_in_one_row_makes_all_losses_nan(dim, dtype):
    """Each row is a negative or the positive of every other one."""
    z = torch.randn(2, 21, dim).to(dtype)
    z[1, 20, dim - 1] = torch.nan
    z0, z1 = (view.requires_grad_() for view in z.clone())
    losses = ntxent(z0, z1, 10.0)
    assert losses.isnan().all()
    assert all(grad.isnan().all() for grad in torch.autograd.grad(losses.sum(), [z0, z1]))


@pytest.mark.parametrize("products", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_same_bits_under_every_schedule(products):
    """A missing barrier or wait shows as a difference; so does a sum whose order is left to chance."""
    dtype, precision, capability, *_ = products
    sizes = (131, 20), (37, 20), (2, 9, 260), (2, 77, 20)  # of ntxent: three launches, and one
    q, k, *views = (torch.randn(*size).to(dtype) for size in sizes)

    def run() -> list[Tensor]:
        results = []
        for scale in (1.0, 40.0):
            inputs = [t.clone().requires_grad_() for t in (q, k, *views)]
            s = torch.tensor(scale, requires_grad=True)
            losses = [ntxent(z[0], z[1], s, precision=precision) for z in inputs[2:]]
            values = [*lse_of(*inputs[:2], s, None, None, precision), *losses]
            results += [*values, *torch.autograd.grad(weighted(values), [*inputs, s])]
        return [result.reshape(-1) for result in results]

    with device.compute_capability(capability):
        device.same_under_every_schedule(run)


@pytest.mark.parametrize("dim", [16, 270], ids=["small", "of_long_rows"])
def test_float16_gradients_keep_their_range(dim):
    """Losses weighted by 1e-6 or 1e6, as gradient scaling does: the gradient is that of weight 1, times the weight."""
    z = torch.randn(2, 40, dim).half()

    def gradient(weight: float) -> Tensor:
        z0 = z[0].clone().requires_grad_()
        losses = ntxent(z0, z[1], 5.0)
        ops = torch.ops.fastcl_emulated
        grads = torch.full_like(losses, weight).detach()
        grad, _ = ops.ntxent_backward(grads, z0.detach(), z[1], torch.tensor(5.0), losses.detach(), "highest")
        return grad[0].double() / weight

    torch.testing.assert_close(gradient(2.0**6), gradient(1.0), rtol=2**-9, atol=1e-7)
    torch.testing.assert_close(gradient(2.0**-6), gradient(1.0), rtol=2**-9, atol=2**-18)


@pytest.mark.parametrize("dim", [8, 270], ids=["small", "of_long_rows"])
def test_rows_may_be_huge(dim):
    """Squares and products beyond their type's range: rows are scaled by a power of two first."""
    z = torch.randn(2, 9, dim)
    for dtype, factor in ((torch.bfloat16, 2.0**100), (torch.float16, 2.0**13), (torch.float32, 2.0**100)):
        small, large = z.to(dtype), (z.to(dtype) * factor).to(dtype)
        torch.testing.assert_close(ntxent(*large, 10.0), ntxent(*small, 10.0), rtol=1e-6, atol=1e-6)


def test_too_long_rows_are_refused():
    with pytest.raises(RuntimeError, match="similarity_lse: on CUDA rows must have at most 2048 elements, got 2049"):
        similarity_lse(torch.ones(2, 2049), None, 1.0)
    with pytest.raises(RuntimeError, match="ntxent: on CUDA rows must have at most 2048 elements"):
        ntxent(torch.ones(2, 2049), torch.ones(2, 2049), 1.0)


def test_the_host_reads_nothing_back_from_the_device():
    """The scale is an argument of the kernels by address: what it holds may differ at each replay of a CUDA graph."""
    host = (Path(__file__).parents[1] / "csrc" / "contrast" / "contrast_cuda.cu").read_text()
    assert not any(word in host for word in ("cudaMemcpy", "Synchronize", "cudaMalloc"))


@pytest.mark.parametrize("dim", [40, 270], ids=["small", "of_long_rows"])
def test_nothing_is_read_before_it_is_written(dim):
    """Scratch memory holds what an earlier tensor left there: large numbers here, NaN elsewhere in these tests."""
    z = torch.randn(2, 70, dim)

    def run(z: Tensor) -> list[Tensor]:
        z0, s = z[0].clone().requires_grad_(), torch.tensor(10.0, requires_grad=True)
        losses = ntxent(z0, z[1], s)
        return [losses.detach(), *torch.autograd.grad(losses.sum(), [z0, s])]

    for dtype in (torch.float32, torch.float16):
        expected = run(z.to(dtype))
        torch.use_deterministic_algorithms(False)
        for size in (1 << 16, 1 << 18, 1 << 20, 1 << 22):
            left = [torch.full((size // 4,), 1e30) for _ in range(4)]
            del left
            assert all(torch.equal(a, b) for a, b in zip(run(z.to(dtype)), expected, strict=True))
        torch.use_deterministic_algorithms(True, warn_only=True)
