"""Images/s of single transforms beside torchvision's, image by image there as it must to draw for each; one thread.

    python bench/bench_transforms.py [ROUNDS]

Sides take turns and the median of the rounds counts. Cube and sphere have no peer in
torchvision; its mixes draw once for a batch.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastcl import transforms

NAMES: dict[str, dict[str, Any]] = {
    "RandomPerspective": {"p": 1.0},
    "RandomCube": {"p": 1.0},
    "RandomSpherize": {"p": 1.0},
    "ElasticTransform": {},
    "RandAugment": {},
    "TrivialAugmentWide": {},
    "MixUp": {},
    "CutMix": {},
}
WITH_PEER = ("RandomPerspective", "ElasticTransform", "RandAugment", "TrivialAugmentWide")
BATCHES = ((256, 32), (16, 224))


def rates(runs: list[Callable[[], int]], rounds: int) -> list[float]:
    """Images/s of runs that say how many they made: medians of rounds in which they take turns, after a warm-up."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, record in zip(runs, times, strict=True):
            start = time.perf_counter()
            made = run()
            record.append((time.perf_counter() - start) / made)
    return [1 / statistics.median(record[1:]) for record in times]


def of_fastcl(name: str, images: Tensor) -> Callable[[], int]:
    transform, index = transforms.Compose([getattr(transforms, name)(**NAMES[name])], seed=0), torch.arange(len(images))
    return lambda: len(transform(images, index))


def of_torchvision(name: str, images: Tensor) -> Callable[[], int]:
    from torchvision.transforms import v2

    transform = getattr(v2, name)(**NAMES[name])
    return lambda: len([transform(image) for image in images])


def main() -> None:
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    print(f"{'':24}{'images':>14}{'fastcl/s':>12}{'torchvision/s':>16}{'ratio':>8}")
    for n, side in BATCHES:
        images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
        for name in NAMES:
            runs = [of_fastcl(name, images)]
            runs += [of_torchvision(name, images[: n // 8])] if name in WITH_PEER else []  # which take long
            mine, *other = rates(runs, rounds)
            peer = f"{other[0]:16,.0f}{mine / other[0]:8.1f}" if other else ""
            print(f"{name:24}{f'{n} x {side}²':>14}{mine:12,.0f}{peer}", flush=True)


if __name__ == "__main__":
    main()
