"""Images from a generator: each follows from the generator, a seed and its own number."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastcl.generate.networks import Generator, load_generator
from fastcl.ops.augment_table import philox

__all__ = ["GeneratedDataset", "drawn_clusters", "generated_count", "latents"]

_CHUNK = 64  # images that are always made together: the last bit of a product may depend on how many are
_LATENTS, _CLUSTERS = 0, 2  # streams; training draws its latents from 1


def latents(index: Tensor, count: int, seed: int, stream: int = _LATENTS) -> Tensor:
    """Normal numbers that follow from (seed, stream, index) alone (Philox4x32-10, Box and Muller).

    Args:
        index: int64 [n], not negative.
        count: numbers for each.
        seed: 64 bits.
        stream: another one, another 32 bits, gives other numbers.

    Returns:
        float32 [n, count].
    """
    uniform = _uniform(index, -(-count // 4), seed, stream)
    normal = []
    for first, second in (uniform[:2], uniform[2:]):
        radius = (-2 * first.log()).sqrt()
        normal += [radius * (2 * math.pi * second).cos(), radius * (2 * math.pi * second).sin()]
    return torch.stack(normal, dim=2).flatten(1)[:, :count].float()


def drawn_clusters(index: Tensor, shares: Tensor, seed: int) -> Tensor:
    """Clusters that follow from (seed, index) alone.

    Args:
        index: int64 [n], not negative.
        shares: how likely each is, float32 [clusters].
        seed: 64 bits.

    Returns:
        int64 [n].
    """
    uniform = _uniform(index, 1, seed, _CLUSTERS)[0][:, 0]
    bounds = shares.double().cumsum(0)
    return torch.searchsorted(bounds, uniform * bounds[-1])


def _uniform(index: Tensor, blocks: int, seed: int, stream: int) -> list[Tensor]:
    """Four times float64 [n, blocks], in (0, 1]."""
    low = 0xFFFFFFFF
    rows = index[:, None].expand(len(index), blocks)
    block = torch.arange(blocks).expand_as(rows)
    bits = philox([rows & low, rows >> 32 & low, block, torch.full_like(rows, stream)], [seed & low, seed >> 32 & low])
    return [(word + 1).double() * 2.0**-32 for word in bits]


def generated_count(images: int, fraction: float) -> int:
    """Generated images that make up `fraction` of a set with so many real ones.

    Raises:
        ValueError: for a fraction that is not from 0 to below 1.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"GeneratedDataset: fraction must be at least 0 and below 1, got {fraction}")
    return round(images * fraction / (1 - fraction))


class GeneratedDataset(Dataset[Tensor]):
    """Images made by a generator; number i is the same in whatever order or company it is asked for.

    Args:
        generator: a generator, or the file that one is kept in.
        count: images.
        seed: of the images, 64 bits.

    Raises:
        CheckpointError: for a file that is missing, damaged or no generator.
        ValueError: for a negative count.
    """

    def __init__(self, generator: Generator | str | Path, count: int, seed: int = 0) -> None:
        if count < 0:
            raise ValueError(f"GeneratedDataset: count must not be negative, got {count}")
        self.generator = generator if isinstance(generator, Generator) else load_generator(Path(generator))[0]
        self.count, self.seed = count, seed
        self._chunk: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        """Image number `number`, uint8 [C, H, W].

        Raises:
            IndexError: for a number that is out of range.
        """
        if not -self.count <= number < self.count:
            raise IndexError(f"GeneratedDataset: number must be from 0 to {self.count - 1}, got {number}")
        chunk, row = divmod(int(number) % self.count, _CHUNK)
        if self._chunk is None or self._chunk[0] != chunk:
            self._chunk = chunk, self._make(chunk)
        return self._chunk[1][row]

    @property
    def images(self) -> Tensor:
        """All of them, uint8 [count, C, H, W]."""
        config = self.generator.config
        parts = [self._make(chunk) for chunk in range(-(-self.count // _CHUNK))]
        empty = torch.empty(0, config.channels, config.height, config.width, dtype=torch.uint8)
        return torch.cat([empty, *parts])[: self.count]

    @torch.no_grad()
    def _make(self, chunk: int) -> Tensor:
        numbers = torch.arange(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        training = self.generator.training
        self.generator.eval()
        try:
            drawn = latents(numbers, self.generator.config.latent, self.seed, _LATENTS)
            made: Tensor = self.generator(drawn, drawn_clusters(numbers, self.generator.shares, self.seed))
        finally:
            self.generator.train(training)
        return (made * 255).round().to(torch.uint8).contiguous()

    @classmethod
    def mixed(cls, images: Tensor, generator: Generator | str | Path, fraction: float, seed: int = 0) -> Tensor:
        """Real images followed by generated ones, which make up `fraction` of the whole.

        Args:
            images: uint8 [N, C, H, W].
            generator: as the class's.
            fraction: at least 0 and below 1.
            seed: as the class's.

        Returns:
            uint8 [N / (1 - fraction), C, H, W], rounded.

        Raises:
            ValueError: for a fraction out of range, or images of another shape than the generator's.
        """
        made = cls(generator, generated_count(len(images), fraction), seed)
        config = made.generator.config
        if images.shape[1:] != (config.channels, config.height, config.width):
            raise ValueError(
                f"GeneratedDataset: images must be [N, {config.channels}, {config.height}, {config.width}] as the "
                f"generator's, got {list(images.shape)}"
            )
        return torch.cat([images, made.images])
