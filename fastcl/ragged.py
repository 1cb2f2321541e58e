"""Images of different sizes as one tensor of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["MAX_CHANNELS", "MAX_SIDE", "RaggedBatch", "check_ragged", "height_width_channels"]

MAX_SIDE = 1 << 20  # pixels
MAX_CHANNELS = 1024


def check_ragged(op: str, data: Tensor, offsets: Tensor, shapes: Tensor) -> None:
    """Wants every image to lie inside the data and all to have the same channels; the native kernels check the same.

    Raises:
        ValueError: names the first image that does not fit.
    """
    offsets, shapes = offsets.cpu(), shapes.cpu().to(torch.int64)
    sides, channels = shapes[:, :2], shapes[:, 2]
    starts_at_most = data.numel() - shapes.clamp(0, MAX_SIDE).prod(dim=1)  # no overflow: 2^60 at most
    for wrong, message in (
        ((sides < 1) | (sides > MAX_SIDE), f"height and width must be from 1 to {MAX_SIDE}"),
        ((channels < 1) | (channels > MAX_CHANNELS), f"channels must be from 1 to {MAX_CHANNELS}"),
        (channels != channels[:1], "channels must be those of image 0"),
        ((offsets < 0) | (offsets > starts_at_most), f"must lie inside the {data.numel()} bytes of data"),
    ):
        if wrong.any():
            i = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"{op}: image {i} (shapes[{i}] = {shapes[i].tolist()}, offsets[{i}] = {offsets[i]}): {message}"
            )


def _check_boxes(boxes: Tensor, shapes: Tensor) -> None:
    """Wants every image to lie inside the one that it was cut out of."""
    corner, whole, part = boxes[:, :2].to(torch.int64), boxes[:, 2:], shapes[:, :2]
    wrong = ((corner < 0) | (corner + part > whole) | (whole > MAX_SIDE)).any(1)
    if wrong.any():
        i = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"RaggedBatch: image {i} (shapes[{i}] = {shapes[i].tolist()}, boxes[{i}] = {boxes[i].tolist()}): must lie "
            "inside the whole image (top, left, its height and width)"
        )


@dataclass(frozen=True, eq=False)
class RaggedBatch:
    """Images of different sizes, one after another in one tensor; transforms take it as they take [B, C, H, W].

    Indexing with a number gives an image, uint8 [C, H, W]; with a tensor of numbers another batch on the same bytes.
    The images may be parts that were cut out of larger ones (``boxes``): tables of parameters are then drawn for the
    whole images and meant for them, and a crop has to lie inside its part.

    Attributes:
        data: the pixels, uint8 [bytes], each image [height, width, channels].
        offsets: where each image begins in ``data``, int64 [n].
        shapes: height, width and channels of each image, int32 [n, 3]; all have the same channels.
        boxes: where each was cut out: top, left, and height and width of the whole image, int32 [n, 4]; None: nothing
            was cut.
        channels: of every image; 0 where there is none.

    Raises:
        TypeError: for a tensor of another dtype.
        ValueError: for shapes that do not fit, and images that do not lie inside ``data``; names the image.
    """

    data: Tensor
    offsets: Tensor
    shapes: Tensor
    boxes: Tensor | None = None
    channels: int = field(init=False)

    def __post_init__(self) -> None:
        dtypes = {"data": torch.uint8, "offsets": torch.int64, "shapes": torch.int32, "boxes": torch.int32}
        for name, dtype in dtypes.items():
            value = getattr(self, name)
            if name == "boxes" and value is None:
                continue
            if not isinstance(value, Tensor) or value.dtype != dtype:
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"RaggedBatch: {name} must be a Tensor of {dtype}, got {got}")
            if value.device != self.data.device:
                raise ValueError(f"RaggedBatch: {name} must be on data's device {self.data.device}, got {value.device}")
        if self.data.dim() != 1 or not self.data.is_contiguous():
            raise ValueError(f"RaggedBatch: data must be contiguous [bytes], got {list(self.data.shape)}")
        if self.offsets.dim() != 1 or self.shapes.shape != (len(self.offsets), 3):
            raise ValueError(
                f"RaggedBatch: offsets must be [n] and shapes [n, 3], got {list(self.offsets.shape)} and "
                f"{list(self.shapes.shape)}"
            )
        if self.boxes is not None and self.boxes.shape != (len(self.offsets), 4):
            raise ValueError(f"RaggedBatch: boxes must be [{len(self.offsets)}, 4], got {list(self.boxes.shape)}")
        if self.data.device.type == "cpu":  # else the op looks, not to wait for the device twice
            check_ragged("RaggedBatch", self.data, self.offsets, self.shapes)
            if self.boxes is not None:
                _check_boxes(self.boxes, self.shapes)
        # Known on the host, for the op's output is made without asking the device.
        object.__setattr__(self, "channels", int(self.shapes[0, 2]) if len(self) else 0)

    @classmethod
    def of(cls, images: Sequence[Any]) -> RaggedBatch:
        """Copies images into one batch.

        Args:
            images: uint8 tensors [C, H, W], NumPy arrays [H, W, C] or [H, W], or PIL images.

        Raises:
            TypeError: for anything else; names the image.
            ValueError: for an image of no pixels or of other channels than the first's; names the image.
        """
        pixels = [height_width_channels(image, f"image {number}") for number, image in enumerate(images)]
        shapes = torch.tensor([list(image.shape) for image in pixels], dtype=torch.int32).reshape(-1, 3)
        ends = torch.tensor([image.numel() for image in pixels], dtype=torch.int64).cumsum(0)
        data = torch.empty(int(ends[-1]) if pixels else 0, dtype=torch.uint8)
        batch = cls(data, torch.cat([ends.new_zeros(min(len(ends), 1)), ends[:-1]]), shapes)
        for start, image in zip(batch.offsets.tolist(), pixels, strict=True):
            data[start : start + image.numel()].view(image.shape).copy_(image)
        return batch

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.data.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the pixels: uint8."""
        return self.data.dtype

    @property
    def whole_shapes(self) -> Tensor:
        """Height, width and channels of each image before it was cut, int32 [n, 3]."""
        return self.shapes if self.boxes is None else torch.cat([self.boxes[:, 2:], self.shapes[:, 2:]], 1)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            height, width, channels = self.shapes[index].tolist()
            start = int(self.offsets[index])
            pixels = self.data[start : start + height * width * channels]
            return pixels.view(height, width, channels).permute(2, 0, 1)
        boxes = None if self.boxes is None else self.boxes[index]
        return RaggedBatch(self.data, self.offsets[index], self.shapes[index], boxes)

    def __repr__(self) -> str:
        return f"RaggedBatch({len(self)} images of {self.channels} channels, {self.data.numel():,} bytes)"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RaggedBatch:
        """The same batch on another device."""
        return self._each(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: torch.device | str | None = None) -> RaggedBatch:
        """The same batch in page-locked memory, from which copies to a GPU need not be waited for."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> RaggedBatch:
        boxes = None if self.boxes is None else change(self.boxes)
        return RaggedBatch(change(self.data), change(self.offsets), change(self.shapes), boxes)


def height_width_channels(image: Any, name: str) -> Tensor:
    """One image as uint8 [H, W, C].

    Raises:
        TypeError: for what is no image of bytes.
        ValueError: for one of no pixels.
    """
    if isinstance(image, Tensor) and image.dim() == 3 and image.dtype == torch.uint8:
        pixels = image.permute(1, 2, 0)
    else:
        import numpy as np

        if hasattr(image, "getbands"):  # a PIL image
            image = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim not in (2, 3):
            got = f"{image.dtype} {list(image.shape)}" if hasattr(image, "shape") else type(image).__name__
            raise TypeError(
                f"RaggedBatch: {name} must be a uint8 Tensor [C, H, W], array [H, W, C] or PIL image, got {got}"
            )
        pixels = torch.from_numpy(image if image.ndim == 3 else image[..., None])
    if 0 in pixels.shape:
        raise ValueError(f"RaggedBatch: {name} must have pixels, got [height, width, channels] = {list(pixels.shape)}")
    return pixels
