"""What the losses of two views share whose negatives are all rows but those of a row's own sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcl.losses.base import ContrastiveLoss
from fastcl.losses.distributed import lse_of_all
from fastcl.losses.embeddings import check_embeddings, dot, same_sample, unit_rows


class TwoViewLoss(ContrastiveLoss):
    """Gives subclasses the unit rows, the similarity to the positive, and the log-sum-exp over the negatives."""

    def _unit_views(self, out0: Tensor, out1: Tensor) -> tuple[Tensor, Tensor]:
        """Checked and normalised, [N, D] each."""
        check_embeddings(self._name, out0=out0, out1=out1)
        return unit_rows(out0), unit_rows(out1)

    def _negatives(self, z0: Tensor, z1: Tensor, scale: float | Tensor) -> Tensor:
        """Log of Σ exp(scale · similarity) over the rows of other samples, [2N]; -inf where there are none."""
        samples = z0.shape[0]
        z = torch.cat([z0, z1])
        group = same_sample(2, samples, z.device)
        return lse_of_all(z, z, scale, group, samples, distributed=self.distributed, precision=self.precision)

    @staticmethod
    def _positives(z0: Tensor, z1: Tensor) -> Tensor:
        """Similarity of each row to its positive, [2N]."""
        return dot(z0, z1).repeat(2)
