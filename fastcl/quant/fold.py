"""Folding BatchNorm into the layer before it, so that what is quantised is what runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

# the layer, the norm that may follow it, and the function that folds one into a copy of the other
_PAIRS: tuple[tuple[type, type, Callable[..., nn.Module]], ...] = (
    (nn.Conv2d, nn.BatchNorm2d, fuse_conv_bn_eval),
    (nn.Linear, nn.BatchNorm1d, fuse_linear_bn_eval),
)


def fold_batchnorm_(model: nn.Module) -> list[str]:
    """Folds each BatchNorm's running statistics into the convolution or linear layer that feeds it and it alone.

    In place: a layer with the new weight takes its place, and an ``nn.Identity`` the BatchNorm's. Pairs are found by
    tracing the model with ``torch.fx``, and within each ``nn.Sequential`` where it cannot be traced.

    Args:
        model: in evaluation mode; a BatchNorm without running statistics is left.

    Returns:
        The names of the BatchNorms that were folded.

    Raises:
        ValueError: for a model in training mode.
    """
    if model.training:
        raise ValueError("fold_batchnorm_: model must be in evaluation mode: call model.eval() first")
    folded = []
    for layer_name, norm_name in list(adjacent(model)):
        layer: Any = model.get_submodule(layer_name)
        norm: Any = model.get_submodule(norm_name)
        for layer_type, norm_type, fuse in _PAIRS:
            if type(layer) is layer_type and type(norm) is norm_type and getattr(norm, "track_running_stats", False):
                replace_module(model, layer_name, fuse(layer, norm))
                replace_module(model, norm_name, nn.Identity())
                folded.append(norm_name)
    return folded


class _Tracer(fx.Tracer):
    """Sees this package's layers from outside, as torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m.__module__.startswith("fastcl.quant.") or super().is_leaf_module(m, module_qualified_name)


def adjacent(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of modules where the second is called on the result of the first, which nothing else reads.

    ``nn.Identity`` between them does not count.
    """
    try:
        nodes = list(_Tracer().trace(model).nodes)
    except Exception:  # whatever a model does that fx cannot follow
        yield from _adjacent_in_sequentials(model)
        return
    calls = [str(node.target) for node in nodes if node.op == "call_module"]

    def is_called_once_for_one_reader(node: Any) -> bool:
        return (
            isinstance(node, fx.Node)
            and node.op == "call_module"
            and len(node.users) == 1
            and calls.count(str(node.target)) == 1
        )

    for node in nodes:
        if node.op != "call_module" or len(node.args) != 1 or calls.count(str(node.target)) != 1:
            continue
        before = node.args[0]
        while is_called_once_for_one_reader(before) and type(model.get_submodule(before.target)) is nn.Identity:
            before = before.args[0]
        if is_called_once_for_one_reader(before):
            yield str(before.target), str(node.target)


def _adjacent_in_sequentials(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            children = [(child, below) for child, below in module.named_children() if type(below) is not nn.Identity]
            yield from pairwise([f"{name}.{child}" if name else child for child, _ in children])


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module into the place of that name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
