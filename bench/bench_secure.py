"""Batches drawn at random from encrypted images (ours) and from the same images as a tensor in memory (theirs).

read: the bytes alone.  views: read, and two SimCLR views on one thread.  step: a step of `fastcl run`.
The ratio is what is left of the plain throughput.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("cryptography")
from fastcl import transforms
from fastcl.config import make_config
from fastcl.data import secure
from fastcl.data.dataset import Dataset
from fastcl.pretrain import Pretraining

SHAPES = {"1x28x28": (2000, 1, 28, 128), "3x64x64": (1000, 3, 64, 128), "3x224x224": (100, 3, 224, 32)}


@pytest.mark.parametrize(
    ("name", "stage"), [(name, stage) for name in SHAPES for stage in ("read", "views")] + [("1x28x28", "step")]
)
def bench_secure(name: str, stage: str, tmp_path: Path, side_by_side: Any) -> None:
    count, channels, side, batch = SHAPES[name]
    images = torch.randint(256, (count, channels, side, side), dtype=torch.uint8)
    rows = torch.arange(count)
    key = bytes(32)
    secure.encrypt(Dataset("random", images, None, (), rows[:-1], rows[-1:]), tmp_path / "safe", key)
    encrypted: Any = secure.open_secure(tmp_path / "safe", key).images
    torch.set_num_threads(1)
    simclr = transforms.SimCLRTransform(side, normalize=None, seed=0)
    if channels == 1:
        simclr = transforms.MultiViewTransform([(transforms.Compose([transforms.RandomResizedCrop(side)], seed=0), 2)])
    recipe = {"crop_scale": 0.5, "rotation": 15.0}
    config = make_config({"batch_size": batch, "recipe": recipe, "epochs": 1000})
    training = {id(source): Pretraining(source, config) for source in (images, encrypted)} if stage == "step" else {}
    batches = {key: iter(now._loader) for key, now in training.items()}
    order = torch.Generator().manual_seed(0)

    def call(source: Any) -> Tensor:
        if stage == "step":
            with torch.inference_mode(False):
                views = next(batches[id(source)], None)
                if views is None:
                    batches[id(source)] = iter(training[id(source)]._loader)
                    views = next(batches[id(source)])
                training[id(source)]._train_step(views)
                return torch.ones(())
        index = torch.randint(count, (batch,), generator=order)
        drawn: Tensor = source[index]
        if stage == "views":
            simclr(drawn)
        return torch.ones(())

    side_by_side(lambda: call(encrypted), lambda: call(images), torch.ones(()))
