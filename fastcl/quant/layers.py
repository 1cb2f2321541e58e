"""``nn.Linear`` and ``nn.Conv2d`` with int8 weights and int8 products (W8A8, activations quantised as they come).

A layer's state dict is plain: ``weight`` int8, ``weight_scale`` float32 [N], ``bias``. The form that this machine's
kernel reads is made at the first call and never stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcl.ops import int8_conv2d, int8_linear, int8_pack_weight
from fastcl.ops.checks import FLOAT_DTYPES
from fastcl.ops.int8_linear import ACTIVATIONS, MAX_DEPTH
from fastcl.ops.registry import op


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


class _Int8Layer(nn.Module):
    """What both layers share: the stored tensors, and the packed weight that is made from them when needed."""

    weight: Tensor
    weight_scale: Tensor
    bias: nn.Parameter | None
    activation: str

    def _take(self, weight: Tensor, bias: Tensor | None, activation: str) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{type(self).__name__}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
            )
        depth = math.prod(weight.shape[1:])
        if not 1 <= depth <= MAX_DEPTH or weight.shape[0] < 1:
            raise ValueError(
                f"{type(self).__name__}: the weight must have at least one output and from 1 to {MAX_DEPTH} inputs, "
                f"got {list(weight.shape)}"
            )
        q, scale = quantize_weight(weight)
        self.register_buffer("weight", q)
        self.register_buffer("weight_scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.activation = activation
        self._packed: Tensor | None = None

    def _pack(self) -> Tensor | None:
        if self._packed is None:
            weight = self.weight.flatten(1)
            if torch.compiler.is_compiling():
                self._packed = int8_pack_weight(weight)
            else:
                with torch.inference_mode(False):  # it outlives the caller's inference mode
                    self._packed = int8_pack_weight(weight)
        return self._packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scale = self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weight_scale = scale.to(self.weight_scale.device)  # a change of dtype is the bias's only
        self._packed = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._packed = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


class Int8Linear(_Int8Layer):
    """``nn.Linear`` with an int8 weight and an activation, in one op: :func:`fastcl.ops.int8_linear`.

    The gradient reaches the input and the bias; the weight is fixed.

    Attributes:
        weight: int8 [out_features, in_features]. Change it by ``load_state_dict`` only.
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
    def from_float(cls, linear: nn.Linear, activation: str = "none") -> Int8Linear:
        """Quantises a trained ``nn.Linear``, which is left as it is.

        Raises:
            TypeError: for another module.
            ValueError: for a weight that is not finite, or an unknown activation.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"Int8Linear.from_float: linear must be an nn.Linear, got {type(linear).__name__}")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take_linear(linear, activation)
        return layer

    def _take_linear(self, linear: nn.Linear, activation: str) -> None:
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._take(linear.weight, linear.bias, activation)
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] → [..., out_features] of ``x``'s dtype."""
        weight, scale, packed = self.weight, self.weight_scale, self._pack()
        bias: Tensor | None = self.bias
        if x.dtype not in FLOAT_DTYPES or x.dim() == 0 or x.shape[-1] != self.in_features or x.device != weight.device:
            return int8_linear(x, weight, scale, bias)  # raises, and says what is wrong
        # the layer's own tensors need no checks, which would take as long as the product of one row
        bias = bias.float() if bias is not None and bias.dtype != torch.float32 else bias
        return op("int8_linear", x)(x, weight, scale, bias, packed, self.activation)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """nn.Linear's, and the activation."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activation={self.activation}"
        )


class Int8Conv2d(_Int8Layer):
    """``nn.Conv2d`` (one group) with an int8 weight and an activation; each patch is quantised with its own scale.

    The output is in channels-last memory format, which is the fast one for the input too.

    Attributes:
        weight: int8 [out_channels, kernel height, kernel width, in_channels]. Change it by ``load_state_dict`` only.
        weight_scale: float32 [out_channels].
        bias: [out_channels], or None.
    """

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
        """Quantises the weight that ``nn.Conv2d`` would start with; its arguments, and the activation.

        Raises:
            ValueError: for more than one group.
        """
        super().__init__()
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._take_conv(conv, activation)

    @classmethod
    def from_float(cls, conv: nn.Conv2d, activation: str = "none") -> Int8Conv2d:
        """Quantises a trained ``nn.Conv2d``, which is left as it is.

        Raises:
            TypeError: for another module.
            ValueError: for more than one group, a weight that is not finite, or an unknown activation.
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"Int8Conv2d.from_float: conv must be an nn.Conv2d, got {type(conv).__name__}")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._take_conv(conv, activation)
        return layer

    def _take_conv(self, conv: nn.Conv2d, activation: str) -> None:
        if conv.groups != 1:
            raise ValueError(f"Int8Conv2d: groups must be 1, got {conv.groups}")
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode
        self._pad = tuple(conv._reversed_padding_repeated_twice)  # left, right, top, bottom
        self._take(conv.weight.permute(0, 2, 3, 1), conv.bias, activation)
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] or [in_channels, H, W] → the same with out_channels, of ``x``'s dtype."""
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"Int8Conv2d: x must be [B, {self.in_channels}, H, W], got {list(x.shape)}")
        images, pad = x if x.dim() == 4 else x[None], self._pad
        if self.padding_mode != "zeros":
            images, pad = functional.pad(images, pad, mode=self.padding_mode), (0, 0, 0, 0)
        y = int8_conv2d(
            images,
            self.weight,
            self.weight_scale,
            self.bias,
            self.stride,
            pad,
            self.dilation,
            activation=self.activation,
            packed=self._pack(),
        )
        return y if x.dim() == 4 else y[0]

    def extra_repr(self) -> str:
        """nn.Conv2d's, and the activation."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}" if any(self._pad) else ""
        text += f", dilation={self.dilation}" if self.dilation != (1, 1) else ""
        text += f", padding_mode={self.padding_mode}" if self.padding_mode != "zeros" else ""
        return f"{text}, bias={self.bias is not None}, activation={self.activation}"
