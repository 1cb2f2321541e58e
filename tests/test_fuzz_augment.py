"""The augmentation kernels under sanitizers, without torch. `make fuzz` runs a million tables in all."""

from __future__ import annotations

import os
import subprocess

import pytest
from sanitized import build

SOURCES = ["tests/fuzz_augment.cpp", "csrc/common/buffer.cpp"]
SOURCES += [f"csrc/augment/augment_{part}.cpp" for part in ("cpu", "portable", "avx2", "avx512")]
CPUS = ("portable", "avx2", "avx512")
TABLES = int(os.environ.get("FASTCL_FUZZ_TABLES", "9000"))  # a third for each, of its own seed


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return build(SOURCES, "address,undefined", tmp_path_factory.mktemp("fuzz") / "fuzz_augment")


@pytest.mark.parametrize("cpu", CPUS)
def test_random_tables_reach_no_memory_but_their_own(driver, cpu):
    run = subprocess.run(
        [driver, str(-(-TABLES // len(CPUS))), str(CPUS.index(cpu))],
        env={**os.environ, "FASTCL_CPU": cpu},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    print(run.stdout)
