"""Linear layer on int8 weights and integer products: formula, checks, reference and autograd; kernels in
``csrc/int8_linear``.

With the weight in int8 and one scale for each output channel, each row of v = x · x_multiplier is quantised:

    q_mk = round(v_mk · inverse_m)       v_mk ≈ scale_m · q_mk
    y_mn = activation(scale_m · weight_scale_n · Σ_k q_mk w_nk + bias_n + Σ_j x_m,columns(j) outlier_weight_jn)

==============  ==================  =======================================================================
mode            q                   scale_m, inverse_m
==============  ==================  =======================================================================
``dynamic``     [-127, 127]         absmax / 127, 127 / absmax, where absmax = max_k |v_mk|
``asymmetric``  [-zero, 255-zero]   range / 255, 255 / range, where range spans the row and 0
``static``      [-zero, 255-zero]   x_range: the same for every row; what lies outside is cut off
``int16``       [-32767, 32767]     absmax / 32767, 32767 / absmax (W8A16)
==============  ==================  =======================================================================

The sum is exact: int32, and for ``int16`` 256 float32(Σ (q >> 8) w) + float32(Σ (q & 255) w). Scale and inverse are
float32, the product with v is rounded once, half to even: every backend has the same integers and, without outlier
columns and for ``"none"`` and ``"relu"``, the same output bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastcl.ops.checks import FLOAT_DTYPES
from fastcl.ops.registry import op, register, runs_native

ACTIVATIONS = ("none", "relu", "gelu", "silu")
MODES = ("dynamic", "asymmetric", "static", "int16")
MAX_DEPTH = 131072  # of K: 131072 * 127 * 128 < 2^31
MAX_DEPTH_UNSIGNED = 65536  # of the modes other than dynamic: 65536 * 255 * 128 < 2^31
_TINY = 2.0**-100  # rows below it count as zeros; 127 / max is finite above it


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    mode: str = "dynamic",
    x_range: Tensor | None = None,
    x_multiplier: Tensor | None = None,
    outlier_columns: Tensor | None = None,
    outlier_weight: Tensor | None = None,
    packed: Tensor | None = None,
) -> Tensor:
    """``activation((x * x_multiplier) @ (weight_scale * weight).T + bias)``, multiplied in integers.

    Outlier columns are multiplied in float and added before the activation; to take one out of the integer product, set
    its multiplier to 0.

    The gradient reaches ``x`` (straight through the quantiser) and ``bias``.

    Args:
        x: [..., K], float32, bfloat16, float16 or float64 (float64 always runs the reference). A row of zeros gives
            ``activation(bias)``, as does one whose largest magnitude is under 2^-100; a row that holds a NaN or an
            infinity gives a row of NaN.
        weight: int8 [N, K], K at most 131072, and 65536 in other modes than ``"dynamic"``.
        weight_scale: float32 [N]: the float weight is ``weight_scale[:, None] * weight``.
        bias: floating [N], or None.
        activation: ``"none"``, ``"relu"``, ``"gelu"`` (the erf form) or ``"silu"``.
        mode: how x is quantised: ``"dynamic"``, ``"asymmetric"``, ``"static"`` or ``"int16"``; see the module.
        x_range: of ``"static"``, float32 [2]: the scale, from 2^-100 to 2^100, and a whole zero point from 0 to 255.
        x_multiplier: float32 [K], or None for ones.
        outlier_columns: int64 [J], or None.
        outlier_weight: float32 [J, N]: the float weight of these columns.
        packed: ``int8_pack_weight(weight)``; without it the native CPU kernel packs the weight at each call. None on
            CUDA.

    Returns:
        [..., N] of ``x``'s dtype.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for shapes that do not fit, or an unknown activation.
        RuntimeError: for a ``packed`` that is not ``weight``'s size or not of this machine, and for values of
            ``x_range`` or ``outlier_columns`` that do not fit (an IndexError from the reference; on CUDA they give NaN,
            since to look at them would wait for the device).
    """
    _check_weight("int8_linear", weight)
    how = (x_range, x_multiplier, outlier_columns, outlier_weight, mode)
    bias = check_int8_arguments("int8_linear", x, weight, weight_scale, bias, packed, *how, activation)
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"int8_linear: x must be [..., {weight.shape[1]}], got {list(x.shape)}")
    return op("int8_linear", x)(x, weight, weight_scale, bias, packed, *how, activation)  # type: ignore[no-any-return]


def int8_pack_weight(weight: Tensor, kernel: str = "auto") -> Tensor | None:
    """Lays a weight out for a kernel of this machine, to be kept and given to :func:`int8_linear`.

    Args:
        weight: int8 [N, K], K at most 131072.
        kernel: ``"auto"`` (the fastest that this machine has) or a kernel's name; an unknown one's error lists them.

    Returns:
        uint8 [bytes], opaque and not to be stored: it is good for this machine only. None where the reference runs
        and on CUDA: both read the weight as it stands.

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
    packed: Tensor | None,
    x_range: Tensor | None,
    x_multiplier: Tensor | None,
    outlier_columns: Tensor | None,
    outlier_weight: Tensor | None,
    mode: str,
    activation: str,
) -> Tensor | None:
    """What the int8 products have in common, shapes of x and weight apart; gives the bias in float32."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: x must be a Tensor, got {type(x).__name__}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    n, k = weight.shape[0], weight[0].numel()
    _check_tensor(name, "weight_scale", weight_scale, torch.float32, [n])
    if bias is not None:
        if bias.dtype not in FLOAT_DTYPES:
            raise TypeError(f"{name}: bias must be float32, bfloat16, float16 or float64, got {bias.dtype}")
        _check_tensor(name, "bias", bias, bias.dtype, [n])
        bias = bias.float()
    if activation not in ACTIVATIONS:
        raise ValueError(f"{name}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if mode not in MODES:
        raise ValueError(f"{name}: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if mode != "dynamic" and k > MAX_DEPTH_UNSIGNED:
        raise ValueError(f"{name}: in mode {mode} K must be at most {MAX_DEPTH_UNSIGNED}, got {k}")
    if (mode == "static") != (x_range is not None):
        raise ValueError(f"{name}: x_range must be given in mode 'static' and no other, got mode {mode!r}")
    if (outlier_columns is None) != (outlier_weight is None):
        raise ValueError(f"{name}: outlier_columns and outlier_weight must be given together")
    if x_range is not None:
        _check_tensor(name, "x_range", x_range, torch.float32, [2])
    if x_multiplier is not None:
        _check_tensor(name, "x_multiplier", x_multiplier, torch.float32, [k])
    if outlier_columns is not None and outlier_weight is not None:
        _check_tensor(name, "outlier_columns", outlier_columns, torch.int64, [outlier_columns.numel()])
        _check_tensor(name, "outlier_weight", outlier_weight, torch.float32, [outlier_columns.numel(), n])
    for argument, other in (
        ("weight", weight),
        ("weight_scale", weight_scale),
        ("bias", bias),
        ("packed", packed),
        ("x_range", x_range),
        ("x_multiplier", x_multiplier),
        ("outlier_columns", outlier_columns),
        ("outlier_weight", outlier_weight),
    ):
        if other is not None and other.device != x.device:
            raise ValueError(f"{name}: {argument} must be on x's device {x.device}, got {other.device}")
    return bias


def _check_tensor(name: str, argument: str, tensor: Tensor, dtype: torch.dtype, shape: list[int]) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: {argument} must be {str(dtype).removeprefix('torch.')}, got {tensor.dtype}")
    if list(tensor.shape) != shape:
        raise ValueError(f"{name}: {argument} must be {shape}, got {list(tensor.shape)}")


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


def _quantize_rows(v: Tensor, mode: str, x_range: Tensor | None) -> tuple[Tensor, Tensor]:
    """Integers (as float64, their zero point taken off) of v's shape, and the scale [..., 1] of each row."""
    steps = v.new_full((), {"asymmetric": 255, "int16": 32767}.get(mode, 127))  # with a number torch may multiply by a
    low, high = -steps, steps  # rounded reciprocal
    if mode == "asymmetric":
        least, most = v.amin(dim=-1, keepdim=True).clamp(max=0), v.amax(dim=-1, keepdim=True).clamp(min=0)
        span = most - least
    else:
        span = v.abs().amax(dim=-1, keepdim=True)
    finite = span < float("inf")  # False for NaN
    if x_range is not None:
        scale = x_range[0].to(v.dtype).expand_as(span)
        inverse = v.new_ones(()) / scale
        low, high, plain = -x_range[1], 255 - x_range[1], finite
    else:
        scale, inverse, plain = span / steps, steps / span, finite & (span >= _TINY)
        if mode == "asymmetric":
            zero = (-least.double() * inverse.double()).round()
            low, high = -zero, 255 - zero
    # in float64 the product of two float32 is exact, so that it is rounded once
    q = (v.double() * inverse.double()).round().clamp(low, high)
    return torch.where(plain, q, 0), torch.where(plain, scale, torch.where(finite, 0, float("nan")))


def fake_quantize_rows(x: Tensor, mode: str) -> Tensor:
    """x, rounded to what its integers stand for; the gradient is passed unchanged. Not for ``"static"``."""
    with torch.no_grad():
        q, scale = _quantize_rows(x.float(), mode, None)
        rounded = (q.to(scale.dtype) * scale).to(x.dtype)
    return x + (rounded - x).detach()


def int8_linear_reference(
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
    activation: str,
) -> Tensor:
    """:func:`int8_linear` in pure PyTorch."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    v = x.to(dtype)
    q, scale = _quantize_rows(v if x_multiplier is None else v * x_multiplier, mode, x_range)

    def sums(integers: Tensor) -> Tensor:
        return (integers @ weight.double().T).to(dtype)  # whole numbers under 2^31: exact in float64

    total = 256 * sums((q / 256).floor()) + sums(q % 256) if mode == "int16" else sums(q)
    y = total * (scale * weight_scale)
    if bias is not None:
        y = y + bias
    if outlier_columns is not None and outlier_weight is not None:
        y = y + v[..., outlier_columns] @ outlier_weight.to(dtype)
    return _activate(y, activation).to(x.dtype)


def _int8_linear_fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _packed_bytes(
    weight: Tensor,
    weight_scale: Tensor | None = None,
    x_range: Tensor | None = None,
    x_multiplier: Tensor | None = None,
    outlier_columns: Tensor | None = None,
    *rest: Any,
) -> Any:
    """Of the block in ``csrc/int8_linear/int8_linear.h``: N rounded up to 32, K to 16."""
    n, k = weight.shape
    n32, k16 = (n + 31) // 32 * 32, (k + 15) // 16 * 16
    size = 64 + n32 * (4 + k16)
    if weight_scale is None:
        return size
    outliers = 0 if outlier_columns is None else len(outlier_columns)
    return size + 4 * n32 + (0 if x_multiplier is None else 4 * k16) + outliers * (8 + 4 * n)


def _int8_pack_weight_reference(weight: Tensor, kernel: str, *layer: Any) -> Tensor:
    return weight.new_zeros(_packed_bytes(weight, *layer), dtype=torch.uint8)  # no kernel's: int8_linear refuses it


def _int8_pack_weight_fake(weight: Tensor, kernel: str, *layer: Any) -> Tensor:
    return weight.new_empty(_packed_bytes(weight, *layer), dtype=torch.uint8)


def _int8_linear_packed_reference(x: Tensor, packed: Tensor, bias: Tensor | None, n: int) -> Tensor:
    raise RuntimeError("int8_linear_packed: packed is for the native CPU kernels, which do not run here")


def _int8_linear_packed_fake(x: Tensor, packed: Tensor, bias: Tensor | None, n: int) -> Tensor:
    if x.device != packed.device:
        raise RuntimeError(f"int8_linear_packed: packed must be on x's device {x.device}, got {packed.device}")
    return x.new_empty((*x.shape[:-1], n))


def _autograd(ops: Any) -> tuple[Any, Any]:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.mode, ctx.activation = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, weight_scale, bias, *rest = ctx.saved_tensors
        _, _, x_multiplier, outlier_columns, outlier_weight = rest
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        grad = grad.to(dtype)
        if ctx.activation != "none":  # computed again rather than kept
            pre = ops.int8_linear(x.to(dtype), weight, weight_scale, bias, *rest, ctx.mode, "none")
            grad = activate_backward(grad, pre, ctx.activation)
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            columns = float_columns(weight, weight_scale, x_multiplier, outlier_columns, outlier_weight)
            grad_x = (grad @ columns.to(dtype)).to(x.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad.reshape(-1, weight.shape[0]).sum(0).to(bias.dtype)
        return grad_x, None, None, grad_bias, *[None] * 7

    return setup_context, backward


def float_columns(
    weight: Tensor,
    weight_scale: Tensor,
    x_multiplier: Tensor | None,
    outlier_columns: Tensor | None,
    outlier_weight: Tensor | None,
) -> Tensor:
    """The float weight [N, K] that int8 [N, K] and what goes with it stand for: what x is multiplied by."""
    columns = weight * weight_scale[:, None]
    if x_multiplier is not None:
        columns = columns * x_multiplier
    if outlier_columns is not None and outlier_weight is not None:
        columns = columns.index_add(1, outlier_columns, outlier_weight.T.to(columns.dtype))
    return columns


register("int8_pack_weight", _int8_pack_weight_reference, _int8_pack_weight_fake)
register("int8_linear_packed", _int8_linear_packed_reference, _int8_linear_packed_fake)
register("int8_linear", int8_linear_reference, _int8_linear_fake, _autograd)
