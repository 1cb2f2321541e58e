"""Distillation without labels: a student learns the teacher's embeddings, and which images the teacher finds alike.

Two terms on the same augmented view of each image, as in SEED (Fang et al. 2021) and CompRess (Koohpayegani et al.
2020): the cosine between the teacher's embedding and a linear map of the student's, and the divergence between the two
distributions over the other images of the batch, each in its own space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcl.data.dataset import RowImages
from fastcl.errors import DivergedError
from fastcl.losses.embeddings import check_embeddings, unit_rows
from fastcl.ops import similarity_lse
from fastcl.transforms import Compose, MultiViewTransform

__all__ = ["DistillConfig", "SimilarityDistillationLoss", "distill"]


@dataclass(frozen=True)
class DistillConfig:
    """How a student is trained.

    Attributes:
        epochs: passes over the images.
        batch_size: images in a step; a loader's own counts instead where images come from one.
        lr: AdamW's learning rate at its highest, after a warm-up of two epochs and before a cosine decay to 0.
        weight_decay: AdamW's.
        temperature: what similarities are divided by, the teacher's and the student's.
        embedding_weight: of the embeddings' term; 0 leaves it out.
        similarity_weight: of the similarities' term; 0 leaves it out.
        seed: of the linear map and the order of the images.

    Raises:
        ValueError: for a value out of range.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-4
    temperature: float = 0.1
    embedding_weight: float = 1.0
    similarity_weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("weight_decay", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"DistillConfig: {name} must be at least {least}, got {getattr(self, name)}")
        for name in ("lr", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"DistillConfig: {name} must be above 0, got {getattr(self, name)}")
        weights = (self.embedding_weight, self.similarity_weight)
        if min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError(
                "DistillConfig: embedding_weight and similarity_weight must be at least 0 and not both 0, got "
                f"{weights[0]} and {weights[1]}"
            )


class SimilarityDistillationLoss(nn.Module):
    """Divergence of the student's similarities from the teacher's (CompRess, Koohpayegani et al. 2020).

    For rows t_i of the teacher and s_i of the student, all of unit length, and j over the other rows of the batch:

        p_i = softmax_j(t_i·t_j / temperature)    q_i = softmax_j(s_i·s_j / temperature)    loss = mean_i KL(p_i ‖ q_i)

    The two spaces may have different dimensions. No [N, N] matrix is made: both sums over j are
    :func:`fastcl.ops.similarity_lse`'s. The gradient reaches the student alone.

    Args:
        temperature: what similarities are divided by, above 0.

    Raises:
        ValueError: for a temperature that is not above 0.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"SimilarityDistillationLoss: temperature must be above 0, got {temperature}")
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss, a 0-d tensor.

        Args:
            student: [N, D], any length of rows.
            teacher: [N, any D], of the same images.

        Raises:
            TypeError: for embeddings that are not floating.
            ValueError: for fewer than two rows, or different numbers of them.
        """
        name = type(self).__name__
        check_embeddings(name, student=student)
        check_embeddings(name, teacher=teacher)
        if len(student) != len(teacher) or len(student) < 2:
            raise ValueError(
                f"{name}: student and teacher must have as many rows as each other, at least 2, got "
                f"{list(student.shape)} and {list(teacher.shape)}"
            )
        s = unit_rows(student)
        expected, expected_by, teacher_lse, teacher_mean = _teacher_sums(
            unit_rows(teacher).detach().to(s.dtype), s.detach(), self.temperature
        )
        # Σ_j p_ij s_i·s_j: its value by row, and its gradient, which each row gets as query and as key.
        mean = (s * (expected + expected_by)).sum(dim=1) - (s.detach() * expected_by).sum(dim=1)
        cross_entropy = similarity_lse(s, None, 1 / self.temperature) - mean / self.temperature
        entropy = teacher_lse - teacher_mean / self.temperature
        return (cross_entropy - entropy).mean()


def _teacher_sums(t: Tensor, s: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With p the teacher's distributions: P s and Pᵀ s [N, D], and of each row log Σ_j exp and Σ_j p_ij t_i·t_j."""
    dims, none, row = [t.shape[1], s.shape[1], s.shape[1]], torch.zeros_like(s), torch.arange(len(t), device=t.device)
    with torch.enable_grad():
        # The products are t·t alone, and the gradients of the log-sum-exps are p-weighted sums of the other's columns.
        q, k = torch.cat([t, s, none], 1).requires_grad_(), torch.cat([t, none, s], 1).requires_grad_()
        lse = similarity_lse(q, k, 1 / temperature, q_group=row, k_group=row)
        grad_q, grad_k = torch.autograd.grad(lse.sum(), (q, k))
    expected_t, _, expected_s = (grad_q * temperature).split(dims, dim=1)
    expected_by = (grad_k * temperature).split(dims, dim=1)[1]
    return expected_s, expected_by, lse.detach(), (t * expected_t).sum(dim=1)


def distill(
    teacher: nn.Module,
    student: nn.Module,
    images: Tensor | Iterable[Any],
    transform: Callable[[Tensor], Any] | None = None,
    config: DistillConfig | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Trains the student, in place, to embed images as the teacher does; needs no labels.

    Args:
        teacher: takes a batch of images, gives floating embeddings [B, D]; runs in evaluation mode, is not changed.
        student: the same with any D; where it is not the teacher's, a linear map between the two is learnt and dropped.
        images: [N, C, H, W], or a ``DataLoader`` or the like that can be gone through once an epoch and gives batches;
            of a tuple the first item counts, the others (labels) are not looked at.
        transform: makes the views that both see from a batch: :mod:`fastcl.transforms`' (several views become one
            larger batch), or any function of a tensor. None: the images as they are.
        config: how to train.
        on_step: called after every step with its number from 1 on, the number of steps and the loss.

    Returns:
        The loss of every step.

    Raises:
        TypeError: for views or embeddings that are not floating tensors.
        ValueError: for too few images, or embeddings that are not [B, D].
        DivergedError: for a loss that is NaN or infinite.
    """
    config = config or DistillConfig()
    batches = _Batches(images, transform, config)
    device = next(student.parameters()).device
    modes = teacher.training, student.training
    teacher.eval()
    student.train()
    try:
        return _train(teacher, student, batches, device, config, on_step)
    finally:
        teacher.train(modes[0])
        student.train(modes[1])


def _train(
    teacher: nn.Module,
    student: nn.Module,
    batches: _Batches,
    device: torch.device,
    config: DistillConfig,
    on_step: Callable[[int, int, float], None] | None,
) -> list[float]:
    similarity = SimilarityDistillationLoss(config.temperature)
    steps, warmup = config.epochs * batches.per_epoch, max(1, min(2, config.epochs / 4) * batches.per_epoch)
    projector: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None
    losses: list[float] = []
    for epoch in range(config.epochs):
        for views in batches.epoch(epoch):
            views = views.to(device)
            with torch.no_grad():
                wanted = _embeddings("teacher", teacher(views), views)
            got = _embeddings("student", student(views), views)
            if projector is None or optimizer is None:
                projector = _projector(got.shape[1], wanted.shape[1], config.seed).to(device, got.dtype)
                optimizer = torch.optim.AdamW(
                    [*student.parameters(), *projector.parameters()], lr=config.lr, weight_decay=config.weight_decay
                )
            loss = got.new_zeros(())
            if config.embedding_weight:
                cosine = torch.cosine_similarity(projector(got), wanted.to(got.dtype), dim=1)
                loss = loss + config.embedding_weight * (1 - cosine).mean()
            if config.similarity_weight:
                loss = loss + config.similarity_weight * similarity(got, wanted)
            value = float(loss.item())
            if not math.isfinite(value):
                raise DivergedError(
                    f"distill: the loss became {value} at step {len(losses) + 1} of {steps}: try a smaller lr",
                    len(losses) + 1,
                )
            for group in optimizer.param_groups:
                decay = 0.5 * (1 + math.cos(math.pi * min(1.0, len(losses) / steps)))
                group["lr"] = config.lr * min(1.0, (len(losses) + 1) / warmup) * decay
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(value)
            if on_step is not None:
                on_step(len(losses), steps, value)
    return losses


class _Batches:
    """Views of the images, an epoch at a time."""

    def __init__(self, images: Any, transform: Callable[..., Any] | None, config: DistillConfig) -> None:
        self._images, self._transform, self._config = images, transform, config
        if isinstance(images, (Tensor, RowImages)):
            if len(images.shape) != 4 or len(images) < 2:
                raise ValueError(
                    f"distill: images must be [N, C, H, W] with at least 2 images, got {list(images.shape)}"
                )
            self._size = min(config.batch_size, len(images))
            self.per_epoch = len(images) // self._size
            return
        if isinstance(images, Iterator) or not isinstance(images, Iterable):
            kind = type(images).__name__
            raise TypeError(
                f"distill: images must be a Tensor or a loader that can be gone through once an epoch, got {kind}"
            )
        try:
            self.per_epoch = len(images)  # type: ignore[arg-type]
        except TypeError as error:
            raise TypeError(
                f"distill: images must tell the number of its batches by len(), got {type(images).__name__}"
            ) from error
        if self.per_epoch < 1:
            raise ValueError("distill: images must give at least one batch, got none")

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """Every batch of an epoch, floating [B, C, H, W]."""
        if isinstance(self._images, (Tensor, RowImages)):
            # The order of an epoch follows from (seed, epoch) alone, and with it the draws of fastcl's transforms.
            order = np.random.RandomState([self._config.seed, epoch]).permutation(len(self._images))
            for index in torch.from_numpy(order).split(self._size):
                if len(index) == self._size:
                    yield self._views(self._images[index.to(self._images.device)], index, epoch)
            return
        for batch in self._images:
            batch = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
            if not isinstance(batch, Tensor) or batch.dim() < 2:
                raise TypeError(
                    "distill: a batch must be a Tensor, or a tuple that starts with one, of several images, got "
                    f"{list(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__}"
                )
            if len(batch) < 2:
                raise ValueError(
                    f"distill: a batch must have at least 2 images, got {len(batch)}: let the loader drop_last"
                )
            yield self._views(batch, None, epoch)

    def _views(self, batch: Tensor, index: Tensor | None, epoch: int) -> Tensor:
        views: Any = batch
        if self._transform is not None:
            numbered = index is not None and isinstance(self._transform, (Compose, MultiViewTransform))
            views = self._transform(batch, index=index, epoch=epoch) if numbered else self._transform(batch)
        if isinstance(views, (list, tuple)):
            views = torch.cat(list(views))
        if not isinstance(views, Tensor) or not views.is_floating_point():
            got = views.dtype if isinstance(views, Tensor) else type(views).__name__
            raise TypeError(
                f"distill: what the encoders see must be floating, got {got}: give a transform that normalises"
            )
        channels_last = views.dim() == 4
        return views.contiguous(memory_format=torch.channels_last) if channels_last else views


def _embeddings(name: str, embeddings: Any, views: Tensor) -> Tensor:
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        got = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise TypeError(f"distill: {name} must give a floating Tensor, got {got}")
    if embeddings.dim() != 2 or len(embeddings) != len(views):
        raise ValueError(
            f"distill: {name} must give embeddings [{len(views)}, D] for {len(views)} images, got "
            f"{list(embeddings.shape)}"
        )
    return embeddings


def _projector(dim: int, wanted: int, seed: int) -> nn.Module:
    """From the student's embeddings to the teacher's."""
    if dim == wanted:  # then the student's stand in for the teacher's as they are
        return nn.Identity()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(dim, wanted)
