"""Max pooling of channels-last images beside torch's, in turn: see ``side_by_side`` in conftest.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastcl.quant import MaxPool2d

# batch, channels, height and width, pool
POOLS = {
    "64x64x14 2": ((64, 64, 14, 14), nn.MaxPool2d(2)),
    "64x128x7 to 3": ((64, 128, 7, 7), nn.AdaptiveMaxPool2d(3)),
    "8x64x112 3/2": ((8, 64, 112, 112), nn.MaxPool2d(3, 2, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=["fp32", "uint8"])
@pytest.mark.parametrize("case", POOLS)
def bench_pool(side_by_side, case, dtype):
    """Torch's pool of the same floats, in uint8 too: it has no fast one."""
    shape, pool = POOLS[case]
    torch.manual_seed(0)
    floats = torch.randint(0, 256, shape).float().to(memory_format=torch.channels_last)
    x, ours = floats.to(dtype), MaxPool2d(pool)
    side_by_side(lambda: ours(x), lambda: pool(floats), pool(floats).double())
