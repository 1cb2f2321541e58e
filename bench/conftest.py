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


def _medians_in_turn(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median times in µs, 20 ms of each call in turn, for FASTCL_BENCH_SECONDS (half a second for each) together."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in list(calls.values()) * 3:
        call()
    end = time.perf_counter() + float(os.environ.get("FASTCL_BENCH_SECONDS", len(calls) / 2))
    while time.perf_counter() < end or min(map(len, times.values())) < 5:
        for name, call in calls.items():
            time.sleep(0.05)  # the threads of the one before spin for a while
            call()  # and what it has left in the caches is not this one's fault
            turn = time.perf_counter() + 0.02
            while time.perf_counter() < turn:
                _finish()
                begin = time.perf_counter()
                call()
                _finish()
                times[name].append(1e6 * (time.perf_counter() - begin))
    return {name: statistics.median(record) for name, record in times.items()}


def _error(got: Any, exact: Tensor) -> float:
    return round(((torch.as_tensor(got).double() - exact).norm() / exact.norm()).item(), 5)


@pytest.fixture
def side_by_side(benchmark):
    """Times two calls in turn.

    extra_info has both medians in µs, their ratio (theirs / ours: above 1 we are faster) and both relative errors
    against `exact`.
    """

    def run(ours: Callable[[], Tensor], theirs: Callable[[], Any], exact: Tensor) -> None:
        with torch.inference_mode():
            median = _medians_in_turn({"ours": ours, "theirs": theirs})
            benchmark.extra_info.update(
                ours_us=round(median["ours"], 1),
                theirs_us=round(median["theirs"], 1),
                ratio=round(median["theirs"] / median["ours"], 2),
                ours_error=_error(ours(), exact),
                theirs_error=_error(theirs(), exact),
                threads=torch.get_num_threads(),
            )
            benchmark.pedantic(ours, rounds=10, warmup_rounds=1)

    return run


@pytest.fixture
def in_turn(benchmark, capsys):
    """Times ours and every peer that is there in turn, in one run, and prints a line: their times over ours.

    Above 1 ours is faster. `peers` gives a call for each name, made only now; one that skips is named as absent.
    FASTCL_BENCH_PEERS (names, with commas between) chooses some of them. extra_info has the ratios, and the relative
    errors against `exact`.
    """

    def run(title: str, ours: Callable[[], Tensor], peers: dict[str, Callable[[], Callable[[], Any]]], exact: Tensor):
        wanted = os.environ.get("FASTCL_BENCH_PEERS")
        calls: dict[str, Callable[[], Any]] = {"ours": ours}
        absent = []
        with torch.inference_mode():
            for name, make in peers.items():
                if wanted is not None and name not in wanted.split(","):
                    continue
                try:
                    with torch.inference_mode(False):
                        calls[name] = make()
                    calls[name]()
                except pytest.skip.Exception as reason:
                    calls.pop(name, None)
                    absent.append(f"{name}: {reason}")
            median = _medians_in_turn(calls)
            ratios = {name: round(median[name] / median["ours"], 2) for name in calls if name != "ours"}
            errors = {name: _error(call(), exact) for name, call in calls.items()}
            benchmark.extra_info.update(
                ours_us=round(median["ours"], 1), ratios=ratios, errors=errors, threads=torch.get_num_threads()
            )
            benchmark.pedantic(ours, rounds=5, warmup_rounds=1)
        with capsys.disabled():
            print(f"\n{title}: {median['ours']:.1f} µs,", ", ".join(f"{name} {r:.2f}" for name, r in ratios.items()))
            for line in absent:
                print(f"  absent: {line}")

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
