"""The loss of CLIP, with open_clip's signature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fastcl.losses.distributed import (
    Distributed,
    check_distributed,
    gather_rows,
    lse_of_all,
    mean_of_all,
    ring_lse,
    with_mean_gradient,
    world,
)
from fastcl.losses.embeddings import check_embeddings, dot
from fastcl.losses.reduction import Reduction, check_reduction, reduce
from fastcl.ops import similarity_lse
from fastcl.ops.checks import check_precision, check_scale, floats_to_keep
from fastcl.ops.registry import op


class _PairLosses(torch.autograd.Function):
    """The losses of the pairs in one process, [N]; as one node, for small batches spend their time between nodes."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, precision: str) -> Tensor:
        number = torch.arange(len(image), device=image.device)
        # Sums without the positive, which softplus adds: exact where the loss is small.
        keep = floats_to_keep("similarity_lse", image.device, len(image), len(text)) if any(ctx.needs_input_grad) else 0
        row, col, kept = op("similarity_lse", image)(image, text, scale, number, number, True, precision, keep)
        cosine = dot(image, text)
        margin = torch.stack((row, col)) - scale * cosine
        ctx.save_for_backward(image, text, scale, number, row, col, cosine, margin, kept)
        ctx.precision = precision
        ctx.lse_backward = op("similarity_lse_backward", image)  # of the backend that is in force now
        return functional.softplus(margin).mean(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, number, row, col, cosine, margin, kept = ctx.saved_tensors
        need_image, need_text, need_scale, _ = ctx.needs_input_grad
        grad_row, grad_col = torch.sigmoid(margin).mul_(grad / 2)
        # The scale's gradient is formed from the images'.
        grad_image, grad_text, grad_scale = ctx.lse_backward(
            grad_row, grad_col, image, text, scale, number, number, row, col, need_image or need_scale, need_text,
            ctx.precision, kept,
        )  # fmt: skip
        grad_cosine = -(grad_row + grad_col)
        pull = (scale * grad_cosine)[:, None]
        return (
            torch.addcmul(grad_image, pull, text).to(image.dtype) if need_image else None,
            torch.addcmul(grad_text, pull, image).to(text.dtype) if need_text else None,
            grad_scale + grad_cosine.dot(cosine),
            None,
        )


class ClipLoss(nn.Module):
    """Contrastive loss of image-text pairs (Radford et al. 2021, fig. 3); takes the place of
    ``open_clip.loss.ClipLoss``.

    With s_ij = logit_scale · <x_i, y_j> for images x and texts y as they are given,

        loss_i = (log Σ_j exp(s_ij) + log Σ_j exp(s_ji)) / 2 - s_ii

    Between processes there are four modes of open_clip's, equal to it in value and gradient, and two of exact gradient:

    | local_loss, gather_with_grad | value       | gradient that DDP ends with                           |
    |------------------------------|-------------|-------------------------------------------------------|
    | False, False                 | of all rows | 1 / world_size of the exact one; the scale's is exact |
    | False, True                  | of all rows | exact                                                 |
    | True, False                  | of own rows | not exact: keys of other processes are constants      |
    | True, True                   | of own rows | exact                                                 |
    | ``distributed="gather"``     | of own rows | exact, as the row above                               |
    | ``distributed="ring"``       | of own rows | exact, in O(own rows) memory and half the products    |

    Args:
        local_loss: see the table.
        gather_with_grad: see the table.
        cache_labels: accepted for open_clip's sake; no labels are formed.
        rank: of this process.
        world_size: number of processes.
        use_horovod: accepted for open_clip's sake; must be ``False``.
        distributed: ``"gather"`` or ``"ring"``, see the table and :mod:`fastcl.losses.distributed`; then none of
            ``local_loss``, ``gather_with_grad``, ``rank`` and ``world_size`` is read.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the pairs; between processes those of the process, so that
            it must be ``"mean"`` where ``local_loss`` is ``False``.
        precision: of the products of float32 features, see :func:`fastcl.ops.similarity_lse`.

    Raises:
        ValueError: for an option that is none.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        distributed: Distributed | None = None,
        reduction: Reduction = "mean",
        precision: str | None = None,
    ) -> None:
        super().__init__()
        if use_horovod:
            raise ValueError("ClipLoss: use_horovod must be False, got True; start the processes with torchrun")
        check_rank("ClipLoss", rank, world_size)
        self.local_loss = local_loss
        self.gather_with_grad = gather_with_grad
        self.rank = rank
        self.world_size = world_size
        self.distributed = check_distributed("ClipLoss", distributed)
        self.reduction = check_reduction("ClipLoss", reduction)
        if world_size > 1 and not local_loss and distributed is None and reduction != "mean":
            raise ValueError(f"ClipLoss: reduction must be 'mean' unless local_loss is set, got {reduction!r}")
        if precision is not None:
            check_precision("ClipLoss", precision)
        self.precision = precision

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Any:
        """Gives the loss of image-text pairs.

        Args:
            image_features: [N, D], float32, bfloat16, float16 or float64, already normalised.
            text_features: [N, D], row i being the pair of ``image_features``'s row i.
            logit_scale: 1 / temperature, already exponentiated; a number or a tensor of one element.
            logit_bias: added to every logit, which changes nothing; its gradient is 0.
            output_dict: give ``{"contrastive_loss": loss}``.

        Returns:
            A scalar, or the losses of the pairs [N] for ``reduction="none"``; float32 (float64 for float64).

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for shapes that do not fit.
            RuntimeError: for a ``world_size`` above 1 without a process group of that size.
        """
        check_embeddings("ClipLoss", image_features=image_features, text_features=text_features)
        scale = check_scale("ClipLoss", logit_scale, image_features)
        if self.distributed is not None or self.world_size == 1:
            loss = self._exact(image_features, text_features, scale, self.distributed)
        else:
            check_world("ClipLoss", self.rank, self.world_size)
            loss = self._as_open_clip(image_features, text_features, scale)
        if isinstance(logit_bias, Tensor) and logit_bias.requires_grad:
            loss = loss + 0 * logit_bias.sum()  # DDP wants every parameter in the graph
        return {"contrastive_loss": loss} if output_dict else loss

    def _exact(self, image: Tensor, text: Tensor, scale: Tensor, distributed: Distributed | None) -> Tensor:
        if distributed is None or world()[1] == 1:
            losses: Tensor = _PairLosses.apply(image, text, scale, check_precision("ClipLoss", self.precision))
            return reduce(losses, self.reduction)
        count = len(image)
        number = torch.arange(count, device=image.device)
        options: dict[str, Any] = {"precision": self.precision}
        if distributed == "ring":
            row, col = ring_lse(image, text, scale, number, count, columns=True, **options)
        else:
            row = lse_of_all(image, text, scale, number, count, distributed=distributed, **options)
            col = lse_of_all(text, image, scale, number, count, distributed=distributed, **options)
        positive = scale * dot(image, text)
        return reduce((functional.softplus(row - positive) + functional.softplus(col - positive)) / 2, self.reduction)

    def _as_open_clip(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        if self.local_loss:
            if self.gather_with_grad:
                return self._exact(image, text, scale, "gather")
            return self._with_constant_keys(image, text, scale)
        if not self.gather_with_grad:
            # open_clip differentiates the loss of all rows on each process by that process's features alone. The exact
            # gradient of the sum of the processes' losses is world_size times that.
            image, text = (_with_scaled_gradient(features, 1 / self.world_size) for features in (image, text))
        loss = self._exact(image, text, with_mean_gradient(scale), "gather")
        return loss + (mean_of_all(loss) - loss.detach())

    def _with_constant_keys(self, image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        number = torch.arange(len(image), device=image.device) + len(image) * self.rank
        losses = torch.zeros((), device=image.device)
        for query, key in ((image, text), (text, image)):
            keys = gather_rows(key)
            every = torch.arange(len(keys), device=key.device)
            lse = similarity_lse(query, keys, scale, q_group=number, k_group=every, precision=self.precision)
            losses = losses + functional.softplus(lse - scale * dot(query, key.detach()))
        return reduce(losses / 2, self.reduction)


def _with_scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself; its gradient is multiplied by ``factor``."""
    return x.detach() + factor * (x - x.detach())


def check_rank(owner: str, rank: int, world_size: int) -> None:
    """Wants a rank within the world."""
    if not 0 <= rank < world_size:
        raise ValueError(f"{owner}: rank must be in [0, world_size), got rank {rank} and world_size {world_size}")


def check_world(owner: str, rank: int, world_size: int) -> None:
    """Wants the process group that the loss was told of."""
    if (rank, world_size) != world():
        got = "rank {} of {}".format(*world())
        raise RuntimeError(
            f"{owner}: wanted a torch.distributed process group with rank {rank} of {world_size}, got {got}"
        )
