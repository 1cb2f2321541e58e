"""What every bench shares: threads stated, warm-up, and peers that are named where they are absent."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _device():
    """FASTCL_BENCH_DEVICE=cuda times the same calls on a GPU (make bench-cuda)."""
    device = os.environ.get("FASTCL_BENCH_DEVICE", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    with torch.device(device):
        yield


def _finish() -> None:
    """A GPU works on after the call that asked it to."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


@pytest.fixture
def finish():
    """To be called before the clock is read."""
    return _finish


@pytest.fixture
def peer():
    """Imports a peer package, or skips and says which is absent."""

    def load(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"peer absent: {name} ({error})")

    return load


@pytest.fixture
def side_by_side(benchmark):
    """Times two calls in turn, 20 ms of ours and 20 ms of theirs, for FASTCL_BENCH_SECONDS (1) together.

    extra_info has both medians in µs, their ratio (theirs / ours: above 1 we are faster) and both relative errors
    against `exact`.
    """

    def error(got: Any, exact: Tensor) -> float:
        return round(((torch.as_tensor(got).double() - exact).norm() / exact.norm()).item(), 5)

    def run(ours: Callable[[], Tensor], theirs: Callable[[], Any], exact: Tensor) -> None:
        times: dict[Callable[[], Any], list[float]] = {ours: [], theirs: []}
        with torch.inference_mode():
            for call in (ours, theirs) * 3:
                call()
            end = time.perf_counter() + float(os.environ.get("FASTCL_BENCH_SECONDS", "1"))
            while time.perf_counter() < end or len(times[ours]) < 5:
                for call, record in times.items():
                    time.sleep(0.05)  # the threads of the one before spin for a while
                    call()  # and what it has left in the caches is not this one's fault
                    turn = time.perf_counter() + 0.02
                    while time.perf_counter() < turn:
                        _finish()
                        begin = time.perf_counter()
                        call()
                        _finish()
                        record.append(1e6 * (time.perf_counter() - begin))
            ours_us, theirs_us = (statistics.median(record) for record in times.values())
            benchmark.extra_info.update(
                ours_us=round(ours_us, 1),
                theirs_us=round(theirs_us, 1),
                ratio=round(theirs_us / ours_us, 2),
                ours_error=error(ours(), exact),
                theirs_error=error(theirs(), exact),
                threads=torch.get_num_threads(),
            )
            benchmark.pedantic(ours, rounds=10, warmup_rounds=1)

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
