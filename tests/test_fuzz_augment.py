"""The augmentation kernels under sanitizers, without torch. `make fuzz` runs a million tables in all."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["tests/fuzz_augment.cpp", "csrc/common/buffer.cpp"]
SOURCES += [f"csrc/augment/augment_{part}.cpp" for part in ("cpu", "portable", "avx2", "avx512")]
FLAGS = ["-std=c++20", "-O1", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
CPUS = ("portable", "avx2", "avx512")
TABLES = int(os.environ.get("FASTCL_FUZZ_TABLES", "9000"))  # a third for each, of its own seed


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or not (ROOT / "csrc").exists():
        pytest.skip("no C++ compiler, or the C++ sources are not beside the tests")
    binary = tmp_path_factory.mktemp("fuzz") / "fuzz_augment"
    probe = subprocess.run([compiler, *FLAGS, "-xc++", "-", "-o", binary], input="int main(){}", text=True)
    if probe.returncode:
        pytest.skip("the compiler has no sanitizers")
    command = [compiler, *FLAGS, f"-I{ROOT / 'csrc'}", *(str(ROOT / source) for source in SOURCES), "-pthread"]
    subprocess.run([*command, "-o", binary], check=True)
    return binary


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
