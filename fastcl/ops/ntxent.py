"""NT-Xent (Chen et al. 2020, SimCLR, eq. 1): formula, checks, reference and autograd; kernels in ``csrc/ntxent``.

With unit rows z of both views, [2N, D], and pos(i) = i ± N,

    loss_i = log Σ_(j ≠ i) exp(scale · <z_i, z_j>) - scale · <z_i, z_pos(i)>
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.ops.checks import (
    check_precision,
    check_scale,
    check_views,
    floats_to_keep,
    is_differentiated,
    kept_by_nobody,
)
from fastcl.ops.registry import no_second_derivative, op, register

_EPS = 1e-12  # torch.nn.functional.normalize's: shorter rows are divided by it


def ntxent(z0: Tensor, z1: Tensor, scale: float | Tensor, *, precision: str | None = None) -> Tensor:
    """Per-row NT-Xent losses of two views, without the (2N, 2N) matrix; rows are normalised here.

    Where a gradient may be asked for and all pairs' exponentials take at most 24 MB, the CPU's kernel keeps them.

    Args:
        z0: embeddings of the first view, [N, D], float32, bfloat16, float16 or float64.
        z1: embeddings of the second view, row i being the positive of ``z0``'s row i; shape and dtype of ``z0``.
        scale: 1 / temperature; a number, or a 0-d tensor that may require a gradient.
        precision: of the products of float32 inputs: ``"highest"`` (float32), ``"high"`` (float32; on CUDA TF32),
            ``"medium"`` (bfloat16 where the processor multiplies those faster); ``None`` follows
            :func:`torch.get_float32_matmul_precision`.

    Returns:
        Losses [2N], float32 (float64 for float64 inputs): first the rows of ``z0``, then those of ``z1``. A row of
        zeros counts as a vector of similarity 0 to all and gets a zero gradient.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit.
        RuntimeError: from the backward pass of a gradient, for there is no second derivative.
    """
    check_views("ntxent", z0, z1)
    scale = check_scale("ntxent", scale, z0)
    n, dim = z0.shape
    keep = floats_to_keep("ntxent", z0.device, 2 * n, 2 * n, dim) if is_differentiated(z0, z1, scale) else 0
    losses: Tensor = op("ntxent", z0)(z0, z1, scale, check_precision("ntxent", precision), keep)[0]
    return losses


def _normalized(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows [2N, D] and what each row was divided by [2N, 1], in float32 or float64."""
    z = torch.cat([z0, z1])
    z = z if z.dtype == torch.float64 else z.float()
    norm = z.norm(dim=1, keepdim=True).clamp_min(_EPS)
    return z / norm, norm


def _similarities(z: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled similarities to the negatives, [2N, 2N], -inf for a row's own and its positive; to the positive, [2N]."""
    n = len(z) // 2
    sample = torch.arange(2 * n, device=z.device) % n
    negative = (scale * (z @ z.T)).masked_fill(sample[:, None] == sample, float("-inf"))
    return negative, scale * (z * z.roll(n, 0)).sum(dim=1)


def _ntxent_reference(z0: Tensor, z1: Tensor, scale: Tensor, precision: str, keep: int = 0) -> tuple[Tensor, Tensor]:
    z, _ = _normalized(z0, z1)
    negative, positive = _similarities(z, scale)
    # log(e^positive + Σ e^negative) - positive, exact where it is small.
    return functional.softplus(negative.logsumexp(dim=1) - positive), kept_by_nobody(z0, keep)


def _ntxent_backward_reference(
    grad_losses: Tensor,
    z0: Tensor,
    z1: Tensor,
    scale: Tensor,
    losses: Tensor,
    precision: str,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    z, norm = _normalized(z0, z1)
    n = len(z0)
    negative, positive = _similarities(z, scale)
    grad_negative = grad_losses[:, None] * (negative - (positive + losses)[:, None]).exp()
    grad_positive = grad_losses * (-losses).expm1()  # softmax - 1
    pull = (grad_negative + grad_negative.T) @ z + (grad_positive + grad_positive.roll(n))[:, None] * z.roll(n, 0)
    along = (z * pull).sum(dim=1, keepdim=True)
    grad_scale = along.sum() / 2  # = Σ_ij grad_s_ij z_i z_j
    # The part of each row along z does not change its direction; a row of zeros has none.
    grad = torch.where(norm > _EPS, pull - z * along, pull * (z != 0).any(dim=1, keepdim=True)) * scale / norm
    return grad.to(z0.dtype).reshape(2, *z0.shape), grad_scale.to(scale.dtype)


def _ntxent_fake(z0: Tensor, z1: Tensor, scale: Tensor, precision: str, keep: int = 0) -> tuple[Tensor, Tensor]:
    losses = z0.new_empty(2 * z0.shape[0], dtype=torch.float64 if z0.dtype == torch.float64 else torch.float32)
    return losses, kept_by_nobody(z0, keep)


def _ntxent_backward_fake(grad_losses: Tensor, z0: Tensor, z1: Tensor, scale: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return z0.new_empty(2, *z0.shape), torch.empty_like(scale)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        z0, z1, scale, ctx.precision, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(z0, z1, scale, *output)

    def backward(ctx: Any, grad_losses: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_losses is None:
            return None, None, None, None, None
        *inputs, losses, kept = ctx.saved_tensors
        grad_z, grad_scale = ops.ntxent_backward(grad_losses, *inputs, losses, ctx.precision, kept)
        return grad_z[0], grad_z[1], grad_scale, None, None

    return setup_context, backward


register("ntxent_backward", _ntxent_backward_reference, _ntxent_backward_fake, no_second_derivative("ntxent"))
register("ntxent", _ntxent_reference, _ntxent_fake, _autograd)
