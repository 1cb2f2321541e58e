"""Models, int8 ones too, as ONNX files and as ``torch.export`` programs, each checked against the model it came from.

An int8 layer with a static range becomes standard QuantizeLinear and DequantizeLinear nodes around a float Conv or
MatMul, which onnxruntime fuses to integer kernels. Its result differs where a value is on the border of two integers:
there onnxruntime, which divides by the scale and rounds biases to integers, may be a step away. A layer that quantises
each row as it comes becomes integer products with the same integers and scales, but no runtime fuses those: give
``calibration`` batches to turn such layers into static ones on the way.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcl.errors import UserError, extra
from fastcl.files import write_atomically
from fastcl.quant import Int8Conv2d, Int8Linear, QuantConfig
from fastcl.quant.calibrate import static_range

__all__ = ["ExportError", "Exported", "export_onnx", "export_torch", "make_static"]

ONNX_TOLERANCE = 0.02  # of an ONNX file with int8 layers: relative, from steps of 1 / 255 of a layer's range
FLOAT_TOLERANCE = 1e-4  # of a float one: sums in another order
OPSET = 21
_CALIBRATION_VALUES = 65536  # of each batch of a layer's inputs, kept to choose a range by


class ExportError(UserError):
    """A model cannot be exported, or what was exported gives another result."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        bytes: its size.
        model: the model that the file computes: the one given, or its copy with static layers after calibration.
        relative_error: norm(file's result - model's) / norm(model's) on the example.
    """

    path: Path
    bytes: int
    model: nn.Module
    relative_error: float


def export_torch(model: nn.Module, example: Tensor, path: Path, *, strict: bool = False) -> Exported:
    """Writes a ``torch.export`` program (.pt2) of any batch size, loads it again and compares.

    A program with int8 layers runs where fastcl is imported, on any machine: the weights are plain, and are laid
    out for the machine's kernel at each call.

    Args:
        model: takes a tensor, gives a tensor; exported in evaluation mode.
        example: a batch of at least 2.
        path: the file, replaced in one step.
        strict: trace the model's Python code (TorchDynamo) instead of running it.

    Returns:
        What was written; its error is 0 unless the library of products chooses another algorithm.

    Raises:
        ExportError: where the model cannot be exported or the program gives another result; nothing is written.
        ValueError: for an example of fewer than 2.
        OSError: where the file cannot be written.
    """
    model = _prepared(model, example)
    program = _program(model, example, strict)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    data = buffer.getvalue()
    loaded = torch.export.load(io.BytesIO(data)).module()
    error = _checked(model, example, lambda batch: loaded(batch), FLOAT_TOLERANCE, "the exported program")
    write_atomically(path, data)
    return Exported(path, len(data), model, error)


def export_onnx(
    model: nn.Module, example: Tensor, path: Path, *, calibration: Iterable[Tensor] | None = None
) -> Exported:
    """Writes an ONNX file of any batch size, runs it by onnxruntime and compares.

    Args:
        model: takes a tensor, gives a tensor; exported in evaluation mode.
        example: a batch of at least 2, as the model takes it.
        path: the file, replaced in one step. Its input is called ``images``, its output ``embeddings``.
        calibration: unlabelled batches; layers that quantise each row as it comes then get one range, as onnxruntime's
            integer kernels want it (:func:`make_static`).

    Returns:
        What was written; its error is at most 1e-4, and with int8 layers 0.02.

    Raises:
        ExportError: where the model cannot be exported, or onnxruntime's result is further off; nothing is written.
        MissingExtraError: without onnx, onnxscript or onnxruntime.
        ValueError: for an example of fewer than 2, or no calibration batch.
        OSError: where the file cannot be written.
    """
    with extra("export"):
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    model = _prepared(model, example)
    if calibration is not None:
        make_static(model, calibration)
    data = _onnx_bytes(_program(model, example, strict=False))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])

    int8 = any(isinstance(module, (Int8Linear, Int8Conv2d)) for module in model.modules())
    error = _checked(model, example, run, ONNX_TOLERANCE if int8 else FLOAT_TOLERANCE, "the ONNX file")
    write_atomically(path, data)
    return Exported(path, len(data), model, error)


@torch.no_grad()
def make_static(model: nn.Module, calibration: Iterable[Tensor], config: QuantConfig | None = None) -> list[str]:
    """Gives int8 layers that quantise each row as it comes one range of inputs each, in place; weights stay.

    Args:
        model: with :class:`~fastcl.quant.Int8Linear` and :class:`~fastcl.quant.Int8Conv2d` layers.
        calibration: unlabelled batches, as the model takes them.
        config: its ``observer`` and ``percentile`` choose the ranges.

    Returns:
        The names of the layers.

    Raises:
        ValueError: for no batch, a layer that no batch reaches, or one of several groups.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (Int8Linear, Int8Conv2d)) and module.mode == "dynamic"
    }
    grouped = [name for name, module in layers.items() if getattr(module, "groups", 1) != 1]
    if grouped:
        raise ValueError(f"make_static: layers of several groups have no static form: {', '.join(grouped)}")
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    ends: dict[str, list[Tensor]] = {name: [] for name in layers}

    def look(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].float()
            if layer.x_multiplier is not None:  # outlier columns have the multiplier 0
                x = x * _on_inputs(layer)
            values = x.flatten()
            ends[name] += [values.min(), values.max()]
            seen[name].append(values[:: -(-len(values) // _CALIBRATION_VALUES)])

        return hook

    hooks = [module.register_forward_pre_hook(look(name)) for name, module in layers.items()]
    training, batches = model.training, 0
    try:
        model.eval()
        for batch in calibration:
            model(batch)
            batches += 1
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()
    missed = [name for name, values in seen.items() if not values]
    if not batches or missed:
        raise ValueError(f"make_static: {'no calibration batch' if not batches else f'no batch reaches {missed[0]!r}'}")
    for name, layer in layers.items():
        least, greatest = torch.stack(ends[name]).min()[None], torch.stack(ends[name]).max()[None]
        layer.x_range = static_range(least, greatest, torch.cat(seen[name])[:, None], config or QuantConfig())
        layer.mode = "static"
    return list(layers)


def _on_inputs(layer: Any) -> Tensor:
    """A layer's multiplier where it meets the input: [K], or [C, 1, 1] of a convolution."""
    multiplier: Tensor = layer.x_multiplier
    if isinstance(layer, Int8Linear):
        return multiplier
    by_place = multiplier.view(-1, layer.in_channels)
    return by_place.amax(dim=0)[:, None, None]


def _prepared(model: nn.Module, example: Tensor) -> nn.Module:
    if not isinstance(example, Tensor) or example.dim() < 2 or len(example) < 2:
        got = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"export: example must be a batch of at least 2, got {got}")
    return copy.deepcopy(model).eval()


def _program(model: nn.Module, example: Tensor, strict: bool) -> torch.export.ExportedProgram:
    try:
        two = example[:2].clone()  # they are stored
        return torch.export.export(model, (two,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=strict)
    except Exception as error:  # whatever a model does that cannot be traced
        raise ExportError(f"torch.export cannot follow the model: {str(error).strip().splitlines()[0]}") from error


@torch.no_grad()
def _checked(model: nn.Module, example: Tensor, run: Callable[[Tensor], Tensor], tolerance: float, what: str) -> float:
    worst = 0.0
    for batch in (example, example[:1]):  # another size shows that none was built in
        wanted, got = model(batch).float(), run(batch).float()
        if wanted.shape != got.shape:
            raise ExportError(f"{what} gives {list(got.shape)} for {len(batch)} images, the model {list(wanted.shape)}")
        error = ((got - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()
        if not error <= tolerance:  # also where it is NaN
            raise ExportError(
                f"{what} gives another result than the model: relative error {error:.3g}, allowed {tolerance:g}"
            )
        worst = max(worst, error)
    return worst


def _onnx_bytes(program: torch.export.ExportedProgram) -> bytes:
    signature = program.graph_signature
    names = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    constants = {name: program.state_dict[target] for name, target in names.items() if target in program.state_dict}
    translate = _Translation({name: tensor.detach().numpy() for name, tensor in constants.items()})
    try:
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            custom_translation_table=translate.table(),
            opset_version=OPSET,
            input_names=["images"],
            output_names=["embeddings"],
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ExportError(f"torch.onnx cannot translate the model: {cause}") from error
    if onnx_program is None:
        raise ExportError("torch.onnx gave no model")
    model = onnx_program.model_proto
    for node in model.graph.node:  # where in the Python code it came from, as large as the weights of a small model
        del node.metadata_props[:]
        node.ClearField("doc_string")
    data: bytes = model.SerializeToString()
    return data


def _function(method: Callable[..., Any]) -> Callable[..., Any]:
    """The exporter writes attributes on what it calls, which a method does not take."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call


class _Translation:
    """fastcl's ops, and what torch's exporter lacks, in ONNX; the weights are known, so that they become constants."""

    def __init__(self, constants: dict[str, Any]) -> None:
        import onnx
        from onnxscript import opset21

        self._constants, self._onnx = constants, onnx
        self._op: Any = opset21

    def table(self) -> dict[Any, Callable[..., Any]]:
        """By op."""
        table = {torch.ops.aten.adaptive_max_pool2d.default: _function(self.adaptive_max_pool2d)}
        for namespace in (torch.ops.fastcl, torch.ops.fastcl_reference):
            table[namespace.int8_linear.default] = _function(self.int8_linear)
            table[namespace.int8_conv2d.default] = _function(self.int8_conv2d)
        return table

    def _value(self, tensor: Any) -> Any:
        """The numbers of a stored tensor, or None."""
        if tensor is None:
            return None
        if tensor.name not in self._constants:
            raise ExportError(f"an int8 layer's tensors must be stored, {tensor.name!r} is computed")
        return self._constants[tensor.name]

    def _constant(self, array: Any) -> Any:
        return self._op.Constant(value=self._onnx.numpy_helper.from_array(np.array(array, order="C")))

    def _ints(self, *values: int) -> Any:
        return self._op.Constant(value_ints=list(values))

    def adaptive_max_pool2d(self, x: Any, output_size: Any) -> Any:
        op = self._op
        if not all(isinstance(side, int) for side in x.shape[-2:]):
            raise ExportError(f"adaptive_max_pool2d: height and width must be fixed, got {list(x.shape)}")
        kernel: list[int] = []
        strides: list[int] = []
        for size, cells in zip(x.shape[-2:], output_size, strict=True):
            starts = [cell * size // cells for cell in range(cells)]
            widths = {-(-(cell + 1) * size // cells) - start for cell, start in enumerate(starts)}
            steps = {after - before for before, after in itertools.pairwise(starts)} or {1}
            if len(widths) > 1 or len(steps) > 1:
                break
            kernel += widths
            strides += steps
        if len(kernel) == 2:
            return op.MaxPool(x, kernel_shape=kernel, strides=strides)  # two outputs, as torch's op
        y = x
        for axis, cells in zip((-2, -1), output_size, strict=True):  # cells of different sizes
            size, parts = x.shape[axis], []
            for cell in range(cells):
                ends = (cell * size // cells, -(-(cell + 1) * size // cells))
                part = op.Slice(y, self._ints(ends[0]), self._ints(ends[1]), self._ints(axis))
                parts.append(op.ReduceMax(part, self._ints(axis), keepdims=1))
            y = op.Concat(*parts, axis=axis) if len(parts) > 1 else parts[0]
        return y, op.Shape(y)  # nothing reads the second output, the positions of the largest

    def int8_linear(
        self,
        x: Any,
        weight: Any,
        weight_scale: Any,
        bias: Any = None,
        packed: Any = None,
        x_range: Any = None,
        x_multiplier: Any = None,
        outlier_columns: Any = None,
        outlier_weight: Any = None,
        mode: str = "dynamic",
        activation: str = "none",
    ) -> Any:
        how = (x_range, x_multiplier, outlier_columns, outlier_weight, mode, activation)
        return self._rows(x, self._value(weight), weight_scale, bias, *how)

    def int8_conv2d(
        self,
        x: Any,
        weight: Any,
        weight_scale: Any,
        bias: Any = None,
        packed: Any = None,
        x_range: Any = None,
        x_multiplier: Any = None,
        outlier_columns: Any = None,
        outlier_weight: Any = None,
        mode: str = "dynamic",
        stride: Any = (1, 1),
        padding: Any = (0, 0, 0, 0),
        dilation: Any = (1, 1),
        activation: str = "none",
    ) -> Any:
        op, taps = self._op, self._value(weight)  # [N, kernel height, kernel width, C]
        left, right, top, bottom = padding
        if mode == "static" and x_multiplier is None and outlier_columns is None:
            images = self._static(op.Transpose(self._float(x), perm=[0, 3, 1, 2]), x_range)
            kernel = op.DequantizeLinear(
                self._constant(taps.transpose(0, 3, 1, 2)), self._constant(self._value(weight_scale)), axis=0
            )
            inputs = [images, kernel] if bias is None else [images, kernel, self._float(bias)]
            y = op.Conv(
                *inputs, strides=list(stride), pads=[top, left, bottom, right], dilations=list(dilation),
                kernel_shape=list(taps.shape[1:3]),
            )  # fmt: skip
            return op.CastLike(op.Transpose(self._activate(y, activation), perm=[0, 2, 3, 1]), x)
        # A patch is quantised by itself: the patches are laid out as rows.
        if not all(isinstance(side, int) for side in x.shape[1:3]):
            raise ExportError(f"int8_conv2d: height and width must be fixed, got {list(x.shape)}")
        padded = op.Pad(x, self._ints(0, top, left, 0, 0, bottom, right, 0))
        spans = [
            (size + pads - gap * (cells - 1) - 1) // step * step + 1
            for size, pads, gap, cells, step in zip(
                x.shape[1:3], (top + bottom, left + right), dilation, taps.shape[1:3], stride, strict=True
            )
        ]
        parts = []
        for i in range(taps.shape[1]):
            for j in range(taps.shape[2]):
                start = (i * dilation[0], j * dilation[1])
                stop = (start[0] + spans[0], start[1] + spans[1])
                parts.append(
                    op.Slice(padded, self._ints(*start), self._ints(*stop), self._ints(1, 2), self._ints(*stride))
                )
        patches = op.Concat(*parts, axis=-1) if len(parts) > 1 else parts[0]
        how = (x_range, x_multiplier, outlier_columns, outlier_weight, mode, activation)
        return self._rows(patches, taps.reshape(len(taps), -1), weight_scale, bias, *how)

    def _float(self, x: Any) -> Any:
        return x if x.dtype == self._onnx.TensorProto.FLOAT else self._op.Cast(x, to=self._onnx.TensorProto.FLOAT)

    def _static(self, x: Any, x_range: Any) -> Any:
        """x as its integers in 8 bits stand for it."""
        scale, zero = self._value(x_range)
        scale, zero = self._constant(np.float32(scale)), self._constant(np.uint8(zero))
        return self._op.DequantizeLinear(self._op.QuantizeLinear(x, scale, zero), scale, zero)

    def _rows(
        self,
        x: Any,
        weight: Any,
        weight_scale: Any,
        bias: Any,
        x_range: Any,
        x_multiplier: Any,
        outlier_columns: Any,
        outlier_weight: Any,
        mode: str,
        activation: str,
    ) -> Any:
        """The formula of fastcl.ops.int8_linear; weight is an array [N, K]."""
        op, types = self._op, self._onnx.TensorProto
        wide = self._float(x)
        v = wide if x_multiplier is None else op.Mul(wide, self._constant(self._value(x_multiplier)))
        columns, scales = self._constant(weight.T), self._constant(self._value(weight_scale))
        if mode == "static":
            y = op.MatMul(self._static(v, x_range), op.DequantizeLinear(columns, scales, axis=1))
        else:
            last, zero = self._ints(-1), self._constant(np.float32(0))
            steps = self._constant(np.float32({"asymmetric": 255, "int16": 32767}.get(mode, 127)))
            if mode == "asymmetric":
                least = op.Min(op.ReduceMin(v, last, keepdims=1), zero)
                span = op.Sub(op.Max(op.ReduceMax(v, last, keepdims=1), zero), least)
            else:
                span = op.ReduceMax(op.Abs(v), last, keepdims=1)
            tiny = op.Less(span, self._constant(np.float32(2.0**-100)))
            inverse = op.Where(tiny, zero, op.Div(steps, op.Where(tiny, steps, span)))
            q = op.Round(op.Mul(v, inverse))
            if mode == "asymmetric":
                shift = op.Round(op.Mul(op.Neg(least), inverse))
                u = op.Cast(op.Clip(op.Add(q, shift), zero, steps), to=types.UINT8)
                sums = self._constant(weight.sum(axis=1, dtype=np.int32))
                total = op.Sub(op.MatMulInteger(u, columns), op.Mul(op.Cast(shift, to=types.INT32), sums))
                product = op.Cast(total, to=types.FLOAT)
            elif mode == "int16":
                byte = self._constant(np.float32(256))
                high = op.Floor(op.Div(q, byte))
                low = op.Cast(op.Sub(q, op.Mul(high, byte)), to=types.UINT8)
                high = op.MatMulInteger(op.Cast(high, to=types.INT8), columns)
                low = op.MatMulInteger(low, columns)
                product = op.Add(op.Mul(op.Cast(high, to=types.FLOAT), byte), op.Cast(low, to=types.FLOAT))
            else:
                product = op.Cast(op.MatMulInteger(op.Cast(q, to=types.INT8), columns), to=types.FLOAT)
            # Not one Mul by the product of both scales: onnxruntime takes that for its fused op of one scale a tensor.
            y = op.Mul(op.Mul(product, op.Where(tiny, zero, op.Div(span, steps))), scales)
        if bias is not None:
            y = op.Add(y, self._float(bias))
        if outlier_columns is not None:
            outliers = op.Gather(wide, self._constant(self._value(outlier_columns)), axis=-1)
            y = op.Add(y, op.MatMul(outliers, self._constant(self._value(outlier_weight))))
        return op.CastLike(self._activate(y, activation), x)

    def _activate(self, y: Any, activation: str) -> Any:
        op = self._op
        if activation == "silu":
            return op.Mul(y, op.Sigmoid(y))
        return {"none": lambda v: v, "relu": op.Relu, "gelu": op.Gelu}[activation](y)
