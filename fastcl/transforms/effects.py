"""Effects on whole values and boxes: torchvision.transforms.v2's names, arguments, defaults and meanings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastcl.transforms.compose import Transform
from fastcl.transforms.passes import Pass
from fastcl.transforms.single import _probability, _range


class _Effect(Transform):
    """Takes the stage of its name with its own probability."""

    _stage: str

    def __init__(self, p: float = 0.5) -> None:
        self.p = _probability(type(self).__name__, p)

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if not plan.take(self._stage):
            return False
        plan.recipe[f"{self._stage}_p"] = p * self.p
        return True


class RandomInvert(_Effect):
    """Inverts all values with probability `p`."""

    _stage = "invert"


class RandomAutocontrast(_Effect):
    """Stretches each channel from its darkest to its brightest pixel with probability `p`."""

    _stage = "autocontrast"


class RandomEqualize(_Effect):
    """Equalises each channel's histogram of 256 levels with probability `p`."""

    _stage = "equalize"


class RandomPosterize(_Effect):
    """Keeps only the highest bits with probability `p`.

    Args:
        bits: how many, from 0 to 8.
        p: the probability.
    """

    _stage = "posterize"

    def __init__(self, bits: int, p: float = 0.5) -> None:
        super().__init__(p)
        if not isinstance(bits, int) or not 0 <= bits <= 8:
            raise ValueError(f"RandomPosterize: bits must be a whole number from 0 to 8, got {bits}")
        self.bits = bits

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        plan.recipe |= {"posterize_levels": float(1 << self.bits)} if "posterize" not in plan.has else {}
        return super().add_to(plan, p)


class RandomAdjustSharpness(_Effect):
    """Sharpens (or softens) with probability `p`.

    Args:
        sharpness_factor: 0 softens, 1 changes nothing, 2 doubles the sharpness.
        p: the probability.
    """

    _stage = "sharpen"

    def __init__(self, sharpness_factor: float, p: float = 0.5) -> None:
        super().__init__(p)
        if not 0 <= sharpness_factor < math.inf:
            raise ValueError(f"RandomAdjustSharpness: sharpness_factor must not be negative, got {sharpness_factor}")
        self.sharpness_factor = float(sharpness_factor)

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        plan.recipe |= {"sharpness": self.sharpness_factor} if "sharpen" not in plan.has else {}
        return super().add_to(plan, p)


class RandomErasing(Transform):
    """Erases a box with probability `p` (Zhong et al. 2017).

    Args:
        p: the probability.
        scale: range of the box's area, as a share of the image's.
        ratio: range of the box's height / width, uniform in its logarithm.
        value: what the box shows, one value or one per channel in the images' units, or ``"random"``: normal noise.
        inplace: has no effect.
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: Sequence[float] = (0.02, 0.33),
        ratio: Sequence[float] = (0.3, 3.3),
        value: float | str | Sequence[float] = 0.0,
        inplace: bool = False,
    ) -> None:
        owner = type(self).__name__
        self.p = _probability(owner, p)
        self.scale = _range(owner, "scale", scale)
        self.ratio = _range(owner, "ratio", ratio)
        if not 0 <= self.scale[0] <= self.scale[1] <= 1 or self.ratio[0] <= 0:
            raise ValueError(f"{owner}: scale must be within 0 and 1 and ratio positive, got {scale} and {ratio}")
        if isinstance(value, str) and value != "random":
            raise ValueError(f"{owner}: value must be numbers or 'random', got {value!r}")
        self.value = value
        self.inplace = inplace

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        if not plan.take("erase"):
            return False
        noise = isinstance(self.value, str)
        if not isinstance(self.value, str):
            plan.erase = [float(v) for v in ([self.value] if isinstance(self.value, (int, float)) else self.value)]
        plan.recipe |= {"erase_p": p * self.p, "erase_noise": float(noise)}
        for name, values in (("scale", self.scale), ("log_ratio", [math.log(v) for v in self.ratio])):
            plan.recipe |= {f"erase_{name}_{end}": v for end, v in zip(("min", "max"), values, strict=True)}
        return True
