"""Convolution on int8 products: :func:`~fastcl.ops.int8_linear` on the patches that output pixels see, each with its
own scale; kernels in ``csrc/int8_conv2d`` and ``csrc/int8_linear``, which gather a patch as they quantise it.

The op itself is channels-last: images [B, H, W, C] in, [B, out H, out W, N] out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

from fastcl.ops.int8_linear import (
    MAX_DEPTH,
    activate_backward,
    check_int8_arguments,
    float_columns,
    int8_linear_reference,
)
from fastcl.ops.registry import op, register


def int8_conv2d(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str = "none",
    mode: str = "dynamic",
    x_range: Tensor | None = None,
    x_multiplier: Tensor | None = None,
    outlier_columns: Tensor | None = None,
    outlier_weight: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """``activation(conv2d(x, weight_scale * weight, bias))`` with int8 products; each patch of x is quantised here.

    A patch is a row of K = kernel height * kernel width * C values, in that order; it is quantised and multiplied as a
    row of :func:`~fastcl.ops.int8_linear`.

    The gradient reaches ``x`` (straight through the quantiser) and ``bias``.

    Args:
        x: [B, C, H, W], float32, bfloat16, float16 or float64; fastest in channels-last memory format. A patch that
            holds a NaN or an infinity gives NaN, one of zeros ``activation(bias)``.
        weight: int8 [N, kernel height, kernel width, C], at most 131072 values for each of the N.
        weight_scale: float32 [N].
        bias: floating [N], or None.
        stride: of the kernel, (vertical, horizontal) where it is a pair.
        padding: zeros around the image: one number, (vertical, horizontal) or (left, right, top, bottom).
        dilation: distance of the kernel's points, (vertical, horizontal) where it is a pair.
        activation: ``"none"``, ``"relu"``, ``"gelu"`` (the erf form) or ``"silu"``.
        mode: ``"dynamic"``, ``"asymmetric"``, ``"static"`` or ``"int16"``.
        x_range: of ``"static"``, float32 [2].
        x_multiplier: float32 [K], or None.
        outlier_columns: int64 [J], or None.
        outlier_weight: float32 [J, N], or None.
        packed: ``int8_pack_weight(weight.flatten(1))``; without it the native CPU kernel packs the weight at each call.
            None on CUDA.

    Returns:
        [B, N, out H, out W] of ``x``'s dtype, in channels-last memory format.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit, or an unknown activation.
        RuntimeError: for a ``packed`` that is not ``weight``'s size or not of this machine.
    """
    name = "int8_conv2d"
    if not isinstance(weight, Tensor) or weight.dtype != torch.int8:
        raise TypeError(f"{name}: weight must be int8, got {getattr(weight, 'dtype', type(weight).__name__)}")
    if weight.dim() != 4 or weight.numel() == 0 or weight[0].numel() > MAX_DEPTH:
        raise ValueError(
            f"{name}: weight must be [N, kernel height, kernel width, C], not empty, at most {MAX_DEPTH} values for "
            f"each of N, got {list(weight.shape)}"
        )
    how = (x_range, x_multiplier, outlier_columns, outlier_weight, mode)
    bias = check_int8_arguments(name, x, weight, weight_scale, bias, packed, *how, activation)
    if x.dim() != 4 or x.shape[1] != weight.shape[3]:
        raise ValueError(f"{name}: x must be [B, {weight.shape[3]}, H, W], got {list(x.shape)}")
    strides, dilations = _pair(name, "stride", stride, 1), _pair(name, "dilation", dilation, 1)
    if not isinstance(padding, int) and len(padding) == 4:
        pads = list(padding)
    else:
        vertical, horizontal = _pair(name, "padding", padding, 0)
        pads = [horizontal, horizontal, vertical, vertical]
    for axis, size, kernel, dilated, pad in (
        ("high", x.shape[2], weight.shape[1], dilations[0], pads[2] + pads[3]),
        ("wide", x.shape[3], weight.shape[2], dilations[1], pads[0] + pads[1]),
    ):
        if size + pad < dilated * (kernel - 1) + 1:
            raise ValueError(
                f"{name}: x and its padding must be at least {dilated * (kernel - 1) + 1} {axis}, got {size + pad}"
            )
    rows = x.permute(0, 2, 3, 1)
    y = op(name, x)(rows, weight, weight_scale, bias, packed, *how, strides, pads, dilations, activation)
    return y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


def _pair(name: str, argument: str, value: int | Sequence[int], least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name}: {argument} must be one or two numbers from {least} up, got {value}")
    return pair


def patch_view(x: Tensor, kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """[B, H, W, C] → a view [B, out H, out W, kernel height, kernel width, C] of x and its padding."""
    x = functional.pad(x, [0, 0, *padding])
    for dim in (0, 1):
        x = x.unfold(dim + 1, dilation[dim] * (kernel[dim] - 1) + 1, stride[dim])[..., :: dilation[dim]]
    return x.permute(0, 1, 2, 4, 5, 3)


def _int8_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    packed: Tensor | None,
    x_range: Tensor | None,
    x_multiplier: Tensor | None,
    outlier_columns: Tensor | None,
    outlier_weight: Tensor | None,
    mode: str,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    activation: str,
) -> Tensor:
    patches = patch_view(x, weight.shape[1:3], stride, padding, dilation).flatten(3)
    how = (x_range, x_multiplier, outlier_columns, outlier_weight, mode)
    return int8_linear_reference(patches, weight.flatten(1), weight_scale, bias, None, *how, activation)


def _out_sizes(
    sizes: Sequence[int], kernel: Sequence[int], stride: list[int], padding: list[int], dilation: list[int]
) -> list[int]:
    pads = (padding[2] + padding[3], padding[0] + padding[1])
    return [(sizes[i] + pads[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]


def _int8_conv2d_fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    sizes = _out_sizes(x.shape[1:3], weight.shape[1:3], *rest[-4:-1])
    return x.new_empty((x.shape[0], *sizes, weight.shape[0]))


def _int8_conv2d_packed_reference(x: Tensor, packed: Tensor, *rest: Any) -> Tensor:
    raise RuntimeError("int8_conv2d_packed: packed is for the native CPU kernels, which do not run here")


def _int8_conv2d_packed_fake(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    n: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    reader: Tensor | None = None,
) -> Tensor:
    """As if both layers were such that integers pass between them, and x finite, if there is a reader."""
    if x.device != packed.device:
        raise RuntimeError(f"int8_conv2d_packed: packed must be on x's device {x.device}, got {packed.device}")
    sizes = (x.shape[0], n, *_out_sizes(x.shape[2:], kernel, stride, padding, dilation))
    dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
    if reader is not None and dtype == torch.float32:
        dtype = torch.uint8
    return torch.empty(sizes, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.mode, ctx.stride, ctx.padding, ctx.dilation, ctx.activation = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, weight_scale, bias, *rest = ctx.saved_tensors
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        grad = grad.to(dtype)
        if ctx.activation != "none":  # computed again rather than kept
            geometry = (ctx.stride, ctx.padding, ctx.dilation)
            pre = ops.int8_conv2d(x.to(dtype), weight, weight_scale, bias, *rest, ctx.mode, *geometry, "none")
            grad = activate_backward(grad, pre, ctx.activation)
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            left, right, top, bottom = ctx.padding
            batch, height, width, channels = x.shape
            columns = float_columns(weight.flatten(1), weight_scale, *rest[2:])
            grad_padded = conv2d_input(
                [batch, channels, height + top + bottom, width + left + right],
                columns.view(weight.shape).to(dtype).permute(0, 3, 1, 2),
                grad.permute(0, 3, 1, 2),
                stride=ctx.stride,
                dilation=ctx.dilation,
            )
            grad_x = grad_padded[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
            grad_x = grad_x.to(x.dtype).contiguous()
        if ctx.needs_input_grad[3]:
            grad_bias = grad.sum(dim=(0, 1, 2)).to(bias.dtype)
        return grad_x, None, None, grad_bias, *[None] * 10

    return setup_context, backward


register("int8_conv2d_packed", _int8_conv2d_packed_reference, _int8_conv2d_packed_fake)
register("int8_conv2d", _int8_conv2d_reference, _int8_conv2d_fake, _autograd)
