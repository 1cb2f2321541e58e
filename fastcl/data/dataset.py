"""A set of images with its split into training and test images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcl.errors import DataError

__all__ = ["Dataset", "RowImages", "limited", "stratified_split"]


@dataclass(frozen=True)
class Dataset:
    """Images or texts, their classes where these are known, and which of them are held out.

    Pretraining is given :attr:`train_images` alone; labels and test images are for evaluation.
    """

    name: str
    images: Tensor  # uint8 [N, C, H, W]; texts are [N, 1, 1, bytes], see fastcl.data.text
    labels: Tensor | None  # int64 [N], indexes into classes
    classes: tuple[str, ...]  # empty without labels
    train: Tensor  # int64 [n_train], rows of images, ascending
    test: Tensor  # int64 [n_test], the other rows, ascending
    kind: str = "images"  # or "texts"
    private: bool = False  # whether no sample may be written to disk in the clear, as in a report
    skipped: dict[str, str] = field(default_factory=dict)  # what could not be read and was left out, and why

    @property
    def train_images(self) -> Tensor:
        """The images to learn from, uint8 [n_train, C, H, W]."""
        return self.images[self.train]

    @property
    def test_images(self) -> Tensor:
        """The held-out images, uint8 [n_test, C, H, W]."""
        return self.images[self.test]

    @property
    def train_labels(self) -> Tensor | None:
        """Labels of the training images, int64 [n_train], for the evaluation alone."""
        return None if self.labels is None else self.labels[self.train]

    @property
    def test_labels(self) -> Tensor | None:
        """Labels of the held-out images, int64 [n_test]."""
        return None if self.labels is None else self.labels[self.test]

    @property
    def judged(self) -> Dataset:
        """What an encoder is judged on, in memory: all of it, unless the data set can be larger than that."""
        return self

    def fingerprint(self) -> str:
        """A hash over the images, the labels and the split: a resumed run must have the same."""
        digest = hashlib.sha256()
        for part in (self.images, self.labels, self.train, self.test):
            if part is not None:
                digest.update(repr(tuple(part.shape)).encode())
                digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()[:16]


class RowImages:
    """Images that are read as they are asked for, in place of a uint8 Tensor [N, C, H, W] where only rows are taken."""

    dtype, device = torch.uint8, torch.device("cpu")
    shape: torch.Size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        """Images by a number, a slice, or numbers."""
        raise NotImplementedError

    def split(self, size: int) -> Iterator[Tensor]:
        """All rows in order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self[first : first + size]


def limited(data: Dataset, limit: int) -> Dataset:
    """About `limit` images, in memory: the same share of the training and of the test images of each class.

    Raises:
        ValueError: for fewer than 4.
    """
    if limit < 4:
        raise ValueError(f"load: limit must be at least 4, got {limit}")
    if limit >= len(data.images):
        return data
    kept = []
    for rows in (data.train, data.test):
        labels = None if data.labels is None else data.labels[rows]
        kept.append(rows[stratified_split(labels, len(rows), limit / len(data.images))[1]])
    rows = torch.cat(kept)
    return Dataset(
        data.name,
        data.images[rows],
        None if data.labels is None else data.labels[rows],
        data.classes,
        torch.arange(len(kept[0])),
        torch.arange(len(kept[0]), len(rows)),
        data.kind,
        data.private,
        data.skipped,
    )


def stratified_split(labels: Tensor | None, count: int, test_fraction: float) -> tuple[Tensor, Tensor]:
    """Holds out the same share of every class; always the same images for the same labels.

    Args:
        labels: int64 [count], or None to hold out a share of the whole.
        count: the number of images.
        test_fraction: the share held out, above 0 and below 1.

    Returns:
        Ascending rows of the training and of the test images, int64.

    Raises:
        DataError: where a class (or the whole) has too few images to stand on both sides.
    """
    groups = torch.zeros(count, dtype=torch.int64) if labels is None else labels
    shuffle = np.random.RandomState(0)  # the legacy generator: its stream is frozen for all numpy versions
    held_out = []
    for group in groups.unique(sorted=True).tolist():
        rows = (groups == group).nonzero()[:, 0].numpy()
        if len(rows) < 2:
            what = "the data" if labels is None else f"class number {group}"
            raise DataError(f"{what} has {len(rows)} image; expected at least 2, one to learn from and one to hold out")
        n_test = min(max(round(len(rows) * test_fraction), 1), len(rows) - 1)
        held_out.append(shuffle.permutation(rows)[:n_test])
    is_test = torch.zeros(count, dtype=torch.bool)
    is_test[torch.from_numpy(np.concatenate(held_out))] = True
    return (~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0]
