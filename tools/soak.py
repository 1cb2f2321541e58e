"""Trains for a while and fails where memory grows.

    python tools/soak.py --minutes 60          # RSS every minute, then the slope
    python tools/soak.py --minutes 0.2 --interval 1

Rounds of training on the embedded digits, each with what an interrupted job does: training with a checkpoint every 10
steps, a new start from that checkpoint to the end, embedding, and images through a Loader with a worker. The first
quarter of the samples is left out, in which caches fill; a line is fitted to the rest by the median of the slopes
between all pairs (Theil-Sen), which a single jump does not move. Growth is that slope times the time the line spans.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fastcl.config import make_config
from fastcl.data import Loader, load
from fastcl.pretrain import Pretraining
from fastcl.transforms import SimCLRTransform

MAX_GROWTH = 8.0  # MiB, of the fitted line from end to end: over 200,000 steps, an hour, 42 bytes a step


class Done(Exception):
    """The time is up."""


def resident_mib() -> float:
    """The memory of this process that is in RAM, MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def slope(minutes: list[float], mib: list[float]) -> float:
    """MiB a minute, by Theil and Sen."""
    points = list(zip(minutes, mib, strict=True))
    return statistics.median((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2))


def judge(minutes: list[float], mib: list[float]) -> tuple[bool, str]:
    """Whether the memory stayed, and the figures."""
    first = len(mib) // 4
    minutes, mib = minutes[first:], mib[first:]
    if len(mib) < 4:
        raise SystemExit("too few samples for a slope: a longer time, or a shorter --interval")
    per_minute = slope(minutes, mib)
    span = minutes[-1] - minutes[0]
    passed = per_minute * span <= MAX_GROWTH
    return passed, (
        f"{'ok  ' if passed else 'FAIL'} {per_minute * span:+.2f} MiB in {span:.2f} min ({60 * per_minute:+.2f} MiB an "
        f"hour), at most {MAX_GROWTH:g} MiB; {min(mib):.1f} to {max(mib):.1f} MiB"
    )


def rounds(folder: Path, on_step: Callable[[], None]) -> None:
    """Trains again and again, until `on_step` raises."""
    images = load("digits", limit=800).train_images
    config = make_config({"epochs": 4, "batch_size": 64, "width": 8, "checkpoint_steps": 10, "threads": 1})
    checkpoint = folder / "checkpoint.safetensors"
    transform = SimCLRTransform(28, seed=0)
    loader = Loader(list(images.expand(-1, 3, -1, -1)[:128]), transform, 32, True, num_workers=1, seed=0)
    while True:
        first = Pretraining(images, config)
        first.run(checkpoint, {}, lambda _: on_step(), lambda first=first: first.step == first.steps // 2)
        second = Pretraining(images, config)
        second.restore(checkpoint)
        second.run(checkpoint, {}, lambda _: on_step(), lambda: False)
        second.encoder.eval().embed(images)
        for _ in loader:
            on_step()


def main(given: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between samples")
    parser.add_argument("--leak", type=int, default=0, help="bytes to leak at every step: shows that the check works")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    minutes: list[float] = []
    mib: list[float] = []
    steps, kept = 0, []
    began = due = 0.0

    def on_step() -> None:
        nonlocal steps, began, due
        began, steps = began or time.monotonic(), steps + 1
        if arguments.leak:
            kept.append(b"x" * arguments.leak)
        now = time.monotonic() - began
        if now >= due:
            minutes.append(now / 60)
            mib.append(resident_mib())
            print(f"{minutes[-1]:7.2f} min  {steps:8d} steps  {mib[-1]:8.1f} MiB", flush=True)
            due = now + arguments.interval
        if now >= 60 * arguments.minutes:
            raise Done

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Done):
        rounds(Path(folder), on_step)
    passed, told = judge(minutes, mib)
    print(f"{told}, {steps} steps in all")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
