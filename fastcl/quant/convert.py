"""Swapping int8 layers into a model, with a report of what was swapped, what was left, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastcl.ops.int8_linear import MAX_DEPTH
from fastcl.quant.layers import Int8Conv2d, Int8Linear, _Int8Layer


@dataclass(frozen=True)
class QuantConfig:
    """What :func:`quantize_` swaps.

    Attributes:
        linear: swap ``nn.Linear``.
        conv: swap ``nn.Conv2d``.
        min_depth: leave layers that sum over fewer inputs (in_features, or in_channels * kernel height * kernel width):
            int8 gains nothing on them.
    """

    linear: bool = True
    conv: bool = True
    min_depth: int = 1


@dataclass(frozen=True)
class QuantRow:
    """One layer of a :class:`QuantReport`.

    Attributes:
        name: the layer's name in the model; ``""`` is the model itself.
        type: its class before.
        action: ``"int8"`` (swapped), ``"left"``, or ``"shared"`` (a layer that another row tells of).
        reason: why it was left, or what it became.
        bytes_before: of its own parameters and buffers.
        bytes_after: the same, as stored in the state dict.
    """

    name: str
    type: str
    action: str
    reason: str
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class QuantReport:
    """What :func:`quantize_` did: a row for every layer that holds tensors.

    Attributes:
        model: the model, swapped in place.
        rows: in the model's order.
    """

    model: nn.Module
    rows: tuple[QuantRow, ...]

    @property
    def bytes_before(self) -> int:
        """Of all rows."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Of all rows."""
        return sum(row.bytes_after for row in self.rows)

    def __str__(self) -> str:
        """A table, and a last line of totals."""
        header = ("layer", "type", "action", "bytes before", "after", "reason")
        cells = [
            (row.name or "(model)", row.type, row.action, f"{row.bytes_before:,}", f"{row.bytes_after:,}", row.reason)
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
        lines = [
            "  ".join(
                text.rjust(width) if i in (3, 4) else text.ljust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [header, *cells]
        ]
        swapped = sum(row.action == "int8" for row in self.rows)
        total = f"{swapped} of {len(self.rows)} layers in int8, {self.bytes_before:,} bytes → {self.bytes_after:,}"
        return "\n".join([*lines, total])

    __repr__ = __str__


def quantize_(
    model: nn.Module,
    config: QuantConfig | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    device: torch.device | str | None = None,
) -> QuantReport:
    """Swaps the linear and convolution layers of a model for :class:`Int8Linear` and :class:`Int8Conv2d`, in place.

    A model that is itself such a layer becomes the int8 layer: the object stays, its class changes. Fold BatchNorm
    before (:func:`fold_batchnorm_`). To load a quantised state dict, build the float model, fold and quantise it in the
    same way, then call ``load_state_dict``.

    Args:
        model: the float model.
        config: what to swap; by default all that can be.
        filter_fn: takes a layer and its name; layers for which it is False are left.
        device: moves each swapped layer there first.

    Returns:
        The report, a row for every layer that holds tensors; ``print`` it. Its ``model`` is ``model``.

    Raises:
        ValueError: for a layer to be swapped whose weight is not finite.
    """
    config = config or QuantConfig()
    rows: list[QuantRow] = []
    done: dict[nn.Module, tuple[str, nn.Module]] = {}  # each layer: where it stood first, and what stands there now
    for name, module, parent in list(_places(model)):
        before, kind = _own_bytes(module), type(module).__name__
        if before == 0:
            continue
        if module in done:
            first, layer = done[module]
            rows.append(QuantRow(name, kind, "shared", f"the same layer as {first}", 0, 0))
        elif (why_not := _why_not(module, name, parent, config, filter_fn)) is not None:
            layer = module
            rows.append(QuantRow(name, kind, "left", why_not, before, before))
        else:
            layer = _int8(module.to(device) if device is not None else module)
            rows.append(QuantRow(name, kind, "int8", f"now {type(layer).__name__}", before, _own_bytes(layer)))
        done.setdefault(module, (name, layer))
        if parent is not None:
            parent._modules[name.rpartition(".")[2]] = layer
        elif layer is not module:  # the object stays: whoever holds the model holds the int8 layer
            module.__dict__, module.__class__ = {**layer.__dict__, **_hooks(module)}, layer.__class__
    return QuantReport(model, tuple(rows))


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the tensors in the model's state dict, a shared one counted once."""
    tensors = [value for value in model.state_dict().values() if isinstance(value, torch.Tensor)]
    return sum({(tensor.device, tensor.data_ptr()): tensor.nbytes for tensor in tensors}.values())


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
    """Every place of the model in order: its name, the module there and its parent. A module's children come once."""
    seen: set[nn.Module] = set()

    def walk(
        name: str, module: nn.Module, parent: nn.Module | None
    ) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
        yield name, module, parent
        if module not in seen:
            seen.add(module)
            for child, below in module._modules.items():
                if below is not None:
                    yield from walk(f"{name}.{child}" if name else child, below, module)

    return walk("", model, None)


def _own_bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _int8(module: nn.Module) -> _Int8Layer:
    return Int8Linear.from_float(module) if isinstance(module, nn.Linear) else Int8Conv2d.from_float(module)  # type: ignore[arg-type]


def _hooks(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in module.__dict__.items() if key.endswith("_hooks") or "_hooks_" in key}


def _why_not(
    module: nn.Module,
    name: str,
    parent: nn.Module | None,
    config: QuantConfig,
    filter_fn: Callable[[nn.Module, str], bool] | None,
) -> str | None:
    kind = type(module)
    if isinstance(module, _Int8Layer):
        return "is int8 already"
    if kind is nn.MultiheadAttention:
        return "attention reads its projections as float tensors"
    if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
        return f"{type(parent).__name__} reads its weight as a float tensor"
    if is_parametrized(module):
        return "its weight is computed by a parametrization"
    if kind not in (nn.Linear, nn.Conv2d):
        base = next((base.__name__ for base in (nn.Linear, nn.Conv2d) if isinstance(module, base)), None)
        return f"a subclass of {base} may compute something else" if base else "not a linear or convolution layer"
    if not (config.linear if kind is nn.Linear else config.conv):
        return "left by config"
    groups = getattr(module, "groups", 1)
    if groups != 1:
        return f"has {groups} groups"
    depth = module.weight[0].numel() if len(module.weight) else 0  # type: ignore[arg-type,index]
    if not 1 <= depth <= MAX_DEPTH:
        return f"sums over {depth} inputs, int8 over 1 to {MAX_DEPTH}"
    if depth < config.min_depth:
        return f"sums over {depth} inputs, config.min_depth is {config.min_depth}"
    if filter_fn is not None and not filter_fn(module, name):
        return "left by filter_fn"
    return None
