"""What becomes of the losses of the rows."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


def check_reduction(owner: str, reduction: Reduction) -> Reduction:
    """Wants one of the three."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"{owner}: reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
    return reduction


def reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    """The mean, the sum, or the losses as they are."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()
