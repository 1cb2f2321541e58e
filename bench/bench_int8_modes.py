"""Each mode of Int8Linear, and what calibration adds, beside the dynamic mode, in turn: see ``side_by_side``.

Above 1 the mode is faster than dynamic. Errors are the whole layer's on Gaussian data, 1 % of the inputs times 20.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastcl.quant import Int8Linear, QuantConfig, quantize_

SHAPES = [(1, 768, 768), (1, 4096, 4096), (128, 768, 3072), (4096, 512, 512)]
CONFIGS = {
    "outliers": QuantConfig(smoothing=None),
    "smoothing": QuantConfig(outlier_ratio=None),
    "asymmetric": QuantConfig(mode="asymmetric", smoothing=None, outlier_ratio=None),
    "static": QuantConfig(mode="static", smoothing=None, outlier_ratio=None),
    "int16": QuantConfig(mode="int16", smoothing=None, outlier_ratio=None),
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("name", CONFIGS)
def bench_mode(side_by_side, name, shape):
    m, k, n = shape
    torch.manual_seed(0)
    linear = nn.Linear(k, n)
    calibration, x = torch.randn(512, k), torch.randn(m, k)
    outliers = torch.randperm(k)[: k // 100]
    for rows in (calibration, x):
        rows[:, outliers] *= 20
    exact = x.double() @ linear.weight.detach().double().T + linear.bias.detach().double()
    dynamic = Int8Linear.from_float(linear)
    layer = copy.deepcopy(linear)
    quantize_(layer, CONFIGS[name], calibration=[calibration])
    side_by_side(lambda: layer(x), lambda: dynamic(x), exact)
