"""Every loss against the formula as a page of plain PyTorch would have it, with the matrix of all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import fastcl
from fastcl import losses
from fastcl.compat import pytorch_metric_learning as pml
from fastcl.ops import checks

EPS = torch.finfo(torch.float32).eps
TEMPERATURES = [0.005, 0.05, 0.1, 0.5, 10.0]
LABELS = torch.tensor([3, -1, 3, 7, 0, 7, 3, 100, 0, 3, -1])


def normalize(*tensors: Tensor) -> list[Tensor]:
    return [functional.normalize(t, dim=-1) for t in tensors]


def logits(q: Tensor, k: Tensor, scale: Tensor, left_out: Tensor) -> Tensor:
    return (scale * (q @ k.T)).masked_fill(left_out, -math.inf)


def plain_views(scale: Tensor, *views: Tensor) -> Tensor:
    """Khosla et al. 2020, eq. 2, a label per sample; for two views SimCLR's eq. 1."""
    return plain_labelled(scale, torch.cat(views), torch.arange(len(views[0])).repeat(len(views)))


def plain_labelled(scale: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
    (z,) = normalize(embeddings)
    itself = torch.eye(len(z), dtype=torch.bool)
    positive = (labels[:, None] == labels) & ~itself
    s = logits(z, z, scale, itself)
    mean = s.masked_fill(~positive, 0).sum(dim=1) / positive.sum(dim=1).clamp_min(1)
    return torch.where(positive.any(dim=1), s.logsumexp(dim=1) - mean, 0)


def plain_supcon(scale: Tensor, embeddings: Tensor) -> Tensor:
    return plain_labelled(scale, embeddings, LABELS[: len(embeddings)])


def plain_supcon_views(scale: Tensor, embeddings: Tensor) -> Tensor:
    labels = LABELS[: len(embeddings)].repeat_interleave(embeddings.shape[1])
    return plain_labelled(scale, embeddings.flatten(0, 1), labels).reshape(embeddings.shape[:2])


def plain_in_batch(scale: Tensor, query: Tensor, key: Tensor) -> Tensor:
    q, k = normalize(query, key)
    return functional.cross_entropy(scale * (q @ k.T), torch.arange(len(q)), reduction="none")


def plain_negatives(scale: Tensor, query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
    q, k, n = normalize(query, key, negatives)
    similarity = q @ n.T if n.dim() == 2 else torch.einsum("nd,nmd->nm", q, n)
    s = scale * torch.cat([(q * k).sum(dim=1, keepdim=True), similarity], dim=1)
    return s.logsumexp(dim=1) - s[:, 0]


def plain_two(scale: Tensor, out0: Tensor, out1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled similarities to the negatives, -inf elsewhere, to the positive, and the positive's unscaled."""
    z0, z1 = normalize(out0, out1)
    z, sample = torch.cat([z0, z1]), torch.arange(len(z0)).repeat(2)
    positive = (z0 * z1).sum(dim=1).repeat(2)
    return logits(z, z, scale, sample[:, None] == sample), scale * positive, positive


def plain_dcl(scale: Tensor, out0: Tensor, out1: Tensor) -> Tensor:
    negative, positive, _ = plain_two(scale, out0, out1)
    return negative.logsumexp(dim=1) - positive


def plain_dclw(scale: Tensor, out0: Tensor, out1: Tensor) -> Tensor:
    negative, positive, similarity = plain_two(scale, out0, out1)
    weight = 2 - len(out0) * (similarity.detach()[: len(out0)] / 0.5).softmax(dim=0)
    return negative.logsumexp(dim=1) - weight.repeat(2) * positive


def plain_hard(scale: Tensor, out0: Tensor, out1: Tensor, beta: float = 1.0, tau_plus: float = 0.1) -> Tensor:
    """The authors' code, but for a common factor e^positive taken out of every exponential, lest they overflow."""
    negative, positive, _ = plain_two(scale, out0, out1)
    count = 2 * len(out0) - 2
    negative = negative[negative > -math.inf].reshape(2 * len(out0), count) - positive[:, None]
    weights = count * (beta * negative).softmax(dim=1)
    total = (-tau_plus * count + (weights * negative.exp()).sum(dim=1)) / (1 - tau_plus)
    return torch.log1p(torch.maximum(total, count * (-scale - positive).exp()))


def plain_debiased(scale: Tensor, out0: Tensor, out1: Tensor) -> Tensor:
    return plain_hard(scale, out0, out1, beta=0.0)


def plain_clip(scale: Tensor, image: Tensor, text: Tensor) -> Tensor:
    s, pairs = scale * (image @ text.T), torch.arange(len(image))
    return sum(functional.cross_entropy(x, pairs, reduction="none") for x in (s, s.T)) / 2


def plain_siglip(scale: Tensor, image: Tensor, text: Tensor, bias: float = -1.5) -> Tensor:
    sign = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -functional.logsigmoid(sign * (scale * (image @ text.T) + bias)).sum(dim=1)


def plain_pml_ntxent(scale: Tensor, embeddings: Tensor) -> Tensor:
    """Sums over the positive pairs of each row."""
    labels = LABELS[: len(embeddings)]
    (z,) = normalize(embeddings)
    same, itself = labels[:, None] == labels, torch.eye(len(z), dtype=torch.bool)
    negatives = logits(z, z, scale, same).logsumexp(dim=1, keepdim=True)
    positive = scale * (z @ z.T)
    return (torch.logaddexp(positive, negatives) - positive).masked_fill(~same | itself, 0).sum(dim=1)


def plain_pml_supcon(scale: Tensor, embeddings: Tensor) -> Tensor:
    labels = LABELS[: len(embeddings)]
    return plain_supcon(scale, embeddings) * (labels != labels[0]).any()


class Scaled(nn.Module):
    """Gives a loss that takes its scale in the call a temperature of its own, for the tests' sake."""

    def __init__(self, loss: nn.Module, temperature: float, learnable_temperature: bool, **arguments: Any) -> None:
        super().__init__()
        self.loss, self.arguments = loss, arguments
        self.logit_scale = losses.temperature.Temperature("Scaled", temperature, learnable_temperature)

    def forward(self, *features: Tensor) -> Tensor:
        return self.loss(*features, self.logit_scale.scale(), **self.arguments)


def clip(temperature: float, learnable_temperature: bool = False, **options: Any) -> nn.Module:
    return Scaled(losses.ClipLoss(**options), temperature, learnable_temperature)


def siglip(temperature: float, learnable_temperature: bool = False, **options: Any) -> nn.Module:
    return Scaled(losses.SigLipLoss(chunk_size=4, **options), temperature, learnable_temperature, logit_bias=-1.5)


class Supervised(nn.Module):
    def __init__(self, loss: type[nn.Module], temperature: float, **options: Any) -> None:
        super().__init__()
        self.loss = loss(temperature, **options)
        self.logit_scale = self.loss.logit_scale

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.loss(embeddings, LABELS[: len(embeddings)])


@dataclass
class Case:
    make: Callable[..., nn.Module]
    plain: Callable[..., Tensor]
    # The shape of each input, without the dimension.
    shapes: Callable[[int], Sequence[tuple[int, ...]]]
    is_normalized: bool = False

    def inputs(self, rows: int, dim: int) -> list[Tensor]:
        """Rows and positives that are near."""
        base = torch.randn(rows, dim)
        tensors = []
        for shape in self.shapes(rows):
            noise = torch.randn(*shape, dim)
            near = base.reshape(rows, *[1] * (len(shape) - 1), dim) if shape[0] == rows else 0.0
            tensors.append(near + 0.5 * noise)
        return normalize(*tensors) if self.is_normalized else tensors


def views(count: int) -> Callable[[int], list[tuple[int, ...]]]:
    return lambda n: [(n,)] * count


CASES = {
    "ntxent": Case(losses.NTXentLoss, plain_views, views(2)),
    "ntxent_views": Case(losses.NTXentLoss, plain_views, views(3)),
    "supcon": Case(lambda t, **o: Supervised(losses.SupConLoss, t, **o), plain_supcon, views(1)),
    "supcon_views": Case(lambda t, **o: Supervised(losses.SupConLoss, t, **o), plain_supcon_views, lambda n: [(n, 2)]),
    "infonce": Case(losses.InfoNCELoss, plain_in_batch, views(2)),
    "infonce_shared": Case(losses.InfoNCELoss, plain_negatives, lambda n: [(n,), (n,), (n + 9,)]),
    "infonce_paired": Case(losses.InfoNCELoss, plain_negatives, lambda n: [(n,), (n,), (n, 5)]),
    "dcl": Case(losses.DCLLoss, plain_dcl, views(2)),
    "dclw": Case(losses.DCLWLoss, plain_dclw, views(2)),
    "debiased": Case(losses.DebiasedLoss, plain_debiased, views(2)),
    "hard": Case(losses.HardNegativeLoss, plain_hard, views(2)),
    "clip": Case(clip, plain_clip, views(2), is_normalized=True),
    "siglip": Case(siglip, plain_siglip, views(2), is_normalized=True),
    "pml_ntxent": Case(lambda t, **o: Supervised(pml.NTXentLoss, t, **o), plain_pml_ntxent, views(1)),
    "pml_supcon": Case(lambda t, **o: Supervised(pml.SupConLoss, t, **o), plain_pml_supcon, views(1)),
}
ALL = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def weighted(values: Tensor) -> Tensor:
    return (values.flatten() * torch.linspace(0.1, 1.0, values.numel(), dtype=values.dtype)).sum()


def run(case: Case, inputs: list[Tensor], temperature: float, dtype: torch.dtype) -> list[Tensor]:
    """fastcl's losses of the rows, and the gradients of a sum of them by the inputs and by the log of the scale."""
    loss = case.make(temperature, reduction="none", learnable_temperature=True)
    if dtype == torch.float64:
        loss = loss.double()
    inputs = [x.to(dtype).detach().requires_grad_() for x in inputs]
    values = loss(*inputs)
    grads = torch.autograd.grad(weighted(values), [*inputs, loss.logit_scale.log_scale])
    return [values.detach(), *grads]


def run_plain(case: Case, inputs: list[Tensor], temperature: float, dtype: torch.dtype) -> list[Tensor]:
    log_scale = torch.tensor(math.log(1 / temperature)).to(dtype).requires_grad_()
    inputs = [x.to(dtype).detach().requires_grad_() for x in inputs]
    values = case.plain(log_scale.exp(), *inputs)
    return [values.detach(), *torch.autograd.grad(weighted(values), [*inputs, log_scale])]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@ALL
def test_value_and_gradients_match_fp64(backend, case, temperature):
    """No worse than twice plain float32's own error, and what rounding a logit (scale · eps) makes inevitable.

    A gradient is measured in scale / |row|, the scale's in scale, and each in the number of terms that it adds.
    """
    inputs = case.inputs(11, 7)
    exact = run_plain(case, inputs, temperature, torch.float64)
    plain32 = run_plain(case, inputs, temperature, torch.float32)
    got = run(case, inputs, temperature, torch.float32)
    scale = 1 / temperature
    units = [torch.ones(()), *(scale / x.double().norm(dim=-1, keepdim=True) for x in inputs), torch.tensor(scale)]
    terms = 1 if case.plain not in (plain_siglip, plain_pml_ntxent) else 11
    for ours, theirs, reference, unit in zip(got, plain32, exact, units, strict=True):
        error, plain_error = (((v.double() - reference) / unit / terms).abs().max().item() for v in (ours, theirs))
        plain_error = 0 if math.isnan(plain_error) else plain_error  # exp overflows
        assert ours.shape == reference.shape
        assert error <= 2 * plain_error + 8 * EPS * (1 + scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@ALL
def test_half_inputs_are_accumulated_in_float32(backend, case, dtype):
    inputs = [x.to(dtype) for x in case.inputs(11, 16)]
    exact = run_plain(case, inputs, 0.07, torch.float64)
    got = run(case, inputs, 0.07, dtype)
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), exact[0], rtol=1e-5, atol=32 * EPS / 0.07)
    for ours, want in zip(got[1:-1], exact[1:-1], strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - want).abs().max() <= torch.finfo(dtype).eps * want.abs().max()


@ALL
def test_float64_is_exact(case):
    inputs = case.inputs(7, 5)
    for ours, want in zip(*(f(case, inputs, 0.1, torch.float64) for f in (run, run_plain)), strict=True):
        torch.testing.assert_close(ours, want, rtol=2e-7, atol=1e-9)  # log_scale starts as float32


def edges(rows: int, dim: int, kind: str) -> Tensor:
    one = torch.ones(rows, dim) / dim**0.5
    sign = torch.ones(rows, 1)
    sign[::2] = -1
    return {"identical": one, "opposite": one * sign, "zero_row": one * (torch.arange(rows) > 0)[:, None]}[kind]


@pytest.mark.parametrize("temperature", [0.005, 0.5, 10.0])
@pytest.mark.parametrize("kind", ["identical", "opposite", "zero_row", "one_sample", "opposite_views"])
@ALL
def test_edges_are_finite_where_fp64_is(backend, case, kind, temperature):
    if kind == "one_sample":
        inputs = case.inputs(1, 4)
    else:
        rows = "identical" if kind == "opposite_views" else kind
        inputs = [edges(math.prod(shape), 4, rows).reshape(*shape, 4) for shape in case.shapes(6)]
        inputs[-1] = -inputs[-1] if kind == "opposite_views" else inputs[-1]
    exact = run_plain(case, inputs, temperature, torch.float64)
    got = run(case, inputs, temperature, torch.float32)
    finite = exact[0].isfinite()
    assert torch.equal(got[0].isfinite(), finite)
    tolerance = 64 * EPS * (1 + 1 / temperature)
    torch.testing.assert_close(got[0][finite].double(), exact[0][finite], rtol=1e-6, atol=tolerance)
    for ours, want, x in zip(got[1:-1], exact[1:-1], inputs, strict=True):
        assert ours.isfinite().all()
        if not case.is_normalized:
            assert not ours[(x == 0).all(dim=-1)].any()
        elif want.isfinite().all():
            torch.testing.assert_close(ours.double(), want, rtol=1e-5, atol=6 * tolerance / temperature)
    assert got[-1].isfinite()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@ALL
def test_nan_and_inf_come_out_as_nan(backend, case, bad):
    inputs = case.inputs(6, 4)
    inputs[0].view(-1, 4)[0, 1] = bad
    inputs[0].requires_grad_()
    value = case.make(0.1)(*inputs)
    value.backward()
    assert not value.isfinite()


@ALL
def test_reductions(backend, case):
    inputs = case.inputs(9, 4)
    each, total, mean = (case.make(0.1, reduction=r)(*inputs) for r in ("none", "sum", "mean"))
    count = each.numel()
    if case.plain is plain_pml_ntxent:
        count = (LABELS[:9, None] == LABELS[:9]).sum() - 9
    elif case.plain in (plain_supcon, plain_pml_supcon):
        count = (each > 0).sum()
    torch.testing.assert_close(total, each.sum())
    torch.testing.assert_close(mean, each.sum() / count)


@ALL
def test_same_bits_on_every_call(backend, case):
    inputs = case.inputs(11, 6)
    first = run(case, inputs, 0.1, torch.float32)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(run(case, inputs, 0.1, torch.float32), first, strict=True))


@ALL
def test_compiles_without_graph_breaks(backend, case):
    if case.plain is plain_pml_ntxent:
        pytest.skip("compat NTXentLoss reads the runs of labels on the host")
    torch._dynamo.reset()
    inputs = [x.requires_grad_() for x in case.inputs(8, 4)]
    loss = case.make(0.1)
    eager, compiled = loss(*inputs), torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
    torch.testing.assert_close(eager, compiled, rtol=1e-6, atol=1e-6)
    for a, b in zip(*(torch.autograd.grad(value, inputs) for value in (eager, compiled)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@ALL
def test_autocast_changes_nothing(backend, case):
    inputs = case.inputs(8, 16)
    loss = case.make(0.05)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(*inputs)
    torch.testing.assert_close(inside, loss(*inputs), rtol=0, atol=0)


@ALL
def test_stays_on_the_inputs_device(case, monkeypatch):
    """On meta tensors, which mix with the CPU's no more than a GPU's do."""
    if case.plain is plain_pml_ntxent:
        pytest.skip("compat NTXentLoss reads the runs of labels on the host")
    monkeypatch.setitem(globals(), "LABELS", LABELS.to("meta"))
    inputs = [x.to("meta").requires_grad_() for x in case.inputs(6, 4)]
    loss = case.make(0.1, learnable_temperature=True).to("meta")
    value = loss(*inputs)
    value.backward()
    assert {value.device.type, *(x.grad.device.type for x in inputs)} == {"meta"}
    assert value.dtype == torch.float32


class LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


@ALL
def test_no_matrix_of_all_pairs(case, monkeypatch):
    if fastcl.backends()["similarity_lse"]["cpu"] != "native":
        pytest.skip("native kernels were not built: the reference forms the matrix")
    rows, dim = 1500, 4
    monkeypatch.setattr(checks, "_MOST_KEPT", 0)  # no matrix beyond 24 MB; here, none at all
    monkeypatch.setitem(globals(), "LABELS", torch.arange(rows) % 750)
    inputs = [x.requires_grad_() for x in case.inputs(rows, dim)]
    with LargestTensor() as largest:
        case.make(0.1)(*inputs).backward()
    # Two or three views of rows · dim, twice over; the blocks of SigLIP are of 4 rows, those of labels of 256.
    assert largest.elements <= max(6 * rows * dim, 256 * 512, sum(x.numel() for x in inputs))


def test_labels_of_one_class_in_blocks(monkeypatch):
    """pytorch-metric-learning's NT-Xent where a label's pairs take several blocks."""
    monkeypatch.setattr("fastcl.losses.pairwise._BLOCK_ELEMENTS", 50)
    monkeypatch.setattr("fastcl.compat.pytorch_metric_learning.rows_of_a_block", lambda keys: max(1, 50 // keys))
    monkeypatch.setitem(globals(), "LABELS", torch.randint(0, 3, (40,)))
    case = CASES["pml_ntxent"]
    inputs = case.inputs(40, 6)
    for ours, want in zip(*(f(case, inputs, 0.1, torch.float64) for f in (run, run_plain)), strict=True):
        torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-7)


# --- one loss at a time


def test_three_views_are_supcon_by_sample(backend):
    out = torch.randn(3, 8, 5)
    mine = losses.NTXentLoss(0.2)(*out)
    torch.testing.assert_close(mine, losses.SupConLoss(0.2)(out.transpose(0, 1)))


def test_supcon_without_any_positive_is_zero(backend):
    z = torch.randn(4, 3, requires_grad=True)
    loss = losses.SupConLoss()(z, torch.arange(4))
    loss.backward()
    assert loss == 0
    assert not z.grad.any()


def test_supcon_leaves_rows_without_positive_out(backend):
    z = torch.randn(5, 3)
    labels = torch.tensor([0, 0, 1, 1, 2])
    each = losses.SupConLoss(reduction="none")(z, labels)
    assert each[4] == 0
    torch.testing.assert_close(losses.SupConLoss()(z, labels), each[:4].mean())


def test_debiased_without_prior_is_ntxent(backend):
    out = torch.randn(2, 9, 6)
    torch.testing.assert_close(losses.DebiasedLoss(0.5, tau_plus=0.0)(*out), losses.NTXentLoss(0.5)(*out))
    hard = losses.HardNegativeLoss(0.5, tau_plus=0.2, beta=0.0)(*out)
    torch.testing.assert_close(hard, losses.DebiasedLoss(0.5, tau_plus=0.2)(*out))


def test_dcl_weights_are_the_callers(backend):
    out = torch.randn(2, 6, 4)

    def weights(a: Tensor, b: Tensor) -> Tensor:
        return (a - 2 * b).square().sum(dim=1)

    z0, z1 = normalize(*out)
    negative, positive, _ = plain_two(torch.tensor(10.0), *out)
    want = negative.logsumexp(dim=1) - torch.cat([weights(z0, z1), weights(z1, z0)]) * positive
    torch.testing.assert_close(losses.DCLLoss(weight_fn=weights, reduction="none")(*out), want, rtol=1e-5, atol=1e-5)


def test_clip_bias_changes_nothing_but_is_in_the_graph(backend):
    features = normalize(*torch.randn(2, 5, 4))
    bias = torch.tensor(3.0, requires_grad=True)
    loss = losses.ClipLoss()(*features, 10.0, bias, output_dict=True)["contrastive_loss"]
    loss.backward()
    assert bias.grad == 0
    torch.testing.assert_close(loss, losses.ClipLoss()(*features, 10.0))


@pytest.mark.parametrize("chunk_size", [1, 3, 100, None])
def test_siglip_chunks_agree_and_the_bias_learns(chunk_size):
    features = [f.double() for f in normalize(*torch.randn(2, 7, 4))]
    scale, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (5.0, -2.0))
    features = [f.requires_grad_() for f in features]
    loss = losses.SigLipLoss(chunk_size=chunk_size)
    want = plain_siglip(scale, *features, bias=bias).mean()
    got = loss(*features, scale, bias)
    inputs = [*features, scale, bias]
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(value, inputs) for value in (got, want)), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(loss, inputs)
    torch.testing.assert_close(loss(*features, scale), plain_siglip(scale, *features, bias=0.0).mean())


def test_temperature_learns_and_says_what_it_is():
    loss = losses.NTXentLoss(0.25, learnable_temperature=True)
    assert "0.25, learnable" in repr(loss)
    assert list(loss.state_dict()) == ["logit_scale.log_scale"]
    assert not losses.NTXentLoss(0.25).state_dict()


# --- the memory bank


def test_bank_value_is_mocos(backend):
    loss = losses.NTXentLoss(0.1, memory_bank_size=(20, 6), learnable_temperature=True)
    bank = loss.memory_bank.rows.clone()
    out0, out1 = torch.randn(2, 5, 6).unbind()
    exact = plain_negatives(torch.tensor(10.0).double(), out0.double(), out1.double(), bank.double()).mean()
    torch.testing.assert_close(loss(out0, out1).double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(loss.memory_bank.rows, bank)  # nothing to learn, nothing enqueued
    out0.requires_grad_()
    loss(out0, out1).backward()
    torch.testing.assert_close(loss.memory_bank.rows[:5], functional.normalize(out1))
    assert torch.equal(loss.memory_bank.rows[5:], bank[5:])


@pytest.mark.parametrize("batch", [3, 10, 25])
def test_bank_keeps_the_last_rows_when_it_wraps(batch):
    bank = losses.MemoryBank((10, 2))
    rows = torch.arange(4 * batch, dtype=torch.float32)[:, None].expand(-1, 2)
    for part in rows.split(batch):
        bank.enqueue(part)
    assert sorted(bank.rows[:, 0].tolist()) == rows[-10:, 0].tolist()


def test_bank_is_in_the_state(backend):
    first, second = (losses.NTXentLoss(memory_bank_size=(7, 3)) for _ in range(2))
    out = torch.randn(2, 4, 3, requires_grad=True)
    first(*out)
    second.load_state_dict(first.state_dict())
    for loss in (first, second):
        loss(*out)
    assert torch.equal(first.memory_bank.rows, second.memory_bank.rows)


# --- errors

X = torch.ones(3, 4)
BAD_OPTIONS = {
    "temperature": (lambda: losses.DCLLoss(0.0), "DCLLoss: temperature must be above 0"),
    "nan": (lambda: losses.SupConLoss(math.nan), "SupConLoss: temperature must be above 0"),
    "reduction": (lambda: losses.SupConLoss(reduction="max"), "SupConLoss: reduction must be one of"),
    "precision": (lambda: losses.InfoNCELoss(precision="low"), "InfoNCELoss: precision must be one of"),
    "distributed": (
        lambda: losses.NTXentLoss(distributed="all"),
        "NTXentLoss: distributed must be None or one of gather",
    ),
    "two_ways": (
        lambda: losses.NTXentLoss(gather_distributed=True, distributed="ring"),
        "NTXentLoss: gather_distributed",
    ),
    "bank": (lambda: losses.NTXentLoss(memory_bank_size=5), "NTXentLoss: memory_bank_size must be 0 or"),
    "bank_sizes": (lambda: losses.NTXentLoss(memory_bank_size=(5, 0)), "MemoryBank: size must be"),
    "sigma": (lambda: losses.DCLWLoss(sigma=0), "DCLWLoss: sigma must be above 0, got 0"),
    "tau": (lambda: losses.DebiasedLoss(tau_plus=1.0), "DebiasedLoss: tau_plus must be at least 0 and below 1"),
    "hard_tau": (lambda: losses.HardNegativeLoss(tau_plus=-1), "HardNegativeLoss: tau_plus must be"),
    "beta": (lambda: losses.HardNegativeLoss(beta=-1.0), "HardNegativeLoss: beta must be at least 0"),
    "horovod": (lambda: losses.ClipLoss(use_horovod=True), "ClipLoss: use_horovod must be False"),
    "rank": (lambda: losses.ClipLoss(rank=2, world_size=2), "ClipLoss: rank must be in"),
    "clip_reduction": (lambda: losses.ClipLoss(world_size=2, reduction="sum"), "ClipLoss: reduction must be 'mean'"),
    "dist_impl": (lambda: losses.SigLipLoss(dist_impl="tree"), "SigLipLoss: dist_impl must be one of bidir"),
    "chunk": (lambda: losses.SigLipLoss(chunk_size=0), "SigLipLoss: chunk_size must be at least 1"),
    "pml": (lambda: pml.NTXentLoss(-1), "NTXentLoss: temperature must be above 0"),
}


@pytest.mark.parametrize(("make", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


BAD_INPUTS = {
    "shape": (
        losses.NTXentLoss(),
        (X, X[:2]),
        ValueError,
        r"NTXentLoss: out1 must have out0's shape \[3, 4\], got \[2, 4\]",
    ),
    "third": (losses.NTXentLoss(), (X, X, X[:2]), ValueError, "NTXentLoss: out2 must have out0's shape"),
    "list": (losses.DCLLoss(), ([1.0], X), TypeError, "DCLLoss: out0 must be a Tensor, got list"),
    "dims": (losses.DCLWLoss(), (X[0], X[0]), ValueError, r"DCLWLoss: out0 must be \[rows, dim\], got \[4\]"),
    "empty": (losses.DebiasedLoss(), (X[:0], X[:0]), ValueError, "DebiasedLoss: out0 must have at least one row"),
    "mixed": (losses.HardNegativeLoss(), (X, X.half()), TypeError, "HardNegativeLoss: out1 must have out0's dtype"),
    "integers": (losses.ClipLoss(), (X.int(), X.int(), 1.0), TypeError, "ClipLoss: image_features must be float32"),
    "scale": (losses.ClipLoss(), (X, X, torch.ones(2)), ValueError, "ClipLoss: scale must be a number or"),
    "siglip": (
        losses.SigLipLoss(),
        (X, X[:, :2], 1.0),
        ValueError,
        "SigLipLoss: text_features must have image_features'",
    ),
    "bank_dim": (losses.NTXentLoss(memory_bank_size=(5, 3)), (X, X), ValueError, r"NTXentLoss: out0 must be \[N, 3\]"),
    "bank_views": (losses.NTXentLoss(memory_bank_size=(5, 4)), (X, X, X), ValueError, "takes two views, got 3"),
    "no_labels": (losses.SupConLoss(), (X,), ValueError, "SupConLoss: labels must be given where"),
    "labels": (losses.SupConLoss(), (X, torch.arange(2)), ValueError, r"SupConLoss: labels must be \[3\], got \[2\]"),
    "float_labels": (losses.SupConLoss(), (X, torch.ones(3)), TypeError, "SupConLoss: labels must be integers"),
    "list_labels": (losses.SupConLoss(), (X, [1, 2, 3]), TypeError, "SupConLoss: labels must be a Tensor, got list"),
    "views": (losses.SupConLoss(), (X[0], None), ValueError, r"SupConLoss: embeddings must be \[N, D\] or \[N, V, D\]"),
    "negatives": (losses.InfoNCELoss(), (X, X, X[:, :2]), ValueError, r"InfoNCELoss: negative_keys must be \[M, 4\]"),
    "paired": (losses.InfoNCELoss(), (X, X, X[None]), ValueError, r"\[3, M, 4\], M at least 1, got \[1, 3, 4\]"),
    "negative_type": (losses.InfoNCELoss(), (X, X, X.double()), TypeError, "negative_keys must have query's dtype"),
    "world": (losses.ClipLoss(world_size=2), (X, X, 1.0), RuntimeError, "ClipLoss: wanted a torch.distributed process"),
    "siglip_world": (
        losses.SigLipLoss(world_size=2),
        (X, X, 1.0),
        RuntimeError,
        "SigLipLoss: wanted a torch.distributed",
    ),
}


@pytest.mark.parametrize(("loss", "inputs", "kind", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_inputs(loss, inputs, kind, message):
    with pytest.raises(kind, match=message):
        loss(*inputs)


def test_distributed_alone_is_the_own_rows(backend):
    out = torch.randn(2, 6, 4)
    for mode in ("gather", "ring"):
        assert torch.equal(losses.NTXentLoss(distributed=mode)(*out), losses.NTXentLoss()(*out))


def test_the_temperature_is_a_number_that_can_be_set():
    z0, z1 = torch.randn(2, 9, 5)
    scheduled, fixed = losses.NTXentLoss(0.5), losses.NTXentLoss(0.07)
    scheduled.temperature = 0.07
    assert scheduled.temperature == pytest.approx(0.07)
    assert torch.equal(scheduled(z0, z1), fixed(z0, z1))
    learnt = losses.NTXentLoss(0.5, learnable_temperature=True)
    learnt.temperature = 0.07
    assert learnt.temperature == pytest.approx(0.07)
    assert [name for name, _ in learnt.named_parameters()] == ["logit_scale.log_scale"]
    with pytest.raises(ValueError, match="NTXentLoss: temperature must be above 0 and finite, got 0"):
        scheduled.temperature = 0
