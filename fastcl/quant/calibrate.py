"""Calibration on unlabelled batches: what a layer's input looks like, and how it is best quantised."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcl.ops.int8_conv2d import patch_view
from fastcl.quant.config import QuantConfig
from fastcl.quant.layers import InputScheme, Int8Linear

_FLOOR = 1e-5  # of magnitudes that smoothing divides by: arXiv 2211.10438's
# The share of the simpler form's error under which smoothing and outlier inputs are taken. In static convolutions they
# cost more: without them images are quantised once, and stay integers from layer to layer.
_WORTH, _WORTH_IN_STATIC_CONVOLUTIONS = 0.98, 0.75
_SHRINKS = 24  # ranges that the MSE observer tries, from the whole one to a quarter of it


class InputStatistics:
    """What passes into one layer: the least and greatest value of each input, and rows to measure on.

    Attributes:
        least: float32 [K] over all rows so far; K in the order of the int8 weight.
        greatest: float32 [K].
        rows: float32 [at most ``kept``, K], drawn evenly from all batches.
        of_convolution: whether the rows are patches.
    """

    def __init__(self, layer: nn.Module, kept: int) -> None:
        self._layer, self._kept = layer, kept
        self.of_convolution = isinstance(layer, nn.Conv2d)
        self._generator = torch.Generator().manual_seed(0)
        self._seen = 0
        self.least = self.greatest = self.rows = torch.empty(0)

    def add(self, x: Tensor) -> None:
        """Takes the layer's input of one batch."""
        x = x.detach().float()
        if isinstance(self._layer, nn.Conv2d):
            least, greatest, pick, count = self._patches(x, self._layer)
        else:
            rows = x.reshape(-1, x.shape[-1])
            least, greatest, count = rows.amin(0), rows.amax(0), len(rows)
            pick = lambda index: rows[index]  # noqa: E731
        if not self._seen:
            self.least, self.greatest, self.rows = least, greatest, x.new_empty(0, len(least))
        self.least, self.greatest = torch.minimum(self.least, least), torch.maximum(self.greatest, greatest)
        # reservoir sampling by batches: each row stays with the same chance
        self._seen += count
        wanted = min(count, math.ceil(self._kept * count / self._seen))
        new = pick(torch.randperm(count, generator=self._generator)[:wanted].to(x.device))
        keep = torch.randperm(len(self.rows), generator=self._generator)[: self._kept - len(new)].to(x.device)
        self.rows = torch.cat([self.rows[keep], new])

    @staticmethod
    def _patches(x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor], int]:
        x = x if x.dim() == 4 else x[None]
        padding = list(conv._reversed_padding_repeated_twice)
        if conv.padding_mode != "zeros":
            x, padding = functional.pad(x, padding, mode=conv.padding_mode), [0, 0, 0, 0]
        kernel = conv.kernel_size
        view = patch_view(x.permute(0, 2, 3, 1), kernel, list(conv.stride), padding, list(conv.dilation))
        points = kernel[0] * kernel[1]
        height, width = view.shape[1:3]

        def pick(index: Tensor) -> Tensor:
            image, place = index // (height * width), index % (height * width)
            return view[image, place // width, place % width].flatten(1)

        least, greatest = x.amin((0, 2, 3)), x.amax((0, 2, 3))
        if any(padding):
            least, greatest = least.clamp(max=0), greatest.clamp(min=0)
        return least.repeat(points), greatest.repeat(points), pick, len(view) * height * width


@contextmanager
def observing(layers: Iterable[nn.Module], rows: int) -> Iterator[dict[nn.Module, InputStatistics]]:
    """While it is open, calls of the layers fill their statistics; a layer that is not called has none."""
    found: dict[nn.Module, InputStatistics] = {}

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0].numel():
            found.setdefault(layer, InputStatistics(layer, rows)).add(inputs[0])

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Choice:
    """How one layer is to be quantised.

    Attributes:
        scheme: for its input.
        bias_shift: float32 [N], to be added to its bias; None: nothing.
        error: of its output, relative, on rows that were not used to choose it.
    """

    scheme: InputScheme
    bias_shift: Tensor | None
    error: float


def choose(weight: Tensor, statistics: InputStatistics, config: QuantConfig) -> Choice:
    """The scheme of the least error among those that the config allows; of two that are close, the simpler one.

    Close is within 2 %, and for convolutions in mode ``"static"`` within a quarter.

    Half of the kept rows choose, the others measure; the scheme that won is then made again from all there is.

    Args:
        weight: float [N, K].
        statistics: of the layer's input.
        config: what is allowed.
    """
    weight = weight.detach().float()
    rows = statistics.rows
    fit, check = (rows[::2], rows[1::2]) if len(rows) > 1 else (rows, rows)
    exact = check @ weight.T
    norm = exact.norm().clamp(min=torch.finfo(torch.float32).tiny)

    candidates = []
    for form in _FORMS:
        scheme = _scheme(weight, fit.amin(0), fit.amax(0), fit, form, config)
        if scheme is not None:
            difference = _linear(weight, scheme)(check) - exact
            candidates.append(((difference.norm() / norm).item(), form, scheme, difference))
    static_convolution = config.mode == "static" and statistics.of_convolution
    worth = _WORTH_IN_STATIC_CONVOLUTIONS if static_convolution else _WORTH
    error, form, scheme, difference = candidates[0]
    for candidate in candidates[1:]:
        if candidate[0] < worth * error:
            error, form, scheme, difference = candidate
    shift = None
    if config.bias_correction:
        corrected = difference - (_linear(weight, scheme)(fit) - fit @ weight.T).mean(0)
        corrects = (corrected.norm() / norm).item() < _WORTH * error
    final = _scheme(weight, statistics.least, statistics.greatest, rows, form, config) or scheme
    if config.bias_correction and corrects:
        error = (corrected.norm() / norm).item()
        shift = (rows @ weight.T - _linear(weight, final)(rows)).mean(0)
    return Choice(final, shift, error)


def _linear(weight: Tensor, scheme: InputScheme) -> Int8Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return Int8Linear.from_float(linear, scheme=scheme)


@dataclass(frozen=True)
class _Form:
    smoothed: bool
    outliers: bool


_FORMS = (_Form(False, False), _Form(True, False), _Form(False, True), _Form(True, True))  # the simplest first


def _scheme(
    weight: Tensor, least: Tensor, greatest: Tensor, rows: Tensor, form: _Form, config: QuantConfig
) -> InputScheme | None:
    """Of that form, for inputs within least and greatest [K]; None where the config or the inputs do not have it."""
    magnitude = torch.maximum(least.abs(), greatest.abs())
    columns = _outlier_columns(magnitude, config) if form.outliers else None
    if (form.outliers and columns is None) or (form.smoothed and config.smoothing is None):
        return None
    multiplier = None
    if form.smoothed and config.smoothing is not None:
        multiplier = _smoothing(weight, magnitude, columns, config.smoothing)
    scheme = InputScheme(config.mode, None, multiplier, columns)
    if config.mode == "static":
        factor = scheme.multiplier(len(magnitude))
        factor = torch.ones_like(magnitude) if factor is None else factor
        scheme = replace(scheme, x_range=static_range(least * factor, greatest * factor, rows * factor, config))
    return scheme


def _outlier_columns(magnitude: Tensor, config: QuantConfig) -> Tensor | None:
    if config.outlier_ratio is None:
        return None
    most = math.floor(config.max_outliers * len(magnitude))
    above = (magnitude > config.outlier_ratio * magnitude.median()).sum().item()
    columns = magnitude.topk(min(most, int(above))).indices.sort().values
    return columns if len(columns) else None


def _smoothing(weight: Tensor, magnitude: Tensor, outliers: Tensor | None, alpha: float) -> Tensor:
    """What the input is multiplied by: 1 / s_k, with a geometric mean of 1 over inputs that are used."""
    used = magnitude > 0
    if outliers is not None:
        used[outliers] = False
    columns = weight.abs().amax(0).clamp(min=_FLOOR)
    logs = (1 - alpha) * columns.log() - alpha * magnitude.clamp(min=_FLOOR).log()
    logs = torch.where(used, logs, 0)
    logs -= logs.sum() / used.sum().clamp(min=1)
    return torch.where(used, logs, 0).clamp(-20, 20).exp()


def static_range(least: Tensor, greatest: Tensor, rows: Tensor, config: QuantConfig) -> Tensor:
    """Scale and zero point, float32 [2], by the config's observer.

    Args:
        least: float32 [K], of all that is to be quantised.
        greatest: float32 [K].
        rows: float32 [rows, K], some of it.
        config: observer and percentile.
    """
    low, high = least.min().clamp(max=0), greatest.max().clamp(min=0)
    if config.observer == "percentile":
        values = rows.flatten().sort().values
        beyond = round((1 - config.percentile / 100) * (len(values) - 1))
        low, high = values[beyond].clamp(max=0), values[-1 - beyond].clamp(min=0)
    elif config.observer == "mse":
        low, high = min(
            ((low * part, high * part) for part in torch.linspace(1, 0.25, _SHRINKS).tolist()),
            key=lambda ends: _squared_error(rows, _scale_and_zero(*ends)),
        )
    return _scale_and_zero(low, high)


def _scale_and_zero(low: Tensor, high: Tensor) -> Tensor:
    scale = ((high - low) / 255).clamp(2.0**-100, 2.0**100)
    return torch.stack([scale, (-low / scale).round().clamp(0, 255) + 0.0])  # no -0


def _squared_error(values: Tensor, x_range: Tensor) -> float:
    scale, zero = x_range
    return (functional.mse_loss((values / scale).round().clamp(-zero, 255 - zero) * scale, values)).item()


def first_tensor(output: Any) -> Tensor | None:
    """The first floating tensor in a model's output: itself, or in a tuple, list or dict."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    parts: Sequence[Any] = ()
    if isinstance(output, dict):
        parts = list(output.values())
    elif isinstance(output, (tuple, list)):
        parts = output
    return next((tensor for tensor in map(first_tensor, parts) if tensor is not None), None)


def run(model: nn.Module, batch: Any) -> Tensor:
    """The output of the model for one batch: a tensor, or a tuple of arguments."""
    output = first_tensor(model(*batch) if isinstance(batch, (tuple, list)) else model(batch))
    if output is None:
        raise TypeError("quantize_: the model gives no floating tensor for a calibration batch")
    return output.detach().float()
