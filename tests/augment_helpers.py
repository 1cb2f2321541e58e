"""What the tests of augmentation share: recipes, rows, images, and how a row is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import fastcl
from fastcl.ops.augment_table import FLIP_AT, IDENTITY_RECIPE, PARAM_NAMES, RECIPE_NAMES

EVERYTHING = {
    **{"crop": 1, "crop_scale_min": 0.08, "crop_ratio_min": 3 / 4, "crop_ratio_max": 4 / 3},
    **{"crop_log_ratio_min": math.log(3 / 4), "crop_log_ratio_max": math.log(4 / 3)},
    **{"hflip_p": 0.5, "hflip_at": FLIP_AT.index("after_warp"), "vflip_p": 0.3, "vflip_at": 0},
    **{"warp_p": 0.7, "angle_from": -30, "angle_to": 400, "translate_x": 0.2, "translate_y": 0.1},
    **{"zoom_min": 0.7, "zoom_max": 1.3, "shear_x_min": -10, "shear_x_max": 10, "shear_y_min": -5, "shear_y_max": 20},
    **{"jitter_p": 0.8, "brightness_min": 0.2, "brightness_max": 1.8, "contrast_min": 0.2, "contrast_max": 1.8},
    **{"saturation_min": 0.2, "saturation_max": 1.8, "hue_min": -0.2, "hue_max": 0.2, "grayscale_p": 0.2},
    **{"blur_p": 0.5, "blur_sigma_min": 0.1, "blur_sigma_max": 2},
}
# Apart: they turn noise of 1e-7 into whole levels.
SOLARIZE = {"solarize_p": 0.5, "solarize_threshold": 0.5}
STEPS = {**SOLARIZE, "posterize_p": 0.5, "posterize_levels": 8, "equalize_p": 0.5, "sharpen_p": 0.5}
STEPS |= {"sharpness": 2.5, "autocontrast_p": 0.3}  # what autocontrast multiplies noise by has no bound
SMOOTH = {  # what follows the blur without steps
    **{"invert_p": 0.4, "rot90_p": 0.6, "erase_p": 0.5},
    **{"erase_scale_min": 0.02, "erase_scale_max": 0.33, "erase_noise": 1},
    **{"erase_log_ratio_min": math.log(0.3), "erase_log_ratio_max": math.log(3.3)},
}
SIZES = {  # images, output
    "digits": ((28, 28), (28, 28)),
    "shrink": ((97, 131), (64, 50)),
    "enlarge": ((9, 14), (33, 40)),
    "one_pixel": ((1, 1), (1, 1)),
    "from_one_pixel": ((1, 1), (5, 3)),
    "to_one_pixel": ((40, 23), (1, 1)),
    "long": ((3, 200), (7, 5)),
}
ODD_MAP = (1.1, -0.3, 0.7, 0.2, 0.9, -1.3, 0.0, 0.0, 1.0)


def recipe(**entries: float) -> Tensor:
    values = {**IDENTITY_RECIPE, **entries}
    assert set(values) == set(RECIPE_NAMES)
    return torch.tensor([values[name] for name in RECIPE_NAMES], dtype=torch.float64, device="cpu")


def row(size: tuple[int, int], **columns: float) -> Tensor:
    """One row that does nothing but what `columns` say."""
    values = dict(zip(PARAM_NAMES, [0.0] * len(PARAM_NAMES), strict=True))
    values |= {"crop_height": size[0], "crop_width": size[1], "map_0": 1, "map_4": 1, "map_8": 1}
    values |= {"brightness": 1, "contrast": 1, "saturation": 1, "sharpness": 1, **columns}
    assert set(values) == set(PARAM_NAMES)
    return torch.tensor([[values[name] for name in PARAM_NAMES]], dtype=torch.float32)


def noise(n: int, channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=generator, device="cpu")
    return values.to(torch.get_default_device())


def check_refused(backend: str, view: int, message: str, call: Callable[[], Sequence[Tensor]]) -> None:
    """The CPU names the row; a GPU, whose rows the host does not look at, makes a view of nothing."""
    if backend in ("reference", "native"):
        with pytest.raises(RuntimeError, match=message):
            call()
        return
    views = call()
    nothing = views[view].isnan() if views[view].is_floating_point() else views[view] == 0
    assert nothing.all()
    assert all(other.isfinite().all() for number, other in enumerate(views) if number != view)


def require_native() -> None:
    if fastcl.backends()["augment_apply"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")


def error(got: Tensor, exact: Tensor) -> float:
    """Largest difference, relative to the largest exact value."""
    return float((got.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


def check(got: Tensor, want: Tensor, most: float) -> None:
    """Requires that nothing differs by more than `most`."""
    worst = (got.double() - want.double()).abs().max().item()
    assert worst <= most, f"differs by {worst:.3g}"
