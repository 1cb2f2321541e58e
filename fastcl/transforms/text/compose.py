"""What transforms of text share: the draws, and how they are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info


class Draws:
    """The uniform numbers of one text, from Philox4x64-10 (Salmon et al. 2011; numpy's) as a counter-based stream.

    The key is (seed, epoch, view), the counter (sample number, number of the transform, draw): no transform's draws
    depend on another's.
    """

    def __init__(self, seed: int, epoch: int, view: int, index: int = 0) -> None:
        """Draws of the sample of that number."""
        self._philox = np.random.Philox(0)
        self._key = np.array([seed % 2**64, view << 32 | epoch], dtype=np.uint64)
        self._index, self._path, self._used = index, 0, 0

    def of(self, index: int) -> Draws:
        """The draws of another sample."""
        return self._with(index, 0)

    def part(self, number: int) -> Draws:
        """The draws of the transform of that number within this one."""
        return self._with(self._index, self._path << 16 | number + 1)

    def _with(self, index: int, path: int) -> Draws:
        other = object.__new__(Draws)
        other._philox, other._key = self._philox, self._key
        other._index, other._path, other._used = index, path % 2**64, 0
        return other

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """The next `count` numbers, in [0, 1)."""
        counter = np.array([self._used, 0, self._path, self._index % 2**64], dtype=np.uint64)
        self._philox.state = {
            "bit_generator": "Philox",
            "state": {"counter": counter, "key": self._key},
            "buffer": np.zeros(4, dtype=np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        self._used += -(-count // 4)
        bits: npt.NDArray[np.uint64] = self._philox.random_raw(count)
        numbers: npt.NDArray[np.float64] = (bits >> np.uint64(11)) * 2.0**-53
        return numbers

    def happen(self, count: int, p: float) -> list[int]:
        """Which of `count` things happen that have the probability `p` each."""
        places: list[int] = np.flatnonzero(self.uniform(count) < p).tolist()
        return places


def probability(owner: str, name: str, value: float) -> float:
    """The argument `name` of a transform.

    Raises:
        ValueError: for a number outside of [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{owner}: {name} must be from 0 to 1, got {value}")
    return float(value)


class TextTransform:
    """What all transforms of text share: called alone, one is a :class:`Compose` of itself."""

    _alone: Compose | None = None

    def change(self, text: str, draws: Draws) -> str:
        """One text, changed as the draws say."""
        raise NotImplementedError

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of them
        self, texts: str, index: Any = None, epoch: int = 0, view: int = 0
    ) -> str: ...
    @overload
    def __call__(self, texts: Sequence[str], index: Any = None, epoch: int = 0, view: int = 0) -> list[str]: ...
    def __call__(self, texts: Any, index: Any = None, epoch: int = 0, view: int = 0) -> Any:
        """As :meth:`Compose.__call__`; the seed is drawn from torch's global generator at the first call."""
        if self._alone is None:
            self._alone = Compose([self])
        return self._alone(texts, index, epoch, view)

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"


class RandomApply(TextTransform):
    """All of the transforms with probability `p`, or none."""

    def __init__(self, transforms: Sequence[TextTransform], p: float = 0.5) -> None:
        self.transforms = _checked("RandomApply", transforms)
        self.p = probability("RandomApply", "p", p)

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        return _in_turn(self.transforms, text, draws) if draws.uniform(1)[0] < self.p else text


def _checked(owner: str, transforms: Sequence[TextTransform]) -> list[TextTransform]:
    for transform in transforms:
        if not isinstance(transform, TextTransform):
            raise TypeError(f"{owner}: transforms must be fastcl.transforms.text's, got {type(transform).__name__}")
    return list(transforms)


def _in_turn(transforms: Sequence[TextTransform], text: str, draws: Draws) -> str:
    for number, transform in enumerate(transforms):
        text = transform.change(text, draws.part(number))
    return text


class Compose:
    """Runs transforms of text one after another.

    Args:
        transforms: of this package, in order.
        seed: of all draws, 64 bits; by default drawn from torch's global generator, so that
            :func:`torch.manual_seed` makes it reproducible.

    Raises:
        TypeError: for a transform that is not this package's.
        ValueError: for a seed of more than 64 bits.
    """

    def __init__(self, transforms: Sequence[TextTransform], seed: int | None = None) -> None:
        self.transforms = _checked("Compose", transforms)
        self.seed = int(torch.randint(2**63 - 1, (), device="cpu").item()) if seed is None else int(seed)
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"Compose: seed must be in [-2^63, 2^63), got {seed}")
        self._next = 0  # the sample number of the next text that comes without one

    def __repr__(self) -> str:
        return "\n".join(
            ["Compose(", *(f"  {transform}," for transform in self.transforms), f"  seed={self.seed}", ")"]
        )

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a str is a sequence of them
        self, texts: str, index: Any = None, epoch: int = 0, view: int = 0
    ) -> str: ...
    @overload
    def __call__(self, texts: Sequence[str], index: Any = None, epoch: int = 0, view: int = 0) -> list[str]: ...
    def __call__(self, texts: Any, index: Any = None, epoch: int = 0, view: int = 0) -> Any:
        """Draws for every text and changes it.

        Args:
            texts: strings, or one.
            index: the texts' sample numbers in the data set, one for each: the draws then depend on (seed, epoch,
                index, view) alone. Without, a counter runs on, so that each call draws anew.
            epoch: changes all draws; in [0, 2^32).
            view: likewise, for several views of one text; in [0, 2^16).

        Returns:
            A list of strings, or one.

        Raises:
            TypeError: for what is not text.
            ValueError: for a lone surrogate, which no Unicode text has, or a number out of range.
        """
        views = self.views(texts, 1, index, epoch, first=view)
        return views[0]

    def views(self, texts: Any, count: int, index: Any = None, epoch: int = 0, *, first: int = 0) -> list[Any]:
        """Several views of every text: what calls with view = first, first + 1, ... would give for one index.

        Args:
            texts: as in a call.
            count: of the views.
            index: as in a call.
            epoch: as in a call.
            first: the first view's number.

        Returns:
            ``count`` results, as of a call.
        """
        single = isinstance(texts, str)
        batch = [texts] if single else list(texts)
        if not 0 <= epoch < 1 << 32 or first < 0 or first + count > 1 << 16:
            raise ValueError(f"Compose: epoch must be in [0, 2^32) and view in [0, 2^16), got {epoch} and {first}")
        for place, text in enumerate(batch):
            if not isinstance(text, str):
                raise TypeError(f"Compose: texts must be str, got {type(text).__name__} at {place}")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"Compose: texts must be valid Unicode, text {place} has a lone surrogate at {error.start}"
                ) from error
        numbers, seed = self._numbers(len(batch), index)
        results = []
        for view in range(first, first + count):
            draws = Draws(seed, epoch, view)
            done = [_in_turn(self.transforms, text, draws.of(n)) for text, n in zip(batch, numbers, strict=True)]
            results.append(done[0] if single else done)
        return results

    def _numbers(self, n: int, index: Any) -> tuple[list[int], int]:
        """The sample numbers of a call's texts, and the seed."""
        if index is not None:
            numbers = torch.as_tensor(index, dtype=torch.int64, device="cpu").reshape(-1).tolist()
            if len(numbers) != n:
                raise ValueError(f"Compose: index must have one number for each of {n} texts, got {len(numbers)}")
            return numbers, self.seed
        numbers = list(range(self._next, self._next + n))
        self._next += n
        # Each worker of a DataLoader has a copy of the counter; its own seed, new in every epoch, tells them apart.
        worker = get_worker_info()
        return numbers, self.seed if worker is None else (self.seed + worker.seed) % 2**63
