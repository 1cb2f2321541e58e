"""Linear layer on int8 products (W8A8, dynamic per-token): formula, checks, reference and autograd; kernels in
``csrc/int8_linear``.

With the weight in int8 and one scale for each output channel, each row of x is quantised as it comes:

    scale_m = max_k |x_mk| / 127        q_mk = round(x_mk · (127 / max_k |x_mk|))
    y_mn    = activation(scale_m · weight_scale_n · Σ_k q_mk w_nk + bias_n)

The sum is exact (int32). The scale and 127 / max are float32, their product with x is rounded once, half to even: every
backend has the same integers, and for ``"none"`` and ``"relu"`` the same output bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.ops.checks import FLOAT_DTYPES
from fastcl.ops.registry import op, register, runs_native

ACTIVATIONS = ("none", "relu", "gelu", "silu")
MAX_DEPTH = 131072  # of K: 131072 * 127 * 128 < 2^31
_TINY = 2.0**-100  # rows below it count as zeros; 127 / max is finite above it


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    packed: Tensor | None = None,
) -> Tensor:
    """``activation(x @ (weight_scale * weight).T + bias)`` with int8 products; x is quantised here, row by row.

    The gradient reaches ``x`` (straight through the quantiser) and ``bias``.

    Args:
        x: [..., K], float32, bfloat16, float16 or float64 (float64 always runs the reference). A row of zeros gives
            ``activation(bias)``, as does one whose largest magnitude is under 2^-100; a row that holds a NaN or an
            infinity gives a row of NaN.
        weight: int8 [N, K], K at most 131072.
        weight_scale: float32 [N]: the float weight is ``weight_scale[:, None] * weight``.
        bias: floating [N], or None.
        activation: ``"none"``, ``"relu"``, ``"gelu"`` (the erf form) or ``"silu"``.
        packed: ``int8_pack_weight(weight)``; without it the native kernel packs the weight at each call.

    Returns:
        [..., N] of ``x``'s dtype.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit, or an unknown activation.
        RuntimeError: for a ``packed`` that is not ``weight``'s size or not of this machine.
    """
    _check_weight("int8_linear", weight)
    bias = check_int8_arguments("int8_linear", x, weight, weight_scale, bias, activation, packed)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"int8_linear: x must be [..., {weight.shape[1]}], got {list(x.shape)}")
    return op("int8_linear", x)(x, weight, weight_scale, bias, packed, activation)  # type: ignore[no-any-return]


def int8_pack_weight(weight: Tensor, kernel: str = "auto") -> Tensor | None:
    """Lays a weight out for a kernel of this machine, to be kept and given to :func:`int8_linear`.

    Args:
        weight: int8 [N, K], K at most 131072.
        kernel: ``"auto"`` (the fastest that this machine has) or a kernel's name; an unknown one's error lists them.

    Returns:
        uint8 [bytes], opaque and not to be stored: it is good for this machine only. None where the reference runs,
        which reads the weight as it stands.

    Raises:
        TypeError: for a weight that is not int8.
        ValueError: for a weight that is not [N, K], or is empty.
        RuntimeError: for a kernel that this machine has not.
    """
    _check_weight("int8_pack_weight", weight)
    if not runs_native("int8_pack_weight", weight.device.type):
        return None
    return op("int8_pack_weight", weight)(weight, kernel)  # type: ignore[no-any-return]


def check_int8_arguments(
    name: str,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    activation: str,
    packed: Tensor | None,
) -> Tensor | None:
    """What the int8 products have in common, shapes of x and weight apart; gives the bias in float32."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: x must be a Tensor, got {type(x).__name__}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    n = weight.shape[0]
    if weight_scale.dtype != torch.float32:
        raise TypeError(f"{name}: weight_scale must be float32, got {weight_scale.dtype}")
    if weight_scale.shape != (n,):
        raise ValueError(f"{name}: weight_scale must be [{n}], got {list(weight_scale.shape)}")
    if bias is not None:
        if bias.dtype not in FLOAT_DTYPES:
            raise TypeError(f"{name}: bias must be float32, bfloat16, float16 or float64, got {bias.dtype}")
        if bias.shape != (n,):
            raise ValueError(f"{name}: bias must be [{n}], got {list(bias.shape)}")
        bias = bias.float()
    if activation not in ACTIVATIONS:
        raise ValueError(f"{name}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    for argument, other in (("weight", weight), ("weight_scale", weight_scale), ("bias", bias), ("packed", packed)):
        if other is not None and other.device != x.device:
            raise ValueError(f"{name}: {argument} must be on x's device {x.device}, got {other.device}")
    return bias


def _check_weight(name: str, weight: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name}: weight must be a Tensor, got {type(weight).__name__}")
    if weight.dtype != torch.int8:
        raise TypeError(f"{name}: weight must be int8, got {weight.dtype}")
    if weight.dim() != 2 or weight.numel() == 0 or weight.shape[1] > MAX_DEPTH:
        raise ValueError(f"{name}: weight must be [N, K], not empty, K at most {MAX_DEPTH}, got {list(weight.shape)}")


def _activate(v: Tensor, activation: str) -> Tensor:
    return v if activation == "none" else getattr(functional, activation)(v)


def activate_backward(grad: Tensor, v: Tensor, activation: str) -> Tensor:
    """The gradient before an activation other than ``"none"``, from that after it."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, v, 0)  # type: ignore[no-any-return]
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, v)  # type: ignore[no-any-return]
    return torch.ops.aten.silu_backward(grad, v)  # type: ignore[no-any-return]


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (as float64) of x's shape, and the scale [..., 1] of each row."""
    absmax = x.abs().amax(dim=-1, keepdim=True)
    plain = (absmax >= _TINY) & (absmax < float("inf"))  # False for NaN
    top = absmax.new_full((), 127)  # a tensor: with a number torch may multiply by a rounded reciprocal
    inverse = top / absmax
    # in float64 the product of two float32 is exact, so that it is rounded once
    q = torch.where(plain, (x.double() * inverse.double()).round(), 0)
    return q, torch.where(plain, absmax / top, torch.where(absmax < _TINY, 0, float("nan")))


def int8_linear_reference(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, packed: Tensor | None, activation: str
) -> Tensor:
    """:func:`int8_linear` in pure PyTorch."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    q, scale = _quantize_rows(x.to(dtype))
    sums = (q @ weight.double().T).to(dtype)  # whole numbers under 2^31: exact in float64
    y = sums * (scale * weight_scale)
    if bias is not None:
        y = y + bias
    return _activate(y, activation).to(x.dtype)


def _int8_linear_fake(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, packed: Tensor | None, activation: str
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _packed_bytes(weight: Tensor) -> Any:
    """What ``csrc/int8_linear/int8_linear.h`` says: header, sums and weight, N rounded up to 32 and K to 16."""
    n, k = weight.shape
    return 64 + (n + 31) // 32 * 32 * (4 + (k + 15) // 16 * 16)


def _int8_pack_weight_reference(weight: Tensor, kernel: str) -> Tensor:
    return weight.new_zeros(_packed_bytes(weight), dtype=torch.uint8)  # no kernel's: int8_linear refuses it


def _int8_pack_weight_fake(weight: Tensor, kernel: str) -> Tensor:
    return weight.new_empty(_packed_bytes(weight), dtype=torch.uint8)


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.activation = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, weight_scale, bias, packed = ctx.saved_tensors
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        grad = grad.to(dtype)
        if ctx.activation != "none":  # computed again rather than kept
            pre = ops.int8_linear(x.to(dtype), weight, weight_scale, bias, packed, "none")
            grad = activate_backward(grad, pre, ctx.activation)
        grad_x = ((grad * weight_scale) @ weight.to(dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        grad_bias = grad.reshape(-1, weight.shape[0]).sum(0).to(bias.dtype) if ctx.needs_input_grad[3] else None
        return grad_x, None, None, grad_bias, None, None

    return setup_context, backward


register("int8_pack_weight", _int8_pack_weight_reference, _int8_pack_weight_fake)
register("int8_linear", int8_linear_reference, _int8_linear_fake, _autograd)
