from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastcl
from fastcl.ops import checks, ntxent

SHAPES = {
    "one_pair": (1, 4),
    "odd": (5, 7),
    "one_dim": (6, 1),
    "digits_head": (33, 64),
    "wide": (8, 513),
    "many": (150, 32),
}
SCALES = {"T=10": 0.1, "T=0.5": 2.0, "T=0.1": 10.0, "T=0.05": 20.0, "T=0.005": 200.0}


def plain(z0: Tensor, z1: Tensor, scale: Tensor | float) -> Tensor:
    """SimCLR's formula as a page of PyTorch would have it: the oracle in float64, the yardstick in float32."""
    z = functional.normalize(torch.cat([z0, z1]), dim=1)
    s = scale * (z @ z.T)
    s = s.masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    return functional.cross_entropy(s, torch.arange(len(z)).roll(len(z0)), reduction="none")


def run(f: Callable[..., Tensor], z0: Tensor, z1: Tensor, scale: float, dtype: torch.dtype) -> list[Tensor]:
    """Losses and the gradients of their weighted sum, weights that differ by row."""
    z0, z1 = (z.to(dtype).requires_grad_() for z in (z0, z1))
    s = torch.tensor(scale, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
    losses = f(z0, z1, s)
    weights = torch.linspace(0.1, 1.0, len(losses), dtype=losses.dtype)
    grads = torch.autograd.grad((losses * weights).sum(), [z0, z1, s])
    return [losses.detach(), *grads]


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_value_and_gradients_match_fp64(backend, shape, scale):
    """No worse than twice plain float32's own error, and what rounding a logit makes inevitable.

    A logit s = scale · cos of float32 unit rows has an error of about scale · eps; so has a loss, and so has each
    probability, relatively. Gradients are measured in their natural unit: scale / |z| a row, and the number of rows for
    the scale's.
    """
    z0 = torch.randn(shape)
    z1 = z0 + 0.3 * torch.randn(shape)
    exact = run(plain, z0, z1, scale, torch.float64)
    plain32 = run(plain, z0, z1, scale, torch.float32)
    got = run(ntxent, z0, z1, scale, torch.float32)
    units = [
        torch.ones(()),
        *(scale / z.double().norm(dim=1, keepdim=True) for z in (z0, z1)),
        torch.tensor(2 * len(z0)),
    ]
    for ours, theirs, reference, unit in zip(got, plain32, exact, units, strict=True):
        error, plain_error = (((value - reference) / unit).abs().max().item() for value in (ours, theirs))
        assert error <= 2 * plain_error + 4 * torch.finfo(torch.float32).eps * (1 + scale)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("n", [32, 128, 500])
def test_the_loss_is_within_a_millionth_of_fp64(backend, n, temperature):
    """float32 keeps 6e-8 of a logit; a logit here is at most 10 and the loss at least 0.5, and the mean averages."""
    z0 = torch.randn(n, 128)
    z1 = z0 + 2 * torch.randn(n, 128)
    exact = plain(z0.double(), z1.double(), 1 / temperature).mean()
    assert exact > 0.5
    assert ntxent(z0, z1, 1 / temperature).mean().item() == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_inputs_are_accumulated_in_float32(backend, dtype):
    z0, z1 = torch.randn(2, 64, 48).to(dtype)
    exact = run(plain, z0, z1, 10.0, torch.float64)
    losses, *grads = run(ntxent, z0, z1, 10.0, dtype)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), exact[0], rtol=1e-5, atol=1e-5)
    for got, want in zip(grads[:2], exact[1:], strict=False):
        assert got.dtype == dtype
        assert (got.double() - want).abs().max() <= torch.finfo(dtype).eps * want.abs().max()


def test_gradcheck_in_float64():
    z0, z1 = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ntxent, (z0, z1, scale))


EDGES = {
    "identical_rows": (torch.ones(6, 4), torch.ones(6, 4)),
    "opposite_views": (torch.ones(6, 4), -torch.ones(6, 4)),
    "zero_row": (torch.cat([torch.zeros(1, 4), torch.ones(2, 4)]), torch.eye(3, 4)),
    "all_zero": (torch.zeros(3, 4), torch.zeros(3, 4)),
    "huge": (torch.full((3, 4), 1e18), 1e18 * torch.eye(3, 4)),
    "tiny": (torch.full((3, 4), 1e-30), 1e-30 * torch.eye(3, 4)),
}


@pytest.mark.parametrize("views", EDGES.values(), ids=EDGES.keys())
@pytest.mark.parametrize("scale", [2.0, 200.0])
def test_edges_stay_finite(backend, views, scale):
    losses, *grads = run(ntxent, *views, scale, torch.float32)
    assert losses.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)
    exact = plain(*(view.double() for view in views), scale)
    if views[0].abs().max() != 1e-30:  # below 1e-12 the rows are divided by 1e-12, in either precision
        torch.testing.assert_close(losses.double(), exact, rtol=1e-5, atol=1e-5)


def test_a_zero_row_gets_a_zero_gradient(backend):
    z0, z1 = (view.clone().detach().requires_grad_() for view in EDGES["zero_row"])
    ntxent(z0, z1, 10.0).mean().backward()
    assert (z0.grad[0] == 0).all()
    assert z0.grad[1].abs().sum() > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_come_out_as_nan(backend, bad):
    z0, z1 = torch.randn(2, 4, 3)
    z0[2, 1] = bad
    z0.requires_grad_()
    losses = ntxent(z0, z1, 10.0)
    losses.sum().backward()
    assert losses[2].isnan()
    assert z0.grad[2].isnan().any()


def test_same_bits_on_every_call(backend):
    z0, z1 = torch.randn(2, 70, 40)
    first = run(ntxent, z0, z1, 10.0, torch.float32)
    for _ in range(5):
        for a, b in zip(run(ntxent, z0, z1, 10.0, torch.float32), first, strict=True):
            assert torch.equal(a, b)


def test_same_bits_beside_a_busy_process():
    """A thread that is waited for too long is done without for a while."""
    threads = torch.get_num_threads()
    z0, z1 = torch.randn(2, 256, 64)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        torch.set_num_threads(1)
        first = run(ntxent, z0, z1, 10.0, torch.float32)
        torch.set_num_threads(2)
        for _ in range(15):
            for a, b in zip(run(ntxent, z0, z1, 10.0, torch.float32), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)
        busy.kill()
        busy.wait()


def test_strided_inputs(backend):
    wide = torch.randn(2, 9, 10)
    strided = wide[:, :, ::2]
    torch.testing.assert_close(ntxent(*strided, 10.0), ntxent(*strided.contiguous(), 10.0), rtol=0, atol=0)


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()

    def step(z0: Tensor, z1: Tensor, scale: Tensor) -> Tensor:
        return ntxent(z0, z1, scale).mean()

    z0, z1 = torch.randn(2, 16, 8)
    scale = torch.tensor(10.0)
    arguments = [[t.clone().requires_grad_() for t in (z0, z1, scale)] for _ in range(2)]
    eager, compiled = step(*arguments[0]), torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments[1])
    eager.backward()
    compiled.backward()
    assert torch.equal(eager, compiled)
    for a, b in zip(*arguments, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("namespace", ["fastcl", "fastcl_reference"])
def test_opcheck(namespace):
    z0, z1 = (torch.randn(6, 5, requires_grad=True) for _ in range(2))
    scale = torch.tensor(4.0, requires_grad=True)
    ops = getattr(torch.ops, namespace)
    torch.library.opcheck(ops.ntxent.default, (z0, z1, scale, "highest"))
    losses = ops.ntxent(z0, z1, scale, "highest")[0].detach()
    views = (z0.detach(), z1.detach(), scale.detach())
    torch.library.opcheck(ops.ntxent_backward.default, (torch.ones_like(losses), *views, losses, "highest"))


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("scale", [10.0, 200.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (70, 128), (300, 33)])
def test_what_is_kept_for_backward_changes_no_bit(monkeypatch, shape, scale, precision):
    if fastcl.backends()["ntxent"]["cpu"] != "native":
        pytest.skip("native kernels were not built")
    gradients, passed = [], []
    backward = torch.ops.fastcl.ntxent_backward
    for most in (checks._MOST_KEPT, 0):
        monkeypatch.setattr(checks, "_MOST_KEPT", most)
        torch.manual_seed(0)
        z0, z1 = (torch.randn(shape, requires_grad=True) for _ in range(2))
        losses = ntxent(z0, z1, scale, precision=precision)
        (kept,) = (t for t in losses.grad_fn.saved_tensors if t.shape not in (z0.shape, losses.shape, ()))
        passed.append(kept.numel())
        losses.sum().backward(retain_graph=True)
        # The kernel takes all that was kept from there: the rows themselves do not matter then.
        if most and scale < 50:
            rows = torch.zeros_like(z0)
            grad, _ = backward(torch.ones_like(losses), rows, rows, torch.tensor(scale), losses, precision, kept)
            assert torch.equal(grad[0], z0.grad)
        gradients.append((z0.grad, z1.grad, losses.detach()))
    assert passed[0] > 0 == passed[1]
    for with_kept, without in zip(*gradients, strict=True):
        assert torch.equal(with_kept, without)


def test_nothing_is_kept_where_nothing_needs_it_or_it_is_large():
    z = torch.ones(1)
    assert not checks.is_differentiated(z, None)
    assert checks.is_differentiated(None, z.requires_grad_())
    with torch.no_grad():
        assert not checks.is_differentiated(z)
    cpu = torch.device("cpu")
    native = fastcl.backends()["ntxent"]["cpu"] == "native"
    assert (checks.floats_to_keep("ntxent", cpu, 2048, 2048, 128) > 2048 * (2048 + 128)) == native
    assert (checks.floats_to_keep("ntxent", cpu, 2048, 2048, 4096) > 2048 * (2048 + 4096)) == native
    assert checks.floats_to_keep("ntxent", cpu, 8192, 8192, 128) == 0
    assert checks.floats_to_keep("ntxent", torch.device("cuda"), 512, 512, 128) == 0
    with fastcl.use_backend("reference"):
        assert checks.floats_to_keep("ntxent", cpu, 512, 512, 128) == 0


BAD = {
    "shape": ((torch.ones(3, 4), torch.ones(2, 4), 1.0), ValueError, "z1 must have z0's shape"),
    "dims": ((torch.ones(3), torch.ones(3), 1.0), ValueError, r"z0 must be \[rows, dim\], got \[3\]"),
    "empty": ((torch.ones(0, 4), torch.ones(0, 4), 1.0), ValueError, "at least one row"),
    "integers": ((torch.ones(3, 4).int(), torch.ones(3, 4).int(), 1.0), TypeError, "got torch.int32"),
    "mixed": ((torch.ones(3, 4), torch.ones(3, 4).half(), 1.0), TypeError, "z1 must have z0's dtype"),
    "scale": ((torch.ones(3, 4), torch.ones(3, 4), torch.ones(2)), ValueError, "scale must be"),
    "list": (([1.0], torch.ones(3, 4), 1.0), TypeError, "z0 must be a Tensor, got list"),
}


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(backend, arguments, kind, message):
    with pytest.raises(kind, match=f"ntxent: .*{message}"):
        ntxent(*arguments)


def test_the_kernel_itself_refuses_what_does_not_fit():
    if fastcl.backends()["ntxent"]["cpu"] != "native":
        pytest.skip("native kernels were not built")
    one = torch.tensor(1.0)
    with pytest.raises(RuntimeError, match="ntxent: z1 must have z0's shape"):
        torch.ops.fastcl.ntxent(torch.ones(3, 4), torch.ones(2, 4), one, "high")
    with pytest.raises(RuntimeError, match="losses must be"):
        torch.ops.fastcl.ntxent_backward(torch.ones(6), torch.ones(3, 4), torch.ones(3, 4), one, torch.ones(5), "high")


def test_what_float32_loses_beside_the_largest_counts_as_nothing():
    """Subnormal powers would be multiplied a hundred times slower than others."""
    z = torch.eye(8, 40).requires_grad_()
    (1e-5 * ntxent(z, z, 150.0)).sum().backward()  # e^-150 beside 1
    assert z.grad is not None
    assert not ((z.grad != 0) & (z.grad.abs() < torch.finfo(torch.float32).tiny)).any()
