"""InfoNCE with explicit or in-batch negatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.losses.base import ContrastiveLoss
from fastcl.losses.distributed import Distributed, lse_of_all
from fastcl.losses.embeddings import check_embeddings, dot, unit_rows, without_autocast
from fastcl.losses.reduction import Reduction, reduce
from fastcl.ops import similarity_lse
from fastcl.ops.checks import check_like


class InfoNCELoss(ContrastiveLoss):
    """InfoNCE (van den Oord et al. 2018, eq. 4): one positive per query, negatives of one's own choice.

    With unit rows and K(i) the negatives of query i,

        loss_i = log(exp(<q_i, p_i> / T) + Σ_(k in K(i)) exp(<q_i, k> / T)) - <q_i, p_i> / T

    Args:
        temperature: T, what similarities are divided by, above 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the queries.
        learnable_temperature: make the temperature a parameter, ``logit_scale.log_scale``.
        precision: of the products of float32 embeddings, see :func:`fastcl.ops.similarity_lse`.
        distributed: ``"gather"`` or ``"ring"``: in-batch negatives come from all processes, see
            :mod:`fastcl.losses.distributed`; negatives that are given stay those of the process.

    Raises:
        ValueError: for an option that is none.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        *,
        learnable_temperature: bool = False,
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

    def forward(self, query: Tensor, positive_key: Tensor, negative_keys: Tensor | None = None) -> Tensor:
        """Gives the loss of queries against their keys; none need be normalised.

        Args:
            query: [N, D], float32, bfloat16, float16 or float64.
            positive_key: [N, D], row i being the positive of ``query``'s row i.
            negative_keys: ``None`` (the positives of the other queries), [M, D] (the same for every query), or [N, M,
                D] (for each query its own).

        Returns:
            A scalar, or the losses [N] for ``reduction="none"``; float32 (float64 for float64 queries).

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for shapes that do not fit.
        """
        check_embeddings("InfoNCELoss", query=query, positive_key=positive_key)
        self._check_negatives(query, negative_keys)
        scale = self.logit_scale.scale()
        q, positive = unit_rows(query), unit_rows(positive_key)
        if negative_keys is None:
            number = torch.arange(len(q), device=q.device)
            lse = lse_of_all(q, positive, scale, number, len(q), distributed=self.distributed, precision=self.precision)
        elif negative_keys.dim() == 2:
            lse = similarity_lse(q, unit_rows(negative_keys), scale, precision=self.precision)
        else:
            with without_autocast(q):
                similarity = torch.bmm(unit_rows(negative_keys), q[:, :, None])[:, :, 0]
            lse = (scale * similarity).logsumexp(dim=1)
        return reduce(functional.softplus(lse - scale * dot(q, positive)), self.reduction)

    @staticmethod
    def _check_negatives(query: Tensor, negative_keys: Tensor | None) -> None:
        if negative_keys is None:
            return
        if not isinstance(negative_keys, Tensor):
            raise TypeError(f"InfoNCELoss: negative_keys must be a Tensor or None, got {type(negative_keys).__name__}")
        shape, (rows, dim) = negative_keys.shape, query.shape
        paired = len(shape) == 3 and shape[0] == rows
        if shape[-1:] != (dim,) or not (paired or len(shape) == 2) or negative_keys.numel() == 0:
            raise ValueError(
                f"InfoNCELoss: negative_keys must be [M, {dim}] or [{rows}, M, {dim}], M at least 1, got {list(shape)}"
            )
        check_like("InfoNCELoss", "negative_keys", negative_keys, "query", query)
