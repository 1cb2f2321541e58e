"""Int8 layers, and swapping them into a trained model: :func:`quantize_`."""

from fastcl.quant.convert import QuantConfig, QuantReport, QuantRow, quantize_, stored_bytes
from fastcl.quant.fold import fold_batchnorm_
from fastcl.quant.layers import Int8Conv2d, Int8Linear, quantize_weight

__all__ = [
    "Int8Conv2d",
    "Int8Linear",
    "QuantConfig",
    "QuantReport",
    "QuantRow",
    "fold_batchnorm_",
    "quantize_",
    "quantize_weight",
    "stored_bytes",
]
