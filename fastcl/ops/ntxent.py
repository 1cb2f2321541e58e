r"""NT-Xent (Chen et al. 2020, SimCLR, eq. 1): formula, checks, reference and autograd; kernels in ``csrc/ntxent``.

With unit rows :math:`z = [z_0; z_1] / \lVert\cdot\rVert` of shape [2N, D] and pos(i) = i ± N,

.. math:: \ell_i = \log \sum_{j \ne i} \exp(\text{scale} \cdot z_i z_j) - \text{scale} \cdot z_i z_{pos(i)}
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcl.ops.checks import check_precision, check_scale, check_views
from fastcl.ops.registry import op, register

_EPS = 1e-12  # torch.nn.functional.normalize's: shorter rows are divided by it


def ntxent(z0: Tensor, z1: Tensor, scale: float | Tensor, *, precision: str | None = None) -> Tensor:
    r"""Per-row NT-Xent losses of two views, without the (2N, 2N) matrix; rows are normalised here.

    Args:
        z0: embeddings of the first view, [N, D], float32, bfloat16, float16 or float64.
        z1: embeddings of the second view, row i being the positive of ``z0``'s row i; shape and dtype of ``z0``.
        scale: 1 / temperature; a number, or a 0-d tensor that may require a gradient.
        precision: of the products of float32 inputs: ``"highest"`` or ``"high"`` (float32), ``"medium"`` (bfloat16 where
            the processor has it); ``None`` follows :func:`torch.get_float32_matmul_precision`.

    Returns:
        Losses [2N], float32 (float64 for float64 inputs): first the rows of ``z0``, then those of ``z1``. A row of zeros
        counts as a vector of similarity 0 to all and gets a zero gradient.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit.
    """
    check_views("ntxent", z0, z1)
    precision = check_precision("ntxent", precision)
    losses, _ = op("ntxent", z0)(z0, z1, check_scale("ntxent", scale, z0), precision)
    return losses  # type: ignore[no-any-return]


def _normalized(z0: Tensor, z1: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows [2N, D] and what each row was divided by [2N, 1], in float32 or float64."""
    z = torch.cat([z0, z1])
    z = z if z.dtype == torch.float64 else z.float()
    norm = z.norm(dim=1, keepdim=True).clamp_min(_EPS)
    return z / norm, norm


def _similarities(z: Tensor, scale: Tensor) -> Tensor:
    """Scaled similarities [2N, 2N]; a view is not its own negative."""
    return (scale * (z @ z.T)).fill_diagonal_(float("-inf"))


def _ntxent_reference(z0: Tensor, z1: Tensor, scale: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    z, _ = _normalized(z0, z1)
    s = _similarities(z, scale)
    lse = s.logsumexp(dim=1)
    rows = torch.arange(len(z), device=z.device)
    return lse - s[rows, rows.roll(len(z0))], lse


def _ntxent_backward_reference(
    grad_losses: Tensor, z0: Tensor, z1: Tensor, scale: Tensor, lse: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    z, norm = _normalized(z0, z1)
    grad_s = (_similarities(z, scale) - lse[:, None]).exp()
    rows = torch.arange(len(z), device=z.device)
    grad_s[rows, rows.roll(len(z0))] -= 1
    grad_s *= grad_losses[:, None]
    pull = (grad_s + grad_s.T) @ z
    along = (z * pull).sum(dim=1, keepdim=True)
    grad_scale = along.sum() / 2  # = Σ_ij grad_s_ij z_i z_j
    grad_z, along = scale * pull, scale * along  # the part of each row along z does not change its direction
    grad = torch.where(norm > _EPS, grad_z - z * along, grad_z * (z != 0).any(dim=1, keepdim=True)) / norm
    grad_z0, grad_z1 = grad.to(z0.dtype).chunk(2)
    return grad_z0.clone(), grad_z1.clone(), grad_scale.to(scale.dtype)


def _ntxent_fake(z0: Tensor, z1: Tensor, scale: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if z0.dtype == torch.float64 else torch.float32
    return z0.new_empty(2 * z0.shape[0], dtype=dtype), z0.new_empty(2 * z0.shape[0], dtype=dtype)


def _ntxent_backward_fake(
    grad_losses: Tensor, z0: Tensor, z1: Tensor, scale: Tensor, lse: Tensor, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(z0, memory_format=torch.contiguous_format),
        torch.empty_like(z1, memory_format=torch.contiguous_format),
        torch.empty_like(scale),
    )


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        z0, z1, scale, ctx.precision = inputs
        _, lse = output
        ctx.save_for_backward(z0, z1, scale, lse)
        ctx.mark_non_differentiable(lse)

    def backward(ctx: Any, grad_losses: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        z0, z1, scale, lse = ctx.saved_tensors
        return (*ops.ntxent_backward(grad_losses, z0, z1, scale, lse, ctx.precision), None)

    return setup_context, backward


register("ntxent_backward", _ntxent_backward_reference, _ntxent_backward_fake)
register("ntxent", _ntxent_reference, _ntxent_fake, _autograd)
