"""Each planted bug of tests/emulator/samples is caught, and by the check that is said to catch it (docs/cuda.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import build, device
from emulator.ptx import replaced_kernels
from emulator.samples import gemm, row_sums
from test_cuda_emulator import RNG, operands

try:
    device.runtime()
except build.Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

ROWS = RNG.integers(1, 9, (7, 501)).astype(np.float32)
A, B, PRODUCT = operands("bf16", 100, 70, 256)


def wrong_under(run, expected) -> list[str]:
    """The schedules whose results are wrong."""
    wrong = []
    for name in device.SCHEDULES:
        with device.schedule(name):
            if not np.array_equal(run(), expected):
                wrong.append(name)
    return wrong


@pytest.mark.parametrize("bug", ["missing barrier", "missing copy wait", "refilled stage"])
def test_races_between_warps_show_as_differences(bug):
    # A copy that lands at once needs no wait, so not every schedule sees the missing one.
    assert len(wrong_under(lambda: gemm(A, B, bug=bug), PRODUCT)) >= 6


def test_a_race_between_rows_shows_under_random_priorities():
    assert len(wrong_under(lambda: row_sums(ROWS, "missing barrier"), ROWS.sum(axis=1))) >= 6


def test_a_divergent_barrier_is_an_error():
    for name in device.SCHEDULES:
        with device.schedule(name), pytest.raises(RuntimeError, match=r"barrier|deadlock"):
            row_sums(ROWS, "divergent barrier")


def test_a_wrong_mask_is_an_error_or_a_wrong_sum():
    assert len(wrong_under(lambda: row_sums(ROWS, "wrong mask"), ROWS.sum(axis=1))) == len(device.SCHEDULES)


def test_a_lost_tail_is_a_wrong_sum():
    assert len(wrong_under(lambda: row_sums(ROWS, "lost tail"), ROWS.sum(axis=1))) == len(device.SCHEDULES)


def test_a_write_past_shared_memory_is_an_error():
    with pytest.raises(RuntimeError, match="a write past shared of_warp, at byte 16 of 16"):
        row_sums(ROWS, "past shared")


def sanitized(sanitizer: str, call: str) -> str:
    """What a sanitizer says about one call, in a process of its own."""
    device.library("samples")
    try:
        build.build("samples", sanitizer)
    except RuntimeError as error:  # a compiler without its sanitizers' libraries
        pytest.skip(str(error)[-300:])
    library = {"thread": "libtsan.so", "address": "libasan.so"}[sanitizer]
    preloaded = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in (library, "libstdc++.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preloaded),
        "FASTCL_EMULATOR_SANITIZER": sanitizer,
        "PYTHONPATH": str(Path(__file__).parent),
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "report_signal_unsafe=0",
    }
    code = f"import numpy as np; from emulator.samples import *; {call}; print('finished')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    return done.stdout + done.stderr


SUMS = "row_sums(np.ones((7, 501), np.float32), '{bug}')"
GEMM = "gemm(np.ones((100, 128), np.uint16), np.ones((64, 128), np.uint16), bug='{bug}')"
TOTAL = "total_sum(np.ones(3001, np.float32), 6, '{bug}')"


@pytest.mark.parametrize(
    ("call", "bug"),
    [(SUMS, "missing barrier"), (GEMM, "missing barrier"), (GEMM, "refilled stage"), (TOTAL, "missing fence")],
)
def test_tsan_sees_races(call, bug):
    assert "WARNING: ThreadSanitizer: data race" in sanitized("thread", call.format(bug=bug))


@pytest.mark.parametrize("call", [SUMS, GEMM, TOTAL])
def test_tsan_is_silent_about_right_kernels(call):
    said = sanitized("thread", call.format(bug="none"))
    assert "ThreadSanitizer" not in said, said[:2000]
    assert "finished" in said


@pytest.mark.parametrize(("call", "bug"), [(GEMM, "one past the edge"), (SUMS, "past shared")])
def test_asan_sees_what_lies_outside(call, bug):
    said = sanitized("address", call.format(bug=bug))
    assert "ERROR: AddressSanitizer" in said or "runtime error: index 4 out of bounds" in said  # UBSan's


@pytest.mark.parametrize("call", [SUMS, GEMM, TOTAL])
def test_asan_is_silent_about_right_kernels(call):
    said = sanitized("address", call.format(bug="none"))
    assert "AddressSanitizer" not in said, said[:2000]
    assert "runtime error" not in said, said[:2000]
    assert "finished" in said


@pytest.mark.parametrize("bug", ["swapped operands", "wrong copy size"])
def test_bugs_inside_inline_assembly_are_invisible_to_gxx_and_seen_in_the_ptx(bug):
    try:
        build.nvcc()
    except build.Unavailable as reason:
        pytest.skip(str(reason))
    # 72 is no multiple of a stage's depth: what a copy should have left out is not zero.
    a, b, expected = operands("bf16", 100, 70, 72)
    assert np.array_equal(gemm(a, b, bug=bug), expected)
    with replaced_kernels("samples", 80):
        assert np.array_equal(gemm(a, b), expected)
        assert not np.array_equal(gemm(a, b, bug=bug), expected)
