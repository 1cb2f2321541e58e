"""From a trained encoder to an int8 one: batch normalisation folded into the convolutions, these in int8."""

from __future__ import annotations

import copy

from fastcl.encoder import Encoder
from fastcl.quant import fold_batchnorm_, quantize_

__all__ = ["to_int8"]


def to_int8(encoder: Encoder) -> Encoder:
    """A copy of the encoder with int8 weights, one scale for each output channel.

    Needs no images and no labels: activations are quantised as they come.
    """
    compressed = copy.deepcopy(encoder).eval()
    fold_batchnorm_(compressed)
    quantize_(compressed)
    return compressed
