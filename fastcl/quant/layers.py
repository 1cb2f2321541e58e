"""``nn.Linear`` and ``nn.Conv2d`` with int8 weights and integer products.

A layer's state dict is plain: ``weight`` int8, ``weight_scale`` float32 [N], ``bias``, and what calibration added:
``x_range``, ``x_multiplier``, ``outlier_columns``, ``outlier_weight``. The form that this machine's kernel reads is
made at the first call and never stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcl.ops import int8_conv2d, int8_linear
from fastcl.ops.checks import FLOAT_DTYPES
from fastcl.ops.int8_linear import ACTIVATIONS, MAX_DEPTH, MAX_DEPTH_UNSIGNED, MODES
from fastcl.ops.registry import op, runs_native, runs_plainly

_linear_packed: Any = torch.ops.fastcl.int8_linear_packed.default
_conv2d_packed: Any = torch.ops.fastcl.int8_conv2d_packed.default
_PACKED_NAMES = frozenset(  # what the packed weight is made of
    ("weight", "weight_scale", "x_range", "x_multiplier", "outlier_columns", "outlier_weight", "mode", "activation")
)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a weight to int8, symmetrically, with one scale for each output channel.

    Args:
        weight: floating [N, ...], finite.

    Returns:
        int8 of ``weight``'s shape, within [-127, 127], and the scale, float32 [N]: largest magnitude / 127, and 1 for a
        channel of zeros.

    Raises:
        ValueError: for a weight that holds a NaN or an infinity.
    """
    rows = weight.detach().float().flatten(1)
    if not rows.is_meta and not rows.isfinite().all():
        raise ValueError(f"quantize_weight: weight {list(weight.shape)} must be finite, got NaN or infinity")
    absmax = rows.abs().amax(dim=1)
    scale = torch.where(absmax >= 2.0**-100, absmax / 127, 1.0)
    q = (rows / scale[:, None]).round().clamp(-127, 127)
    return q.to(torch.int8).reshape(weight.shape).contiguous(), scale


@dataclass(frozen=True)
class InputScheme:
    """How a layer quantises its input; the terms are :func:`fastcl.ops.int8_linear`'s.

    Attributes:
        mode: ``"dynamic"``, ``"asymmetric"``, ``"static"`` or ``"int16"``.
        x_range: float32 [2], scale and zero point; of ``"static"``.
        x_multiplier: float32 [K], positive: the input is multiplied by it, the weight divided. None: ones.
        outlier_columns: int64 [J], inputs that are multiplied in float32, with their weights in float32. None: none.
    """

    mode: str = "dynamic"
    x_range: Tensor | None = None
    x_multiplier: Tensor | None = None
    outlier_columns: Tensor | None = None

    def multiplier(self, depth: int) -> Tensor | None:
        """float32 [depth] as the op takes it: 0 at the outlier columns; or None."""
        if self.outlier_columns is None:
            return self.x_multiplier
        ones = torch.ones(depth, device=self.outlier_columns.device)
        return (ones if self.x_multiplier is None else self.x_multiplier).index_fill(0, self.outlier_columns, 0)


class _Int8Layer(nn.Module):
    """What both layers share: the stored tensors, and the packed weight that is made from them when needed."""

    weight: Tensor
    weight_scale: Tensor
    x_range: Tensor | None
    x_multiplier: Tensor | None
    outlier_columns: Tensor | None
    outlier_weight: Tensor | None
    bias: nn.Parameter | None
    mode: str
    activation: str

    def _take(self, weight: Tensor, bias: Tensor | None, activation: str, scheme: InputScheme | None) -> None:
        scheme, name = scheme or InputScheme(), type(self).__name__
        if activation not in ACTIVATIONS:
            raise ValueError(f"{name}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if scheme.mode not in MODES:
            raise ValueError(f"{name}: mode must be one of {', '.join(MODES)}, got {scheme.mode!r}")
        if (scheme.mode == "static") != (scheme.x_range is not None):
            raise ValueError(f"{name}: x_range must be given in mode 'static' and no other, got mode {scheme.mode!r}")
        depth = math.prod(weight.shape[1:])
        most = MAX_DEPTH if scheme.mode == "dynamic" else MAX_DEPTH_UNSIGNED
        if not 1 <= depth <= most or weight.shape[0] < 1:
            raise ValueError(
                f"{name}: the weight must have at least one output and from 1 to {most} inputs, "
                f"got {list(weight.shape)}"
            )
        rows = weight.detach().flatten(1).float()
        multiplier, outliers = scheme.multiplier(depth), None
        if scheme.outlier_columns is not None:
            outliers = rows[:, scheme.outlier_columns].T.contiguous()
        if multiplier is not None:
            rows = torch.where(multiplier == 0, 0, rows / multiplier)
        q, scale = quantize_weight(rows.view(weight.shape))
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("x_range", scheme.x_range)
        self.register_buffer("x_multiplier", multiplier)
        self.register_buffer("outlier_columns", scheme.outlier_columns)
        self.register_buffer("outlier_weight", outliers)
        held = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.register_parameter("bias", held)
        self.mode = scheme.mode
        self.activation = activation
        self._packed: Tensor | None = None

    # Without gradients, graphs and other backends than the native one the layers call an op on the packed weight, with
    # next to no look at x in Python: that takes as long as the product of a row.

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _PACKED_NAMES:
            self._packed = None

    def _rows(self) -> Tensor:
        """The weight [N, K] that is packed."""
        return self.weight.flatten(1)

    def _pack(self) -> Tensor | None:
        if torch.compiler.is_exporting() or self.weight.device.type != "cpu":  # an export runs on other machines too,
            return None  # and other devices read the weight as it stands
        if self._packed is None and runs_native("int8_pack_weight", "cpu"):
            with nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False):
                self._packed = op("int8_pack_weight", self.weight)(  # it outlives the caller's inference mode
                    self._rows(),
                    "auto",
                    self.weight_scale,
                    self.x_range,
                    self.x_multiplier,
                    self.outlier_columns,
                    self.outlier_weight,
                    self.mode,
                    self.activation,
                )
        return self._packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        dtypes = {name: tensor.dtype for name, tensor in self._buffers.items() if tensor is not None}
        kept = {name: self._buffers[name] for name in dtypes}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():  # a change of dtype is the bias's only
            after = self._buffers[name]
            if after is not None and before is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        self._packed = None
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        errors = self._take_form_of(state_dict, prefix)
        error_msgs += [f"{prefix}{error}" for error in errors]
        if errors:
            state_dict = {key: value for key, value in state_dict.items() if not key.startswith(prefix)}
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        missing_keys += [] if errors else missing
        self._packed = None

    def _take_form_of(self, state_dict: dict[str, Any], prefix: str) -> list[str]:
        """Makes room for what calibration gave the stored layer; says what in the state dict cannot be its tensors."""
        if prefix + "weight" not in state_dict:
            return []
        n, depth = self.weight.shape[0], math.prod(self.weight.shape[1:])
        forms: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {
            "weight": (torch.int8, tuple(self.weight.shape)),
            "weight_scale": (torch.float32, (n,)),
            "x_range": (torch.float32, (2,)),
            "x_multiplier": (torch.float32, (depth,)),
            "outlier_columns": (torch.int64, (None,)),
            "outlier_weight": (torch.float32, (None, n)),
        }
        errors, found = [], {name: state_dict.get(prefix + name) for name in forms}
        for name, (dtype, shape) in forms.items():
            value = found[name]
            if value is None:
                continue
            fits = isinstance(value, Tensor) and value.dtype == dtype and value.dim() == len(shape)
            if not fits or any(want is not None and want != got for want, got in zip(shape, value.shape, strict=True)):
                got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                want = ["J" if size is None else size for size in shape]
                errors.append(f"{name} must be {dtype} {want}, got {got}".replace("'J'", "J"))
            elif dtype == torch.float32 and not value.is_meta and not value.isfinite().all():
                errors.append(f"{name} must be finite, got NaN or infinity")
        scale, columns, range_ = found["weight_scale"], found["outlier_columns"], found["x_range"]
        if not errors and scale is not None and not scale.is_meta and not (scale > 0).all():
            errors.append("weight_scale must be positive")
        rows = found["outlier_weight"]
        if columns is None or rows is None:
            errors += [] if columns is rows else ["outlier_columns and outlier_weight must be stored together"]
        elif not errors and not columns.is_meta:
            inside = bool(((columns >= 0) & (columns < depth)).all())
            if len(columns) != len(rows) or not inside:
                errors.append(f"outlier_columns must be as many as rows of outlier_weight, each from 0 to {depth - 1}")
        if (range_ is not None) != (self.mode == "static"):
            errors.append(f"x_range is {'not ' if range_ is None else ''}stored, but the layer's mode is {self.mode}")
        elif not errors and range_ is not None and not range_.is_meta:
            whole = bool(range_[1] == range_[1].round())
            if not (2.0**-100 <= range_[0] <= 2.0**100 and 0 <= range_[1] <= 255 and whole):
                errors.append("x_range must hold a scale from 2^-100 to 2^100 and a whole zero point from 0 to 255")
        if not errors:
            for name in ("x_range", "x_multiplier", "outlier_columns", "outlier_weight"):
                value = found[name]
                self._buffers[name] = None if value is None else torch.empty_like(value, device=self.weight.device)
        return errors

    def _scheme_repr(self) -> str:
        text = "" if self.mode == "dynamic" else f", mode={self.mode}"
        text += "" if self.x_multiplier is None else ", x_multiplier"
        return text + ("" if self.outlier_columns is None else f", outlier_columns={len(self.outlier_columns)}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


class Int8Linear(_Int8Layer):
    """``nn.Linear`` with an int8 weight and an activation, in one op: :func:`fastcl.ops.int8_linear`.

    The gradient reaches the input and the bias; the weight is fixed.

    Attributes:
        weight: int8 [out_features, in_features]. Change it and the other buffers by ``load_state_dict`` only.
        weight_scale: float32 [out_features]; it stays float32 through ``half()`` and the like.
        bias: [out_features], or None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
    ) -> None:
        """Quantises the weight that ``nn.Linear`` would start with.

        Args:
            in_features: K.
            out_features: N.
            bias: whether there is one.
            device: of the weight.
            dtype: of the bias; inputs may have any floating dtype and outputs have the input's.
            activation: ``"none"``, ``"relu"``, ``"gelu"`` (the erf form) or ``"silu"``.
        """
        super().__init__()
        self._take_linear(nn.Linear(in_features, out_features, bias, device, dtype), activation)

    @classmethod
    def from_float(cls, linear: nn.Linear, activation: str = "none", scheme: InputScheme | None = None) -> Int8Linear:
        """Quantises a trained ``nn.Linear``, which is left as it is.

        Args:
            linear: the float layer.
            activation: that is to follow it.
            scheme: how the input is quantised; by default ``"dynamic"``.

        Raises:
            TypeError: for another module.
            ValueError: for a weight that is not finite, or an unknown activation.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"Int8Linear.from_float: linear must be an nn.Linear, got {type(linear).__name__}")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take_linear(linear, activation, scheme)
        return layer

    def _take_linear(self, linear: nn.Linear, activation: str, scheme: InputScheme | None = None) -> None:
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._take(linear.weight, linear.bias, activation, scheme)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] → [..., out_features] of ``x``'s dtype."""
        packed = self._packed
        bias: Tensor | None = self._parameters["bias"]
        if packed is not None and (bias is None or bias.dtype == torch.float32) and runs_plainly():
            try:
                return _linear_packed(x, packed, bias, self.out_features)  # type: ignore[no-any-return]
            except RuntimeError:
                pass  # what was wrong with x is said below, or done
        weight = self.weight
        if x.dtype not in FLOAT_DTYPES or x.shape[-1:] != (self.in_features,) or x.device != weight.device:
            return int8_linear(x, weight, self.weight_scale, bias)  # raises, and says what is wrong with x
        if bias is not None and bias.dtype != torch.float32:
            bias = bias.float()
        return op("int8_linear", x)(  # type: ignore[no-any-return]
            x,
            weight,
            self.weight_scale,
            bias,
            self._pack(),
            self.x_range,
            self.x_multiplier,
            self.outlier_columns,
            self.outlier_weight,
            self.mode,
            self.activation,
        )

    def extra_repr(self) -> str:
        """nn.Linear's, and the activation."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation}{self._scheme_repr()}"
        )


class Int8Conv2d(_Int8Layer):
    """``nn.Conv2d`` with an int8 weight and an activation; each patch is quantised by itself.

    The output is in channels-last memory format, which is the fast one for the input too. More than one group is as
    many convolutions, one after the other.

    Attributes:
        weight: int8 [out_channels, kernel height, kernel width, in_channels / groups]. Change it only by
            ``load_state_dict``.
        weight_scale: float32 [out_channels].
        bias: [out_channels], or None.
    """

    _readers: tuple[Int8Conv2d, ...] = ()  # in a tuple, so that it does not become a part of this module
    _has_giver = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
    ) -> None:
        """Quantises the weight that ``nn.Conv2d`` would start with; its arguments, and the activation."""
        super().__init__()
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._take_conv(conv, activation)

    @classmethod
    def from_float(cls, conv: nn.Conv2d, activation: str = "none", scheme: InputScheme | None = None) -> Int8Conv2d:
        """Quantises a trained ``nn.Conv2d``, which is left as it is.

        Args:
            conv: the float layer.
            activation: that is to follow it.
            scheme: how patches are quantised, [K] in the order (kernel height, kernel width, channel); by default
                ``"dynamic"``, which is the only one for more than one group.

        Raises:
            TypeError: for another module.
            ValueError: for a weight that is not finite, an unknown activation, or a scheme that groups do not have.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"Int8Conv2d.from_float: conv must be an nn.Conv2d, got {type(conv).__name__}")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take_conv(conv, activation, scheme)
        return layer

    def _take_conv(self, conv: nn.Conv2d, activation: str, scheme: InputScheme | None = None) -> None:
        if conv.groups != 1 and scheme not in (None, InputScheme()):
            raise ValueError(f"Int8Conv2d: with {conv.groups} groups the scheme must be dynamic")
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode
        self._pad = tuple(conv._reversed_padding_repeated_twice)  # left, right, top, bottom
        self._take(conv.weight.permute(0, 2, 3, 1), conv.bias, activation, scheme)
        self.train(conv.training)

    def hand_to(self, reader: Int8Conv2d) -> None:
        """Tells this layer that `reader` alone reads its results, as they are or through max pools.

        Without gradients, and where both layers are static without multiplier and outlier columns, it then gives the
        integers that the reader would quantise them to: uint8, the reader's zero point added. A result that is not
        finite has no integer: there all are floats. So they are while a hook looks at either layer.
        """
        self._readers, reader._has_giver = (reader,), True

    @property
    def takes_integers(self) -> bool:
        """Whether its input has one scale and zero point, and nothing else is done to it."""
        return self.mode == "static" and self.x_multiplier is None and self.outlier_columns is None

    def _spare(self) -> int:
        """Columns of zeros that the packed kernel has more: its lines are then whole fours, which are read at once.

        In mode static alone: there a value's integer does not depend on the patch that it is part of.
        """
        if not self.takes_integers or self.dilation[1] != 1:
            return 0
        return next(more for more in range(4) if (self.kernel_size[1] + more) * self.in_channels % 4 == 0)

    def _rows(self) -> Tensor:
        spare = self._spare()
        (height, width), (left, right, top, bottom) = self.kernel_size, self._pad
        kernel, pad = (height, width + spare), (left, right + spare, top, bottom)
        self._packed_geometry = kernel, self.stride, pad, self.dilation
        return functional.pad(self.weight, (0, 0, 0, spare)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] or [in_channels, H, W] → the same with out_channels, of ``x``'s dtype.

        Of a layer that :meth:`hand_to` named, x may be uint8.
        """
        packed = self._packed  # None with groups
        bias: Tensor | None = self._parameters["bias"]
        integers = x.dtype == torch.uint8
        if (
            packed is not None
            and (bias is None or bias.dtype == torch.float32)
            and runs_plainly()
            and self.padding_mode == "zeros"
            and x.is_contiguous(memory_format=torch.channels_last)
            and (not integers or self._has_giver)
        ):
            reader = None
            if self._readers and not (self._forward_hooks or self._readers[0]._forward_pre_hooks):
                reader = self._readers[0]._packed
            try:
                return _conv2d_packed(x, packed, bias, self.out_channels, *self._packed_geometry, reader)  # type: ignore[no-any-return]
            except RuntimeError:
                pass  # what was wrong with x is said below, or done
        if integers and self._has_giver and self.x_range is not None:
            x = (x.float() - self.x_range[1]) * self.x_range[0]  # which is quantised to the same integers
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"Int8Conv2d: x must be [B, {self.in_channels}, H, W], got {list(x.shape)}")
        images, pad = x if x.dim() == 4 else x[None], self._pad
        if self.padding_mode != "zeros":
            images, pad = functional.pad(images, pad, mode=self.padding_mode), (0, 0, 0, 0)
        if self.groups == 1:
            packed = self._pack()
            packed = packed if self._spare() == 0 else None
            y = self._convolve(images, pad, self.weight, self.weight_scale, self.bias, packed)
        else:
            parts = [tensor.chunk(self.groups) for tensor in (self.weight, self.weight_scale)]
            biases = [None] * self.groups if self.bias is None else self.bias.chunk(self.groups)
            groups = zip(images.chunk(self.groups, dim=1), *parts, biases, strict=True)
            y = torch.cat(
                [self._convolve(images, pad, weight, scale, bias, None) for images, weight, scale, bias in groups],
                dim=1,
            )
        return y if x.dim() == 4 else y[0]

    def _convolve(self, images: Tensor, pad: Any, weight: Any, scale: Any, bias: Any, packed: Tensor | None) -> Tensor:
        return int8_conv2d(
            images,
            weight,
            scale,
            bias,
            self.stride,
            pad,
            self.dilation,
            activation=self.activation,
            mode=self.mode,
            x_range=self.x_range,
            x_multiplier=self.x_multiplier,
            outlier_columns=self.outlier_columns,
            outlier_weight=self.outlier_weight,
            packed=packed,
        )

    def extra_repr(self) -> str:
        """nn.Conv2d's, and the activation."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}" if any(self._pad) else ""
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        text += f", groups={self.groups}" if self.groups != 1 else ""
        text += f", padding_mode={self.padding_mode}" if self.padding_mode != "zeros" else ""
        return f"{text}, bias={self.bias is not None}, activation={self.activation}{self._scheme_repr()}"
