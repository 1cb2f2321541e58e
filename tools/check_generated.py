"""Whether generated digits are digits: a classifier of real ones judges samples of a generator.

    python tools/check_generated.py runs/digits/generated/generator.safetensors

It prints the share of samples that the classifier takes for one class with p > 0.9, and how many of each class, and
exits with 1 where that share is below --least or a class is missing. The classifier is a small convolutional network,
trained with labels on the training images; what it does on the held-out ones is printed first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcl.data import load
from fastcl.generate import GeneratedDataset

_SURE = 0.9  # of its likeliest class


def train_classifier(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """A classifier of images uint8 [N, C, H, W]."""
    torch.manual_seed(0)
    channels, height, width = images.shape[1:]
    network = nn.Sequential(
        *(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * (height // 4) * (width // 4), 128), nn.ReLU()),
        nn.Linear(128, int(labels.max()) + 1),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            loss = functional.cross_entropy(network(images[rows].float() / 255), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def judge(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest class of each image, and how likely it is."""
    likelihood, found = torch.cat([network(part.float() / 255).softmax(1) for part in images.split(256)]).max(1)
    return found, likelihood


def main() -> int:
    """Gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generator", type=Path)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--least", type=float, default=0.9)
    options = parser.parse_args()
    data = load(options.data)
    assert data.train_labels is not None
    assert data.test_labels is not None
    network = train_classifier(data.train_images, data.train_labels, options.epochs)
    found, likelihood = judge(network, data.test_images)
    right = (found == data.test_labels).float().mean().item()
    print(f"held out: {100 * right:.1f} % right, {100 * (likelihood > _SURE).float().mean().item():.1f} % sure")
    found, likelihood = judge(network, GeneratedDataset(options.generator, options.samples, options.seed).images)
    sure = likelihood > _SURE
    counts = found[sure].bincount(minlength=len(data.classes)).tolist()
    share = sure.float().mean().item()
    print(f"generated: {100 * share:.1f} % sure; of each class: {dict(zip(data.classes, counts, strict=True))}")
    return int(share < options.least or min(counts) == 0)


if __name__ == "__main__":
    sys.exit(main())
