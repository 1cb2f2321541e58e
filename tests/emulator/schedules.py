"""An op under every order that the emulated device may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from emulator.device import SCHEDULES, schedule


def same_under_every_schedule(run: Callable[[], Tensor | Sequence[Tensor]]) -> list[Tensor]:
    """Asserts that what `run` returns is the same, bit for bit, whichever order the device takes; returns it."""
    expected: list[Tensor] = []
    for name in SCHEDULES:
        with schedule(name):
            results = run()
        results = [results] if isinstance(results, Tensor) else list(results)
        bits = [result.detach().contiguous().view(torch.uint8) for result in results]
        for i, (result, first) in enumerate(zip(bits, expected or bits, strict=True)):
            different = int((result != first).sum())
            assert not different, f"result {i} differs in {different} bytes between {SCHEDULES[0]} and {name}"
        expected = expected or [b.clone() for b in bits]
    return results
