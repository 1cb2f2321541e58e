"""The losses of ``open_clip.loss`` (3.3) that fastcl has; signatures, values and gradients are open_clip's."""

from fastcl.losses.clip import ClipLoss
from fastcl.losses.siglip import SigLipLoss

__all__ = ["ClipLoss", "SigLipLoss"]
