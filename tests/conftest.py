"""What every test shares: the backends and a fixed seed."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastcl
from fastcl.ops import registry

# The tests run side by side, a process for each core; those about threads set their own number.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
_ROWS = dict.fromkeys(
    ("augment_draws", "augment_torchvision", "ragged"), "augment"
)  # tests of ops in another one's row of files


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """An op that has CUDA kernels runs them on the CPU as well (tests/emulator), and on a GPU where there is one."""
    if "backend" in metafunc.fixturenames:
        backends = ["reference", "native"]
        name = metafunc.module.__name__.removeprefix("test_")
        if _ROWS.get(name, name) in _ops_with_cuda_kernels():
            backends += ["emulated", pytest.param("cuda", marks=pytest.mark.cuda)]
        metafunc.parametrize("backend", backends, indirect=True)


@functools.cache
def _ops_with_cuda_kernels() -> set[str]:
    csrc = Path(__file__).parents[1] / "csrc"
    return {path.name.removesuffix("_cuda_ops.cpp") for path in csrc.rglob("*_cuda_ops.cpp")}


@functools.cache
def add_emulated() -> str:
    """Returns why the emulated backend is absent where it is."""
    from emulator import build, device, ptx

    try:
        device.runtime()
        registry.add_backend("emulated", "fastcl_emulated", device.library("ops"))
        if wanted := os.environ.get("FASTCL_EMULATOR_PTX"):  # for the rest of the process
            architecture, _, only = wanted.partition(":")
            assert ptx.replaced_kernels("ops", int(architecture), only).__enter__() > 0
    except build.Unavailable as reason:
        return str(reason)
    return ""


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each backend; one that was not built is a skip with the reason, never a pass.

    ``"emulated"`` runs the CUDA kernels on the emulator, on CPU tensors; what a kernel does not write is NaN.
    ``"cuda"`` runs them on a GPU, by making it the default device of the tensors that the test creates.
    """
    if request.param == "reference":
        with fastcl.use_backend("reference"):
            yield request.param
    elif request.param == "native":
        if fastcl.backends()["ntxent"]["cpu"] != "native":
            pytest.skip(f"native kernels are not there: {registry.native_absent_because}")
        with fastcl.use_backend("native"):
            yield request.param
    elif request.param == "emulated":
        if absent := add_emulated():
            pytest.skip(absent)
        torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns
        try:
            with fastcl.use_backend("emulated"):
                yield request.param
        finally:
            torch.use_deterministic_algorithms(False)
    else:
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        with fastcl.use_backend("native"), torch.device("cuda"):
            yield request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
