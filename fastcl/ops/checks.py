"""Argument checks that several ops share; every message names the op, the argument, what was wanted and what came."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcl.ops.registry import constant_in_graphs, runs_native

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PRECISIONS = ("highest", "high", "medium")
_MOST_KEPT = 6_000_000  # floats, 24 MB: more are formed again sooner than fetched from memory
_PADDING = 64  # rows or columns, at least what any kernel adds


def check_matrix(op: str, name: str, value: Tensor) -> None:
    """Wants a floating [rows, dim] tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if value.dim() != 2:
        raise ValueError(f"{op}: {name} must be [rows, dim], got {list(value.shape)}")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}")


def check_like(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Wants `value` on `other`'s device and of its dtype."""
    if value.device != other.device:
        raise ValueError(f"{op}: {name} must be on {other_name}'s device {other.device}, got {value.device}")
    if value.dtype != other.dtype:
        raise TypeError(f"{op}: {name} must have {other_name}'s dtype {other.dtype}, got {value.dtype}")


def check_views(op: str, z0: Tensor, z1: Tensor) -> None:
    """Wants two [N, D] tensors of one shape, dtype and device, N and D at least 1."""
    check_matrix(op, "z0", z0)
    check_matrix(op, "z1", z1)
    if z0.shape != z1.shape:
        raise ValueError(f"{op}: z1 must have z0's shape {list(z0.shape)}, got {list(z1.shape)}")
    if z0.numel() == 0:
        raise ValueError(f"{op}: z0 must have at least one row and one column, got {list(z0.shape)}")
    check_like(op, "z1", z1, "z0", z0)


def check_scale(op: str, scale: float | Tensor, like: Tensor) -> Tensor:
    """Gives the scale as a 0-d tensor on `like`'s device: float64 for float64 rows, else float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if not isinstance(scale, Tensor):
        return torch.full((), float(scale), dtype=dtype, device=like.device)
    if scale.numel() != 1:
        raise ValueError(f"{op}: scale must be a number or a tensor of one element, got {list(scale.shape)}")
    return scale.reshape(()).to(device=like.device, dtype=dtype)


@constant_in_graphs
def _default_precision() -> str:
    return torch.get_float32_matmul_precision()


def check_precision(op: str, precision: str | None) -> str:
    """Gives the precision of float32 products, by default torch's own setting."""
    if precision is None:
        return _default_precision()
    if precision not in PRECISIONS:
        raise ValueError(f"{op}: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


def is_differentiated(*inputs: Tensor | None) -> bool:
    """Whether a backward pass may follow."""
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs)


def floats_to_keep(op: str, device: torch.device, rows: int, cols: int, dim: int = 0) -> int:
    """How many floats a forward pass keeps for its backward pass, which has a quarter less to do then.

    They are the exponentials of all pairs and, where `dim` is given, the rows. None are kept but by the kernels of the
    CPU, nor where the exponentials would take more than 24 MB: memory then grows with the rows, not with their square.
    """
    if device.type != "cpu" or not runs_native(op, "cpu"):
        return 0
    pairs = (rows + _PADDING) * (cols + _PADDING)
    return pairs + (rows + _PADDING) * (dim + _PADDING) if pairs <= _MOST_KEPT else 0


def kept_by_nobody(like: Tensor, keep: int) -> Tensor:
    """What a reference gives for the floats to keep: it forms everything again."""
    return like.new_empty(keep, dtype=torch.float32)
