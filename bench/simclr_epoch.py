"""An epoch of SimCLR on 32 x 32 colour images with a ResNet-18: lightly's loop, and the same with fastcl, in one run.

    python bench/simclr_epoch.py [--images 2048] [--batch-size 256] [--workers 2] [--rounds 3]

The loop is that of lightly's SimCLR example: its transform in the workers of a DataLoader, its loss. On the other side
stand fastcl's Loader, transform and loss; model, optimiser and images are the same. The images are crops of the two
photographs that scikit-learn carries. The sides train in turn, an epoch each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms.functional import to_pil_image

import fastcl.losses
import fastcl.transforms
from fastcl.data import Loader

SIDE = 32


def crops(count: int) -> Tensor:
    """uint8 [count, 3, 32, 32]: pieces of photographs of 64 x 64 to 256 x 256 pixels, made smaller."""
    photographs = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    random, out = np.random.RandomState(0), torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    for row in out:
        photograph, side = photographs[random.randint(2)], random.randint(64, 257)
        top, left = (random.randint(length - side + 1) for length in photograph.shape[1:])
        piece = photograph[None, :, top : top + side, left : left + side]
        row.copy_(torch.nn.functional.interpolate(piece, (SIDE, SIDE), mode="bilinear", antialias=True)[0])
    return out


class Pictures(Dataset[Any]):
    """PIL images with their views, as torchvision's CIFAR10(transform=...) gives them."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]) -> None:
        self.images, self.transform = [to_pil_image(image) for image in images], transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), 0


class SimCLR(nn.Module):
    """The model of lightly's example."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        self.head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images).flatten(1))


class Side:
    """One way to train, with a model of its own."""

    def __init__(self, batches: Iterable[Any], loss: nn.Module) -> None:
        torch.manual_seed(0)
        self.model, self.batches, self.loss = SimCLR(), batches, loss
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.06)
        self.seconds: list[float] = []  # of each epoch
        self.waited: list[float] = []  # of that, for a batch
        self.losses: list[float] = []

    def epoch(self) -> None:
        began = time.perf_counter()
        waited, asked = 0.0, began
        for views, _ in self.batches:
            waited += time.perf_counter() - asked
            loss = self.loss(*(self.model(view) for view in views))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(loss.item())
            asked = time.perf_counter()
        self.seconds.append(time.perf_counter() - began)
        self.waited.append(waited)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2, help="of lightly's DataLoader")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    images = crops(given.images)
    theirs: DataLoader[Any] = DataLoader(
        Pictures(images, SimCLRTransform(input_size=SIDE)),
        batch_size=given.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=given.workers,
        persistent_workers=given.workers > 0,
    )
    labelled = TensorDataset(images, torch.zeros(len(images)))
    ours = Loader(labelled, fastcl.transforms.SimCLRTransform(SIDE), given.batch_size, shuffle=True, drop_last=True)
    sides = {"lightly": Side(theirs, NTXentLoss()), "fastcl": Side(ours, fastcl.losses.NTXentLoss(0.5))}
    for _ in range(given.rounds + 1):
        for side in sides.values():
            side.epoch()
    steps = len(theirs)
    print(f"{steps} steps of {given.batch_size} images, two views each; torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {given.workers} workers for lightly")  # fmt: skip
    rate = {}
    for name, side in sides.items():
        middle = statistics.median(side.seconds[1:])  # the first warms up
        rate[name] = steps * given.batch_size / middle
        share = statistics.median(w / s for w, s in list(zip(side.waited, side.seconds, strict=True))[1:])
        print(f"{name:8s}{rate[name]:8,.0f} images/s, {share:4.0%} of the time waiting for images, "
              f"loss {side.losses[0]:.2f} -> {side.losses[-1]:.2f}")  # fmt: skip
    print(f"fastcl is {rate['fastcl'] / rate['lightly']:.2f} times as fast")


if __name__ == "__main__":
    main()
