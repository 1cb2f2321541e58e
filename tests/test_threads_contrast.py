"""The CPU kernels of the losses under the thread sanitizer, without torch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from sanitized import build

SOURCES = ["tests/threads_contrast.cpp", "csrc/common/buffer.cpp", "csrc/ntxent/ntxent_cpu.cpp"]
SOURCES += [f"csrc/contrast/contrast_{part}.cpp" for part in ("cpu", "portable", "avx2", "avx512", "avx512_bf16")]


def test_no_race_and_the_same_bits_on_any_number_of_threads(tmp_path: Path):
    binary = build(SOURCES, "thread", tmp_path / "threads_contrast")
    done = subprocess.run([str(binary)], capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in done.stderr:  # more random addresses than this sanitizer knows of
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout == "same bits\n"
