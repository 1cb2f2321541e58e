"""NT-Xent, the loss of SimCLR, with lightly's signature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcl.losses.memory_bank import MemoryBank
from fastcl.losses.reduction import Reduction, check_reduction, reduce
from fastcl.losses.temperature import Temperature
from fastcl.ops import ntxent, similarity_lse


class NTXentLoss(nn.Module):
    """NT-Xent (Chen et al. 2020, SimCLR, eq. 1); takes the place of ``lightly.loss.NTXentLoss``.

    Args:
        temperature: what similarities are divided by, above 0.
        memory_bank_size: ``0``, or ``(rows, dim)``: then the negatives are the rows of a memory bank alone (MoCo), and a
            forward pass whose ``out0`` requires a gradient puts ``out1`` into the bank.
        learnable_temperature: make the temperature a parameter, ``temperature.log_scale``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the rows: those of ``out0``, then those of ``out1``; with a
            bank those of ``out0`` alone.
        precision: of the products of float32 embeddings, see :func:`fastcl.ops.ntxent`.

    Raises:
        ValueError: for a temperature, a bank size or a reduction that is none.
    """

    def __init__(
        self,
        temperature: float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        *,
        learnable_temperature: bool = False,
        reduction: Reduction = "mean",
        precision: str | None = None,
    ) -> None:
        super().__init__()
        self.temperature = Temperature("NTXentLoss", temperature, learnable_temperature)
        self.reduction = check_reduction("NTXentLoss", reduction)
        self.precision = precision
        if isinstance(memory_bank_size, int):
            if memory_bank_size != 0:
                raise ValueError(
                    f"NTXentLoss: memory_bank_size must be 0 or (rows, dim), got {memory_bank_size}; write "
                    f"({memory_bank_size}, dim)"
                )
            self.memory_bank = None
        else:
            self.memory_bank = None if tuple(memory_bank_size) == (0,) else MemoryBank(memory_bank_size)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Gives the loss of two views.

        Args:
            out0: embeddings of the first view, [N, D]; need not be normalised.
            out1: embeddings of the second view, [N, D], row i being of the same sample as ``out0``'s.

        Returns:
            A scalar, or the losses of the rows for ``reduction="none"``; float32.
        """
        if self.memory_bank is None:
            losses = ntxent(out0, out1, self.temperature.scale(), precision=self.precision)
        else:
            losses = self._against_bank(self.memory_bank, out0, out1)
        return reduce(losses, self.reduction)

    def _against_bank(self, bank: MemoryBank, out0: Tensor, out1: Tensor) -> Tensor:
        scale = self.temperature.scale()
        q, positive = (functional.normalize(out.float(), dim=1) for out in (out0, out1))
        # The bank's own tensor is changed below, before backward reads it.
        negatives = similarity_lse(q, bank.rows.clone(), scale, precision=self.precision)
        similarity = scale * (q * positive).sum(dim=1)
        if out0.requires_grad:
            bank.enqueue(positive)
        return torch.logaddexp(similarity, negatives) - similarity  # type: ignore[arg-type]
