"""What the losses of two views share whose negatives are all rows but those of a row's own sample."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcl.losses.base import ContrastiveLoss
from fastcl.losses.distributed import lse_of_all
from fastcl.losses.embeddings import check_embeddings, dot, same_sample, unit_rows
from fastcl.losses.reduction import reduce


class TwoViewLoss(ContrastiveLoss):
    """Forms the unit rows and the similarity to the positive; subclasses say what a row's loss is of them."""

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Gives the loss of two views.

        Args:
            out0: embeddings of the first view, [N, D], float32, bfloat16, float16 or float64; need not be normalised.
            out1: embeddings of the second view, [N, D], row i being of the same sample as ``out0``'s.

        Returns:
            A scalar, or the losses of the rows [2N] for ``reduction="none"``; float32 (float64 for float64).

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for shapes that do not fit.
        """
        check_embeddings(self._name, out0=out0, out1=out1)
        z0, z1, scale = unit_rows(out0), unit_rows(out1), self.logit_scale.scale()
        positive = scale * dot(z0, z1).repeat(2)
        return reduce(self._losses(z0, z1, scale, positive), self.reduction)

    def _losses(self, z0: Tensor, z1: Tensor, scale: float | Tensor, positive: Tensor) -> Tensor:
        """The losses of the rows [2N], given the logits of their positives [2N]."""
        raise NotImplementedError

    def _negatives(self, z0: Tensor, z1: Tensor, scale: float | Tensor) -> Tensor:
        """Log of Σ exp(scale · similarity) over the rows of other samples, [2N]; -inf where there are none."""
        samples = z0.shape[0]
        z = torch.cat([z0, z1])
        group = same_sample(2, samples, z.device)
        return lse_of_all(z, z, scale, group, samples, distributed=self.distributed, precision=self.precision)
