"""Debiased and hardness-weighted NT-Xent: what the negatives add up to is estimated, not counted."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.losses.distributed import Distributed, world
from fastcl.losses.reduction import Reduction
from fastcl.losses.two_views import TwoViewLoss


class DebiasedLoss(TwoViewLoss):
    """Debiased contrastive loss (Chuang et al. 2020, eq. 7 and 8): some negatives are positives in truth.

    With unit rows z, the positive p(i) of row i, its M negatives j, and s_ij = <z_i, z_j> / T,

        G_i    = max((Σ_j exp(s_ij) - M · tau_plus · exp(s_ip(i))) / (1 - tau_plus), M · exp(-1/T))
        loss_i = log(exp(s_ip(i)) + G_i) - s_ip(i)

    Args:
        temperature: T, what similarities are divided by, above 0.
        tau_plus: probability that a negative is of the row's own class, in [0, 1); 0 gives NT-Xent, but for the floor.
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
        temperature: float = 0.5,
        tau_plus: float = 0.1,
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
            distributed=distributed,
        )
        if not 0 <= tau_plus < 1:
            raise ValueError(f"{self._name}: tau_plus must be at least 0 and below 1, got {tau_plus}")
        self.tau_plus = tau_plus

    def _losses(self, z0: Tensor, z1: Tensor, scale: float | Tensor, positive: Tensor) -> Tensor:
        processes = world()[1] if self.distributed is not None else 1
        log_count = math.log(2 * (processes * len(z0) - 1)) if processes * len(z0) > 1 else -math.inf
        negatives = self._log_sum(z0, z1, scale, log_count)
        return functional.softplus(self._debiased(negatives, positive, scale, log_count) - positive)

    def _log_sum(self, z0: Tensor, z1: Tensor, scale: float | Tensor, log_count: float) -> Tensor:
        """Log of what the negatives add up to, before it is debiased, [2N]."""
        return self._negatives(z0, z1, scale)

    def _debiased(self, negatives: Tensor, positive: Tensor, scale: float | Tensor, log_count: float) -> Tensor:
        """log G of the formula above, from the logs of the two exponentials and of the number of negatives."""
        log_sum = negatives - math.log1p(-self.tau_plus)
        is_positive = negatives > -math.inf
        if self.tau_plus > 0:
            excess = math.log(self.tau_plus) + log_count + positive - negatives
            is_positive = excess < 0
            log_sum = log_sum + torch.log(-torch.expm1(torch.where(is_positive, excess, -1.0)))
        floor = (log_count - scale) * torch.ones_like(positive)
        return torch.where(is_positive, torch.maximum(log_sum, floor), floor)


class HardNegativeLoss(DebiasedLoss):
    """Contrastive loss with hard negatives (Robinson et al. 2021, section 3): near negatives weigh more.

    As :class:`DebiasedLoss`, with the sum over the M negatives replaced by

        M · Σ_j exp((1 + beta) s_ij) / Σ_j exp(beta s_ij)

    Args:
        temperature: T, what similarities are divided by, above 0.
        tau_plus: probability that a negative is of the row's own class, in [0, 1).
        beta: how much more near negatives weigh, at least 0; 0 gives :class:`DebiasedLoss`.
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
        temperature: float = 0.5,
        tau_plus: float = 0.1,
        beta: float = 1.0,
        *,
        learnable_temperature: bool = False,
        reduction: Reduction = "mean",
        precision: str | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        super().__init__(
            temperature,
            tau_plus,
            learnable_temperature=learnable_temperature,
            reduction=reduction,
            precision=precision,
            distributed=distributed,
        )
        if not (beta >= 0 and math.isfinite(beta)):
            raise ValueError(f"HardNegativeLoss: beta must be at least 0 and finite, got {beta}")
        self.beta = beta

    def _log_sum(self, z0: Tensor, z1: Tensor, scale: float | Tensor, log_count: float) -> Tensor:
        if self.beta == 0 or log_count == -math.inf:
            return self._negatives(z0, z1, scale)
        hard = self._negatives(z0, z1, scale * (1 + self.beta))
        return log_count + hard - self._negatives(z0, z1, scale * self.beta)
