"""The primitive, rectangular with rows and columns (CLIP's form), forward and backward, beside plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastcl
from fastcl.ops import similarity_lse

SCALE = 10.0


def plain(q: Tensor, k: Tensor) -> Tensor:
    s = SCALE * (q @ k.T)
    return s.logsumexp(dim=1).mean() + s.logsumexp(dim=0).mean()


def native(q: Tensor, k: Tensor) -> Tensor:
    with fastcl.use_backend("native"):
        row, col = similarity_lse(q, k, SCALE, columns=True)
    return row.mean() + col.mean()


FORMS = {"native": native, "plain": plain}


@pytest.mark.parametrize("n", [256, 1024, 4096])
@pytest.mark.parametrize("form", FORMS)
def bench_similarity_lse(benchmark, form, n):
    q, k = (functional.normalize(torch.randn(n, 128), dim=1).requires_grad_() for _ in range(2))

    def step() -> None:
        q.grad = k.grad = None
        FORMS[form](q, k).backward()

    benchmark.group = f"similarity_lse N={n} D=128"
    benchmark.extra_info["flop"] = 6 * n * n * 128
    benchmark.pedantic(step, rounds=7, warmup_rounds=2)
