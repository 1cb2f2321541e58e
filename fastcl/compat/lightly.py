"""The losses of ``lightly.loss`` (1.6) that fastcl has; signatures, values and gradients are lightly's."""

from fastcl.losses.dcl import DCLLoss, DCLWLoss, negative_mises_fisher_weights
from fastcl.losses.ntxent import NTXentLoss

__all__ = ["DCLLoss", "DCLWLoss", "NTXentLoss", "negative_mises_fisher_weights"]
