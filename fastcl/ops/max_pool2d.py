"""Max pooling of images as the int8 convolutions leave them: channels-last, float32 or uint8; kernels in
``csrc/max_pool2d``.

Windows are ranges of lines and of columns, so that pooling with any stride, padding or adaptive size is one op. It has
no gradient: :class:`fastcl.quant.MaxPool2d` calls torch's where one is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcl.ops.registry import op, register


def max_pool2d(x: Tensor, rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]) -> Tensor:
    """The largest value of each channel in every window: a range of lines by a range of columns.

    Args:
        x: [B, C, H, W], float32 or uint8; fastest in channels-last memory format. A window that holds a NaN gives NaN.
        rows: begin and end of each output line's range, within 0 and H, not empty.
        columns: the same for columns, within 0 and W.

    Returns:
        [B, C, len(rows), len(columns)] of ``x``'s dtype, in channels-last memory format.

    Raises:
        TypeError: for another dtype.
        ValueError: for an x that is not [B, C, H, W], or ranges that do not fit.
    """
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.uint8):
        raise TypeError(f"max_pool2d: x must be float32 or uint8, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.dim() != 4:
        raise ValueError(f"max_pool2d: x must be [B, C, H, W], got {list(x.shape)}")
    for name, ranges, size in (("rows", rows, x.shape[2]), ("columns", columns, x.shape[3])):
        if not ranges or not all(0 <= begin < end <= size for begin, end in ranges):
            raise ValueError(f"max_pool2d: {name} must be ranges within 0 and {size}, not empty, got {list(ranges)}")
    flat = [[at for ends in ranges for at in ends] for ranges in (rows, columns)]
    return op("max_pool2d", x)(x.permute(0, 2, 3, 1), *flat).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def _pairs(flat: list[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _max_pool2d_reference(x: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    lines = torch.stack([x[:, begin:end].amax(1) for begin, end in _pairs(rows)], 1)
    return torch.stack([lines[:, :, begin:end].amax(2) for begin, end in _pairs(columns)], 2)


def _max_pool2d_fake(x: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    return x.new_empty((x.shape[0], len(rows) // 2, len(columns) // 2, x.shape[3]))


register("max_pool2d", _max_pool2d_reference, _max_pool2d_fake)
