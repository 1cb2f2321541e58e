"""How a run hears of Ctrl-C and SIGTERM: between steps it is asked to stop, elsewhere both end it in order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from fastcl import distributed

__all__ = ["Terminated", "stop_signal", "termination_raises"]


class Terminated(KeyboardInterrupt):
    """SIGTERM came where there is no step to wait for; what is on disk stands, as after Ctrl-C."""

    exit_code = 128 + signal.SIGTERM


@contextlib.contextmanager
def termination_raises() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: the folder is left in order, and a message says how to go on.

    With many processes, which wait for each other outside of Python, it ends this one at once.
    """
    if distributed.world()[1] > 1:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, handle)
    except ValueError:  # not the main thread: whoever called this handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def stop_signal() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM instead of dying of them; the second one ends the process as usual."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in numbers:
            signal.signal(other, before[other])

    try:
        before = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # not the main thread: whoever called this handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
