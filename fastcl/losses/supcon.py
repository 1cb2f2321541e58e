"""The supervised contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcl.losses.base import ContrastiveLoss
from fastcl.losses.distributed import Distributed, lse_and_sums_of_label, sum_of_all, world
from fastcl.losses.embeddings import check_embeddings, dot, unit_rows
from fastcl.losses.reduction import Reduction


class SupConLoss(ContrastiveLoss):
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out): every row of the same label is a positive.

    With unit rows z and P(i) the other rows of row i's label,

        loss_i = log Σ_(j ≠ i) exp(<z_i, z_j> / T) - mean over p in P(i) of <z_i, z_p> / T

    The sum over P(i) comes from sums over the classes, O(N·D). The value is that of ``pytorch_metric_learning``'s
    ``SupConLoss``, and of the authors' own with ``base_temperature = temperature``.

    Args:
        temperature: T, what similarities are divided by, above 0.
        learnable_temperature: make the temperature a parameter, ``logit_scale.log_scale``.
        reduction: over the rows that have a positive: ``"mean"`` (0 where none has), ``"sum"`` or ``"none"``.
        precision: of the products of float32 embeddings, see :func:`fastcl.ops.similarity_lse`.
        distributed: ``"gather"`` or ``"ring"``: positives and negatives are the rows of all processes, see
            :mod:`fastcl.losses.distributed`; labels then mean the same in all.

    Raises:
        ValueError: for an option that is none.
    """

    def __init__(
        self,
        temperature: float = 0.1,
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

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """Gives the loss of labelled embeddings.

        Args:
            embeddings: [N, D], or V views of each sample, [N, V, D]; float32, bfloat16, float16 or float64; need not be
                normalised.
            labels: [N], integers; of a sample and so of all its views. ``None``: every sample is a class of its own,
                which needs views.

        Returns:
            A scalar, or for ``reduction="none"`` the losses of the rows, [N] or [N, V], 0 for a row without positive;
            float32 (float64 for float64 embeddings).

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for shapes that do not fit.
        """
        z, label = self._rows(embeddings, labels)
        scale = self.logit_scale.scale()
        lse, sums, counts = lse_and_sums_of_label(
            z, label, scale, distributed=self.distributed, precision=self.precision
        )
        others = counts - 1
        positive = dot(z, sums - z) / others.clamp_min(1)
        losses = torch.where(others > 0, lse - scale * positive, 0.0)
        if self.reduction == "none":
            return losses.reshape(embeddings.shape[:-1])
        if self.reduction == "sum":
            return losses.sum()
        count, processes = (others > 0).sum(), 1
        if self.distributed is not None and world()[1] > 1:
            count, processes = sum_of_all(count), world()[1]
        return losses.sum() * processes / count.clamp_min(1)

    def _rows(self, embeddings: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unit rows [rows, D] and their labels, int64 [rows]."""
        if not isinstance(embeddings, Tensor):
            raise TypeError(f"SupConLoss: embeddings must be a Tensor, got {type(embeddings).__name__}")
        if embeddings.dim() not in (2, 3):
            raise ValueError(f"SupConLoss: embeddings must be [N, D] or [N, V, D], got {list(embeddings.shape)}")
        samples = embeddings.shape[0]
        rows = embeddings.reshape(-1, embeddings.shape[-1]) if embeddings.numel() else embeddings.flatten(0, -2)
        check_embeddings("SupConLoss", embeddings=rows)
        if labels is None:
            if embeddings.dim() == 2:
                raise ValueError("SupConLoss: labels must be given where embeddings are [N, D], got None")
            labels = torch.arange(samples, device=rows.device)
            if self.distributed is not None:
                labels = labels + samples * world()[0]
        check_labels("SupConLoss", "labels", labels, samples, rows)
        return unit_rows(rows), labels.long().repeat_interleave(rows.shape[0] // samples)


def check_labels(owner: str, name: str, labels: Tensor, count: int, like: Tensor) -> None:
    """Wants ``count`` integers on ``like``'s device."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{owner}: {name} must be a Tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{owner}: {name} must be integers, got {labels.dtype}")
    if labels.shape != (count,):
        raise ValueError(f"{owner}: {name} must be [{count}], got {list(labels.shape)}")
    if labels.device != like.device:
        raise ValueError(f"{owner}: {name} must be on the embeddings' device {like.device}, got {labels.device}")
