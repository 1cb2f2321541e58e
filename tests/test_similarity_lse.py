from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastcl
from fastcl.ops import checks, similarity_lse

EPS = torch.finfo(torch.float32).eps

# rows, keys (None: symmetric), dim
SHAPES = {
    "one": (1, 1, 1),
    "one_row": (1, 37, 5),
    "one_key": (37, 1, 5),
    "odd": (13, 21, 7),
    "tall": (301, 9, 33),
    "wide": (9, 301, 33),
    "several_tiles": (330, 290, 64),
    "wide_rows": (6, 5, 2048),
    "symmetric": (77, None, 24),
    "symmetric_tiles": (330, None, 40),
}
GROUPS = ["none", "few", "all", "far"]
SCALES = {"small": 0.5, "usual": 5.0, "large": 200.0, "negative": -3.0}


def groups(kind: str, count: int, offset: int) -> Tensor:
    numbers = torch.arange(offset, offset + count)
    return {"few": numbers % 3, "all": torch.zeros_like(numbers), "far": numbers * 2**40}[kind]


def plain(q: Tensor, k: Tensor | None, scale: Any, q_group: Tensor | None = None, k_group: Tensor | None = None) -> Any:
    s = scale * (q @ (q if k is None else k).T)
    if k is None:
        q_group = torch.arange(len(q)) if q_group is None else q_group
        k_group = q_group
    if q_group is not None:
        s = s.masked_fill(q_group[:, None] == k_group, float("-inf"))
    return s.logsumexp(dim=1), s.logsumexp(dim=0)


def weighted(values: list[Tensor]) -> Tensor:
    """A sum with weights that differ by element; rows without a pair are left out, as a loss would."""
    return sum((v.masked_fill(v.isinf(), 0) * torch.linspace(-0.5, 1.0, len(v), dtype=v.dtype)).sum() for v in values)


def evaluate(
    f: Any, q: Tensor, k: Tensor | None, scale: float, dtype: torch.dtype, columns: bool, **group: Any
) -> list[Tensor]:
    q = q.to(dtype).requires_grad_()
    k = None if k is None else k.to(dtype).requires_grad_()
    s = torch.tensor(scale, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
    row, col = f(q, k, s, columns=columns, **group)
    values = [row, col] if columns else [row]
    inputs = [q, s] if k is None else [q, s, k]
    grads = torch.autograd.grad(weighted(values), inputs)
    return [v.detach() for v in values] + list(grads)


def fastcl_form(q: Tensor, k: Tensor | None, s: Tensor, columns: bool, **group: Any) -> Any:
    return similarity_lse(q, k, s, columns=True, **group) if columns else (similarity_lse(q, k, s, **group), None)


def plain_form(q: Tensor, k: Tensor | None, s: Tensor, columns: bool, **group: Any) -> Any:
    return plain(q, k, s, **group)


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_value_and_gradients_match_fp64(backend, shape, kind, scale):
    """No worse than twice plain float32's own error, and what rounding a logit (scale · eps · |q||k|) costs."""
    rows, keys, dim = shape
    q = torch.randn(rows, dim) / dim**0.5
    k = None if keys is None else torch.randn(keys, dim) / dim**0.5
    group = {}
    if kind != "none":
        group["q_group"] = groups(kind, rows, 0)
        if k is not None:
            group["k_group"] = groups(kind, keys, 5)
    columns = k is not None
    exact = evaluate(plain_form, q, k, scale, torch.float64, columns, **group)
    plain32 = evaluate(plain_form, q, k, scale, torch.float32, columns, **group)
    got = evaluate(fastcl_form, q, k, scale, torch.float32, columns, **group)
    largest = max(1.0, q.norm(dim=1).max().item()) * max(1.0, (q if k is None else k).norm(dim=1).max().item())
    for index, (ours, theirs, reference) in enumerate(zip(got, plain32, exact, strict=True)):
        assert torch.equal(ours.isinf(), reference.isinf())
        finite = reference.isfinite()
        is_value = index < (2 if columns else 1)
        is_scale = reference.dim() == 0
        unit = 1.0 if is_value else largest * (rows + (keys or rows) if is_scale else abs(scale))
        errors = [
            ((v.double() - reference)[finite] / unit).abs().max().item() if finite.any() else 0 for v in (ours, theirs)
        ]
        assert errors[0] <= 2 * errors[1] + 8 * EPS * (1 + abs(scale) * largest), (index, errors)


@pytest.mark.parametrize("wanted", ["q", "k", "scale"])
def test_gradients_that_nobody_wants_are_not_formed(backend, wanted):
    tensors = {"q": torch.randn(9, 4), "k": torch.randn(7, 4), "scale": torch.tensor(2.0)}
    tensors[wanted].requires_grad_()
    similarity_lse(*tensors.values()).sum().backward()
    want = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    plain(*want.values())[0].sum().backward()
    for name, t in tensors.items():
        assert (t.grad is not None) == (name == wanted)
    torch.testing.assert_close(tensors[wanted].grad.double(), want[wanted].grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_inputs_are_accumulated_in_float32(backend, dtype):
    q, k = torch.randn(40, 16).to(dtype), torch.randn(50, 16).to(dtype)
    exact = evaluate(plain_form, q, k, 0.7, torch.float64, True)
    got = evaluate(fastcl_form, q, k, 0.7, dtype, True)
    assert got[0].dtype == torch.float32
    assert got[2].dtype == dtype
    for index, (ours, reference) in enumerate(zip(got, exact, strict=True)):
        eps = torch.finfo(dtype if index in (2, 4) else torch.float32).eps
        assert (ours.double() - reference).abs().max() <= 8 * eps * reference.abs().max()


def test_bfloat16_products_stay_near(backend):
    """Operands rounded to bfloat16, sums in float32: a logit is off by at most 2 · 2^-9 · |q||k| · scale."""
    q, k = (torch.nn.functional.normalize(torch.randn(200, 64), dim=1) for _ in range(2))
    got = similarity_lse(q, k, 10.0, precision="medium")
    exact = plain(q.double(), k.double(), 10.0)[0]
    assert (got - exact).abs().max() <= 10 * 2 * 2**-9


def test_rows_without_a_pair_have_no_gradient(backend):
    q = torch.randn(4, 3, requires_grad=True)
    k = torch.randn(5, 3, requires_grad=True)
    lse = similarity_lse(q, k, 1.0, q_group=torch.tensor([0, 7, 0, 7]), k_group=torch.zeros(5, dtype=torch.int64))
    assert lse.isinf().tolist() == [True, False, True, False]
    lse[1].backward()
    assert (q.grad[[0, 2, 3]] == 0).all()
    assert q.grad[1].abs().sum() > 0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=["no_rows", "no_keys"])
def test_empty(backend, shape):
    q, k = torch.randn(shape[0], 4, requires_grad=True), torch.randn(shape[1], 4, requires_grad=True)
    lse = similarity_lse(q, k, 1.0)
    assert lse.shape == (shape[0],)
    assert lse.isneginf().all()
    lse.masked_fill(lse.isinf(), 0).sum().backward()
    assert not q.grad.any()
    assert not k.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_come_out_as_nan(backend, bad):
    q, k = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    q[1, 2] = bad
    lse = similarity_lse(q, k, 2.0)
    lse[1].backward()
    assert not lse[1].isfinite()
    assert k.grad.isnan().any()


def test_same_bits_for_any_number_of_threads():
    if fastcl.backends()["similarity_lse"]["cpu"] != "native":
        pytest.skip("native kernels were not built")
    q, k = torch.randn(700, 32), torch.randn(900, 32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results += [evaluate(fastcl_form, q, k, 3.0, torch.float32, True)] * 1
            results += [evaluate(fastcl_form, q, None, 3.0, torch.float32, False)] * 1
    finally:
        torch.set_num_threads(threads)
    for result in results[2:]:
        first = results[0] if len(result) == len(results[0]) else results[1]
        assert all(torch.equal(a, b) for a, b in zip(result, first, strict=True))


def test_gradcheck_in_float64():
    q, k = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 4))
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: similarity_lse(*a, columns=True), (q, k, scale))
    group = torch.tensor([0, 1, 0, 2, 1])
    assert torch.autograd.gradcheck(lambda q, s: similarity_lse(q, None, s, q_group=group), (q, scale))


@pytest.mark.parametrize("namespace", ["fastcl", "fastcl_reference"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
def test_opcheck(namespace, symmetric):
    ops = getattr(torch.ops, namespace)
    q = torch.randn(6, 5, requires_grad=True)
    k = None if symmetric else torch.randn(4, 5, requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    q_group = torch.arange(6) % 2
    k_group = None if symmetric else torch.arange(4) % 2
    arguments = (q, k, scale, q_group, k_group, not symmetric, "highest")
    torch.library.opcheck(ops.similarity_lse.default, arguments)
    row, col, _ = (t.detach() for t in ops.similarity_lse(*arguments))
    inputs = [t.detach() if isinstance(t, Tensor) else t for t in (q, k, scale, q_group, k_group)]
    torch.library.opcheck(
        ops.similarity_lse_backward.default,
        (torch.ones_like(row), torch.ones_like(col), *inputs, row, col, True, not symmetric, "highest"),
    )


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 70, 33), (300, 131, 128)])
def test_what_is_kept_for_backward_changes_no_bit(monkeypatch, shape, grouped, columns):
    rows, cols, dim = shape
    results = []
    for most in (checks._MOST_KEPT, 0):
        monkeypatch.setattr(checks, "_MOST_KEPT", most)
        torch.manual_seed(0)
        q, k = (torch.randn(count, dim, requires_grad=True) for count in (rows, cols))
        groups = {"q_group": torch.arange(rows) % 3, "k_group": torch.arange(cols) % 4} if grouped else {}
        lse = similarity_lse(q, k, 0.5, columns=columns, **groups)
        finite = torch.cat([each[each.isfinite()] for each in (lse if columns else [lse])])
        finite.square().sum().backward()
        results.append((finite.detach(), q.grad, k.grad))
    for kept, formed_again in zip(*results, strict=True):
        assert torch.equal(kept, formed_again)


@pytest.mark.parametrize("symmetric", [False, True], ids=["rectangular", "symmetric"])
def test_backward_takes_the_exponentials_that_were_kept(symmetric):
    """The gradient is linear in them: twice as large ones double it."""
    if fastcl.backends()["similarity_lse"]["cpu"] != "native":
        pytest.skip("native kernels were not built")
    q, k, scale = torch.randn(70, 33), None if symmetric else torch.randn(131, 33), torch.tensor(0.5)
    keep = checks.floats_to_keep("similarity_lse", q.device, 70, 70 if symmetric else 131)
    ops, problem = torch.ops.fastcl, (q, k, scale, None, None)
    row, col, kept = ops.similarity_lse(*problem, not symmetric, "highest", keep)
    assert kept.numel() == keep > 0

    def gradients(kept: Tensor | None) -> tuple[Tensor, ...]:
        grads = torch.ones_like(row), torch.ones_like(col)
        return ops.similarity_lse_backward(*grads, *problem, row, col, True, not symmetric, "highest", kept)

    for formed_again, from_kept, doubled in zip(gradients(None), gradients(kept), gradients(2 * kept), strict=True):
        assert torch.equal(formed_again, from_kept)
        assert torch.equal(2 * from_kept, doubled)
    # Too few floats to hold them are no exponentials at all.
    for whole, cut_off in zip(gradients(None), gradients(kept[:100]), strict=True):
        assert torch.equal(whole, cut_off)


def test_a_result_that_nobody_uses_has_no_gradient(backend):
    q, k = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    both, rows = similarity_lse(q, k, 3.0, columns=True)[0], similarity_lse(q, k, 3.0)
    for a, b in zip(*(torch.autograd.grad(lse.sum(), (q, k)) for lse in (both, rows)), strict=True):
        torch.testing.assert_close(a, b)


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    q, k = torch.randn(8, 4, requires_grad=True), torch.randn(9, 4)

    def step(q: Tensor, k: Tensor) -> Tensor:
        row, col = similarity_lse(q, k, 3.0, columns=True)
        return row.sum() - col.sum()

    eager, compiled = step(q, k), torch.compile(step, fullgraph=True, backend="aot_eager")(q, k)
    assert torch.equal(eager, compiled)
    assert torch.equal(*(torch.autograd.grad(loss, q)[0] for loss in (eager, compiled)))


ONES = torch.ones(3, 4)
BAD = {
    "dims": ((torch.ones(3), ONES, 1.0), {}, ValueError, r"q must be \[rows, dim\], got \[3\]"),
    "key_dim": ((ONES, torch.ones(3, 5), 1.0), {}, ValueError, r"k must be \[P, 4\]"),
    "key_type": ((ONES, ONES.half(), 1.0), {}, TypeError, "k must have q's dtype"),
    "no_dim": ((torch.ones(3, 0), None, 1.0), {}, ValueError, "at least one column"),
    "columns": ((ONES, None, 1.0), {"columns": True}, ValueError, "columns needs k"),
    "one_group": ((ONES, ONES, 1.0), {"q_group": torch.arange(3)}, ValueError, "go together, got only q_group"),
    "group_type": ((ONES, None, 1.0), {"q_group": torch.arange(3).int()}, TypeError, "q_group must be int64"),
    "group_shape": ((ONES, None, 1.0), {"q_group": torch.arange(2)}, ValueError, r"q_group must be \[3\]"),
    "precision": ((ONES, None, 1.0), {"precision": "low"}, ValueError, "precision must be one of"),
}


@pytest.mark.parametrize(("arguments", "options", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(backend, arguments, options, kind, message):
    with pytest.raises(kind, match=f"similarity_lse: .*{message}"):
        similarity_lse(*arguments, **options)
