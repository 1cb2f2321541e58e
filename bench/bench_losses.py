"""The losses beside their peers, forward and backward, and the flop they need through a GEMM (the limit).

One run times everything side by side: ``pytest bench/bench_losses.py --benchmark-sort=name``. ``extra_info`` has the
growth of resident memory in one step (``peak_mb``) and whether torch took huge pages (``THP_MEM_ALLOC_ENABLE=1``): page
faults are a large share of what forms the matrix of all pairs, so run it with and without.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastcl
from fastcl import losses
from fastcl.compat import pytorch_metric_learning as compat_pml

T = 0.1
DIM = 128
SIZES = [256, 1024, 4096]


def labels_of(z0: Tensor) -> Tensor:
    return torch.arange(len(z0)).repeat(2)


# --- NT-Xent, in every way that people write it


def plain(z0: Tensor, z1: Tensor) -> Tensor:
    z = functional.normalize(torch.cat([z0, z1]), dim=1)
    s = (z @ z.T / T).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    return functional.cross_entropy(s, torch.arange(len(z)).roll(len(z0)))


class ChunkedLse(torch.autograd.Function):
    """Log-sum-exp of the rows of z zᵀ / T but the diagonal, in chunks of rows that backward forms again."""

    ROWS = 256

    @staticmethod
    def similarities(z: Tensor, start: int) -> Tensor:
        s = z[start : start + ChunkedLse.ROWS] @ z.T / T
        s.diagonal(start).fill_(float("-inf"))
        return s

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        starts = range(0, len(z), ChunkedLse.ROWS)
        lse = torch.cat([ChunkedLse.similarities(z, start).logsumexp(dim=1) for start in starts])
        ctx.save_for_backward(z, lse)
        return lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        z, lse = ctx.saved_tensors
        grad_z = torch.zeros_like(z)
        for start in range(0, len(z), ChunkedLse.ROWS):
            rows = slice(start, start + ChunkedLse.ROWS)
            p = (ChunkedLse.similarities(z, start) - lse[rows, None]).exp_().mul_(grad[rows, None] / T)
            grad_z[rows] += p @ z
            grad_z += p.T @ z[rows]
        return grad_z


def chunked(z0: Tensor, z1: Tensor) -> Tensor:
    z0, z1 = functional.normalize(z0, dim=1), functional.normalize(z1, dim=1)
    return ChunkedLse.apply(torch.cat([z0, z1])).mean() - (z0 * z1).sum() / len(z0) / T


def flex_attention(z0: Tensor, z1: Tensor) -> Tensor:
    """The log-sum-exp that FlexAttention gives beside its result, every row leaving itself out."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as attend

    z0, z1 = functional.normalize(z0, dim=1), functional.normalize(z1, dim=1)
    z = torch.cat([z0, z1])[None, None]
    rows = z.shape[2]
    mask = create_block_mask(lambda b, h, i, j: i != j, None, None, rows, rows, device=z.device.type)
    _, lse = torch.compile(attend)(z, z, z, block_mask=mask, scale=1 / T, return_lse=True)
    return lse.mean() - (z0 * z1).sum() / len(z0) / T


Form = Callable[..., Tensor]


def compiled(form: Form) -> Form:
    torch._dynamo.reset()
    return torch.compile(form)


def needs_native() -> None:
    if fastcl.backends()["ntxent"]["cpu"] != "native":
        pytest.skip("native kernels were not built")


def ntxent(peer: Any) -> Form:
    needs_native()
    return losses.NTXentLoss(T)


def ntxent_bf16(peer: Any) -> Form:
    needs_native()
    return losses.NTXentLoss(T, precision="medium")


def pml(name: str) -> Callable[[Any], Form]:
    def make(peer: Any) -> Form:
        loss = getattr(peer("pytorch_metric_learning.losses"), name)(T)
        return lambda z0, z1: loss(torch.cat([z0, z1]), labels_of(z0))

    return make


NTXENT: dict[str, Callable[[Any], Form]] = {
    "fastcl": ntxent,
    "fastcl_bf16_products": ntxent_bf16,
    "lightly": lambda peer: peer("lightly.loss").NTXentLoss(T),
    "pytorch_metric_learning": pml("NTXentLoss"),
    "pytorch_metric_learning_supcon": pml("SupConLoss"),
    "plain": lambda peer: plain,
    "plain_compiled": lambda peer: compiled(plain),
    "chunked": lambda peer: chunked,
    "chunked_compiled": lambda peer: compiled(chunked),
    "flex_attention": lambda peer: flex_attention,
}

# --- CLIP, both directions


def plain_clip(image: Tensor, text: Tensor) -> Tensor:
    s, pairs = image @ text.T / T, torch.arange(len(image))
    return (functional.cross_entropy(s, pairs) + functional.cross_entropy(s.T, pairs)) / 2


def chunked_cross_entropy(peer: Any) -> Form:
    if not hasattr(functional, "linear_cross_entropy"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()

    def form(image: Tensor, text: Tensor) -> Tensor:
        pairs = torch.arange(len(image))
        both = ((image / T, text), (text / T, image))
        return sum(functional.linear_cross_entropy(q, k, pairs, options=options) for q, k in both) / 2

    return form


def clip(peer: Any) -> Form:
    needs_native()
    return lambda image, text: losses.ClipLoss()(image, text, 1 / T)


def open_clip(name: str, *extra: float) -> Callable[[Any], Form]:
    def make(peer: Any) -> Form:
        loss = getattr(peer("open_clip.loss"), name)()
        return lambda image, text: loss(image, text, 1 / T, *extra)

    return make


CLIP: dict[str, Callable[[Any], Form]] = {
    "fastcl": clip,
    "open_clip": open_clip("ClipLoss"),
    "linear_cross_entropy": chunked_cross_entropy,
    "plain": lambda peer: plain_clip,
    "plain_compiled": lambda peer: compiled(plain_clip),
}

# --- the rest of the family, each beside the peer that has it


def fastcl_labelled(loss: torch.nn.Module) -> Callable[[Any], Form]:
    return lambda peer: lambda z0, z1: loss(torch.cat([z0, z1]), labels_of(z0))


FAMILY: dict[str, dict[str, Callable[[Any], Form]]] = {
    "supcon": {"fastcl": fastcl_labelled(losses.SupConLoss(T)), "pytorch_metric_learning": pml("SupConLoss")},
    "pml_ntxent": {"fastcl": fastcl_labelled(compat_pml.NTXentLoss(T)), "pytorch_metric_learning": pml("NTXentLoss")},
    "dcl": {"fastcl": lambda peer: losses.DCLLoss(T), "lightly": lambda peer: peer("lightly.loss").DCLLoss(T)},
    "hard_negative": {"fastcl": lambda peer: losses.HardNegativeLoss(T)},
    "infonce": {"fastcl": lambda peer: losses.InfoNCELoss(T)},
    "siglip": {
        "fastcl": lambda peer: lambda image, text: losses.SigLipLoss()(image, text, 1 / T, -2.0),
        "open_clip": open_clip("SigLipLoss", -2.0),
    },
}

# --- timing


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def peak_growth(step: Callable[[], None]) -> float | None:
    """How far resident memory rises above where it was, in one step, MB; None where this is no Linux."""
    if sys.platform != "linux":
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def time_form(benchmark: Any, form: Form, n: int, flop: int, group: str) -> None:
    inputs = [functional.normalize(torch.randn(n, DIM), dim=1).requires_grad_() for _ in range(2)]

    def step() -> None:
        for x in inputs:
            x.grad = None
        form(*inputs).backward()

    step()  # compiles
    time_step(benchmark, step, n, flop, group)


def time_step(benchmark: Any, step: Callable[[], Any], n: int, flop: int, group: str) -> None:
    benchmark.group = f"{group} N={n} D={DIM}"
    benchmark.extra_info.update(
        flop=flop,
        peak_mb=peak_growth(step),
        huge_pages=os.environ.get("THP_MEM_ALLOC_ENABLE", "0"),
        threads=torch.get_num_threads(),
    )
    benchmark.pedantic(step, rounds=3 if n > 2000 else 9, warmup_rounds=1)


def run(benchmark: Any, make: Callable[[Any], Form], peer: Any, n: int, flop: int, group: str) -> None:
    torch.manual_seed(0)
    time_form(benchmark, make(peer), n, flop, group)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("form", NTXENT)
def bench_ntxent_forms(benchmark, peer, form, n):
    if form == "pytorch_metric_learning" and n > 256:
        pytest.skip("takes memory as N³: 2 GB at N=256, above 100 GB at N=1024")
    flop = 4 * (2 * n) ** 2 * DIM
    if form == "flex_attention":
        try:
            run(benchmark, NTXENT[form], peer, n, flop, "NT-Xent")
        except (RuntimeError, NotImplementedError) as error:
            pytest.skip(f"FlexAttention gives no gradient of its log-sum-exp here: {str(error).splitlines()[0]}")
        return
    run(benchmark, NTXENT[form], peer, n, flop, "NT-Xent")


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("form", CLIP)
def bench_clip_forms(benchmark, peer, form, n):
    run(benchmark, CLIP[form], peer, n, 8 * n**2 * DIM, "CLIP")


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("loss", "form"), [(loss, form) for loss, forms in FAMILY.items() for form in forms])
def bench_family(benchmark, peer, loss, form, n):
    if loss == "pml_ntxent" and form != "fastcl" and n > 256:
        pytest.skip("takes memory as N³: 2 GB at N=256, above 100 GB at N=1024")
    rows = n if loss in ("siglip", "infonce") else 2 * n
    run(benchmark, FAMILY[loss][form], peer, n, 4 * rows**2 * DIM, loss)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("gemm", ["torch_mm", "torch_mm_bf16", "numpy_openblas"])
def bench_limit(benchmark, gemm, n):
    """NT-Xent's 4·(2N)²·D flop as two products [2N, 2N] x [2N, D]: what it would take were all else free."""
    rows = 2 * n
    dtype = torch.bfloat16 if gemm == "torch_mm_bf16" else torch.float32
    s, z = torch.randn(rows, rows, dtype=dtype), torch.randn(rows, DIM, dtype=dtype)
    if gemm == "numpy_openblas":
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
        if "openblas" not in blas:
            pytest.skip(f"numpy was built with {blas}")
        a, b = s.numpy(), z.numpy()
        time_step(benchmark, lambda: (a @ b, a @ b), n, 4 * rows**2 * DIM, "NT-Xent")
    else:
        time_step(benchmark, lambda: (s @ z, s @ z), n, 4 * rows**2 * DIM, "NT-Xent")
