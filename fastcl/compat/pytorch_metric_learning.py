"""The losses of ``pytorch_metric_learning.losses`` (2.9) that fastcl has, with that package's conventions.

Embeddings are normalised, as by its default distance; its reducers, distances and regularizers are not taken. Values
and gradients are its own where those are exact: it clamps a loss at -log of the smallest positive float, and here none
is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcl.losses.base import ContrastiveLoss
from fastcl.losses.distributed import dense_groups
from fastcl.losses.embeddings import check_embeddings, dot, unit_rows
from fastcl.losses.pairwise import Block, add_at, lse_at, pair_dots, rows_of_a_block, softplus_sums
from fastcl.losses.reduction import Reduction
from fastcl.losses.supcon import check_labels
from fastcl.ops import similarity_lse
from fastcl.ops.checks import check_like, check_scale

__all__ = ["NTXentLoss", "SelfSupervisedLoss", "SupConLoss"]

Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


class _PairLoss(ContrastiveLoss):
    """Checks the arguments that the package's losses share, and takes labels or listed pairs."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Gives the loss of labelled embeddings, or of listed pairs.

        Args:
            embeddings: [N, D], float32, bfloat16, float16 or float64; need not be normalised.
            labels: [N], integers; rows of equal label are positives. Not read where pairs are listed.
            indices_tuple: listed pairs as miners give them, int64: ``(anchors, positives, anchors, negatives)`` or
                triplets ``(anchors, positives, negatives)``.
            ref_emb: [P, D], what positives and negatives are taken from; ``None``: the embeddings, a row never with
                itself.
            ref_labels: [P], integers; given where ``ref_emb`` is, but for listed pairs.

        Returns:
            A scalar, or the losses for ``reduction="none"``; float32 (float64 for float64 embeddings). 0 where there is
            no positive pair, or no negative one.

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for shapes that do not fit, or neither labels nor pairs.
        """
        check_embeddings(self._name, embeddings=embeddings)
        if ref_emb is not None:
            check_embeddings(self._name, ref_emb=ref_emb)
            check_like(self._name, "ref_emb", ref_emb, "embeddings", embeddings)
            if ref_emb.shape[1] != embeddings.shape[1]:
                raise ValueError(f"{self._name}: ref_emb must be [P, {embeddings.shape[1]}], got {list(ref_emb.shape)}")
        elif ref_labels is not None:
            raise ValueError(f"{self._name}: ref_labels go with ref_emb, got ref_emb=None")
        q = unit_rows(embeddings)
        k = q if ref_emb is None else unit_rows(ref_emb)
        scale = check_scale(self._name, self.logit_scale.scale(), q)
        if indices_tuple is not None:
            return self._of_pairs(q, k, scale, _check_pairs(self._name, indices_tuple, len(q), len(k)))
        if labels is None:
            raise ValueError(f"{self._name}: labels or indices_tuple must be given, got neither")
        labels = labels.to(q.device) if isinstance(labels, Tensor) else labels
        check_labels(self._name, "labels", labels, len(q), q)
        if k is q:
            group = dense_groups(labels)
            return self._of_groups(q, k, scale, group, group)
        if ref_labels is None:
            raise ValueError(f"{self._name}: ref_labels must be given where ref_emb is, got None")
        ref_labels = ref_labels.to(q.device)
        check_labels(self._name, "ref_labels", ref_labels, len(k), k)
        group = dense_groups(torch.cat([labels, ref_labels]))
        return self._of_groups(q, k, scale, group[: len(q)], group[len(q) :])

    def _of_groups(self, q: Tensor, k: Tensor, scale: Tensor, q_group: Tensor, k_group: Tensor) -> Tensor:
        """The loss where pairs of equal group are positives; ``k`` is ``q`` itself where a row leaves itself out."""
        raise NotImplementedError

    def _of_pairs(self, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs) -> Tensor:
        """The loss of listed pairs."""
        raise NotImplementedError

    def _negatives(self, q: Tensor, k: Tensor, scale: Tensor, q_group: Tensor, k_group: Tensor) -> Tensor:
        """Log-sum-exp over the keys of other groups, [N]."""
        keys = (None, None) if k is q else (k, k_group)
        return similarity_lse(q, keys[0], scale, q_group=q_group, k_group=keys[1], precision=self.precision)


def _check_pairs(owner: str, indices: Sequence[Tensor], rows: int, keys: int) -> Pairs:
    """Wants three or four int64 vectors; gives four."""
    if len(indices) not in (3, 4):
        raise ValueError(f"{owner}: indices_tuple must have 3 (triplets) or 4 (pairs) tensors, got {len(indices)}")
    a1, p, a2, n = indices if len(indices) == 4 else (indices[0], indices[1], indices[0], indices[2])
    for anchors, others in ((a1, p), (a2, n)):
        for index, count in ((anchors, rows), (others, keys)):
            if index.dim() != 1 or len(index) != len(anchors):
                raise ValueError(f"{owner}: indices_tuple must hold vectors of one length, got {list(index.shape)}")
            if len(index) and (int(index.min()) < 0 or int(index.max()) >= count):
                raise ValueError(
                    f"{owner}: indices_tuple must be in [0, {count}), got {int(index.min())} to {int(index.max())}"
                )
    return a1.long(), p.long(), a2.long(), n.long()


class NTXentLoss(_PairLoss):
    """NT-Xent with a term for each positive pair; takes the place of ``pytorch_metric_learning.losses.NTXentLoss``.

    With unit rows, for row i, each p of its label and all n of other labels (van den Oord et al. 2018, eq. 4),

        loss_ip = log(exp(<q_i, k_p> / T) + Σ_n exp(<q_i, k_n> / T)) - <q_i, k_p> / T

    The other positives are not in the denominator, as they are in :class:`fastcl.losses.SupConLoss`. The pairs of a
    label are formed in blocks, again in backward: memory does not grow with their number.

    Args:
        temperature: T, what similarities are divided by, above 0.
        learnable_temperature: make the temperature a parameter, ``logit_scale.log_scale``.
        reduction: ``"mean"`` or ``"sum"`` over the positive pairs; ``"none"``: the sum of each row's pairs, [N].
        precision: of the products of float32 embeddings, see :func:`fastcl.ops.similarity_lse`.

    Raises:
        ValueError: for an option that is none.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learnable_temperature: bool = False,
        reduction: Reduction = "mean",
        precision: str | None = None,
    ) -> None:
        super().__init__(
            temperature, learnable_temperature=learnable_temperature, reduction=reduction, precision=precision
        )

    def _of_groups(self, q: Tensor, k: Tensor, scale: Tensor, q_group: Tensor, k_group: Tensor) -> Tensor:
        negatives = self._negatives(q, k, scale, q_group, k_group)
        # By label, each row's positives are a run of keys.
        q_group, q_order = q_group.sort(stable=True)
        k_group, k_order = k_group.sort(stable=True)
        start, stop = (torch.searchsorted(k_group, q_group, right=right) for right in (False, True))
        sums = softplus_sums(
            q[q_order], k[k_order], -scale, negatives[q_order], lambda: _runs(q_group, k_group, start, stop, k is q)
        )
        return self._reduced(sums[q_order.argsort()], (stop - start).sum() - (len(q) if k is q else 0))

    def _of_pairs(self, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs) -> Tensor:
        a1, p, a2, n = pairs
        if len(a1) == 0 or len(a2) == 0:
            return self._reduced(q.sum(dim=1) * 0, torch.zeros((), device=q.device))
        negatives = lse_at(a2, scale * pair_dots(q, k, a2, n), len(q))
        losses = functional.softplus(negatives[a1] - scale * pair_dots(q, k, a1, p))
        return self._reduced(add_at(a1, losses, len(q)), torch.tensor(len(a1), device=q.device))

    def _reduced(self, sums: Tensor, count: Tensor) -> Tensor:
        if self.reduction == "none":
            return sums
        return sums.sum() if self.reduction == "sum" else sums.sum() / count.clamp_min(1)


def _runs(q_group: Tensor, k_group: Tensor, start: Tensor, stop: Tensor, same: bool) -> Iterator[Block]:
    """Blocks that hold the pairs of equal group; both groups are sorted, row i's keys are start[i] to stop[i]."""
    longest = int((stop - start).max())
    step = min(256, rows_of_a_block(longest))
    starts, stops = start.tolist(), stop.tolist()
    for first in range(0, len(q_group), step):
        last = min(first + step, len(q_group))
        keys = slice(starts[first], stops[last - 1])
        others = q_group[first:last, None] != k_group[keys]
        if same:
            others.diagonal(first - keys.start).fill_(True)
        yield slice(first, last), keys, others


class SupConLoss(_PairLoss):
    """Supervised contrastive loss; takes the place of ``pytorch_metric_learning.losses.SupConLoss``.

    With unit rows, P(i) the keys of row i's label and K(i) those and the keys of other labels (Khosla et al. 2020,
    eq. 2),

        loss_i = log Σ_(k in K(i)) exp(<q_i, k> / T) - mean over p in P(i) of <q_i, k_p> / T

    As that package's: the mean is over the rows of a loss above 0, and the loss is 0 where no row has a negative. For
    views, processes and fewer surprises there is :class:`fastcl.losses.SupConLoss`.

    Args:
        temperature: T, what similarities are divided by, above 0.
        learnable_temperature: make the temperature a parameter, ``logit_scale.log_scale``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the rows, 0 for a row without positive.
        precision: of the products of float32 embeddings, see :func:`fastcl.ops.similarity_lse`.

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
    ) -> None:
        super().__init__(
            temperature, learnable_temperature=learnable_temperature, reduction=reduction, precision=precision
        )

    def _of_groups(self, q: Tensor, k: Tensor, scale: Tensor, q_group: Tensor, k_group: Tensor) -> Tensor:
        lse = similarity_lse(q, None if k is q else k, scale, precision=self.precision)
        groups = len(q) + len(k)
        sums = add_at(k_group, k, groups)[q_group]
        counts = add_at(k_group, torch.ones_like(k_group), groups)[q_group]
        if k is q:
            sums, counts = sums - q, counts - 1
        total = len(k) - (1 if k is q else 0)
        return self._reduced(lse - scale * dot(q, sums) / counts.clamp_min(1), counts, (counts < total).any())

    def _of_pairs(self, q: Tensor, k: Tensor, scale: Tensor, pairs: Pairs) -> Tensor:
        # A pair that is listed twice counts once.
        positive, negative = (torch.unique(a * len(k) + b) for a, b in (pairs[:2], pairs[2:]))
        if torch.isin(positive, negative).any():
            raise ValueError(f"{self._name}: indices_tuple must list no pair both as positive and as negative")
        anchors, others = (torch.cat([positive, negative]) // len(k), torch.cat([positive, negative]) % len(k))
        similarity = scale * pair_dots(q, k, anchors, others)
        lse = lse_at(anchors, similarity, len(q))
        own = anchors[: len(positive)]
        counts = add_at(own, torch.ones_like(own), len(q))
        mean = add_at(own, similarity[: len(positive)], len(q)) / counts.clamp_min(1)
        return self._reduced(lse - mean, counts, torch.tensor(len(negative) > 0, device=q.device))

    def _reduced(self, losses: Tensor, counts: Tensor, has_negative: Tensor) -> Tensor:
        losses = torch.where((counts > 0) & has_negative, losses, 0.0)
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        return losses.clamp_min(0).sum() / (losses > 0).sum().clamp_min(1)


class SelfSupervisedLoss(nn.Module):
    """Two views as labelled embeddings; takes the place of ``pytorch_metric_learning.losses.SelfSupervisedLoss``.

    Args:
        loss: a loss of this module.
        symmetric: compare all rows of both views; else the rows of the first with those of the second alone.
    """

    def __init__(self, loss: nn.Module, symmetric: bool = True) -> None:
        super().__init__()
        self.loss = loss
        self.symmetric = symmetric

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """Gives the loss of two views.

        Args:
            embeddings: of the first view, [N, D].
            ref_emb: of the second view, [N, D], row i being of the same sample as ``embeddings``'s.

        Returns:
            What the loss gives.

        Raises:
            ValueError: for shapes that do not fit.
        """
        check_embeddings("SelfSupervisedLoss", embeddings=embeddings, ref_emb=ref_emb)
        labels = torch.arange(len(embeddings), device=embeddings.device)
        loss: Tensor
        if self.symmetric:
            loss = self.loss(torch.cat([embeddings, ref_emb]), torch.cat([labels, labels]))
        else:
            loss = self.loss(embeddings, labels, ref_emb=ref_emb, ref_labels=labels)
        return loss
