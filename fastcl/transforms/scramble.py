"""Keyed randomisation of images: blocks that change places, turn and invert, so that a person sees nothing.

This is no encryption: published attacks restore much of what such images show. See the page on safe data.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["BlockScramble"]

_LEAST_KEY_BYTES = 16


class BlockScramble:
    """Scrambles blocks of uint8 images by a key, all images alike (Chuman et al. 2019).

    Blocks change places, each is turned by a quarter turn and mirrored or not, is inverted (255 minus the pixels) or
    not, and its colours change places. Every image of a size is scrambled alike, so that a network can learn from them;
    this is also why it protects little. What is drawn follows from SHAKE-256 of the key and the size.

    Args:
        key: 16 bytes at least.
        block: height and width of a block, in pixels; it must divide the images' height and width.

    Raises:
        TypeError: for a key that is not bytes.
        ValueError: for a short key or a block of no pixels.
    """

    def __init__(self, key: bytes, block: int = 4) -> None:
        if not isinstance(key, bytes):
            raise TypeError(f"BlockScramble: key must be bytes, got {type(key).__name__}")
        if len(key) < _LEAST_KEY_BYTES:
            raise ValueError(f"BlockScramble: key must be {_LEAST_KEY_BYTES} bytes at least, got {len(key)}")
        if block < 1:
            raise ValueError(f"BlockScramble: block must be at least 1, got {block}")
        self._key, self.block = key, block
        self._maps: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    def __repr__(self) -> str:
        return f"BlockScramble(block={self.block})"  # never the key

    def __call__(self, images: Tensor) -> Tensor:
        """Scrambles uint8 images [C, H, W] or [B, C, H, W].

        Raises:
            TypeError: for images that are not uint8.
            ValueError: for a size that blocks do not divide.
        """
        source, inverted = self._map(images)
        flat = images.reshape(*images.shape[:-3], -1)
        return (flat[..., source] ^ inverted).reshape(images.shape)

    def inverse(self, images: Tensor) -> Tensor:
        """Undoes :meth:`__call__`."""
        source, inverted = self._map(images)
        flat = torch.empty_like(images).reshape(*images.shape[:-3], -1)
        flat[..., source] = images.reshape(*images.shape[:-3], -1) ^ inverted
        return flat.reshape(images.shape)

    def _map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """For every pixel of the result its source, int64 [C*H*W], and 255 where it is inverted, uint8 [C*H*W]."""
        if not isinstance(images, Tensor) or images.dtype != torch.uint8:
            got = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"BlockScramble: images must be a uint8 Tensor, got {got}")
        if images.dim() not in (3, 4) or images.shape[-1] % self.block or images.shape[-2] % self.block:
            raise ValueError(
                f"BlockScramble: images must be [C, H, W] or [B, C, H, W] with sides that {self.block} divides, got "
                f"{list(images.shape)}"
            )
        shape = (images.shape[-3], images.shape[-2], images.shape[-1])
        if shape not in self._maps:
            self._maps[shape] = self._draw(*shape)
        source, inverted = self._maps[shape]
        return source.to(images.device), inverted.to(images.device)

    def _draw(self, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        side = self.block
        rows, columns = height // side, width // side
        count = rows * columns
        draws = _Draws(self._key, channels, height, width, side, words=count * (3 + channels))
        pixels = np.arange(channels * height * width).reshape(channels, rows, side, columns, side)
        blocks = pixels.transpose(1, 3, 0, 2, 4).reshape(count, channels, side, side)[draws.order(count)].copy()
        inverted = np.zeros_like(blocks, dtype=np.uint8)
        turns, inversions = draws.words(count) % np.uint64(8), draws.words(count) % np.uint64(2)
        for number in range(count):
            turned = np.rot90(blocks[number], int(turns[number]) % 4, axes=(1, 2))
            turned = turned[:, :, ::-1] if turns[number] >= 4 else turned
            blocks[number] = turned[draws.order(channels)]
            inverted[number] = 255 * int(inversions[number])

        def image(parts: npt.NDArray[Any]) -> Tensor:
            whole = parts.reshape(rows, columns, channels, side, side).transpose(2, 0, 3, 1, 4)
            return torch.from_numpy(np.ascontiguousarray(whole).reshape(-1))

        return image(blocks), image(inverted)


class _Draws:
    """Numbers from SHAKE-256 of the key and a size."""

    def __init__(self, key: bytes, *size: int, words: int) -> None:
        named = b"fastcl block scramble 1" + len(key).to_bytes(4, "big") + key + repr(size).encode()
        self._words = np.frombuffer(hashlib.shake_256(named).digest(8 * words), dtype=">u8").astype(np.uint64)
        self._used = 0

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """The next 64-bit words."""
        self._used += count
        return self._words[self._used - count : self._used]

    def order(self, count: int) -> npt.NDArray[np.int64]:
        """A permutation; two equal words among 64-bit ones would bias it, and do not happen."""
        return np.argsort(self.words(count), kind="stable")
