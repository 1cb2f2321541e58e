"""A small convolutional encoder of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Encoder", "EncoderConfig"]

# Cells each way that the last feature map is pooled to: it matters where a stroke is, not only that it is there.
_GRID = 3


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder expects and how large it is; with the weights this rebuilds it."""

    channels: int  # of the images: 1 for grey, 3 for RGB
    image_size: int  # height and width of the images, in pixels
    width: int  # channels of the first convolution; the later ones have 2, 4 and 8 times as many
    mean: tuple[float, ...]  # of the training images on the scale 0 to 1, one for each channel
    std: tuple[float, ...]
    widths: tuple[int, ...] | None = None  # channels of each convolution, where they are others (a pruned encoder)


class Encoder(nn.Module):
    """Convolutions, each with batch normalisation and ReLU, and a pool to a grid of 3×3.

    The first convolution and the pools between the others halve the image until it has about 7×7 pixels.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        halvings = max(2, round(math.log2(config.image_size / 7)))
        widths = config.widths or [config.width * min(2**stage, 8) for stage in range(halvings + 1)]
        if len(widths) != halvings + 1:
            raise ValueError(f"Encoder: widths must have {halvings + 1} numbers, got {len(widths)}")
        layers = _convolution(config.channels, widths[0], kernel=5, stride=2)
        for stage in range(halvings):
            layers += ([nn.MaxPool2d(2)] if stage else []) + _convolution(widths[stage], widths[stage + 1], kernel=3)
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


class _FromPixels(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(self.encoder.normalize(images))  # type: ignore[no-any-return]


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
