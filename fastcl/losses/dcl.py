"""Decoupled contrastive losses, with lightly's signatures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastcl.losses.distributed import Distributed, gathered
from fastcl.losses.embeddings import dot
from fastcl.losses.reduction import Reduction
from fastcl.losses.two_views import TwoViewLoss

WeightFunction = Callable[[Tensor, Tensor], Tensor]


def negative_mises_fisher_weights(out0: Tensor, out1: Tensor, sigma: float = 0.5) -> Tensor:
    """Weights of the positives by how alike they are (Yeh et al. 2021): 2 - N · softmax(out0 · out1 / sigma),
    [N].

    Args:
        out0: unit rows of the first view, [N, D].
        out1: unit rows of the second view, [N, D].
        sigma: what similarities are divided by.

    Returns:
        [N], without a gradient.
    """
    similarity = dot(out0.detach(), out1.detach())
    return 2 - out0.shape[0] * torch.softmax(similarity / sigma, dim=0)


class DCLLoss(TwoViewLoss):
    """Decoupled contrastive loss (Yeh et al. 2021); takes the place of ``lightly.loss.DCLLoss``.

    With unit rows z, the positive p(i) of row i, and weights w (1 without ``weight_fn``),

        loss_i = log Σ_(j ≠ i, p(i)) exp(<z_i, z_j> / T) - w_i <z_i, z_p(i)> / T

    A single sample has no negatives: the losses are then -inf.

    Args:
        temperature: T, what similarities are divided by, above 0.
        weight_fn: takes the unit rows of the two views, [N, D] each, gives the weights of the first's rows, [N].
        gather_distributed: lightly's name for ``distributed="gather"``.
        learnable_temperature: make the temperature a parameter, ``logit_scale.log_scale``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the rows: those of ``out0``, then those of ``out1``.
        precision: of the products of float32 embeddings, see :func:`fastcl.ops.similarity_lse`.
        distributed: ``"gather"`` or ``"ring"``: negatives come from all processes, see
            :mod:`fastcl.losses.distributed`.

    Raises:
        ValueError: for an option that is none.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: WeightFunction | None = None,
        gather_distributed: bool = False,
        *,
        learnable_temperature: bool = False,
        reduction: Reduction = "mean",
        precision: str | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        super().__init__(
            temperature,
            learnable_temperature=learnable_temperature,
            reduction=reduction,
            precision=precision,
            distributed=gathered(self._name, gather_distributed, distributed),
        )
        self.weight_fn = weight_fn

    def _losses(self, z0: Tensor, z1: Tensor, scale: float | Tensor, positive: Tensor) -> Tensor:
        if self.weight_fn is not None:
            positive = positive * torch.cat([self.weight_fn(z0, z1), self.weight_fn(z1, z0)])
        return self._negatives(z0, z1, scale) - positive


class DCLWLoss(DCLLoss):
    """Weighted decoupled contrastive loss (Yeh et al. 2021, L_DCW); takes the place of ``lightly.loss.DCLWLoss``.

    Args:
        temperature: what similarities are divided by, above 0.
        sigma: of :func:`negative_mises_fisher_weights`, above 0.
        gather_distributed: as in :class:`DCLLoss`, and so are the other arguments.
        learnable_temperature: make the temperature a parameter, ``logit_scale.log_scale``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the rows.
        precision: of the products of float32 embeddings.
        distributed: ``"gather"`` or ``"ring"``; the weights stay those of the process's own rows, as lightly's.

    Raises:
        ValueError: for an option that is none.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sigma: float = 0.5,
        gather_distributed: bool = False,
        *,
        learnable_temperature: bool = False,
        reduction: Reduction = "mean",
        precision: str | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        if not sigma > 0:
            raise ValueError(f"DCLWLoss: sigma must be above 0, got {sigma}")
        super().__init__(
            temperature,
            partial(negative_mises_fisher_weights, sigma=sigma),
            gather_distributed,
            learnable_temperature=learnable_temperature,
            reduction=reduction,
            precision=precision,
            distributed=distributed,
        )
