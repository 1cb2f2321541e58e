from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastcl
from fastcl.ops import max_pool2d
from fastcl.quant import MaxPool2d

DTYPES = (torch.float32, torch.uint8)
# images [B, C, H, W], pool
POOLS = {
    "halves": ((3, 64, 14, 14), nn.MaxPool2d(2)),
    "odd": ((2, 37, 7, 9), nn.MaxPool2d(2)),
    "overlapping": ((2, 20, 11, 8), nn.MaxPool2d(3, 2, 1)),
    "ceil": ((2, 5, 8, 7), nn.MaxPool2d(3, 2, ceil_mode=True)),
    "ceil_and_padding": ((1, 3, 5, 6), nn.MaxPool2d(2, 3, 1, ceil_mode=True)),
    "uneven": ((2, 17, 9, 12), nn.MaxPool2d((3, 1), (1, 4), (1, 0))),
    "whole_image": ((2, 81, 6, 5), nn.AdaptiveMaxPool2d(1)),
    "cells_of_two_sizes": ((2, 16, 8, 10), nn.AdaptiveMaxPool2d((3, 4))),
    "one_side_kept": ((1, 4, 6, 5), nn.AdaptiveMaxPool2d((None, 2))),
    "more_cells_than_pixels": ((1, 4, 2, 3), nn.AdaptiveMaxPool2d(5)),
    "one_pixel": ((1, 1, 1, 1), nn.MaxPool2d(1)),
    "empty_batch": ((0, 8, 4, 4), nn.MaxPool2d(2)),
}


def images(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    x = torch.randint(0, 256, shape).to(dtype)
    return (x - 128 if dtype == torch.float32 else x).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", POOLS.values(), ids=POOLS.keys())
def test_the_module_pools_as_torch_does(backend, case, dtype):
    if backend == "reference" and dtype == torch.uint8:
        pytest.skip("only the native kernels give integers to a pool")
    shape, pool = case
    x, ours = images(shape, dtype), MaxPool2d(pool)
    want = pool(x.float())
    with torch.no_grad():
        for _ in range(2):  # the windows are kept from the first call
            got = ours(x)
            assert got.dtype == dtype
            assert torch.equal(got.float(), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_windows(backend, dtype):
    x = images((2, 70, 6, 7), dtype)
    rows, columns = [(4, 6), (0, 6), (2, 3)], [(0, 1), (5, 7)]
    got = max_pool2d(x, rows, columns)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(max_pool2d(x.contiguous(), rows, columns), got)
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            assert torch.equal(got[:, :, i, j], x[:, :, top:bottom, left:right].amax((2, 3)))


@pytest.mark.parametrize("channels", [1, 4, 16, 21])
def test_a_nan_spoils_the_windows_that_see_it(backend, channels):
    pool = MaxPool2d(nn.MaxPool2d(2, 1))
    for y, x in ((1, 1), (0, 2), (3, 0)):  # first, last and in the middle of windows
        batch = torch.randn(1, channels, 4, 4).to(memory_format=torch.channels_last)
        batch[0, channels - 1, y, x] = float("nan")
        with torch.no_grad():
            torch.testing.assert_close(pool(batch), pool.pool(batch), equal_nan=True, rtol=0, atol=0)


def test_infinities_and_zeros_of_both_signs(backend):
    x = torch.tensor([-float("inf"), -0.0, 0.0, float("inf")]).view(1, 1, 2, 2).expand(1, 16, 2, 2)
    got = max_pool2d(x, [(0, 1), (1, 2)], [(0, 1), (0, 2)])
    assert got[0, 0].tolist() == [[-float("inf"), 0], [0, float("inf")]]


def test_gradients_and_other_dtypes_are_torchs():
    pool, x = nn.MaxPool2d(2), torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    (MaxPool2d(pool)(x).square().sum()).backward()
    (want,) = torch.autograd.grad(pool(x).square().sum(), x)
    assert torch.equal(x.grad, want)
    with torch.no_grad():
        half = x.half()
        assert torch.equal(MaxPool2d(pool)(half), pool(half))
        assert torch.equal(MaxPool2d(pool)(x[0]), pool(x[0]))
        with pytest.raises(RuntimeError, match="pad should be at most half"):
            MaxPool2d(nn.MaxPool2d(2, padding=2))(x)
        with pytest.raises(RuntimeError, match="too small"):
            MaxPool2d(nn.MaxPool2d(9))(x)


def test_pools_that_do_something_else_are_not_taken():
    assert not MaxPool2d.takes(nn.MaxPool2d(2, dilation=2))
    assert not MaxPool2d.takes(nn.MaxPool2d(2, return_indices=True))
    assert not MaxPool2d.takes(nn.AdaptiveMaxPool2d(2, return_indices=True))
    assert not MaxPool2d.takes(nn.AvgPool2d(2))
    assert MaxPool2d.takes(nn.MaxPool2d(2, dilation=(1, 1)))


X = torch.zeros(1, 2, 3, 4)
BAD = {
    "dtype": (X.half(), [(0, 1)], [(0, 1)], TypeError, "x must be float32 or uint8, got torch.float16"),
    "dims": (X[0], [(0, 1)], [(0, 1)], ValueError, r"x must be \[B, C, H, W\], got \[2, 3, 4\]"),
    "none": (X, [], [(0, 1)], ValueError, "rows must be ranges within 0 and 3"),
    "outside": (X, [(0, 4)], [(0, 1)], ValueError, "rows must be ranges within 0 and 3, not empty"),
    "empty": (X, [(0, 1)], [(2, 2)], ValueError, "columns must be ranges within 0 and 4, not empty"),
    "negative": (X, [(0, 1)], [(-1, 2)], ValueError, "columns must be ranges"),
}


@pytest.mark.parametrize(("x", "rows", "columns", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(backend, x, rows, columns, kind, message):
    with pytest.raises(kind, match=f"max_pool2d: {message}"):
        max_pool2d(x, rows, columns)


def test_the_kernel_itself_refuses_what_does_not_fit():
    if fastcl.backends()["max_pool2d"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    for x, rows, columns, message in [
        (X[0], [0, 1], [0, 1], r"x must be \[B, H, W, C\]"),
        (X.half(), [0, 1], [0, 1], "float32 or uint8"),
        (X, [0, 1, 2], [0, 1], "pairs of begin and end, got 3 numbers"),
        (X, [0, 3], [0, 1], "ranges within 0 and 2, not empty, got 0 to 3"),
        (X, [0, 1], [-1, 1], "got -1 to 1"),
        (X, [0, 1], [1, 1], "got 1 to 1"),
    ]:
        with pytest.raises(RuntimeError, match=f"max_pool2d: .*{message}"):
            torch.ops.fastcl.max_pool2d(x, rows, columns)


@pytest.mark.parametrize("namespace", ["fastcl", "fastcl_reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(namespace, dtype):
    x = images((2, 3, 5, 6), dtype).permute(0, 2, 3, 1)
    torch.library.opcheck(getattr(torch.ops, namespace).max_pool2d.default, (x, [0, 2, 1, 5], [0, 3, 2, 6]))
