"""The sigmoid loss of SigLIP, with open_clip's signature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fastcl.losses.clip import check_rank, check_world
from fastcl.losses.distributed import Distributed, check_distributed, gather_with_gradient, ring_softplus_sums, world
from fastcl.losses.embeddings import check_embeddings, dot, wide
from fastcl.losses.pairwise import Block, rows_of_a_block, softplus_sums
from fastcl.losses.reduction import Reduction, check_reduction, reduce
from fastcl.ops.checks import check_scale

_IMPLEMENTATIONS: dict[str | None, Distributed] = {
    None: "ring",
    "bidir": "ring",
    "shift": "ring",
    "reduce": "ring",
    "gather": "gather",
}


class SigLipLoss(nn.Module):
    """Sigmoid loss of image-text pairs (Zhai et al. 2023, section 3.2); stands in for ``open_clip.loss.SigLipLoss``.

    With logits s_ij = logit_scale · <x_i, y_j> + logit_bias,

        loss_i = log(1 + exp(-s_ii)) + Σ_(j ≠ i) log(1 + exp(s_ij))

    and the loss is the mean over i. This is no log-sum-exp: plain PyTorch in blocks of ``chunk_size`` images, formed
    again in backward, so that memory is O(N·chunk_size).

    Between processes an image meets the texts of all. Every ``dist_impl`` has the same value (of the own images) and
    gradient (that DDP ends with: exact).

    Args:
        cache_labels: accepted for open_clip's sake; no labels are formed.
        rank: of this process.
        world_size: number of processes.
        dist_impl: ``"gather"`` collects the texts of all processes; ``"bidir"`` (the default), ``"shift"`` and
            ``"reduce"`` all pass them around, in O(own texts) memory.
        chunk_size: how many images are compared at a time; ``None``: as many as make a block of 4 MB.
        distributed: ``"gather"`` or ``"ring"``, as in the other losses; then none of ``dist_impl``, ``rank`` and
            ``world_size`` is read.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` over the own images.

    Raises:
        ValueError: for an option that is none.
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
        chunk_size: int | None = None,
        *,
        distributed: Distributed | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        check_rank("SigLipLoss", rank, world_size)
        if dist_impl not in _IMPLEMENTATIONS:
            wanted = ", ".join(filter(None, _IMPLEMENTATIONS))
            raise ValueError(f"SigLipLoss: dist_impl must be one of {wanted}, got {dist_impl!r}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"SigLipLoss: chunk_size must be at least 1 or None, got {chunk_size}")
        self.rank = rank
        self.world_size = world_size
        self.dist_impl = dist_impl
        self.chunk_size = chunk_size
        self.distributed = check_distributed("SigLipLoss", distributed)
        self.reduction = check_reduction("SigLipLoss", reduction)

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
            logit_scale: already exponentiated; a number or a tensor of one element.
            logit_bias: a number or a tensor of one element; ``None``: 0.
            output_dict: give ``{"contrastive_loss": loss}``.

        Returns:
            A scalar, or the losses of the images [N] for ``reduction="none"``; float32 (float64 for float64).

        Raises:
            TypeError: for an argument of the wrong type or dtype.
            ValueError: for shapes that do not fit.
            RuntimeError: for a ``world_size`` above 1 without a process group of that size.
        """
        check_embeddings("SigLipLoss", image_features=image_features, text_features=text_features)
        scale = check_scale("SigLipLoss", logit_scale, image_features)
        bias = check_scale("SigLipLoss", 0.0 if logit_bias is None else logit_bias, image_features)
        image, text = wide(image_features), wide(text_features)
        positive = functional.softplus(-(scale * dot(image, text) + bias))
        loss = reduce(positive + self._negatives(image, text, scale, bias), self.reduction)
        return {"contrastive_loss": loss} if output_dict else loss

    def _negatives(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        count = len(image)
        offset = bias.expand(count)
        if self.distributed is None and self.world_size > 1:
            check_world("SigLipLoss", self.rank, self.world_size)
        rank, size = world()
        if (self.distributed is None and self.world_size == 1) or size == 1:
            return softplus_sums(image, text, scale, offset, lambda: self._blocks(count, count, 0))
        if (self.distributed or _IMPLEMENTATIONS[self.dist_impl]) == "gather":
            texts = gather_with_gradient(text)
            return softplus_sums(image, texts, scale, offset, lambda: self._blocks(count, len(texts), rank * count))
        own = rank
        return ring_softplus_sums(
            image,
            text,
            scale,
            offset,
            lambda owner: lambda: self._blocks(count, count, 0 if owner == own else None),
        )

    def _blocks(self, images: int, texts: int, pair_of_first: int | None) -> Iterator[Block]:
        """All pairs but those of image i with text pair_of_first + i."""
        step = self.chunk_size or rows_of_a_block(texts)
        for start in range(0, images, step):
            stop = min(start + step, images)
            pairs = None if pair_of_first is None else pair_of_first + start
            yield slice(start, stop), slice(0, texts), pairs
