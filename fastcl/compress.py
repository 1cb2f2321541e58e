"""From a trained encoder to an int8 one: batch normalisation folded into the convolutions, these in int8."""

from __future__ import annotations

import copy

from torch import nn

from fastcl.encoder import Encoder
from fastcl.quant import fold_batchnorm_, quantize_
from fastcl.quant.embedding import Int8EmbeddingBag

__all__ = ["to_int8"]


def to_int8(encoder: Encoder) -> Encoder:
    """A copy of the encoder with int8 weights, one scale for each output channel and each row of an embedding table.

    Needs no images and no labels: activations are quantised as they come.
    """
    compressed = copy.deepcopy(encoder).eval()
    fold_batchnorm_(compressed)
    quantize_(compressed)
    for name, module in list(compressed.named_children()):
        if isinstance(module, nn.EmbeddingBag):
            setattr(compressed, name, Int8EmbeddingBag.from_float(module))
    return compressed
