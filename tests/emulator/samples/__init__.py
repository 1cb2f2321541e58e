"""The sample kernels from Python: numpy arrays in and out, emulator errors as RuntimeError."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from numpy.typing import NDArray

from emulator.device import library, runtime

BUGS = (
    "none",
    "missing barrier",
    "missing copy wait",
    "refilled stage",
    "divergent barrier",
    "one past the edge",
    "wrong mask",
    "lost tail",
    "missing fence",
    "past shared",
    "swapped operands",
    "wrong copy size",
)
PRODUCTS = ("bf16", "f16", "f16 of sm_75", "tf32", "s8")


@functools.cache
def _samples() -> ctypes.CDLL:
    runtime()
    loaded = ctypes.CDLL(str(library("samples")))
    for name in ("samples_gemm", "samples_row_sums", "samples_total_sum"):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


def _call(name: str, *arguments: object) -> None:
    error = getattr(_samples(), name)(
        *(a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments)
    )
    if error is not None:
        raise RuntimeError(error.decode())


def gemm(a: NDArray, b: NDArray, product: str = "bf16", bug: str = "none") -> NDArray[np.float32]:
    """[m, k] and [n, k] of the product's type (bf16 as uint16 bits) -> [m, n], what is not written is NaN."""
    row_bytes = a.shape[1] * a.itemsize
    assert row_bytes % 16 == 0
    out = np.full((len(a), len(b)), np.nan, dtype=np.float32)
    _call("samples_gemm", PRODUCTS.index(product), BUGS.index(bug), a, b, out, len(a), len(b), row_bytes)
    return out


def row_sums(x: NDArray[np.float32], bug: str = "none") -> NDArray[np.float32]:
    """[rows, columns] -> [rows]."""
    out = np.full(len(x), np.nan, dtype=np.float32)
    _call("samples_row_sums", BUGS.index(bug), x, out, *x.shape)
    return out


def total_sum(x: NDArray[np.float32], blocks: int, bug: str = "none") -> np.float32:
    """[count] -> the sum, by the last of the blocks."""
    partial, counter, total = (
        np.full(blocks, np.nan, np.float32),
        np.zeros(1, np.uint32),
        np.full(1, np.nan, np.float32),
    )
    _call("samples_total_sum", BUGS.index(bug), x, partial, counter, total, blocks, len(x))
    return total[0]
