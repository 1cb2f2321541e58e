"""Int8Conv2d beside ``nn.Conv2d`` in channels-last, in turn: see ``side_by_side`` in conftest.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastcl.quant import Int8Conv2d

# batch, channels in, height and width, channels out
CONVS = [(64, 32, 28, 64), (64, 64, 14, 128), (64, 128, 7, 256), (8, 64, 56, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", CONVS, ids=lambda s: "x".join(map(str, s)))
def bench_conv(side_by_side, shape, dtype):
    batch, inputs, size, outputs = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    layer = Int8Conv2d.from_float(conv)
    x = torch.randn(batch, inputs, size, size).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = copy.deepcopy(conv).double()(x.double())
    theirs = copy.deepcopy(conv).to(dtype).to(memory_format=torch.channels_last)
    x = x.to(dtype)
    side_by_side(lambda: layer(x), lambda: theirs(x), exact)
