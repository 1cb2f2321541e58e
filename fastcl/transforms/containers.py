"""Containers that draw for each image which transforms it goes through, with torchvision.transforms.v2's arguments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from fastcl.transforms.compose import Alternatives, Transform, require_transforms, sequence_alternatives
from fastcl.transforms.passes import Pass

_MOST_ORDERED = 5  # transforms; all their orders are recipes of their own


class Container(Transform):
    """What stands for other transforms."""

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """Not called: a container is added by its alternatives."""
        raise NotImplementedError


class RandomApply(Container):
    """Applies transforms one after another, all or none, with probability `p`, drawn for each image.

    Args:
        transforms: a list of transforms that keep the images' size and dtype.
        p: the probability.
    """

    def __init__(self, transforms: Sequence[Any], p: float = 0.5) -> None:
        self.transforms = require_transforms("RandomApply", transforms)
        if not self.transforms:
            raise ValueError("RandomApply: transforms must not be empty")
        if not 0 <= p <= 1:
            raise ValueError(f"RandomApply: p must be from 0 to 1, got {p}")
        self.p = float(p)
        if self._alone_is_a_leaf():
            self.transforms[0].add_to(Pass(), self.p)  # raises where it cannot be left to chance

    def _alone_is_a_leaf(self) -> bool:
        only = self.transforms[0]
        return len(self.transforms) == 1 and isinstance(only, Transform) and not isinstance(only, Container)

    def alternatives(self) -> Alternatives:
        """See :meth:`Transform.alternatives`; one transform alone can draw by its own recipe."""
        if self._alone_is_a_leaf():
            return [(1.0, [self])]
        found = [(self.p * p, steps) for p, steps in sequence_alternatives(self.transforms)]
        return [(p, steps) for p, steps in [(1.0 - self.p, []), *found] if p > 0]

    def add_to(self, plan: Pass, p: float = 1.0) -> bool:
        """See :meth:`Transform.add_to`."""
        added: bool = self.transforms[0].add_to(plan, p * self.p)
        return added


class RandomChoice(Container):
    """Applies one of several transforms, drawn for each image.

    Args:
        transforms: transforms that keep the images' size and dtype; a :class:`Compose` is a sequence of them.
        p: their weights; all equal by default.
    """

    def __init__(self, transforms: Sequence[Any], p: Sequence[float] | None = None) -> None:
        self.transforms = require_transforms("RandomChoice", transforms)
        weights = [1.0] * len(self.transforms) if p is None else [float(weight) for weight in p]
        if len(weights) != len(self.transforms) or not self.transforms:
            raise ValueError(
                f"RandomChoice: p must have one weight for each of {len(self.transforms)} transforms, got {p}"
            )
        if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
            raise ValueError(f"RandomChoice: p must be finite, not negative and not all 0, got {p}")
        self.p = [weight / sum(weights) for weight in weights]

    def alternatives(self) -> Alternatives:
        """See :meth:`Transform.alternatives`."""
        return [
            (weight * p, steps)
            for weight, transform in zip(self.p, self.transforms, strict=True)
            for p, steps in sequence_alternatives([transform])
            if weight * p > 0
        ]


class RandomOrder(Container):
    """Applies transforms in an order drawn for each image.

    Args:
        transforms: at most five that keep the images' size and dtype.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = require_transforms("RandomOrder", transforms)
        if not 1 <= len(self.transforms) <= _MOST_ORDERED:
            raise ValueError(f"RandomOrder: transforms must be 1 to {_MOST_ORDERED}, got {len(self.transforms)}")

    def alternatives(self) -> Alternatives:
        """See :meth:`Transform.alternatives`."""
        orders = list(itertools.permutations(self.transforms))
        return [(p / len(orders), steps) for order in orders for p, steps in sequence_alternatives(order)]
