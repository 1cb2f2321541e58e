"""Training of a generator against a discriminator, which can stop and go on at any step.

The loss is the non-saturating one (Goodfellow et al. 2014), with R1 on real images every few steps (Mescheder et al.
2018; Karras et al. 2020) and differentiable augmentation. Both networks are told which cluster of an encoder's features
an image is of (Liu et al. 2020): between classes, where no real image is, a generator of one continuous range of images
would have to make some. What comes out is a moving average of the generator.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcl.checkpoint import load_checkpoint, save_checkpoint
from fastcl.encoder import Encoder
from fastcl.errors import CheckpointError, ConfigError, DivergedError, run_extra
from fastcl.generate.augment import apply_differentiably, gan_transform
from fastcl.generate.dataset import GeneratedDataset, latents
from fastcl.generate.frechet import frechet_distance
from fastcl.generate.networks import Discriminator, Generator, GeneratorConfig

__all__ = ["GanConfig", "GanTraining"]

_STREAM = 1  # of latents; GeneratedDataset draws from others
_PER_CLUSTER = 16  # images at least, on average


@dataclass(frozen=True)
class GanConfig:
    """All that decides the result, but for the images."""

    steps: int = 3000
    batch_size: int = 64
    lr: float = 1e-3  # of Adam
    r1: float = 0.05  # weight of half the squared gradient at real images from 0 to 1
    r1_every: int = 8  # steps between its uses, each weighing so many times more
    average: float = 0.995  # share that a step leaves of the moving average
    translate: float = 0.0625  # see gan_transform
    cutout: float = 0.25
    color: float = 0.1
    latent: int = 64  # see GeneratorConfig
    features: int = 48
    clusters: int = 64  # of alike images, at most; fewer where there are few images
    check_every: int = 500  # steps between checkpoints, and between measurements of the distance
    check_images: int = 2000  # that are generated for one, at most as many as there are real ones
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 2, "r1_every": 1, "clusters": 1, "check_every": 1, "check_images": 2}
        wrong = [name for name, value in least.items() if getattr(self, name) < value]
        wrong += [name for name in ("average", "translate", "cutout") if not 0 <= getattr(self, name) <= 1]
        wrong += ["lr"] * (not self.lr > 0) + ["r1"] * (not self.r1 >= 0) + ["color"] * (not 0 <= self.color <= 1)
        if wrong:
            raise ConfigError(f"GanConfig: {', '.join(wrong)} out of range, got {asdict(self)}")


class GanTraining:
    """Both networks, their optimisers and the position; every step follows from (config, images, position).

    Attributes:
        step: steps done.
        steps: steps in all.
        generator: the moving average, in evaluation mode.
        losses: of the steps done, [discriminator's, generator's].
        distances: Fréchet distance of generated and real images' features by the steps at which it was measured.
        seconds: time spent in steps and measurements.
    """

    def __init__(self, images: Tensor, config: GanConfig, encoder: Encoder) -> None:
        """Starts at step 0.

        Args:
            images: uint8 [N, C, H, W], C being 1 or 3; at least two.
            config: of the training.
            encoder: gives the features that images are clustered and compared by; of C channels.

        Raises:
            ConfigError: for a configuration or images out of range.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or len(images) < 2:
            raise ConfigError(
                f"GanTraining: images must be uint8 [N, C, H, W], at least 2, got {images.dtype} {list(images.shape)}"
            )
        self.config, self._images, self._encoder = config, images, encoder
        self._batch = min(config.batch_size, len(images))
        try:
            channels, height, width = images.shape[1:]
            clusters = max(1, min(config.clusters, len(images) // _PER_CLUSTER))
            sizes = GeneratorConfig(channels, height, width, config.latent, config.features, clusters)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self._generator, self._discriminator = Generator(sizes), Discriminator(sizes)
        self._real_features = encoder.embed(images)
        self._clusters = _cluster(self._real_features, clusters, config.seed)
        self._generator.shares = self._clusters.bincount(minlength=clusters) / len(images)
        for network in (self._generator, self._discriminator):
            network.to(memory_format=torch.channels_last)
        self.generator = copy.deepcopy(self._generator).eval().requires_grad_(False)
        self._best = copy.deepcopy(self.generator)
        self._models = nn.ModuleDict(
            {
                "generator": self._generator,
                "discriminator": self._discriminator,
                "average": self.generator,
                "best": self._best,
            }
        )
        self._optimizers = {
            name: torch.optim.Adam(self._models[name].parameters(), lr=config.lr, betas=(0.5, 0.99))
            for name in ("generator", "discriminator")
        }
        self._transform = gan_transform(config.translate, config.cutout, config.color, config.seed)
        self.steps = config.steps
        self.step = 0
        self.losses: list[tuple[float, float]] = []
        self.distances: dict[int, float] = {}
        self.seconds = 0.0

    @property
    def best(self) -> Generator:
        """The moving average as it stood at the smallest distance."""
        return self._best

    @property
    def best_step(self) -> int:
        """The step of the smallest distance; 0 before any was measured."""
        return min(self.distances, key=lambda step: self.distances[step], default=0)

    def run(
        self,
        checkpoint: Path,
        description: dict[str, Any],
        on_step: Callable[[GanTraining], None],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Trains to the end, or until asked to stop.

        Args:
            checkpoint: the file that is replaced at every measurement, and when it stops.
            description: kept in the checkpoint.
            on_step: called after every step.
            should_stop: asked after every step.

        Returns:
            Whether it came to the end.

        Raises:
            DivergedError: for a loss or gradient that is NaN or infinite; no weight has become so, and the last
                checkpoint stands.
        """
        while self.step < self.steps:
            started = time.perf_counter()
            losses = self._train_step()
            self.step += 1
            self.losses.append(losses)
            measured = self.step % self.config.check_every == 0 or self.step == self.steps
            if measured:
                self._measure()
            self.seconds += time.perf_counter() - started
            stop = should_stop()
            if stop or measured:
                self.save(checkpoint, description)
            on_step(self)
            if stop and self.step < self.steps:
                return False
        return True

    def _train_step(self) -> tuple[float, float]:
        rows = self._next_rows()
        clusters = self._clusters[rows]
        made = self._generator(self._latents(), clusters)
        real = self._augment(self._images[rows].float() / 255, 0)
        with_r1 = self.config.r1 > 0 and self.step % self.config.r1_every == 0
        real.requires_grad_(with_r1)
        looks_real = self._discriminator(real, clusters)
        judged = self._discriminator(self._augment(made.detach(), 1), clusters)
        loss = functional.softplus(-looks_real).mean() + functional.softplus(judged).mean()
        total = loss
        if with_r1:
            (gradient,) = torch.autograd.grad(looks_real.sum(), real, create_graph=True)
            total = loss + 0.5 * self.config.r1 * self.config.r1_every * gradient.square().sum((1, 2, 3)).mean()
        self._update("discriminator", total)

        self._discriminator.requires_grad_(False)
        generator_loss = functional.softplus(-self._discriminator(self._augment(made, 2), clusters)).mean()
        self._update("generator", generator_loss)
        self._discriminator.requires_grad_(True)
        self._move_average()
        return loss.item(), generator_loss.item()

    def _update(self, name: str, loss: Tensor) -> None:
        parameters = list(self._models[name].parameters())
        self._optimizers[name].zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if not math.isfinite(loss.item()) or not math.isfinite(norm.item()):
            raise DivergedError(
                f"the {name}'s loss became {loss.item()}, its gradient {norm.item()}, at step {self.step + 1} of "
                f"{self.steps}: training has diverged; try a smaller learning rate or a larger r1",
                self.step + 1,
            )
        self._optimizers[name].step()

    @torch.no_grad()
    def _move_average(self) -> None:
        # Early on the average must forget the first weights.
        kept = min(self.config.average, (1 + self.step) / (10 + self.step))
        for old, new in zip(self.generator.state_dict().values(), self._generator.state_dict().values(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, 1 - kept)
            else:
                old.copy_(new)

    def _next_rows(self) -> Tensor:
        epoch, batch = divmod(self.step, len(self._images) // self._batch)
        # The legacy generator: its stream is frozen for all numpy versions.
        order = np.random.RandomState([self.config.seed, epoch]).permutation(len(self._images))
        return torch.from_numpy(order[batch * self._batch : (batch + 1) * self._batch])

    def _latents(self) -> Tensor:
        first = self.step * self._batch
        return latents(torch.arange(first, first + self._batch), self.config.latent, self.config.seed, _STREAM)

    def _augment(self, images: Tensor, view: int) -> Tensor:
        size = (images.shape[2], images.shape[3])
        return apply_differentiably(images, self._transform.sample(len(images), size, epoch=self.step, view=view))

    def _measure(self) -> None:
        count = max(2, min(self.config.check_images, len(self._images)))
        made = GeneratedDataset(self.generator, count, self.config.seed).images
        distance = frechet_distance(self._real_features, self._encoder.embed(made))
        if distance < min(self.distances.values(), default=math.inf):
            self._best.load_state_dict(self.generator.state_dict())
        self.distances[self.step] = distance

    def save(self, path: Path, description: dict[str, Any]) -> None:
        """Writes all that :meth:`restore` needs."""
        tensors = {f"model.{name}": tensor for name, tensor in self._models.state_dict().items()}
        for kind, optimizer in self._optimizers.items():
            for row, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{kind}.{row}.{name}": tensor for name, tensor in state.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["clusters"] = self._clusters
        position = {"step": self.step, "seconds": self.seconds, "distances": list(self.distances.items())}
        save_checkpoint(path, tensors, {**description, "gan": asdict(self.config), **position})

    def restore(self, path: Path) -> dict[str, Any]:
        """Goes to where a checkpoint stands; returns its description.

        Raises:
            CheckpointError: for a checkpoint that is damaged, or of another model or configuration.
        """
        tensors, description = load_checkpoint(path)
        if description.get("gan") != asdict(self.config):
            raise CheckpointError(f"{path}: the checkpoint is of another configuration: {description.get('gan')}")
        state: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in self._optimizers}
        try:
            for name, tensor in tensors.items():
                if name.startswith("optimizer."):
                    _, kind, row, key = name.split(".")
                    state[kind].setdefault(int(row), {})[key] = tensor
            prefix = "model."
            models = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            self._models.load_state_dict(models)
            self._clusters = tensors["clusters"]
            for kind, optimizer in self._optimizers.items():
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": state[kind], "param_groups": groups})
            self.losses = [(float(first), float(second)) for first, second in tensors["losses"].tolist()]
            self.step, self.seconds = int(description["step"]), float(description["seconds"])
            self.distances = {int(step): float(distance) for step, distance in description["distances"]}
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: the checkpoint is of another model: {error}") from error
        return description


def _cluster(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Which of so many clusters each row belongs to, by k-means of the directions; int64 [N]."""
    if clusters == 1:
        return torch.zeros(len(features), dtype=torch.int64)
    with run_extra():
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    means = KMeans(clusters, n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of images that are equal: some clusters stay empty
        found = means.fit_predict(functional.normalize(features, dim=1).numpy())
    return torch.from_numpy(found).long()
