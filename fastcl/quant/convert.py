"""Swapping int8 layers into a model, with a report of what was swapped, what was left, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fastcl.ops.int8_linear import MAX_DEPTH, MAX_DEPTH_UNSIGNED
from fastcl.quant import calibrate
from fastcl.quant.attention import Attention
from fastcl.quant.chain import chain_
from fastcl.quant.config import QuantConfig
from fastcl.quant.fold import adjacent
from fastcl.quant.layers import InputScheme, Int8Conv2d, Int8Linear, _Int8Layer
from fastcl.quant.qat import QatConv2d, QatLinear

_LINEAR, _CONV = (nn.Linear, QatLinear), (nn.Conv2d, QatConv2d)


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
        error: of its output, relative to the float layer's, measured in calibration; None where it was not.
    """

    name: str
    type: str
    action: str
    reason: str
    bytes_before: int
    bytes_after: int
    error: float | None = None


@dataclass(frozen=True)
class QuantReport:
    """What :func:`quantize_` did: a row for every layer that holds tensors.

    Attributes:
        model: the model, swapped in place.
        rows: in the model's order.
        error: of the model's output on the calibration batches, relative; None without calibration.
    """

    model: nn.Module
    rows: tuple[QuantRow, ...]
    error: float | None = None

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
        header = ("layer", "type", "action", "bytes before", "after", "error", "reason")
        cells = [
            (
                row.name or "(model)",
                row.type,
                row.action,
                f"{row.bytes_before:,}",
                f"{row.bytes_after:,}",
                "" if row.error is None else f"{row.error:.2%}",
                row.reason,
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
        lines = [
            "  ".join(
                text.rjust(width) if i in (3, 4, 5) else text.ljust(width)
                for i, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [header, *cells]
        ]
        swapped = sum(row.action == "int8" for row in self.rows)
        total = f"{swapped} of {len(self.rows)} layers in int8, {self.bytes_before:,} bytes → {self.bytes_after:,}"
        total += "" if self.error is None else f", error of the output {self.error:.2%}"
        return "\n".join([*lines, total])

    __repr__ = __str__


def quantize_(
    model: nn.Module,
    config: QuantConfig | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    device: torch.device | str | None = None,
    calibration: Iterable[Any] | None = None,
) -> QuantReport:
    """Swaps the linear and convolution layers of a model for :class:`Int8Linear` and :class:`Int8Conv2d`, in place.

    A model that is itself such a layer becomes the int8 layer: the object stays, its class changes. Attention is first
    rebuilt as :class:`Attention`. Fold BatchNorm before (:func:`fold_batchnorm_`). To load a quantised state dict, see
    :func:`load_quantized_`.

    Args:
        model: the float model.
        config: what to swap, and how; by default all that can be, each row of activations with its own scale.
        filter_fn: takes a layer and its name; layers for which it is False are left.
        device: moves each swapped layer there first.
        calibration: batches without labels, each a tensor or a tuple of the model's arguments. With them outlier
            channels are found, ranges and smoothing chosen, errors measured and limits kept: see :class:`QuantConfig`.

    Returns:
        The report, a row for every layer that holds tensors; ``print`` it. Its ``model`` is ``model``.

    Raises:
        ValueError: for a layer to be swapped whose weight is not finite; for a config that needs calibration without
            batches, or batches that are empty.
        TypeError: for a model that gives no floating tensor for a batch.
    """
    config = config or QuantConfig()
    for field in ("max_error", "max_output_error"):
        if calibration is None and getattr(config, field) is not None:
            raise ValueError(f"quantize_: config.{field} needs calibration batches")
    if calibration is None and config.mode == "static":
        raise ValueError("quantize_: config.mode 'static' needs calibration batches")
    batches = None if calibration is None else list(calibration)
    if batches is not None and not batches:
        raise ValueError("quantize_: calibration must hold at least one batch, got none")

    _rebuild_attention(model, config, lambda module, name: filter_fn is None or filter_fn(module, name))
    places = list(_places(model))
    reasons: dict[nn.Module, str] = {}
    plans: dict[nn.Module, _Plan] = {}
    for name, module, parent in places:
        if _own_bytes(module) and module not in reasons and module not in plans:
            why_not = _why_not(module, name, parent, config, filter_fn)
            if why_not is not None:
                reasons[module] = why_not
            else:
                plans[module] = _Plan(InputScheme("dynamic" if config.mode == "static" else config.mode))
    error = None
    if batches is not None:
        error = _calibrate(model, batches, config, plans, reasons)
    report = _swap(model, places, plans, reasons, _followers(model, plans, config), device, error)
    return _chained(report) if config.chain else report


def load_quantized_(
    model: nn.Module, state_dict: Mapping[str, Tensor], config: QuantConfig | None = None
) -> QuantReport:
    """Gives a float model the form of a quantised state dict, in place, and loads it.

    Args:
        model: built as the float model was, BatchNorm folded if it was folded then; its weights do not matter.
        state_dict: of the quantised model.
        config: the one it was quantised with: its ``mode`` and ``fuse_activations`` are not in the state dict.

    Returns:
        The report, as from :func:`quantize_`.

    Raises:
        RuntimeError: for a state dict that is not of such a model, or holds what cannot be; it names the tensor.
    """
    config = config or QuantConfig()
    projections = {key.removesuffix(".in_proj.weight") for key in state_dict if key.endswith(".in_proj.weight")}
    projections |= {""} if "in_proj.weight" in state_dict else set()
    _rebuild_attention(model, config, lambda module, name: name in projections)
    places = list(_places(model))
    plans: dict[nn.Module, _Plan] = {}
    reasons: dict[nn.Module, str] = {}
    for name, module, _ in places:
        if not _own_bytes(module):
            continue
        prefix = f"{name}." if name else ""
        weight = state_dict.get(f"{prefix}weight")
        if type(module) in (*_LINEAR, *_CONV) and weight is not None and weight.dtype == torch.int8:
            x_range = (
                torch.tensor([1.0, 0.0]) if config.mode == "static" else None
            )  # the stored one comes with the rest
            mode = config.mode if getattr(module, "groups", 1) == 1 else "dynamic"
            plans[module] = _Plan(InputScheme(mode, x_range if mode == "static" else None))
        else:
            reasons[module] = "float in the state dict"
    for module in plans:
        with torch.no_grad():
            module.weight.zero_()  # type: ignore[operator]
    report = _swap(model, places, plans, reasons, _followers(model, plans, config), None, None)
    model.load_state_dict(state_dict)
    return _chained(report) if config.chain else report


@dataclass(frozen=True)
class _Plan:
    """What becomes of one layer."""

    scheme: InputScheme
    bias_shift: Tensor | None = None
    error: float | None = None
    note: str = ""

    def layer(self, module: Any, activation: str = "none") -> _Int8Layer:
        kind = Int8Linear if isinstance(module, nn.Linear) else Int8Conv2d
        layer: _Int8Layer = kind.from_float(module, activation, self.scheme)
        if self.bias_shift is not None:
            bias = self.bias_shift if layer.bias is None else layer.bias.detach() + self.bias_shift
            dtype = module.weight.dtype if layer.bias is None else layer.bias.dtype
            layer.bias = nn.Parameter(bias.to(dtype), requires_grad=module.weight.requires_grad)
        return layer


def _calibrate(
    model: nn.Module,
    batches: list[Any],
    config: QuantConfig,
    plans: dict[nn.Module, _Plan],
    reasons: dict[nn.Module, str],
) -> float:
    """Fills the plans from what the batches show, moves layers past a limit to the reasons; the output's error."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            with calibrate.observing(plans, config.calibration_rows) as statistics:
                exact = [calibrate.run(model, batch) for batch in batches]
            for module in list(plans):
                grouped = getattr(module, "groups", 1) != 1
                if module not in statistics or grouped:
                    missing = f"has {module.groups} groups" if grouped else "not reached by the calibration batches"
                    if config.mode == "static":
                        reasons[module] = f"{missing}: no static range"
                        del plans[module]
                    elif not grouped:
                        plans[module] = replace(plans[module], note=missing)
                    continue
                choice = calibrate.choose(_rows(module), statistics[module], config)
                if config.max_error is not None and choice.error > config.max_error:
                    reasons[module] = f"error {choice.error:.2%}, config.max_error is {config.max_error:.2%}"
                    del plans[module]
                    continue
                plans[module] = _Plan(choice.scheme, choice.bias_shift, choice.error, _note(choice))
            return _keep_output_within(model, batches, exact, config, plans, reasons)
    finally:
        model.train(training)


def _keep_output_within(
    model: nn.Module,
    batches: list[Any],
    exact: list[Tensor],
    config: QuantConfig,
    plans: dict[nn.Module, _Plan],
    reasons: dict[nn.Module, str],
) -> float:
    layers = {module: plan.layer(module) for module, plan in plans.items()}

    def error_with(some: Iterable[nn.Module]) -> float:
        with _running({module: layers[module] for module in some}):
            got = [calibrate.run(model, batch) for batch in batches]
        off = sum((a - b).square().sum().item() for a, b in zip(got, exact, strict=True))
        return float((off / max(sum(b.square().sum().item() for b in exact), 1e-30)) ** 0.5)

    error, limit = error_with(plans), config.max_output_error
    if limit is None or error <= limit:
        return error
    alone = {module: error_with([module]) for module in plans}
    for module in sorted(alone, key=lambda module: -alone[module]):
        reasons[module] = (
            f"alone it gives the output an error of {alone[module]:.2%}, config.max_output_error is {limit:.2%}"
        )
        del plans[module]
        error = error_with(plans)
        if error <= limit:
            break
    return error


@contextmanager
def _running(layers: Mapping[nn.Module, _Int8Layer]) -> Iterator[None]:
    """The float modules compute what their int8 layers do."""
    for module, layer in layers.items():
        module.forward = layer.forward
    try:
        yield
    finally:
        for module in layers:
            del module.forward


def _rows(module: Any) -> Tensor:
    """The float weight [N, K], K in the order of the int8 weight."""
    weight = module.weight.detach()
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)  # type: ignore[no-any-return]


def _note(choice: calibrate.Choice) -> str:
    parts = []
    if choice.scheme.x_range is not None:
        parts.append(f"scale {choice.scheme.x_range[0]:.3g}, zero point {choice.scheme.x_range[1]:.0f}")
    if choice.scheme.x_multiplier is not None:
        parts.append("smoothed")
    if choice.scheme.outlier_columns is not None:
        count = len(choice.scheme.outlier_columns)
        parts.append(f"{count} outlier input{'s' if count > 1 else ''} in float")
    if choice.bias_shift is not None:
        parts.append("bias corrected")
    return ", ".join(parts)


def _rebuild_attention(model: nn.Module, config: QuantConfig, wanted: Callable[[nn.Module, str], bool]) -> None:
    if not config.attention:
        return
    rebuilt: dict[nn.Module, nn.Module] = {}
    for name, module, parent in list(_places(model)):
        if type(module) is not nn.MultiheadAttention or parent is None or Attention.why_not(module) is not None:
            continue
        if module in rebuilt or wanted(module, name):
            parent._modules[name.rpartition(".")[2]] = rebuilt.setdefault(module, Attention(module))


def _followers(
    model: nn.Module, plans: Mapping[nn.Module, _Plan], config: QuantConfig
) -> dict[nn.Module, tuple[str, str]]:
    """For each planned layer that computes the activation after it: its name in the op, and that module's name."""
    if not config.fuse_activations:
        return {}
    found: dict[nn.Module, tuple[str, str]] = {}
    for layer_name, next_name in adjacent(model):
        layer, after = model.get_submodule(layer_name), model.get_submodule(next_name)
        name = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu"}.get(type(after))
        if name is None or layer not in plans or (name == "gelu" and after.approximate != "none"):
            continue
        if sum(module in (layer, after) for _, module, _ in _places(model)) == 2:  # neither stands elsewhere as well
            found[layer] = name, next_name
    return found


def _swap(
    model: nn.Module,
    places: list[tuple[str, nn.Module, nn.Module | None]],
    plans: Mapping[nn.Module, _Plan],
    reasons: Mapping[nn.Module, str],
    followers: Mapping[nn.Module, tuple[str, str]],
    device: torch.device | str | None,
    error: float | None,
) -> QuantReport:
    rows: list[QuantRow] = []
    done: dict[nn.Module, tuple[str, nn.Module]] = {}  # each layer: where it stood first, and what stands there now
    for name, module, parent in places:
        before, kind = _own_bytes(module), type(module).__name__
        if before == 0:
            continue
        if module in done:
            first, layer = done[module]
            rows.append(QuantRow(name, kind, "shared", f"the same layer as {first}", 0, 0))
        elif module in reasons:
            layer = module
            rows.append(QuantRow(name, kind, "left", reasons[module], before, before))
        else:
            plan, (activation, follower) = plans[module], followers.get(module, ("none", ""))
            layer = plan.layer(module.to(device) if device is not None else module, activation)
            notes = [
                f"now {type(layer).__name__}",
                plan.note,
                f"with the {activation} of {follower}" if follower else "",
            ]
            reason = ", ".join(filter(None, notes))
            rows.append(QuantRow(name, kind, "int8", reason, before, _own_bytes(layer), plan.error))
            if follower:
                holder, _, child = follower.rpartition(".")
                setattr(model.get_submodule(holder), child, nn.Identity())
        done.setdefault(module, (name, layer))
        if layer is module:
            continue
        if parent is not None:
            parent._modules[name.rpartition(".")[2]] = layer
        else:  # the object stays: whoever holds the model holds the int8 layer
            module.__dict__, module.__class__ = {**layer.__dict__, **_hooks(module)}, layer.__class__
    return QuantReport(model, tuple(rows), error)


def _chained(report: QuantReport) -> QuantReport:
    rows, chain = list(report.rows), chain_(report.model)
    for i, row in enumerate(rows):
        if row.name in chain and all(
            report.model.get_submodule(name).takes_integers for name in (row.name, chain[row.name])
        ):
            rows[i] = replace(row, reason=f"{row.reason}, gives integers to {chain[row.name]}")
    return replace(report, rows=tuple(rows))


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
    if isinstance(module, nn.MultiheadAttention):
        if kind is not nn.MultiheadAttention:
            return "a subclass of MultiheadAttention may compute something else"
        if not config.attention:
            return "left by config"
        return Attention.why_not(module) or ("is the model itself" if parent is None else "left by filter_fn")
    if isinstance(parent, nn.MultiheadAttention):
        return "MultiheadAttention reads its weight as a float tensor"
    if isinstance(parent, nn.TransformerEncoderLayer) and isinstance(parent.self_attn, nn.MultiheadAttention):
        return "TransformerEncoderLayer reads its weight as a float tensor, while its attention is in float"
    if is_parametrized(module):
        return "its weight is computed by a parametrization"
    if kind not in (*_LINEAR, *_CONV):
        base = next((base.__name__ for base in (nn.Linear, nn.Conv2d) if isinstance(module, base)), None)
        return f"a subclass of {base} may compute something else" if base else "not a linear or convolution layer"
    if not (config.linear if kind in _LINEAR else config.conv):
        return "left by config"
    groups = getattr(module, "groups", 1)
    if groups != 1 and not config.grouped:
        return f"has {groups} groups"
    if groups != 1 and config.mode != "dynamic":
        return f"has {groups} groups: no mode {config.mode}"
    depth = module.weight[0].numel() if len(module.weight) else 0  # type: ignore[arg-type,index]
    most = MAX_DEPTH if config.mode == "dynamic" else MAX_DEPTH_UNSIGNED
    if not 1 <= depth <= most:
        return f"sums over {depth} inputs, int8 over 1 to {most}"
    if depth < config.min_depth:
        return f"sums over {depth} inputs, config.min_depth is {config.min_depth}"
    if filter_fn is not None and not filter_fn(module, name):
        return "left by filter_fn"
    return None
