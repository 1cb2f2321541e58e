"""A ring of past embeddings that serve as negatives (He et al. 2020, MoCo)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """Keeps the last ``size`` rows given to :meth:`enqueue`, as float32 unit rows, in its ``state_dict``.

    Args:
        size: number of rows and their dimension, ``(rows, dim)``. The rows start as random unit vectors.

    Raises:
        ValueError: unless both are positive.
    """

    rows: Tensor
    next_row: Tensor

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        if len(tuple(size)) != 2 or min(size) < 1:
            raise ValueError(f"MemoryBank: size must be (rows, dim), both at least 1, got {tuple(size)}")
        self.register_buffer("rows", nn.functional.normalize(torch.randn(*size), dim=1))
        self.register_buffer("next_row", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """Replaces the oldest rows by ``rows`` [B, dim]; of more rows than fit, the last stay."""
        if rows.dim() != 2 or rows.shape[1] != self.rows.shape[1]:
            raise ValueError(f"MemoryBank: rows must be [B, {self.rows.shape[1]}], got {list(rows.shape)}")
        size = len(self.rows)
        at = (self.next_row + torch.arange(len(rows), device=rows.device)) % size
        self.rows[at[-size:]] = rows[-size:].detach().to(self.rows.dtype)
        self.next_row.copy_((self.next_row + len(rows)) % size)
