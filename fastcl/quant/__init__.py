"""Int8 layers, and swapping them into a trained model: :func:`quantize_`."""

from fastcl.quant.attention import Attention
from fastcl.quant.chain import MaxPool2d, chain_
from fastcl.quant.config import QuantConfig
from fastcl.quant.convert import QuantReport, QuantRow, load_quantized_, quantize_, stored_bytes
from fastcl.quant.fold import fold_batchnorm_
from fastcl.quant.layers import InputScheme, Int8Conv2d, Int8Linear, quantize_weight
from fastcl.quant.qat import QatConv2d, QatLinear, prepare_qat_

__all__ = [
    "Attention",
    "InputScheme",
    "Int8Conv2d",
    "Int8Linear",
    "MaxPool2d",
    "QatConv2d",
    "QatLinear",
    "QuantConfig",
    "QuantReport",
    "QuantRow",
    "chain_",
    "fold_batchnorm_",
    "load_quantized_",
    "prepare_qat_",
    "quantize_",
    "quantize_weight",
    "stored_bytes",
]
