"""Embeddings as the losses take them: checked, in at least float32, and of unit length."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastcl.ops.checks import check_like, check_matrix

_EPS = 1e-12  # torch.nn.functional.normalize's: shorter rows are divided by it


def check_embeddings(owner: str, **embeddings: Tensor) -> None:
    """Wants floating [N, D] tensors, all of the first one's shape, dtype and device, N and D at least 1."""
    names = list(embeddings)
    first = embeddings[names[0]]
    check_matrix(owner, names[0], first)
    if first.numel() == 0:
        raise ValueError(f"{owner}: {names[0]} must have at least one row and one column, got {list(first.shape)}")
    for name in names[1:]:
        check_matrix(owner, name, embeddings[name])
        if embeddings[name].shape != first.shape:
            wanted, got = list(first.shape), list(embeddings[name].shape)
            raise ValueError(f"{owner}: {name} must have {names[0]}'s shape {wanted}, got {got}")
        check_like(owner, name, embeddings[name], names[0], first)


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Products inside are of the operands' own dtype; on ``x``'s device."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def unit_rows(x: Tensor) -> Tensor:
    """Divides the last dimension by its length, in at least float32; zeros stay zeros and get a zero gradient."""
    x = wide(x)
    length = x.norm(dim=-1, keepdim=True)
    # The gradient of zeros / 1e-12 would be of the order 1e12.
    return x * torch.where(length > 0, length.clamp_min(_EPS).reciprocal(), 0.0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of two [N, D] tensors, [N], in at least float32."""
    return (wide(a) * wide(b)).sum(dim=-1)


def same_sample(views: int, samples: int, device: torch.device) -> Tensor:
    """The sample number of each row of ``views`` batches one after the other, int64 [views * samples]."""
    return torch.arange(samples, device=device).repeat(views)
