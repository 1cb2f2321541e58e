"""The primitive under the losses: masked log-sum-exp of scaled similarities; kernels in ``csrc/similarity_lse``.

    s_ij       = scale · <q_i, k_j>
    row_lse_i  = log Σ_j exp(s_ij)   over all j with q_group_i ≠ k_group_j
    col_lse_j  = log Σ_i exp(s_ij)   over all i with q_group_i ≠ k_group_j

Pairs of equal group are left out; that one rule covers self-exclusion, decoupled and supervised losses.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from fastcl.ops.checks import (
    check_like,
    check_matrix,
    check_precision,
    check_scale,
    floats_to_keep,
    is_differentiated,
    kept_by_nobody,
)
from fastcl.ops.registry import no_second_derivative, op, register


@overload
def similarity_lse(
    q: Tensor,
    k: Tensor | None,
    scale: float | Tensor,
    *,
    q_group: Tensor | None = ...,
    k_group: Tensor | None = ...,
    columns: Literal[False] = ...,
    precision: str | None = ...,
) -> Tensor: ...


@overload
def similarity_lse(
    q: Tensor,
    k: Tensor,
    scale: float | Tensor,
    *,
    q_group: Tensor | None = ...,
    k_group: Tensor | None = ...,
    columns: Literal[True],
    precision: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def similarity_lse(
    q: Tensor,
    k: Tensor | None,
    scale: float | Tensor,
    *,
    q_group: Tensor | None = None,
    k_group: Tensor | None = None,
    columns: bool = False,
    precision: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-sum-exp of scaled similarities over all pairs of different group, without the [M, P] matrix.

    Where a gradient may be asked for and all pairs' exponentials take at most 24 MB, the CPU's kernel keeps them.

    Args:
        q: queries [M, D], float32, bfloat16, float16 or float64, used as they are (not normalised).
        k: keys [P, D] of ``q``'s dtype; ``None`` takes ``q`` itself (half the work), each row leaving itself out.
        scale: 1 / temperature; a number, or a 0-d tensor that may require a gradient.
        q_group: int64 [M]; pairs with ``q_group[i] == k_group[j]`` are left out. ``None``: no pair is left out, or,
            where ``k`` is ``None``, only each row's pair with itself.
        k_group: int64 [P]; given exactly where ``q_group`` and ``k`` are.
        columns: also give the log-sum-exp over the rows for each column, from the same pass; only with ``k``.
        precision: of the products of float32 inputs: ``"highest"`` (float32), ``"high"`` (float32; on CUDA TF32),
            ``"medium"`` (bfloat16 where the processor multiplies those faster); ``None`` follows
            :func:`torch.get_float32_matmul_precision`.

    Returns:
        Row log-sum-exps [M], float32 (float64 for float64 inputs), ``-inf`` where no pair is left; with ``columns``
        also the columns' [P].

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit.
        RuntimeError: from the backward pass of a gradient, for there is no second derivative.
    """
    name = "similarity_lse"
    check_matrix(name, "q", q)
    if k is not None:
        check_matrix(name, "k", k)
        check_like(name, "k", k, "q", q)
        if k.shape[1] != q.shape[1]:
            raise ValueError(f"{name}: k must be [P, {q.shape[1]}] as q is {list(q.shape)}, got {list(k.shape)}")
    elif columns or k_group is not None:
        raise ValueError(f"{name}: {'columns' if columns else 'k_group'} needs k, got k=None")
    if q.shape[1] == 0:
        raise ValueError(f"{name}: q must have at least one column, got {list(q.shape)}")
    if k is not None and (q_group is None) != (k_group is None):
        raise ValueError(f"{name}: q_group and k_group go together, got only {'k' if q_group is None else 'q'}_group")
    for group_name, group, rows in (("q_group", q_group, q), ("k_group", k_group, k)):
        if group is None:
            continue
        if group.dtype != torch.int64:
            raise TypeError(f"{name}: {group_name} must be int64, got {group.dtype}")
        if rows is None or group.shape != rows.shape[:1] or group.device != q.device:
            wanted = "absent" if rows is None else f"[{rows.shape[0]}] on {q.device}"
            raise ValueError(f"{name}: {group_name} must be {wanted}, got {list(group.shape)} on {group.device}")
    scale = check_scale(name, scale, q)
    cols = (q if k is None else k).shape[0]
    keep = floats_to_keep(name, q.device, q.shape[0], cols) if is_differentiated(q, k, scale) else 0
    row_lse, col_lse, _ = op(name, q)(q, k, scale, q_group, k_group, columns, check_precision(name, precision), keep)
    return (row_lse, col_lse) if columns else row_lse


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _masked_similarities(
    q: Tensor, k: Tensor | None, scale: Tensor, q_group: Tensor | None, k_group: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scaled similarities [M, P], -inf where left out, and the keys in the similarities' dtype."""
    if k is None:
        q_group = torch.arange(len(q), device=q.device) if q_group is None else q_group
        k, k_group = q, q_group
    s = scale * (_wide(q) @ _wide(k).T)
    if q_group is not None and k_group is not None:
        s = s.masked_fill(q_group[:, None] == k_group[None, :], float("-inf"))
    return s, _wide(k)


def _similarity_lse_reference(
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    q_group: Tensor | None,
    k_group: Tensor | None,
    columns: bool,
    precision: str,
    keep: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    s, _ = _masked_similarities(q, k, scale, q_group, k_group)
    return s.logsumexp(dim=1), s.logsumexp(dim=0) if columns else s.new_empty(0), kept_by_nobody(q, keep)


def _probabilities(s: Tensor, lse: Tensor) -> Tensor:
    """exp(s - lse), and 0 where both are -inf."""
    return (s - lse.masked_fill(lse == float("-inf"), 0)).exp()


def _similarity_lse_backward_reference(
    grad_row: Tensor,
    grad_col: Tensor,
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    q_group: Tensor | None,
    k_group: Tensor | None,
    row_lse: Tensor,
    col_lse: Tensor,
    need_q: bool,
    need_k: bool,
    precision: str,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    s, keys = _masked_similarities(q, k, scale, q_group, k_group)
    grad_s = grad_row[:, None] * _probabilities(s, row_lse[:, None])
    if len(col_lse):
        grad_s += grad_col * _probabilities(s, col_lse)
    grad_scale = (grad_s * (_wide(q) @ keys.T)).sum().to(scale.dtype)
    if k is None:
        grad_s = grad_s + grad_s.T
    grad_q = scale * (grad_s @ keys) if need_q or k is None else q.new_empty(0)
    grad_k = scale * (grad_s.T @ _wide(q)) if need_k and k is not None else q.new_empty(0)
    return grad_q.to(q.dtype), grad_k.to(q.dtype), grad_scale


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _similarity_lse_fake(
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    q_group: Tensor | None,
    k_group: Tensor | None,
    columns: bool,
    precision: str,
    keep: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    cols = k.shape[0] if columns and k is not None else 0
    row_lse, col_lse = (q.new_empty(count, dtype=_wide_dtype(q)) for count in (q.shape[0], cols))
    return row_lse, col_lse, kept_by_nobody(q, keep)


def _similarity_lse_backward_fake(
    grad_row: Tensor,
    grad_col: Tensor,
    q: Tensor,
    k: Tensor | None,
    scale: Tensor,
    q_group: Tensor | None,
    k_group: Tensor | None,
    row_lse: Tensor,
    col_lse: Tensor,
    need_q: bool,
    need_k: bool,
    precision: str,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_q = q.new_empty(q.shape if need_q or k is None else (0,))
    grad_k = q.new_empty(k.shape if need_k and k is not None else (0,))
    return grad_q, grad_k, torch.empty_like(scale)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        q, k, scale, q_group, k_group, _, ctx.precision, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(q, k, scale, q_group, k_group, *output)

    def backward(ctx: Any, grad_row: Tensor | None, grad_col: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        *inputs, row_lse, col_lse, kept = ctx.saved_tensors
        grad_row = torch.zeros_like(row_lse) if grad_row is None else grad_row
        grad_col = torch.zeros_like(col_lse) if grad_col is None else grad_col
        # The scale's gradient is formed from the queries'.
        need_q, need_k = ctx.needs_input_grad[0] or ctx.needs_input_grad[2], ctx.needs_input_grad[1]
        grad_q, grad_k, grad_scale = ops.similarity_lse_backward(
            grad_row, grad_col, *inputs, row_lse, col_lse, need_q, need_k, ctx.precision, kept
        )
        return (grad_q if need_q else None, grad_k if need_k else None, grad_scale, None, None, None, None, None)

    return setup_context, backward


register(
    "similarity_lse_backward",
    _similarity_lse_backward_reference,
    _similarity_lse_backward_fake,
    no_second_derivative("similarity_lse"),
)
register("similarity_lse", _similarity_lse_reference, _similarity_lse_fake, _autograd)
