"""Quantisation-aware training: float layers that round as their int8 layers will, and pass gradients straight through.

Source of the estimator: Bengio, Léonard, Courville, arXiv 1308.3432; of training with it: Jacob et al., 1712.05877.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fastcl.ops.int8_conv2d import patch_view
from fastcl.ops.int8_linear import fake_quantize_rows
from fastcl.quant.config import QuantConfig
from fastcl.quant.layers import quantize_weight


class QatLinear(nn.Linear):
    """``nn.Linear`` whose weight and input are rounded as :class:`~fastcl.quant.Int8Linear` rounds them.

    The gradient passes the rounding unchanged, so that weight, bias and input are trained in float.
    """

    mode = "dynamic"

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] → [..., out_features]."""
        return functional.linear(fake_quantize_rows(x, self.mode), _rounded(self.weight), self.bias)


class QatConv2d(nn.Conv2d):
    """``nn.Conv2d`` of one group whose weight and patches are rounded as :class:`~fastcl.quant.Int8Conv2d` does."""

    mode = "dynamic"

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H, W]."""
        padding = list(self._reversed_padding_repeated_twice)
        if self.padding_mode != "zeros":
            x, padding = functional.pad(x, padding, mode=self.padding_mode), [0, 0, 0, 0]
        images = x.permute(0, 2, 3, 1)
        patches = patch_view(images, self.kernel_size, list(self.stride), padding, list(self.dilation)).flatten(3)
        weight = _rounded(self.weight).permute(0, 2, 3, 1).flatten(1)
        return functional.linear(fake_quantize_rows(patches, self.mode), weight, self.bias).permute(0, 3, 1, 2)


def prepare_qat_(
    model: nn.Module,
    config: QuantConfig | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
) -> list[str]:
    """Makes the model's linear and convolution layers train through their rounding, in place.

    Train on, then :func:`~fastcl.quant.quantize_` with the same config: the int8 layers compute what was trained. Fold
    BatchNorm before.

    Args:
        model: the float model; parameters stay the same objects, so an optimizer may be built before or after.
        config: its ``linear``, ``conv``, ``min_depth`` and ``mode``; all modes but ``"static"``.
        filter_fn: takes a layer and its name; layers for which it is False are left.

    Returns:
        The names of the layers.

    Raises:
        ValueError: for mode ``"static"``.
    """
    config = config or QuantConfig()
    if config.mode == "static":
        raise ValueError("prepare_qat_: config.mode must be dynamic, asymmetric or int16, got 'static'")
    kinds: dict[type, Any] = {}
    if config.linear:
        kinds[nn.Linear] = QatLinear
    if config.conv:
        kinds[nn.Conv2d] = QatConv2d
    names = []
    for name, module in model.named_modules():
        kind = kinds.get(type(module))
        if kind is None or getattr(module, "groups", 1) != 1 or (filter_fn is not None and not filter_fn(module, name)):
            continue
        if module.weight[0].numel() < config.min_depth:
            continue
        module.__class__ = kind
        module.mode = config.mode
        names.append(name)
    return names


def _rounded(weight: Tensor) -> Tensor:
    q, scale = quantize_weight(weight)
    rounded = (q * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)
    return weight + (rounded - weight).detach()
