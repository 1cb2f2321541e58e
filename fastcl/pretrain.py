"""Contrastive pretraining (SimCLR, Chen et al. 2020): sees images alone, and can stop and go on at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastcl import distributed
from fastcl.checkpoint import load_checkpoint, save_checkpoint
from fastcl.config import RunConfig
from fastcl.data import Loader, ShardImages
from fastcl.data.text import TextViews
from fastcl.encoder import Encoder, EncoderConfig, TextEncoder, TextEncoderConfig
from fastcl.errors import CheckpointError, ConfigError, DivergedError
from fastcl.losses import NTXentLoss
from fastcl.recipe import TextRecipe, build_text_transform, build_transform
from fastcl.transforms import Compose, MultiViewTransform

__all__ = ["Pretraining", "image_statistics", "projection_head"]


def image_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images [N, C, H, W], on the scale 0 to 1.

    Of shards, 10,000 images are taken for all of them.
    """
    if isinstance(images, ShardImages) and len(images) > 10_000:
        images = images.select(torch.linspace(0, len(images) - 1, 10_000).long())
    # From the counts of the 256 values: exact, and without a copy in floating point.
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for part in images.split(1024):
        for row, channel in zip(counts, part.unbind(1), strict=True):
            row += channel.flatten().bincount(minlength=256)
    means, stds = [], []
    for count in counts:
        share = count.double() / count.sum()
        mean = (share * values).sum()
        means.append(mean.item())
        stds.append(max((share * (values - mean) ** 2).sum().sqrt().item(), 1 / 255))
    return tuple(means), tuple(stds)


def projection_head(dim: int, hidden: int, out: int, norm: str = "batch") -> nn.Sequential:
    """Two layers from embeddings to the space where views are compared; thrown away after pretraining."""
    normalize = nn.GroupNorm(1, hidden) if norm == "group" else nn.BatchNorm1d(hidden)
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), normalize, nn.ReLU(), nn.Linear(hidden, out))


def _transform_and_encoder(images: Tensor, config: RunConfig) -> tuple[Compose | TextViews, Encoder]:
    """What draws the views of batches, and an encoder of them, with new weights."""
    if isinstance(config.recipe, TextRecipe):
        length = images.shape[3]
        views = TextViews(build_text_transform(config.recipe, config.seed), length)
        return views, TextEncoder(TextEncoderConfig(length, config.width))
    channels, size = images.shape[1:3]
    if config.dp_epsilon is None:
        mean, std = image_statistics(images)
    else:  # nothing that follows from the images
        mean, std = (0.5,) * channels, (0.25,) * channels
    transform = build_transform(config.recipe, size, mean, std, config.seed)
    return transform, Encoder(EncoderConfig(channels, size, config.width, mean, std, norm=_norm(config)))


def _norm(config: RunConfig) -> str:
    """Privacy takes a normalisation that no other image of the batch has a part in."""
    return "batch" if config.dp_epsilon is None else "group"


class Pretraining:
    """Encoder, projection head, optimiser and position; every step follows from (config, images, position).

    Attributes:
        kind: what it learns from, "images" or "texts".
        encoder: what is learnt.
        step: optimiser steps done.
        steps: optimiser steps in all.
        losses: of the steps done.
        seconds: time spent in them.
    """

    def __init__(self, images: Tensor, config: RunConfig) -> None:
        """Starts at step 0.

        Args:
            images: uint8 [N, C, H, W], or texts [N, 1, 1, bytes] with a :class:`TextRecipe`. There are no labels here,
                and no held-out images.
            config: of the run.

        Raises:
            ConfigError: where a batch is larger than the data, or does not divide by the number of processes.
        """
        if config.batch_size > len(images):
            raise ConfigError(
                f"batch_size: expected at most the {len(images)} images to train on, got {config.batch_size}"
            )
        rank, size = distributed.world()
        if config.batch_size % size:
            raise ConfigError(f"batch_size: expected a multiple of the {size} processes, got {config.batch_size}")
        self._config = config
        self.kind = "texts" if isinstance(config.recipe, TextRecipe) else "images"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.transform, self.encoder = _transform_and_encoder(images, config)
            self._head = projection_head(self.encoder.dim, config.hidden, config.projection, _norm(config))
        views = MultiViewTransform([(self.transform, 2)]) if isinstance(self.transform, Compose) else self.transform.two
        # On the CPU nothing ahead of its use: training has use for every core.
        self._loader = Loader(
            images, views, config.batch_size, True, drop_last=True, seed=config.seed, device=config.device,
            prefetch=int(config.device != "cpu"), rank=rank, world_size=size,
            num_workers=config.workers,
        )  # fmt: skip
        self.encoder.to(memory_format=torch.channels_last)
        self._loss = NTXentLoss(
            config.temperature, distributed=None if config.negatives == "local" else config.negatives
        )
        self._model = nn.ModuleDict({"encoder": self.encoder, "head": self._head}).to(config.device)
        self._project = distributed.as_one(nn.Sequential(self.encoder, self._head))
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.steps_per_epoch = len(self._loader)
        self.steps = config.epochs * self.steps_per_epoch
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0
        self._saved = 0  # the step of the last checkpoint

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.step // self.steps_per_epoch

    @property
    def epochs(self) -> int:
        """Epochs in all."""
        return self._config.epochs

    @property
    def recent_loss(self) -> float:
        """Mean loss of the last epoch's worth of steps."""
        recent = self.losses[-self.steps_per_epoch :]
        return sum(recent) / max(1, len(recent))

    @property
    def images_per_second(self) -> float:
        """Images, each seen as two views, trained on per second of training so far."""
        return self.step * self._config.batch_size / self.seconds if self.seconds else 0.0

    def run(
        self,
        checkpoint: Path,
        description: dict[str, Any],
        on_step: Callable[[Pretraining], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Trains to the end, or until asked to stop.

        Args:
            checkpoint: the file that is replaced after every epoch (or ``checkpoint_steps``), and when it stops; by the
                first process alone.
            description: kept in the checkpoint.
            on_step: called after every step.
            should_stop: asked after every step.

        Returns:
            Whether it came to the end.

        Raises:
            DivergedError: for a loss or weights that are NaN or infinite; the last checkpoint stands.
        """
        every = self._config.checkpoint_steps or self.steps_per_epoch
        self._model.train()
        here = {"epoch": self.epoch, "batch": self.step % self.steps_per_epoch}
        self._loader.load_state_dict({**self._loader.state_dict(), **here})
        batches = (views for _ in range(self.epoch, self.epochs) for views in self._loader)
        while self.step < self.steps:
            started = time.perf_counter()
            loss = distributed.mean_of_all(self._train_step(next(batches)))
            if not math.isfinite(loss):
                raise self._diverged(f"the loss became {loss}", self.step + 1)
            self.step += 1
            self.losses.append(loss)
            self.seconds += time.perf_counter() - started
            stop = distributed.mean_of_all(should_stop()) > 0
            if stop or self.step % every == 0 or self.step == self.steps:
                if not all(tensor.isfinite().all() for tensor in self._model.state_dict().values()):
                    raise self._diverged("a weight became NaN or infinite", self.step)
                distributed.on_first(lambda: self.save(checkpoint, description))
            on_step(self)
            if stop and self.step < self.steps:
                return False
        return True

    def _diverged(self, what: str, step: int) -> DivergedError:
        lr, config = self._optimizer.param_groups[0]["lr"], self._config
        kept = f"the checkpoint of step {self._saved} stands" if self._saved else "no checkpoint was written yet"
        return DivergedError(
            f"{what} at step {step} of {self.steps} (epoch {(step - 1) // self.steps_per_epoch + 1}, learning rate "
            f"{lr:.3g}): training has diverged; {kept}, but the same settings come to the same end. Start anew with "
            f"--overwrite and a smaller --lr (now {config.lr:g}, try {config.lr / 3:.2g}), a larger --temperature (now "
            f"{config.temperature:g}) or more --warmup-epochs (now {config.warmup_epochs:g})",
            step,
        )

    def _train_step(self, views: list[Tensor]) -> float:
        self._set_lr()
        projections = self._project(torch.cat(views).contiguous(memory_format=torch.channels_last))
        loss = self._loss(*projections.chunk(2))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.item())

    def _set_lr(self) -> None:
        """The highest one times a linear warm-up and a cosine decay."""
        warmup = min(1.0, (self.step + 1) / max(1.0, self._config.warmup_epochs * self.steps_per_epoch))
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * warmup * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))

    def save(self, path: Path, description: dict[str, Any]) -> None:
        """Writes all that :meth:`restore` needs."""
        tensors = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        for row, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{row}.{name}": tensor for name, tensor in state.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        save_checkpoint(path, tensors, {**description, "step": self.step, "seconds": self.seconds})
        self._saved = self.step

    def restore(self, path: Path) -> dict[str, Any]:
        """Goes to where a checkpoint stands; returns its description.

        Raises:
            CheckpointError: for a checkpoint that is damaged or of another model.
        """
        tensors, description = distributed.on_first(lambda: load_checkpoint(path))
        state: dict[int, dict[str, Tensor]] = {}
        model: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "model":
                model[rest] = tensor
            elif kind == "optimizer":
                row, _, key = rest.partition(".")
                state.setdefault(int(row), {})[key] = tensor
        try:
            self._model.load_state_dict(model)
            groups = self._optimizer.state_dict()["param_groups"]
            # The fused optimiser walks a parameter and its state in step, so they must lie alike in memory.
            for number, parameter in enumerate(self._model.parameters()):
                for key, tensor in state.get(number, {}).items():
                    if tensor.shape == parameter.shape:
                        state[number][key] = torch.empty_like(parameter).copy_(tensor)
            self._optimizer.load_state_dict({"state": state, "param_groups": groups})
            self.step, self.seconds = int(description["step"]), float(description["seconds"])
            self.losses, self._saved = tensors["losses"].tolist(), self.step
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: the checkpoint is of another model: {error}") from error
        return description
