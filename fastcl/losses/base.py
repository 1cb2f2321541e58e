"""What the losses with a temperature of their own share."""

from __future__ import annotations

from torch import nn

from fastcl.losses.distributed import Distributed, check_distributed
from fastcl.losses.reduction import Reduction, check_reduction
from fastcl.losses.temperature import Temperature
from fastcl.ops.checks import check_precision


class ContrastiveLoss(nn.Module):
    """Holds and checks the options that the losses have in common.

    Args:
        temperature: what similarities are divided by, above 0.
        learnable_temperature: make the temperature a parameter, ``logit_scale.log_scale``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        precision: of the products of float32 embeddings: ``"highest"`` or ``"high"`` (float32), ``"medium"`` (bfloat16
            where the processor has it); ``None`` follows :func:`torch.get_float32_matmul_precision`.
        distributed: see :mod:`fastcl.losses.distributed`.

    Raises:
        ValueError: for an option that is none.
    """

    def __init__(
        self,
        temperature: float,
        *,
        learnable_temperature: bool = False,
        reduction: Reduction = "mean",
        precision: str | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        super().__init__()
        name = self._name
        self.logit_scale = Temperature(name, temperature, learnable_temperature)
        self.reduction = check_reduction(name, reduction)
        if precision is not None:
            check_precision(name, precision)
        self.precision = precision
        self.distributed = check_distributed(name, distributed)

    @property
    def temperature(self) -> float:
        """What similarities are divided by; can be set, as a schedule does."""
        return self.logit_scale.value()

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        self.logit_scale.set(temperature)

    @property
    def _name(self) -> str:
        """For error messages."""
        return type(self).__name__
