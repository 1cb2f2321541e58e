"""Values and gradients of other packages' losses, and where theirs are wrong, what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastcl.compat import lightly, open_clip
from fastcl.compat import pytorch_metric_learning as pml

TEMPERATURES = [0.05, 0.5]


def peer(name: str) -> Any:
    return pytest.importorskip(name, reason=f"peer absent: {name}")


def same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Value and gradients agree in float64, where nothing but the formula can differ."""
    inputs = tuple(x.double().requires_grad_() for x in inputs)
    values = [f(*inputs) for f in (ours, theirs)]
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad(value, inputs, materialize_grads=True) for value in values]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


# --- lightly


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])
@pytest.mark.filterwarnings("ignore:To copy construct")  # of lightly's DCLWLoss
def test_lightly(name, temperature):
    theirs = getattr(peer("lightly.loss"), name)
    same(getattr(lightly, name)(temperature), theirs(temperature), torch.randn(9, 5), torch.randn(9, 5))


def test_lightly_weights():
    dcl = peer("lightly.loss.dcl_loss")
    out = functional.normalize(torch.randn(2, 9, 5), dim=2)
    with pytest.warns(UserWarning, match="To copy construct"):
        theirs = dcl.negative_mises_fisher_weights(*out, sigma=0.3)
    torch.testing.assert_close(lightly.negative_mises_fisher_weights(*out, sigma=0.3), theirs)

    def weights(a: Tensor, b: Tensor) -> Tensor:
        return (a - 2 * b).square().sum(dim=1)

    same(lightly.DCLLoss(0.2, weights), dcl.DCLLoss(0.2, weights), torch.randn(6, 4), torch.randn(6, 4))


def test_lightly_bank():
    """Over several batches, as long as they divide the bank: where they do not, lightly drops rows."""
    theirs = peer("lightly.loss").NTXentLoss(0.1, (12, 5))
    mine = lightly.NTXentLoss(0.1, (12, 5))
    mine.memory_bank.rows.copy_(theirs.memory_bank.bank)
    for _ in range(5):
        out0, out1 = torch.randn(2, 4, 5)
        grads = []
        for loss in (mine, theirs):
            views = [out.clone().requires_grad_() for out in (out0, out1)]
            value = loss(*views)
            value.backward()
            grads.append((value.detach(), *(view.grad for view in views)))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        loss(torch.randn(4, 5), torch.randn(4, 5))  # without a gradient it leaves the bank alone
        torch.testing.assert_close(mine.memory_bank.rows, theirs.memory_bank.bank)


def test_lightly_bank_drops_rows_and_ours_does_not():
    theirs = peer("lightly.loss").NTXentLoss(0.1, (5, 2))
    mine = lightly.NTXentLoss(0.1, (5, 2))
    batches = functional.normalize(torch.randn(3, 4, 2), dim=2)
    for rows in batches:
        for loss in (mine, theirs):
            loss(torch.randn(4, 2, requires_grad=True), rows)
    last = batches.reshape(-1, 2)[-5:]

    def held(bank: Tensor) -> int:
        return int((torch.cdist(last, bank).amin(dim=1) < 1e-6).sum())

    assert held(mine.memory_bank.rows) == 5
    assert held(theirs.memory_bank.bank) < 5
    assert "memory_bank.rows" in mine.state_dict()
    assert not theirs.state_dict()


def test_a_zero_row_in_half_precision_is_no_nan():
    out = torch.randn(2, 4, 8).half()
    out[0, 1] = 0
    assert peer("lightly.loss").NTXentLoss(0.1)(*out).isnan()
    mine = lightly.NTXentLoss(0.1)(*out)
    torch.testing.assert_close(mine.double(), lightly.NTXentLoss(0.1)(*out.double()), rtol=1e-5, atol=1e-5)


# --- open_clip


@pytest.mark.parametrize("scale", [2.0, 100.0])
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_open_clip(name, scale):
    theirs = getattr(peer("open_clip.loss"), name)()
    mine = getattr(open_clip, name)()
    features = functional.normalize(torch.randn(2, 9, 5), dim=2)
    bias = -3.0 if name == "SigLipLoss" else 1.0
    same(mine, theirs, *features, torch.tensor(scale), torch.tensor(bias))
    if name == "ClipLoss":
        same(mine, theirs, *features, torch.tensor(scale))
    dicts = [loss(*features, torch.tensor(scale), torch.tensor(bias), output_dict=True) for loss in (mine, theirs)]
    assert dicts[0].keys() == dicts[1].keys()


# --- pytorch-metric-learning

LABELS = {
    "classes": torch.tensor([0, 1, 1, 2, 0, 1, 5, 2, 0, -4]),
    "pairs": torch.arange(5).repeat(2),
    "no_positive": torch.arange(10),
    "no_negative": torch.zeros(10, dtype=torch.int64),
}
LOSSES = pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss"])


@LOSSES
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_pml(name, labels, temperature):
    mine, theirs = (getattr(module, name)(temperature) for module in (pml, peer("pytorch_metric_learning.losses")))
    same(lambda z: mine(z, labels), lambda z: theirs(z, labels), torch.randn(10, 4))


@LOSSES
@pytest.mark.parametrize("ref_labels", [[1, 1, 9, 0, 2, 5, 7], [9] * 7, [1] * 7], ids=["some", "none", "one_class"])
def test_pml_references(name, ref_labels):
    mine, theirs = (getattr(module, name)(0.1) for module in (pml, peer("pytorch_metric_learning.losses")))
    labels, ref_labels = LABELS["classes"], torch.tensor(ref_labels)
    same(
        lambda z, r: mine(z, labels, ref_emb=r, ref_labels=ref_labels),
        lambda z, r: theirs(z, labels, ref_emb=r, ref_labels=ref_labels),
        torch.randn(10, 4),
        torch.randn(7, 4),
    )


def listed(*columns: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(column, dtype=torch.int64) for column in columns)


INDICES = {
    "pairs": listed([0, 0, 3, 7], [4, 8, 7, 3], [0, 3, 3, 7, 9], [1, 2, 5, 6, 0]),
    "triplets": listed([0, 0, 3, 3], [4, 8, 7, 7], [1, 1, 2, 5]),
    "anchor_without_negative": listed([0, 5], [4, 2], [0, 0], [1, 2]),
    "no_positive": listed([], [], [0, 0], [1, 2]),
    "no_negative": listed([0, 5], [4, 2], [], []),
}


@LOSSES
@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES.keys())
@pytest.mark.parametrize("with_references", [False, True], ids=["self", "references"])
def test_pml_listed_pairs(name, indices, with_references):
    mine, theirs = (getattr(module, name)(0.1) for module in (pml, peer("pytorch_metric_learning.losses")))
    z = (torch.randn(10, 4), torch.randn(12, 4)) if with_references else (torch.randn(10, 4),)
    forms = [lambda z, r=None, f=f: f(z, indices_tuple=indices, ref_emb=r) for f in (mine, theirs)]
    same(*forms, *z)


@LOSSES
@pytest.mark.parametrize("symmetric", [False, True])
def test_pml_self_supervised(name, symmetric):
    theirs = peer("pytorch_metric_learning.losses")
    mine, other = (m.SelfSupervisedLoss(getattr(m, name)(0.2), symmetric=symmetric) for m in (pml, theirs))
    same(mine, other, torch.randn(7, 5), torch.randn(7, 5))


def test_pml_clamps_a_hard_positive_and_ours_does_not():
    """At T = 0.01 opposite views cost 200; the peer's log(p + tiny) ends at 87.3 in float32 and has no gradient."""
    z = torch.tensor([[1.0, 0.2], [-1.0, 0.1], [0.9, 0.3]])
    labels = torch.tensor([0, 0, 1])
    exact = plain_ntxent(z.double(), labels, 0.01)
    assert peer("pytorch_metric_learning.losses").NTXentLoss(0.01)(z, labels) < 0.9 * exact
    torch.testing.assert_close(pml.NTXentLoss(0.01)(z, labels).double(), exact, rtol=1e-6, atol=0)


def test_pml_half_precision_keeps_a_small_loss():
    z = functional.normalize(torch.randn(8, 64), dim=1).repeat(2, 1).half()
    labels = torch.arange(8).repeat(2)
    exact = plain_ntxent(z.double(), labels, 0.07)
    theirs = peer("pytorch_metric_learning.losses").NTXentLoss(0.07)(z, labels).double()
    mine = pml.NTXentLoss(0.07)(z, labels).double()
    torch.testing.assert_close(mine, exact, rtol=1e-5, atol=0)
    assert (theirs - exact).abs() > 100 * (mine - exact).abs()


def plain_ntxent(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """A term per positive pair: it against the rows of other labels."""
    s = functional.normalize(z, dim=1) @ functional.normalize(z, dim=1).T / temperature
    equal = labels[:, None] == labels
    negatives = s.masked_fill(equal, float("-inf")).logsumexp(dim=1, keepdim=True)
    losses = torch.logaddexp(s, negatives) - s
    return losses[equal & ~torch.eye(len(z), dtype=torch.bool)].mean()


Z = torch.ones(4, 3)
L = torch.arange(4)
BAD = {
    "nothing": ((Z,), {}, ValueError, "labels or indices_tuple must be given"),
    "labels": ((Z, L[:3]), {}, ValueError, r"labels must be \[4\], got \[3\]"),
    "ref": ((Z, L), {"ref_emb": Z}, ValueError, "ref_labels must be given"),
    "ref_labels": ((Z, L), {"ref_labels": L}, ValueError, "ref_labels go with ref_emb"),
    "ref_dim": ((Z, L), {"ref_emb": Z[:, :2], "ref_labels": L}, ValueError, r"ref_emb must be \[P, 3\]"),
    "ref_type": ((Z, L), {"ref_emb": Z.half(), "ref_labels": L}, TypeError, "ref_emb must have embeddings's dtype"),
    "two": ((Z,), {"indices_tuple": (L, L)}, ValueError, "indices_tuple must have 3 .triplets. or 4 .pairs. tensors"),
    "range": ((Z,), {"indices_tuple": (L, L, L + 1)}, ValueError, r"indices_tuple must be in \[0, 4\), got 1 to 4"),
    "length": ((Z,), {"indices_tuple": (L, L[:2], L)}, ValueError, "indices_tuple must hold vectors of one length"),
}


@LOSSES
@pytest.mark.parametrize(("arguments", "options", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_pml_bad_arguments(name, arguments, options, kind, message):
    with pytest.raises(kind, match=f"{name}: {message}"):
        getattr(pml, name)()(*arguments, **options)


def test_pml_supcon_wants_a_pair_on_one_side():
    with pytest.raises(ValueError, match="SupConLoss: indices_tuple must list no pair both"):
        pml.SupConLoss()(Z, indices_tuple=(L, L, L, L))
