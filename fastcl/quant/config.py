"""What is quantised, and how: one place for all of it."""

from __future__ import annotations

from dataclasses import dataclass

from fastcl.ops.int8_linear import MODES

OBSERVERS = ("minmax", "percentile", "mse")


@dataclass(frozen=True)
class QuantConfig:
    """What :func:`~fastcl.quant.quantize_` swaps, and how the layers quantise their inputs.

    What calibration decides is measured on unlabelled batches, per layer, as the relative error of the layer's output:
    ``norm(int8 - float) / norm(float)``, without bias, on rows that were not used to choose.

    Attributes:
        linear: swap ``nn.Linear``.
        conv: swap ``nn.Conv2d``.
        attention: rebuild ``nn.MultiheadAttention`` so that its projections can be swapped.
        grouped: swap convolutions of more than one group: smaller, and usually slower than in float.
        min_depth: leave layers that sum over fewer inputs (in_features, or in_channels * kernel height * kernel width):
            int8 gains nothing on them.
        fuse_activations: let a layer compute the ReLU, GELU (erf) or SiLU module that follows it, and it alone.
        chain: let a static convolution give integers to the one that alone reads it, and max pools after convolutions
            run on what these give (:func:`~fastcl.quant.chain_`).
        mode: ``"dynamic"`` (W8A8, a scale for each row), ``"asymmetric"`` (and a zero point for each), ``"static"``
            (one scale and zero point, from calibration) or ``"int16"`` (W8A16: activations in 16 bits).
        observer: how the range of ``"static"`` is chosen: ``"minmax"``, ``"percentile"`` or ``"mse"`` (the range of the
            least squared error).
        percentile: of values inside the range of the observer of that name, in percent.
        outlier_ratio: with calibration, inputs whose largest magnitude is above this many times the median input's are
            multiplied in float. None: never.
        max_outliers: at most this share of a layer's inputs, the largest first.
        smoothing: SmoothQuant's alpha (arXiv 2211.10438, equation 4): with calibration, inputs are divided by
            ``max|x_k|^alpha / max|w_k|^(1 - alpha)`` and weights multiplied, where that lowers the error. None: never.
        bias_correction: with calibration, add the mean error of each output to the bias, where that lowers the error.
        max_error: with calibration, leave a layer in float whose relative error is larger. None: no limit.
        max_output_error: with calibration, leave layers in float, those first that disturb the model's output most on
            their own, until the relative error of the output is no larger. None: no limit.
        calibration_rows: rows (patches) of each layer's input that are kept to measure on.
    """

    linear: bool = True
    conv: bool = True
    attention: bool = True
    grouped: bool = False
    min_depth: int = 1
    fuse_activations: bool = True
    chain: bool = True
    mode: str = "dynamic"
    observer: str = "mse"
    percentile: float = 99.99
    outlier_ratio: float | None = 6.0
    max_outliers: float = 0.02
    smoothing: float | None = 0.5
    bias_correction: bool = True
    max_error: float | None = None
    max_output_error: float | None = None
    calibration_rows: int = 512

    def __post_init__(self) -> None:
        """Refuses values outside their range.

        Raises:
            ValueError: and names the field.
        """
        checks = {
            "mode": (self.mode in MODES, f"one of {', '.join(MODES)}"),
            "observer": (self.observer in OBSERVERS, f"one of {', '.join(OBSERVERS)}"),
            "percentile": (50 < self.percentile <= 100, "above 50, at most 100"),
            "outlier_ratio": (self.outlier_ratio is None or self.outlier_ratio >= 1, "at least 1, or None"),
            "max_outliers": (0 <= self.max_outliers <= 1, "from 0 to 1"),
            "smoothing": (self.smoothing is None or 0 <= self.smoothing <= 1, "from 0 to 1, or None"),
            "max_error": (self.max_error is None or self.max_error > 0, "positive, or None"),
            "max_output_error": (self.max_output_error is None or self.max_output_error > 0, "positive, or None"),
            "calibration_rows": (self.calibration_rows >= 8, "at least 8"),
        }
        for field, (fits, wanted) in checks.items():
            if not fits:
                raise ValueError(f"QuantConfig: {field} must be {wanted}, got {getattr(self, field)!r}")
