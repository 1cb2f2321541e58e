"""What a report of texts shows in words where one of images has pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcl.data import Dataset
from fastcl.data.text import TextViews, from_bytes
from fastcl.evaluate import nearest

__all__ = ["neighbors", "views"]


def views(rows: Tensor, transform: TextViews, count: int = 6, pairs: int = 2) -> list[dict[str, Any]]:
    """A few texts, and the views that pretraining saw of each in the first epochs.

    Args:
        rows: the training texts, uint8 [N, 1, 1, bytes].
        transform: the one that pretraining used.
        count: texts shown.
        pairs: epochs shown.

    Returns:
        For each text ``text`` and ``views``: name and text.
    """
    index = torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()
    shown: list[dict[str, Any]] = [{"text": text, "views": []} for text in from_bytes(rows[index])]
    for epoch in range(pairs):
        for view in (0, 1):
            for entry, text in zip(shown, from_bytes(transform(rows[index], index, epoch, view)), strict=True):
                entry["views"].append((f"epoch {epoch + 1}, view {'AB'[view]}", text))
    return shown


def neighbors(data: Dataset, train: Tensor, test: Tensor, queries: int = 6, k: int = 3) -> list[dict[str, Any]]:
    """A few held-out texts and the training texts nearest to each.

    Args:
        data: the texts.
        train: embeddings of the training texts, [N, dim].
        test: embeddings of the held-out texts, [M, dim].
        queries: held-out texts shown.
        k: training texts shown for each.

    Returns:
        For each ``text``, ``name`` of its class, and ``nearest``: text, name of its class, whether it is the same.
    """
    chosen = torch.linspace(0, len(test) - 1, min(queries, len(test))).long()
    held_out, learnt = data.test_images[chosen], data.train_images
    found = nearest(train, test[chosen], k)

    def name(labels: Tensor | None, row: int) -> str:
        return "" if labels is None else data.classes[int(labels[row])]

    shown = []
    for query, text, rows in zip(chosen.tolist(), from_bytes(held_out), found, strict=True):
        own = name(data.test_labels, query)
        near = [
            (other, theirs := name(data.train_labels, row), theirs == own)
            for row, other in zip(rows.tolist(), from_bytes(learnt[rows]), strict=True)
        ]
        shown.append({"text": text, "name": own, "nearest": near})
    return shown
