"""Pretraining with differential privacy: DP-SGD (Abadi et al. 2016, by Opacus) of groups of images.

In a contrastive loss every image stands in the loss of all others of its batch, so that clipping the gradient of each
image's own loss bounds nothing. Here images are contrasted inside small groups alone, and a group's gradient is clipped
as one: whoever changes an image changes that. The groups are drawn once, without a look at the images; each step takes
each of them with one probability, by a coin that nobody else knows, and so is the noise.

What the guarantee covers is the encoder, and what is made of it without looking at the training images again.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcl import distributed
from fastcl.config import RunConfig
from fastcl.errors import ConfigError, extra
from fastcl.losses import NTXentLoss
from fastcl.pretrain import Pretraining
from fastcl.transforms import Compose

__all__ = ["PrivatePretraining", "noise_multiplier"]


@functools.lru_cache
def noise_multiplier(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Noise, in units of the clipping norm, with which an image is protected by (epsilon, delta).

    Removing a group is bounded by Rényi accounting of the subsampled Gaussian mechanism (Mironov et al. 2019). Another
    image in the place of one is at most a group removed and another one added, so each of both gets half of epsilon.

    Args:
        epsilon: of replacing one image, above 0.
        delta: of the same, between 0 and 1.
        rate: probability of a group to be in a step.
        steps: steps in all.

    Raises:
        ConfigError: where no noise suffices.
        MissingExtraError: without Opacus.
    """
    with extra("privacy"):
        from opacus.accountants.utils import get_noise_multiplier
    half = epsilon / 2
    target = {"target_epsilon": half, "target_delta": delta / (1 + math.exp(half)), "epsilon_tolerance": half / 100}
    try:
        with warnings.catch_warnings():  # that a finer bound may exist
            warnings.simplefilter("ignore")
            return float(get_noise_multiplier(**target, sample_rate=rate, steps=steps, accountant="rdp"))
    except ValueError as error:
        raise ConfigError(f"dp_epsilon: no noise gives ({epsilon:g}, {delta:g}): {error}") from error


class _Groups:
    """Yields, for every step, the two views of the groups that its coins chose: each [groups * size, C, H, W]."""

    def __init__(self, images: Tensor, transform: Compose, size: int, expected: int, seed: int) -> None:
        self._images, self._transform = images, transform
        # From the seed and the number of images alone.
        order = np.random.RandomState(seed).permutation(len(images))[: len(images) // size * size]
        self.groups = torch.from_numpy(order).reshape(-1, size)
        self.rate = min(1.0, expected / len(self.groups))
        self._length = max(1, round(1 / self.rate))
        self._secret = secret_generator()
        self._epoch = self._batch = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[Tensor]]:
        epoch, first, self._epoch, self._batch = self._epoch, self._batch, self._epoch + 1, 0
        for batch in range(first, len(self)):
            chosen = torch.rand(len(self.groups), generator=self._secret) < self.rate
            index = self.groups[chosen].flatten()
            step = epoch * len(self) + batch
            yield [self._transform(self._images[index], index, 2 * step + view) for view in (0, 1)]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "batch": self._batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._batch = state["epoch"], state["batch"]


def secret_generator() -> torch.Generator:
    """Random numbers that nobody else can repeat: with known noise there is no privacy."""
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(8), "little"))


class PrivatePretraining(Pretraining):
    """:class:`Pretraining` of which an observer of the weights learns little about any one image.

    Changing one image changes the probability of any outcome by at most a factor of exp(``config.dp_epsilon``), but
    for ``config.dp_delta``. The number of images and all settings are taken as known. The losses are not covered.

    Attributes:
        noise: its standard deviation, in units of the clipping norm.
        groups: of images.
        rate: probability of a group to be in a step.
    """

    def __init__(self, images: Tensor, config: RunConfig) -> None:
        """As :meth:`Pretraining.__init__`, ``config.dp_epsilon`` being given.

        Raises:
            ConfigError: for what would not be private, and as :meth:`Pretraining.__init__`.
            MissingExtraError: without Opacus.
        """
        assert config.dp_epsilon is not None
        if distributed.world()[1] > 1 or config.device != "cpu":
            raise ConfigError("dp_epsilon: pretraining with differential privacy runs in one process, on the CPU")
        expected = config.batch_size // config.dp_group
        if expected < 1:
            raise ConfigError(
                f"dp_group: expected at most a batch of {config.batch_size} images, got {config.dp_group}"
            )
        super().__init__(images, config)
        if self.kind != "images" or not isinstance(self.transform, Compose):
            raise ConfigError("dp_epsilon: images alone are pretrained on with differential privacy")
        self._group = config.dp_group
        groups = _Groups(images, self.transform, self._group, expected, config.seed)
        self._loader: Any = groups
        self.groups, self.rate = len(groups.groups), groups.rate
        self.steps_per_epoch = len(groups)
        self.steps = config.epochs * self.steps_per_epoch
        self.noise = noise_multiplier(config.dp_epsilon, config.dp_delta, self.rate, self.steps)
        with extra("privacy"):
            from opacus.optimizers import DPOptimizer
        # Opacus lays gradients out in the usual order, and so must the weights be.
        self._model.to(memory_format=torch.contiguous_format)
        self._optimizer: Any = DPOptimizer(
            torch.optim.AdamW(self._model.parameters(), lr=config.lr, weight_decay=config.weight_decay),
            noise_multiplier=self.noise,
            max_grad_norm=config.dp_clip,
            expected_batch_size=expected,
            generator=secret_generator(),
        )
        self._loss = NTXentLoss(config.temperature)

    def _train_step(self, views: list[Tensor]) -> float:
        self._set_lr()
        self._optimizer.zero_grad()
        parameters = list(self._model.parameters())
        count, shape = len(views[0]) // self._group, views[0].shape[1:]
        groups = [view.reshape(count, self._group, *shape) for view in views]
        total = 0.0
        for number, pair in enumerate(zip(*groups, strict=True), start=1):
            loss = self._loss(*self._project(torch.cat(pair)).chunk(2))
            loss.backward()
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad_sample = parameter.grad[None]  # type: ignore[attr-defined]
            # Clipped and added up; with the last group there is noise, and a step.
            self._optimizer.signal_skip_step(number < count)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            total += loss.item()
        if count == 0:  # a step like any other
            for parameter in parameters:
                parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)  # type: ignore[attr-defined]
            self._optimizer.step()
        return total / max(1, count)
