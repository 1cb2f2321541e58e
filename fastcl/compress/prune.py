"""Structured pruning: whole channels leave, with every layer that reads them (Torch-Pruning, Fang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcl.errors import extra
from fastcl.quant import Int8Conv2d, Int8Linear

__all__ = ["PruneReport", "prune_"]


@dataclass(frozen=True)
class PruneReport:
    """What :func:`prune_` did.

    Attributes:
        channels: of every linear and convolution layer by name: outputs before and after.
        parameters_before: their number.
        parameters_after: the same, after.
    """

    channels: dict[str, tuple[int, int]]
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        lines = [f"{name}: {before} → {after} channels" for name, (before, after) in self.channels.items()]
        return "\n".join([*lines, f"{self.parameters_before:,} parameters → {self.parameters_after:,}"])

    __repr__ = __str__


def prune_(
    model: nn.Module,
    example: Tensor,
    ratio: float,
    *,
    keep: Sequence[nn.Module] = (),
    round_to: int = 1,
) -> PruneReport:
    """Removes the channels of the smallest weights (L2 over all that belongs to a channel), in place; needs no data.

    Each layer loses the same share. What a pruned model has lost it learns again by :func:`distill` from the model
    before.

    Args:
        model: a float model; a convolution without a layer behind it loses outputs too, unless in ``keep``.
        example: a batch for one forward pass, from which the dependencies between layers are found.
        ratio: the share of each layer's channels that leaves, above 0 and below 1.
        keep: layers that keep their outputs, such as the last one, where the embeddings must keep their dimensions.
        round_to: leaves multiples of it.

    Returns:
        What was removed.

    Raises:
        MissingExtraError: without the package torch-pruning.
        ValueError: for a ratio out of range, or a model with int8 layers or nothing to prune.
    """
    if not 0 < ratio < 1:
        raise ValueError(f"prune_: ratio must be above 0 and below 1, got {ratio}")
    if round_to < 1:
        raise ValueError(f"prune_: round_to must be at least 1, got {round_to}")
    int8 = [name for name, module in model.named_modules() if isinstance(module, (Int8Linear, Int8Conv2d))]
    if int8:
        raise ValueError(
            f"prune_: model must be float, got int8 layers ({', '.join(int8)}): prune first, then quantise"
        )
    before = _channels(model)
    if not before:
        raise ValueError("prune_: model must have linear or convolution layers, got none")
    with extra("compress"):
        import torch_pruning
    parameters = _parameters(model)
    training = model.training
    with torch.random.fork_rng(devices=[]):  # the library draws numbers while it traces
        pruner = torch_pruning.pruner.BasePruner(
            model.eval(),
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=list(keep),
            round_to=round_to,
        )
        pruner.step()
    model.train(training)
    after = _channels(model)
    return PruneReport({name: (before[name], after[name]) for name in before}, parameters, _parameters(model))


def _channels(model: nn.Module) -> dict[str, int]:
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return {name: len(module.weight) for name, module in model.named_modules() if isinstance(module, kinds)}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
