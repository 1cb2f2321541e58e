"""The temperature of a loss: a number, or a parameter that is learnt."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """Holds a temperature; learnt as the logarithm of its inverse, as CLIP's logit scale is (Radford et al. 2021).

    Args:
        owner: the loss's name, for error messages.
        temperature: its (first) value, above 0.
        learnable: make it a parameter, ``log_scale``; else it is a plain number.

    Raises:
        ValueError: unless it is positive and finite.
    """

    def __init__(self, owner: str, temperature: float, learnable: bool = False) -> None:
        super().__init__()
        self._owner = owner
        self.log_scale = nn.Parameter(torch.zeros(())) if learnable else None
        self.set(temperature)

    def set(self, temperature: float) -> None:
        """Gives the temperature another value, above 0; a learnt one goes on from there."""
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"{self._owner}: temperature must be above 0 and finite, got {temperature}")
        self._scale = 1.0 / temperature
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.fill_(math.log(self._scale))

    def value(self) -> float:
        """The temperature as it is now."""
        return 1.0 / self._scale if self.log_scale is None else math.exp(-self.log_scale.item())

    def scale(self) -> float | Tensor:
        """1 / temperature: a number, or a 0-d tensor that carries a gradient."""
        return self._scale if self.log_scale is None else self.log_scale.exp()

    def extra_repr(self) -> str:
        """The temperature as it is now."""
        return f"{self.value():g}" + ("" if self.log_scale is None else ", learnable")
