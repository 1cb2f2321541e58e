"""What every test shares: the backends, and tolerances that come from the reference's own error."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

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


def error(got: Tensor, exact: Tensor) -> float:
    """Largest difference, relative to the largest exact value."""
    return ((got.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)).item()


@pytest.fixture
def assert_as_good_as() -> Callable[[Tensor, Tensor, Tensor, float], None]:
    """The rule for tolerances: ``err(got, ref64) <= 2 err(ref32, ref64) + floor``."""

    def check(got: Tensor, ref32: Tensor, ref64: Tensor, floor: float = 1e-6) -> None:
        ours, plain = error(got, ref64), error(ref32, ref64)
        assert ours <= 2 * plain + floor, f"error {ours:.3g}, the plain float32 reference has {plain:.3g}"

    return check
