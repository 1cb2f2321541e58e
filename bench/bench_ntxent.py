"""NT-Xent forward and backward by N and D: the native op and plain PyTorch; peers and limits are in bench_losses.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastcl
from fastcl.ops import ntxent

SCALE = 10.0  # T = 0.1


def plain(z0: Tensor, z1: Tensor) -> Tensor:
    z = functional.normalize(torch.cat([z0, z1]), dim=1)
    s = (SCALE * (z @ z.T)).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    return functional.cross_entropy(s, torch.arange(len(z)).roll(len(z0)))


def native(z0: Tensor, z1: Tensor) -> Tensor:
    with fastcl.use_backend("native"):
        return ntxent(z0, z1, SCALE).mean()


FORMS = {"native": native, "plain": plain}


@pytest.mark.parametrize("dim", [64, 128, 512, 1024])
@pytest.mark.parametrize("n", [256, 1024, 4096])
@pytest.mark.parametrize("form", FORMS)
def bench_ntxent(benchmark, form, n, dim):
    if dim != 128 and n != 1024:
        pytest.skip("dimensions other than 128 are timed at N=1024")
    z0, z1 = (torch.randn(n, dim, requires_grad=True) for _ in range(2))

    def step() -> None:
        z0.grad = z1.grad = None
        FORMS[form](z0, z1).backward()

    benchmark.group = f"ntxent N={n} D={dim}"
    benchmark.extra_info["flop"] = 4 * (2 * n) ** 2 * dim
    benchmark.pedantic(step, rounds=7, warmup_rounds=2)
