"""Transforms of characters: their case, swaps, typing errors and gaps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastcl.transforms.text.compose import Draws, TextTransform, probability
from fastcl.transforms.text.unicode import capitalize, graphemes, joined, lower, title, upper

LAYOUTS = {
    "qwerty": ("1234567890-=", "qwertyuiop[]", "asdfghjkl;'", "zxcvbnm,./"),
    "qwertz": ("1234567890ß´", "qwertzuiopü+", "asdfghjklöä#", "yxcvbnm,.-"),
    "azerty": ("&é\"'(-è_çà)=", "azertyuiop^$", "qsdfghjklmù*", "wxcvbn,;:!"),
    "turkish-q": ("1234567890*-", "qwertyuıopğü", "asdfghjklşi,", "zxcvbnmöç."),
    "йцукен": ("1234567890-=", "йцукенгшщзхъ", "фывапролджэ", "ячсмитьбю."),
}
"""The rows of keyboards, from the top, unshifted."""
_ROW_STARTS = (0.0, 0.5, 0.75, 1.25)  # of the rows' first keys, in keys
_NEIGHBOUR = 1.3  # two keys are neighbours where their centres are nearer, in keys


class _RandomCase(TextTransform):
    _case: Callable[[str, str | None], str]

    def __init__(self, p: float = 0.5, locale: str | None = None) -> None:
        self.p = probability(type(self).__name__, "p", p)
        self.locale = locale

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        return type(self)._case(text, self.locale) if draws.uniform(1)[0] < self.p else text


class RandomUpper(_RandomCase):
    """The whole text in upper case with probability `p`; `locale` as in :func:`upper`."""

    _case = staticmethod(upper)


class RandomLower(_RandomCase):
    """The whole text in lower case with probability `p`; `locale` as in :func:`lower`."""

    _case = staticmethod(lower)


class RandomCapitalize(_RandomCase):
    """The first letter large, all others small, with probability `p`; `locale` as in :func:`capitalize`."""

    _case = staticmethod(capitalize)


class RandomTitle(_RandomCase):
    """The first letter of each word large, all others small, with probability `p`; `locale` as in :func:`title`."""

    _case = staticmethod(title)


class RandomCharSwap(TextTransform):
    """Changes places of neighbouring characters of a word, each pair with probability `p`."""

    def __init__(self, p: float = 0.02) -> None:
        self.p = probability("RandomCharSwap", "p", p)

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        clusters = graphemes(text)
        swapped, last = list(clusters), -2
        for place in draws.happen(max(0, len(clusters) - 1), self.p):
            one, other = clusters[place], clusters[place + 1]
            if place > last + 1 and not one.isspace() and not other.isspace():  # what has just moved stays
                swapped[place : place + 2] = other, one
                last = place
        return joined(swapped, text)


class RandomTypo(TextTransform):
    """Mistypes characters, each with probability `p`: a neighbour on the keyboard comes instead, in the same case.

    Args:
        p: of each character that is on the keyboard.
        layout: a name of :data:`LAYOUTS`, or the keyboard's rows from the top, unshifted.
        locale: as in :func:`upper`, for the case of i.
    """

    def __init__(self, p: float = 0.02, layout: str | Sequence[str] = "qwerty", locale: str | None = None) -> None:
        self.p = probability("RandomTypo", "p", p)
        if isinstance(layout, str) and layout not in LAYOUTS:
            raise ValueError(f"RandomTypo: layout must be one of {', '.join(LAYOUTS)} or rows of keys, got {layout!r}")
        rows = LAYOUTS[layout] if isinstance(layout, str) else layout
        if not 1 <= len(rows) <= len(_ROW_STARTS):
            raise ValueError(f"RandomTypo: layout must have 1 to {len(_ROW_STARTS)} rows, got {len(rows)}")
        self.layout, self.locale = layout, locale
        self._neighbours = _neighbours(rows)

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        clusters = graphemes(text)
        places, which = draws.happen(len(clusters), self.p), draws.uniform(len(clusters))
        typed = list(clusters)
        for place in places:
            typed[place] = self._mistyped(clusters[place], which[place])
        return joined(typed, text)

    def _mistyped(self, cluster: str, drawn: float) -> str:
        small = lower(cluster, self.locale)
        near = self._neighbours.get(small)
        if not near:
            return cluster
        key = near[int(drawn * len(near))]
        large = upper(key, self.locale)
        return large if cluster != small and len(large) == 1 else key


def _neighbours(rows: Sequence[str]) -> dict[str, str]:
    keys = [
        (key, start + at, row)
        for row, start in zip(range(len(rows)), _ROW_STARTS, strict=False)
        for at, key in enumerate(rows[row])
    ]
    return {
        key: "".join(other for other, x, y in keys if 0 < math.hypot(x - at, y - row) < _NEIGHBOUR)
        for key, at, row in keys
    }


class RandomCharDelete(TextTransform):
    """Leaves out characters of words, each with probability `p`; the last one that is left stays."""

    def __init__(self, p: float = 0.02) -> None:
        self.p = probability("RandomCharDelete", "p", p)

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        clusters = graphemes(text)
        gone = {place for place in draws.happen(len(clusters), self.p) if not clusters[place].isspace()}
        if not gone:
            return text
        kept = [cluster for place, cluster in enumerate(clusters) if place not in gone]
        return joined(kept, text) if any(not c.isspace() for c in kept) else text
