"""From a trained encoder to an int8 one: batch normalisation folded into the layers before it, these in int8."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from fastcl.quant import QuantConfig, fold_batchnorm_, quantize_
from fastcl.quant.embedding import Int8EmbeddingBag

__all__ = ["to_int8"]

Model = TypeVar("Model", bound=nn.Module)


def to_int8(encoder: Model, config: QuantConfig | None = None) -> Model:
    """A copy of the encoder with int8 weights; the encoder is left as it is.

    Weights have a scale for each output channel, the embedding tables right under the encoder one for each row.

    Needs no images and no labels: activations are quantised as they come.

    Args:
        encoder: a float model.
        config: what to swap; by default all linear and convolution layers that can be.

    Returns:
        The copy, in evaluation mode.
    """
    compressed = copy.deepcopy(encoder).eval()
    fold_batchnorm_(compressed)
    quantize_(compressed, config)
    for name, module in list(compressed.named_children()):
        if isinstance(module, nn.EmbeddingBag):
            setattr(compressed, name, Int8EmbeddingBag.from_float(module))
    return compressed
