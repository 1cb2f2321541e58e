"""Memory of large tensors that is used again as soon as nothing refers to it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Buffers"]


class Buffers:
    """Gives uninitialised tensors on the CPU, in memory of earlier ones that are gone: new pages are slow.

    A tensor is safe to keep: while it, a view of it or a graph that saved it is there, its memory is not given again.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        self.allocated = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor of that shape; its contents are anything."""
        count = 1
        for size in shape:
            count *= size
        free = self._free.setdefault((count, dtype), [])
        if free:
            memory = free.pop()
        else:
            memory = torch.empty(count * dtype.itemsize, dtype=torch.uint8, device="cpu")
            self.allocated += 1
        # torch lets go of the array when the last tensor on it is gone: then the memory is free.
        array = memory.numpy()[:]
        weakref.finalize(array, free.append, memory).atexit = False
        return torch.from_numpy(array).view(dtype).view(list(shape))
