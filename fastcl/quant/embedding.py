"""Embedding tables in int8, each row with a scale of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Int8EmbeddingBag"]


class Int8EmbeddingBag(nn.Module):
    """The sum of the rows of a table that a bag names; the table takes a quarter of the float one's memory.

    Attributes:
        weight: int8 [rows, dim].
        scale: float32 [rows]: weight * scale is the float table, to half a scale.
    """

    def __init__(self, weight: Tensor, scale: Tensor, padding_idx: int | None) -> None:
        super().__init__()
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.padding_idx = padding_idx

    @classmethod
    def from_float(cls, bag: nn.EmbeddingBag) -> Int8EmbeddingBag:
        """The same table in int8.

        Raises:
            ValueError: for a bag that does something else than sum, or whose weight is not finite.
        """
        if bag.mode != "sum" or bag.max_norm is not None:
            raise ValueError(f"Int8EmbeddingBag: mode must be sum, without max_norm, got {bag.mode}, {bag.max_norm}")
        weight = bag.weight.detach().float()
        if not weight.isfinite().all():
            raise ValueError("Int8EmbeddingBag: weight must be finite")
        scale = weight.abs().amax(1) / 127
        rounded = (weight / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-127, 127)
        return cls(rounded.to(torch.int8), scale, bag.padding_idx)

    def forward(self, rows: Tensor) -> Tensor:
        """Sums of the rows named, float32 [B, dim], for int64 [B, n]."""
        # Only the rows that are named become floats, each once.
        used = torch.zeros(len(self.weight), dtype=torch.bool, device=rows.device)
        used[rows] = True
        named = used.nonzero()[:, 0]
        places = (used.cumsum(0) - 1)[rows]
        table = self.weight[named].float() * self.scale[named, None]
        if self.padding_idx is not None:
            table[named == self.padding_idx] = 0
        return nn.functional.embedding_bag(places, table, mode="sum")
