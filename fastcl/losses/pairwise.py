"""Sums over pairs that are no log-sum-exp, or over a part of all pairs, in blocks that backward forms again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastcl.losses.embeddings import without_autocast

# Rows, keys, and which of those pairs are left out: where a mask is set, those on a diagonal (block row i with block
# key number + i), or none.
Block = tuple[slice, slice, "Tensor | int | None"]
Blocks = Callable[[], Iterable[Block]]

_BLOCK_ELEMENTS = 1 << 20


def rows_of_a_block(keys: int, elements: int = _BLOCK_ELEMENTS) -> int:
    """How many rows against ``keys`` keys make a block of about ``elements`` pairs."""
    return max(1, elements // max(1, keys))


def add_at(index: Tensor, values: Tensor, rows: int) -> Tensor:
    """Sums ``values`` [B, ...] into ``rows`` rows by ``index`` int64 [B], in the same order every time."""
    sums = values.new_zeros(rows, *values.shape[1:])
    # On CUDA index_add adds in any order and index_put sorts; on the CPU index_put may be the one that does not.
    if values.device.type == "cpu":
        return sums.index_add(0, index, values)
    return sums.index_put((index,), values, accumulate=True)


def _block_logits(q: Tensor, k: Tensor, scale: Tensor, offset: Tensor, block: Block) -> Tensor:
    rows, keys, left_out = block
    logits = torch.addmm(offset[rows, None], scale * q[rows], k[keys].T)
    if isinstance(left_out, int):
        logits.diagonal(left_out).fill_(float("-inf"))
    elif left_out is not None:
        logits.masked_fill_(left_out, float("-inf"))
    return logits


def softplus_sums_forward(q: Tensor, k: Tensor, scale: Tensor, offset: Tensor, blocks: Blocks) -> Tensor:
    """See :func:`softplus_sums`."""
    sums = torch.zeros_like(offset)
    with without_autocast(q):
        for block in blocks():
            logits = _block_logits(q, k, scale, offset, block)
            sums[block[0]] += torch.nn.functional.softplus(logits).sum(dim=1)
    return sums


def softplus_sums_backward(
    grad: Tensor, q: Tensor, k: Tensor, scale: Tensor, offset: Tensor, blocks: Blocks
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, scale and offset, given that of :func:`softplus_sums`'s result."""
    grad_q, grad_k, grad_offset = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(offset)
    with without_autocast(q):
        for block in blocks():
            rows, keys, _ = block
            grad_logits = _block_logits(q, k, scale, offset, block).sigmoid_().mul_(grad[rows, None])
            grad_offset[rows] += grad_logits.sum(dim=1)
            grad_q[rows] += grad_logits @ k[keys]
            grad_k[keys] += grad_logits.T @ q[rows]
    grad_scale = (grad_q * q).sum().to(scale.dtype)
    return grad_q.mul_(scale), grad_k.mul_(scale), grad_scale, grad_offset


class _SoftplusSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: Tensor, offset: Tensor, blocks: Blocks) -> Tensor:
        ctx.save_for_backward(q, k, scale, offset)
        ctx.blocks = blocks
        return softplus_sums_forward(q, k, scale, offset, blocks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, scale, offset = ctx.saved_tensors
        return (*softplus_sums_backward(grad, q, k, scale, offset, ctx.blocks), None)


def softplus_sums(q: Tensor, k: Tensor, scale: Tensor, offset: Tensor, blocks: Blocks) -> Tensor:
    """For each row Σ_j log(1 + exp(scale · <q_i, k_j> + offset_i)) over the pairs in
    ``blocks``.

    Only one block of pairs exists at a time, forward or backward.

    Args:
        q: [M, D], float32 or float64.
        k: [P, D], of ``q``'s dtype.
        scale: 0-d, of ``q``'s dtype.
        offset: [M], of ``q``'s dtype.
        blocks: gives the blocks; called once forward and once backward, and must give the same each time.

    Returns:
        [M], of ``q``'s dtype.
    """
    sums: Tensor = _SoftplusSums.apply(q, k, scale, offset, blocks)
    return sums


class _PairDots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, i, j)
        step = rows_of_a_block(q.shape[1])
        return torch.cat(
            [(q[a] * k[b]).sum(dim=1) for a, b in zip(torch.split(i, step), torch.split(j, step), strict=True)]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, i, j = ctx.saved_tensors
        grad_q, grad_k = torch.zeros_like(q), torch.zeros_like(k)
        step = rows_of_a_block(q.shape[1])
        for a, b, g in zip(*(torch.split(x, step) for x in (i, j, grad[:, None])), strict=True):
            grad_q += add_at(a, g * k[b], len(q))
            grad_k += add_at(b, g * q[a], len(k))
        return grad_q, grad_k, None, None


def pair_dots(q: Tensor, k: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Inner products of listed pairs, ``q[i] · k[j]``, [B], without two [B, D] tensors; ``i``, ``j`` int64 [B]."""
    dots: Tensor = _PairDots.apply(q, k, i, j)
    return dots


def lse_at(index: Tensor, values: Tensor, rows: int) -> Tensor:
    """Log-sum-exp of ``values`` [B] into ``rows`` rows by ``index`` int64 [B]; -inf where a row has none."""
    largest = values.new_full((rows,), float("-inf")).scatter_reduce(0, index, values.detach(), "amax")
    largest = largest.masked_fill(largest == float("-inf"), 0)
    return add_at(index, (values - largest[index]).exp(), rows).log() + largest
