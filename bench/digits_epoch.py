"""Epochs of the digits run, in turn: before, with torchvision's transforms in a DataLoader, and with fastcl's Loader.

    python bench/digits_epoch.py [--epochs 3] [--workers 2]

All else is the main job's: data, recipe, encoder, loss, optimiser. torchvision draws for each image, so its transforms
run image by image, in this process and in workers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fastcl.config import RunConfig, make_config
from fastcl.data import load
from fastcl.pretrain import Pretraining, image_statistics
from fastcl.recipe import Recipe


class TwoViews(Dataset[Any]):
    """What `build_transform` makes of the recipe of digits, in torchvision's transforms."""

    def __init__(self, images: Tensor, recipe: Recipe) -> None:
        steps = [
            v2.RandomResizedCrop(images.shape[-1], scale=(recipe.crop_scale, 1.0)),
            v2.RandomAffine(
                recipe.rotation,
                translate=(recipe.translate, recipe.translate),
                scale=(1 - recipe.zoom, 1 + recipe.zoom),
                shear=recipe.shear,
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*image_statistics(images)),
        ]
        self.images, self.transform = images, v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return self.transform(image), self.transform(image)


class Side:
    """One way to make the views, with a training of its own."""

    def __init__(self, images: Tensor, config: RunConfig, batches: Iterable[Any] | None = None) -> None:
        self.training = Pretraining(images, config)
        self.batches = self.training._loader if batches is None else batches
        self.rates: list[float] = []  # images/s of each epoch
        self.waits: list[float] = []  # share of its time

    def epoch(self) -> None:
        training, waited = self.training, 0.0
        began = asked = time.perf_counter()
        for views in self.batches:
            waited += time.perf_counter() - asked
            training.losses.append(training._train_step(views))
            training.step += 1
            asked = time.perf_counter()
        seconds = time.perf_counter() - began
        self.rates.append(training.steps_per_epoch * training._config.batch_size / seconds)
        self.waits.append(waited / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    given = parser.parse_args()
    images, config = load("digits").train_images, make_config({"data": "digits"})
    assert isinstance(config.recipe, Recipe)
    views, settings = (
        TwoViews(images, config.recipe),
        {"batch_size": config.batch_size, "shuffle": True, "drop_last": True},
    )
    sides = {
        "torchvision": Side(images, config, DataLoader(views, **settings)),
        f"torchvision, {given.workers} workers": Side(
            images, config, DataLoader(views, **settings, num_workers=given.workers, persistent_workers=True)
        ),
        "fastcl": Side(images, config),
    }
    for _ in range(given.epochs + 1):  # the first warms up
        for side in sides.values():
            side.epoch()
    print(f"{len(images):,} digits, batches of {config.batch_size}; {torch.get_num_threads()} threads")
    for name, side in sides.items():
        rate, wait = (statistics.median(values[1:]) for values in (side.rates, side.waits))
        print(f"{name:24s}{rate:8,.0f} images/s, {wait:4.0%} of the time waiting for views, "
              f"loss {side.training.losses[0]:.2f} -> {side.training.losses[-1]:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
