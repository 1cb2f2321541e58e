"""What runs between int8 convolutions: integers that one static convolution hands on to the next, and max pools."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastcl.ops.registry import runs_plainly
from fastcl.quant.fold import adjacent, replace_module
from fastcl.quant.layers import Int8Conv2d

_max_pool2d: Any = torch.ops.fastcl.max_pool2d


class MaxPool2d(nn.Module):
    """An ``nn.MaxPool2d`` or ``nn.AdaptiveMaxPool2d`` on what an int8 convolution gives.

    Without gradients it pools channels-last images by :func:`fastcl.ops.max_pool2d`: float32, or uint8, since the
    largest value is quantised to the largest integer. Otherwise it is the pool that it was made from.

    Attributes:
        pool: that pool.
    """

    def __init__(self, pool: nn.MaxPool2d | nn.AdaptiveMaxPool2d) -> None:
        """Takes over a pool that must pass :meth:`takes`."""
        super().__init__()
        self.pool = pool
        self._windows: dict[tuple[int, int], tuple[list[int], list[int]]] = {}  # by the image's height and width
        self.train(pool.training)

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """Whether the module is a pool of which this one can take the place."""
        if type(module) is nn.MaxPool2d:
            return _pair(module.dilation) == (1, 1) and not module.return_indices
        return type(module) is nn.AdaptiveMaxPool2d and not module.return_indices

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] or [C, H, W] → the same, smaller."""
        if (
            x.dim() == 4
            and x.dtype in (torch.float32, torch.uint8)
            and runs_plainly()
            and x.device.type == "cpu"
            and x.is_contiguous(memory_format=torch.channels_last)
        ):
            height, width = x.shape[2:]
            windows = self._windows.get((height, width))
            if windows is None:
                windows = self._windows[height, width] = self._ranges(0, height), self._ranges(1, width)
            if all(windows):
                return _max_pool2d(x.permute(0, 2, 3, 1), *windows).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
        return self.pool(x)  # type: ignore[no-any-return]

    def _ranges(self, axis: int, size: int) -> list[int]:
        """Begin and end of each window on an axis, without padding; empty where torch says what is wrong."""
        if isinstance(self.pool, nn.AdaptiveMaxPool2d):
            cells = _pair(self.pool.output_size)[axis] or size
            return [at for i in range(cells) for at in (i * size // cells, -(-(i + 1) * size // cells))]
        kernel, stride = _pair(self.pool.kernel_size)[axis], _pair(self.pool.stride)[axis]
        pad = _pair(self.pool.padding)[axis]
        spare = size + 2 * pad - kernel
        if spare < 0 or not 0 <= 2 * pad <= kernel:
            return []
        count = (-(-spare // stride) if self.pool.ceil_mode else spare // stride) + 1
        starts = [i * stride - pad for i in range(count)]
        starts = [start for start in starts if start < size]  # ceil_mode: no window begins in the padding
        return [at for start in starts for at in (max(start, 0), min(start + kernel, size))]


def chain_(model: nn.Module) -> dict[str, str]:
    """Makes max pools after int8 convolutions :class:`MaxPool2d`, and tells each convolution which one reads it.

    Where the second alone is called on the result of the first, perhaps through max pools, both are static, without
    smoothing and outlier inputs, and no gradient is wanted, the first gives the integers that the second would quantise
    its result to, uint8: the same output bits, and a quarter of the memory between them.

    Args:
        model: changed in place; how two modules follow one another is found as by
            :func:`~fastcl.quant.fold_batchnorm_`.

    Returns:
        For each convolution's name that of the convolution which reads it.
    """
    follows = dict(adjacent(model))
    stands = [module for parent in model.modules() for module in parent.children()]
    chain: dict[str, str] = {}
    for name in follows:
        first, after = model.get_submodule(name), follows[name]
        if not isinstance(first, Int8Conv2d) or stands.count(first) != 1:
            continue
        while stands.count(pool := model.get_submodule(after)) == 1:
            if MaxPool2d.takes(pool):
                replace_module(model, after, MaxPool2d(pool))  # type: ignore[arg-type]
            elif not isinstance(pool, MaxPool2d):
                break
            if after not in follows:
                break
            after = follows[after]
        second = model.get_submodule(after)
        if isinstance(second, Int8Conv2d) and stands.count(second) == 1:
            first.hand_to(second)
            chain[name] = after
    return chain


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, (tuple, list)) else (value, value)
