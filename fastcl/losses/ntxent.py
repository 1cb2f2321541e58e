"""NT-Xent, the loss of SimCLR, with lightly's signature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.losses.base import ContrastiveLoss
from fastcl.losses.distributed import Distributed, gather_rows, gathered, lse_of_all, world
from fastcl.losses.embeddings import check_embeddings, dot, same_sample, unit_rows
from fastcl.losses.memory_bank import MemoryBank
from fastcl.losses.reduction import Reduction, reduce
from fastcl.ops import ntxent, similarity_lse


class NTXentLoss(ContrastiveLoss):
    """NT-Xent (Chen et al. 2020, SimCLR, eq. 1); takes the place of ``lightly.loss.NTXentLoss``.

    With unit rows z of all views, and P(i) the rows of the other views of row i's sample,

        loss_i = log Σ_(j ≠ i) exp(<z_i, z_j> / T) - mean over p in P(i) of <z_i, z_p> / T

    Args:
        temperature: T, what similarities are divided by, above 0.
        memory_bank_size: ``0``, or ``(rows, dim)``: then the negatives are the rows of a memory bank alone (MoCo), and
            a forward pass whose ``out0`` requires a gradient puts ``out1`` into the bank, after use.
        gather_distributed: lightly's name for ``distributed="gather"``.
        learnable_temperature: make the temperature a parameter, ``logit_scale.log_scale``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the rows: those of ``out0``, then those of ``out1``, and so
            on; with a bank those of ``out0`` alone.
        precision: of the products of float32 embeddings, see :func:`fastcl.ops.ntxent`.
        distributed: ``"gather"`` or ``"ring"``: compare with the rows of all processes, see
            :mod:`fastcl.losses.distributed`. With a bank, either puts the rows of all processes into the bank.

    Raises:
        ValueError: for an option that is none.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
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
            distributed=gathered("NTXentLoss", gather_distributed, distributed),
        )
        if isinstance(memory_bank_size, int):
            if memory_bank_size != 0:
                raise ValueError(
                    f"NTXentLoss: memory_bank_size must be 0 or (rows, dim), got {memory_bank_size}; write "
                    f"({memory_bank_size}, dim)"
                )
            self.memory_bank = None
        else:
            self.memory_bank = None if tuple(memory_bank_size) == (0,) else MemoryBank(memory_bank_size)

    def forward(self, out0: Tensor, out1: Tensor, *more: Tensor) -> Tensor:
        """Gives the loss of two or more views.

        Args:
            out0: embeddings of the first view, [N, D], float32, bfloat16, float16 or float64; need not be normalised.
            out1: embeddings of the second view, [N, D], row i being of the same sample as ``out0``'s.
            more: those of further views, likewise.

        Returns:
            A scalar, or the losses of the rows [views * N] for ``reduction="none"``; float32 (float64 for float64).

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for shapes that do not fit, or more than two views with a memory bank.
        """
        views = (out0, out1, *more)
        check_embeddings("NTXentLoss", **{f"out{i}": out for i, out in enumerate(views)})
        if self.memory_bank is not None:
            losses = self._against_bank(self.memory_bank, *views)
        elif len(views) == 2 and (self.distributed is None or world()[1] == 1):
            losses = ntxent(out0, out1, self.logit_scale.scale(), precision=self.precision)
        else:
            losses = self._against_all(views)
        return reduce(losses, self.reduction)

    def _against_all(self, views: tuple[Tensor, ...]) -> Tensor:
        scale = self.logit_scale.scale()
        count, samples = len(views), len(views[0])
        z = unit_rows(torch.cat(views))
        positive = scale * dot(z, z.reshape(count, samples, -1).sum(dim=0).repeat(count, 1) - z) / (count - 1)
        if count == 2:  # the sum without the positive: exact where the loss is small
            group, groups = same_sample(2, samples, z.device), samples
        else:
            group, groups = torch.arange(len(z), device=z.device), len(z)
        lse = lse_of_all(z, z, scale, group, groups, distributed=self.distributed, precision=self.precision)
        return functional.softplus(lse - positive) if count == 2 else lse - positive

    def _against_bank(self, bank: MemoryBank, out0: Tensor, out1: Tensor, *more: Tensor) -> Tensor:
        if more:
            raise ValueError(f"NTXentLoss: a memory bank takes two views, got {2 + len(more)}")
        if out0.shape[1] != bank.rows.shape[1]:
            raise ValueError(
                f"NTXentLoss: out0 must be [N, {bank.rows.shape[1]}] as the bank is, got {list(out0.shape)}"
            )
        scale = self.logit_scale.scale()
        q, positive = unit_rows(out0), unit_rows(out1)
        # The bank's own tensor is changed below, before backward reads it.
        negatives = similarity_lse(q, bank.rows.to(q.dtype, copy=True), scale, precision=self.precision)
        if out0.requires_grad:
            shared = self.distributed is not None and world()[1] > 1
            bank.enqueue(gather_rows(positive) if shared else positive)
        return functional.softplus(negatives - scale * dot(q, positive))
