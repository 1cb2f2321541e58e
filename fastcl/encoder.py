"""Small convolutional encoders, of images and of texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Encoder", "EncoderConfig", "TextEncoder", "TextEncoderConfig"]

# Cells each way that the last feature map is pooled to: it matters where a stroke is, not only that it is there.
_GRID = 3
Kernel = int | tuple[int, int]


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder expects and how large it is; with the weights this rebuilds it."""

    channels: int  # of the images: 1 for grey, 3 for RGB
    image_size: int  # height and width of the images, in pixels
    width: int  # channels of the first convolution
    mean: tuple[float, ...]  # of the training images on the scale 0 to 1, one for each channel
    std: tuple[float, ...]


class Encoder(nn.Module):
    """Convolutions, each with batch normalisation and ReLU, and a pool to a grid of 3×3.

    The first convolution and the pools between the others halve the image until it has about 7×7 pixels.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        halvings = max(2, round(math.log2(config.image_size / 7)))
        widths = [min(config.width * 2**stage, config.width * 8) for stage in range(halvings + 1)]
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
    width: int  # a quarter of the dimensions of a byte's embedding, and of the first convolution's channels


class TextEncoder(Encoder):
    """Embedded bytes, convolutions along them as an image encoder's, and the maximum over all places.

    It reads what :func:`fastcl.data.text.to_bytes` gives, uint8 [B, 1, 1, length], which needs no normalisation.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        nn.Module.__init__(self)
        self.config: Any = config
        widths = [config.width * times for times in (4, 4, 8, 8)]
        self.bytes = nn.Embedding(256, widths[0], padding_idx=0)
        layers: list[nn.Module] = []
        for stage in range(len(widths) - 1):
            layers += ([nn.MaxPool2d((1, 2))] if stage else []) + _convolution(
                widths[stage], widths[stage + 1], kernel=(1, 5)
            )
        self.layers = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.dim = widths[-1]

    def forward(self, rows: Tensor) -> Tensor:
        """Embeds bytes [B, 1, 1, length] as [B, dim]."""
        return self.layers(self.bytes(rows[:, 0].long()).permute(0, 3, 1, 2))  # type: ignore[no-any-return]

    def normalize(self, images: Tensor) -> Tensor:
        """The bytes as they are."""
        return images


def _convolution(channels_in: int, channels_out: int, kernel: Kernel, stride: int = 1) -> list[nn.Module]:
    padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    return [
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]
