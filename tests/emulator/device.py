"""The emulated device, as tests set and ask it.

It starts with the forward schedule and compute capability 8.0.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emulator.build import build

if TYPE_CHECKING:  # a process under a sanitizer does without torch
    from torch import Tensor

SANITIZER = os.environ.get("FASTCL_EMULATOR_SANITIZER", "")
_KINDS = {"forward": 0, "reverse": 1, "random": 2}
SCHEDULES = ("forward", "reverse", *(f"random:{seed}" for seed in range(1, 7)))


class Statistics(ctypes.Structure):
    """What ran since :func:`statistics` was entered; machine.h says what each number counts."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "launches",
            "blocks",
            "threads",
            "switches",
            "collectives",
            "barriers",
            "mma",
            "ldmatrix_phases",
            "ldmatrix_conflicts",
        )
    ]


def library(target: str) -> Path:
    """Builds ``"runtime"``, ``"samples"`` or ``"ops"``, with the sanitizer that FASTCL_EMULATOR_SANITIZER names."""
    return build(target, SANITIZER)


@functools.cache
def runtime() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library("runtime")))
    loaded.fastcl_emulator_set.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_int]
    loaded.fastcl_emulator_statistics.restype = ctypes.POINTER(Statistics)
    loaded.fastcl_emulator_replace_kernel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return loaded


_schedule, _compute_capability = "forward", 80


def apply_settings(schedule: str | None = None, compute_capability: int | None = None) -> tuple[str, int]:
    """Sets what is given and returns what was in force before."""
    global _schedule, _compute_capability
    before = _schedule, _compute_capability
    schedule, compute_capability = schedule or _schedule, compute_capability or _compute_capability
    kind, _, seed = schedule.partition(":")
    if kind not in _KINDS or bool(seed) != (kind == "random"):
        raise ValueError(f"schedule: expected forward, reverse or random:SEED, got {schedule!r}")
    runtime().fastcl_emulator_set(_KINDS[kind], int(seed or 0), compute_capability)
    _schedule, _compute_capability = schedule, compute_capability
    return before


@contextlib.contextmanager
def schedule(name: str) -> Iterator[None]:
    """Launches inside run in that order: ``"forward"``, ``"reverse"`` or ``"random:SEED"``."""
    before = apply_settings(schedule=name)
    try:
        yield
    finally:
        apply_settings(*before)


@contextlib.contextmanager
def compute_capability(value: int) -> Iterator[None]:
    """The device is one of that compute capability (75, 80, 86, 89, 90, 100, 120)."""
    before = apply_settings(compute_capability=value)
    try:
        yield
    finally:
        apply_settings(*before)


@contextlib.contextmanager
def statistics() -> Iterator[Statistics]:
    """Gives what was counted inside, once it is left."""
    runtime().fastcl_emulator_reset_statistics()
    counted = Statistics()
    yield counted
    ctypes.pointer(counted)[0] = runtime().fastcl_emulator_statistics().contents


def same_under_every_schedule(run: Callable[[], Tensor | Sequence[Tensor]]) -> list[Tensor]:
    """Asserts that what `run` returns is the same, bit for bit, whichever order the device takes; returns it."""
    import torch

    expected: list[Tensor] = []
    for name in SCHEDULES[-1:] if SANITIZER else SCHEDULES:  # a sanitizer looks at one order, and is slow
        with schedule(name):
            results = run()
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        bits = [result.detach().contiguous().view(torch.uint8) for result in results]
        for i, (result, first) in enumerate(zip(bits, expected or bits, strict=True)):
            different = int((result != first).sum())
            assert not different, f"result {i} differs in {different} bytes between {SCHEDULES[0]} and {name}"
        expected = expected or [b.clone() for b in bits]
    return results
