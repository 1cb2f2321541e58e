"""Builds a torch-free program of the CPU kernels under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(sources: Sequence[str], sanitizers: str, binary: Path) -> Path:
    """Compiles `sources`; skips the test where there is no compiler, or it has not these sanitizers."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or not (ROOT / "csrc").exists():
        pytest.skip("no C++ compiler, or the C++ sources are not beside the tests")
    command = [compiler, "-std=c++20", "-O1", "-g", "-ffp-contract=off", f"-fsanitize={sanitizers}", "-pthread"]
    command += ["-fno-sanitize-recover=all", "-o", str(binary)]
    probe = subprocess.run([*command, "-xc++", "-"], input="int main(){}", text=True, capture_output=True)
    if probe.returncode:
        pytest.skip(f"the compiler has no {sanitizers} sanitizers")
    subprocess.run([*command, f"-I{ROOT / 'csrc'}", *(str(ROOT / source) for source in sources)], check=True)
    return binary
