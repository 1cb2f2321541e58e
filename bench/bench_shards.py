"""Batches drawn at random from encrypted tar shards (ours) and from plain ones, or from files in a folder (theirs).

Every image is read and decoded; one thread. JPEGs of 32 × 32 (1 kB) and of 256 × 256 pixels (about 15 kB).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("cryptography")
pytest.importorskip("PIL")
from PIL import Image

from fastcl.data.folder import read_images
from fastcl.data.shards import ShardImages, expand, write_shards

SIDES = {"32": (2000, 32, 128), "256": (200, 256, 32)}  # images, side, batch


@pytest.mark.parametrize("peer", ["plain", "folder"])
@pytest.mark.parametrize("name", SIDES)
def bench_shards(name: str, peer: str, tmp_path: Path, side_by_side: Any) -> None:
    count, side, batch = SIDES[name]
    smooth = np.random.RandomState(0).randint(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    paths = [tmp_path / f"{number}.jpg" for number in range(count)]
    for path, pixels in zip(paths, smooth, strict=True):
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
    key = bytes(32)
    sources = []
    for folder, given in (("plain", None), ("sealed", key)):
        write_shards(paths, None, (), tmp_path / folder, shard_bytes=1 << 20, key=given)
        sources.append(ShardImages(expand(f"{tmp_path}/{folder}/*.tar"), side, key=given))
    plain, sealed = sources
    torch.set_num_threads(1)
    order = torch.Generator().manual_seed(0)

    def call(source: Any) -> Tensor:
        index = torch.randint(count, (batch,), generator=order)
        if source is None:
            read_images([paths[number] for number in index.tolist()], side)
        else:
            source[index]
        return torch.ones(())

    other = None if peer == "folder" else plain
    side_by_side(lambda: call(sealed), lambda: call(other), torch.ones(()))
