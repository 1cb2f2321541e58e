"""A small convolutional encoder of images, and one of texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Encoder", "EncoderConfig", "TextEncoder", "TextEncoderConfig"]

# Cells each way that the last feature map is pooled to: it matters where a stroke is, not only that it is there.
_GRID = 3
_NORM_GROUPS = 8
_NGRAMS, _BUCKETS = (3, 4), 8192  # lengths, in bytes, and into how many rows of a table they are hashed


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder expects and how large it is; with the weights this rebuilds it."""

    channels: int  # of the images: 1 for grey, 3 for RGB
    image_size: int  # height and width of the images, in pixels
    width: int  # channels of the first convolution; the later ones have 2, 4 and 8 times as many
    mean: tuple[float, ...]  # of the training images on the scale 0 to 1, one for each channel
    std: tuple[float, ...]
    widths: tuple[int, ...] | None = None  # channels of each convolution, where they are others (a pruned encoder)
    norm: str = "batch"  # or "group", with which no image's embedding depends on the others of its batch


class Encoder(nn.Module):
    """Convolutions, each with normalisation and ReLU, and a pool to a grid of 3×3.

    The first convolution and the pools between the others halve the image until it has about 7×7 pixels.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        halvings = max(2, round(math.log2(config.image_size / 7)))
        widths = config.widths or [config.width * min(2**stage, 8) for stage in range(halvings + 1)]
        if len(widths) != halvings + 1:
            raise ValueError(f"Encoder: widths must have {halvings + 1} numbers, got {len(widths)}")
        layers = _convolution(config.channels, widths[0], config.norm, kernel=5, stride=2)
        for stage in range(halvings):
            layers += [nn.MaxPool2d(2)] if stage else []
            layers += _convolution(widths[stage], widths[stage + 1], config.norm, kernel=3)
        self.layers = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(_GRID), nn.Flatten())
        self.dim = _GRID**2 * widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Embeds normalised images [B, C, H, W] as [B, dim]."""
        return self.layers(images)  # type: ignore[no-any-return]

    def normalize(self, images: Tensor) -> Tensor:
        """What the encoder expects of uint8 images [B, C, H, W]: float32, (image / 255 − mean) / std by channel."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.config.mean, self.config.std))
        return (images.float() / 255 - mean) / std

    def from_pixels(self) -> nn.Module:
        """A model of this encoder that takes uint8 images [B, C, H, W]; weights are shared."""
        return _FromPixels(self)

    @torch.no_grad()
    def embed(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """Embeds uint8 images [N, C, H, W] as float32 [N, dim], in evaluation mode."""
        training = self.training
        self.eval()
        try:
            parts = [self(self.normalize(batch)) for batch in images.split(batch_size)]
        finally:
            self.train(training)
        return torch.cat(parts)


@dataclass(frozen=True)
class TextEncoderConfig:
    """What an encoder of texts expects and how large it is."""

    length: int  # bytes of a text
    width: int  # an eighth of the dimensions of an n-gram's embedding


class TextEncoder(Encoder):
    """The n-grams of a text's bytes, hashed and embedded (Bojanowski et al. 2017), their sum, and a layer on it.

    It reads what :func:`fastcl.data.text.to_bytes` gives, uint8 [B, 1, 1, length], which needs no normalisation.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        nn.Module.__init__(self)
        self.config: Any = config
        dim = 8 * config.width
        # Row 0 is for the places where no n-gram begins.
        self.table = nn.EmbeddingBag(_BUCKETS + 1, dim, mode="sum", padding_idx=0)
        # Small, so that steps of a learning rate that suits the layer move the table, too.
        nn.init.normal_(self.table.weight, std=0.02)
        with torch.no_grad():
            self.table.weight[0] = 0
        self.layers = nn.Sequential(nn.Linear(dim, 2 * dim, bias=False), nn.BatchNorm1d(2 * dim), nn.ReLU())
        self.dim = 2 * dim

    def forward(self, rows: Tensor) -> Tensor:
        """Embeds bytes [B, 1, 1, length] as [B, dim]."""
        buckets = self.buckets(rows)
        count = (buckets != 0).sum(1, keepdim=True).clamp(min=1)
        return self.layers(self.table(buckets) / count.sqrt())  # type: ignore[no-any-return]

    @staticmethod
    def buckets(rows: Tensor) -> Tensor:
        """The rows of the table for every n-gram, int64 [B, n-grams]; 0 for none."""
        letters = rows[:, 0, 0].long()
        letters = letters + 32 * ((letters >= 65) & (letters <= 90))  # A to Z as a to z
        length = letters.shape[1]
        ahead = nn.functional.pad(letters, (1, max(_NGRAMS)))  # a text begins and ends like a word, with nothing
        hashed, found = torch.zeros_like(letters), []
        for n in range(1, max(_NGRAMS) + 1):
            hashed = (hashed * 1_000_003 + ahead[:, n - 1 : n - 1 + length] + 1) % (1 << 31)
            if n in _NGRAMS:
                found.append(((hashed ^ (hashed >> 15)) % _BUCKETS + 1) * (letters != 0))
        return torch.cat(found, dim=1)

    def normalize(self, images: Tensor) -> Tensor:
        """The bytes as they are."""
        return images


class _FromPixels(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(self.encoder.normalize(images))  # type: ignore[no-any-return]


def _convolution(channels_in: int, channels_out: int, norm: str, kernel: int, stride: int = 1) -> list[nn.Module]:
    groups = math.gcd(channels_out, _NORM_GROUPS)
    return [
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.GroupNorm(groups, channels_out) if norm == "group" else nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
