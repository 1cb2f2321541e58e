"""The generator and the discriminator, for images of any size, and the file that a generator is kept in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcl.errors import CheckpointError
from fastcl.files import pack_tensors, read_tensors, write_atomically

__all__ = ["Discriminator", "Generator", "GeneratorConfig", "load_generator", "save_generator"]

_GENERATOR = "fastcl-generator-2"
_COARSEST = 8  # pixels; both sides are halved until neither is longer
_WIDEST = 4  # times the width
_SLOPE = 0.2  # of the leaky ReLU


@dataclass(frozen=True)
class GeneratorConfig:
    """What a generator makes and how large it and its discriminator are; with the weights this rebuilds it."""

    channels: int  # of the images: 1 for grey, 3 for RGB
    height: int  # of the images, pixels
    width: int
    latent: int = 64  # numbers that an image is made of
    features: int = 48  # channels of the maps of half the images' size; smaller ones have 2, then 4 times as many
    clusters: int = 1  # of images that are alike, from one of which an image is made

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or min(self.height, self.width) < 1 or max(self.height, self.width) > 1024:
            raise ValueError(
                "GeneratorConfig: expected 1 or 3 channels and sides of 1 to 1,024 pixels, got "
                f"{self.channels} channels of {self.height} x {self.width}"
            )
        if min(self.latent, self.features, self.clusters) < 1:
            raise ValueError(
                "GeneratorConfig: latent, features and clusters must be at least 1, got "
                f"{self.latent}, {self.features} and {self.clusters}"
            )

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of the images, and of each smaller map: halved, rounded up, at least once."""
        sizes = [(self.height, self.width)]
        while len(sizes) == 1 or max(sizes[-1]) > _COARSEST:
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        return sizes

    @property
    def hidden(self) -> int:
        """Width of the discriminator's layer that sees a whole image at once."""
        return self.features * _WIDEST

    @property
    def maps(self) -> list[int]:
        """Channels of each of these: of the images first, of the smallest maps last."""
        return [self.channels, *(self.features * min(2**stage, _WIDEST) for stage in range(len(self.sizes) - 1))]


class Generator(nn.Module):
    """From latents and a cluster to an image: a linear layer to the smallest map, transposed convolutions to double it.

    Where a side is odd, the last row or column of the doubled map is cut off.

    Attributes:
        shares: of the images learnt from, that are in each cluster; float32 [clusters].
    """

    shares: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        (height, width), maps = config.sizes[-1], config.maps
        self.register_buffer("shares", torch.full((config.clusters,), 1 / config.clusters))
        self.embedding = nn.Embedding(config.clusters, config.latent)
        self.first = nn.Sequential(
            nn.Linear(2 * config.latent, maps[-1] * height * width, bias=False),
            nn.Unflatten(1, (maps[-1], height, width)),
            nn.BatchNorm2d(maps[-1]),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        for coarse, fine in zip(maps[:1:-1], maps[-2:0:-1], strict=True):
            double = nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1, bias=False)
            stages.append(nn.Sequential(double, nn.BatchNorm2d(fine), nn.ReLU()))
        stages.append(nn.ConvTranspose2d(maps[1], maps[0], 4, stride=2, padding=1))
        self.stages = nn.ModuleList(stages)

    def forward(self, latents: Tensor, clusters: Tensor) -> Tensor:
        """Makes images [B, C, H, W] from 0 to 1 of latents [B, latent] and the clusters' numbers, int64 [B]."""
        value = self.first(torch.cat([latents, self.embedding(clusters)], dim=1))
        value = value.contiguous(memory_format=torch.channels_last)
        for stage, (height, width) in zip(self.stages, self.config.sizes[-2::-1], strict=True):
            value = stage(value)[:, :, :height, :width]
        return torch.sigmoid(value)


class Discriminator(nn.Module):
    """From images to a number that is large where an image looks like a real one of its cluster.

    Strided convolutions and a linear layer give a vector; the number is its product with a vector of the cluster, plus
    its product with one of all clusters (the projection discriminator: Miyato and Koyama 2018).
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        (height, width), maps = config.sizes[-1], config.maps
        layers: list[nn.Module] = []
        for fine, coarse in pairwise(maps):
            layers += [nn.Conv2d(fine, coarse, 3, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        layers += [nn.Flatten(), nn.Linear(maps[-1] * height * width, config.hidden), nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers)
        self.judge = nn.Linear(config.hidden, 1)
        self.embedding = nn.Embedding(config.clusters, config.hidden)
        nn.init.normal_(self.embedding.weight, std=config.hidden**-0.5)

    def forward(self, images: Tensor, clusters: Tensor) -> Tensor:
        """Judges images [B, C, H, W] from 0 to 1 of the clusters int64 [B]; gives [B]."""
        found = self.layers(2 * images - 1)
        return self.judge(found)[:, 0] + (found * self.embedding(clusters)).sum(1)  # type: ignore[no-any-return]


def save_generator(generator: Generator, path: Path, origin: Mapping[str, Any] | None = None) -> None:
    """Replaces the file of a generator in one step.

    Args:
        generator: what to keep.
        path: the file.
        origin: what it was made from; can be written as JSON.
    """
    header = {"format": _GENERATOR, "config": asdict(generator.config), "origin": dict(origin or {})}
    write_atomically(path, pack_tensors(generator.state_dict(), header))


def load_generator(path: Path) -> tuple[Generator, dict[str, Any]]:
    """Reads a generator, in evaluation mode, and what :func:`save_generator` was told of where it came from.

    Raises:
        CheckpointError: for a file that is missing, damaged or no generator.
    """
    tensors, header = read_tensors(path, _GENERATOR)
    try:
        generator, origin = Generator(GeneratorConfig(**header["config"])), header["origin"]
        generator.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the generator does not fit its own description: {error}") from error
    return generator.eval().requires_grad_(False), origin
