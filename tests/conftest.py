"""What every test shares: the backends and a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fastcl


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each backend; one that was not built is a skip with the reason, never a pass."""
    if request.param == "native" and fastcl.backends()["ntxent"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    with fastcl.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
