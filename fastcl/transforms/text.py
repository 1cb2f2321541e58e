"""Augmentation of text: two views of a sentence for a contrastive loss.

Every transform takes one string or a sequence of strings, and draws for each of its own: what it draws depends on
(seed, epoch, sample number, view) alone, as for images. What a reader sees as one character (a letter with its accents,
a flag, a family of emoji: an extended grapheme cluster of UAX #29) is never taken apart, and none is made of parts that
were apart before.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from fastcl.errors import extra

__all__ = [
    "LAYOUTS",
    "Compose",
    "Draws",
    "RandomApply",
    "RandomCapitalize",
    "RandomCharDelete",
    "RandomCharSwap",
    "RandomLower",
    "RandomSynonym",
    "RandomTitle",
    "RandomTypo",
    "RandomUpper",
    "RandomWordCrop",
    "RandomWordDelete",
    "RandomWordOrder",
    "TextTransform",
    "capitalize",
    "graphemes",
    "lower",
    "title",
    "upper",
]

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

# ------------------------------------------------------------------------------------------------- characters and case


def graphemes(text: str) -> list[str]:
    """The text's extended grapheme clusters (UAX #29): joined they are the text.

    Raises:
        MissingExtraError: for a text beyond ASCII without the package regex.
    """
    if text.isascii() and "\r" not in text:
        return list(text)
    return list(_graphemes(text))


@lru_cache(256)  # a text is often taken apart again where it has just been joined
def _graphemes(text: str) -> tuple[str, ...]:
    with extra("text"):
        import regex
    return tuple(regex.findall(r"\X", text))


def _words(text: str) -> list[Sequence[str]]:
    """The text in turns of words and of the white space around them, each as its grapheme clusters."""
    if text.isascii() and "\r" not in text:
        return re.findall(r"\s+|\S+", text)
    return [list(run) for _, run in groupby(graphemes(text), str.isspace)]


def _is_word(run: Sequence[str]) -> bool:
    return not run[0].isspace()


def _joined(clusters: Iterable[str], otherwise: str) -> str:
    """The clusters as a text, or `otherwise` where some of them would merge in their new neighbourhood."""
    wanted = list(clusters)
    text = "".join(wanted)
    return text if text.isascii() or graphemes(text) == wanted else otherwise


def _joined_runs(runs: Sequence[Sequence[str]], otherwise: str) -> str:
    return _joined(chain.from_iterable(runs), otherwise)


def _turkic(locale: str | None) -> bool:
    return locale is not None and re.split("[-_]", locale.lower())[0] in ("tr", "az")


def upper(text: str, locale: str | None = None) -> str:
    """Upper case by Unicode's full mapping: ß becomes SS.

    Args:
        text: any.
        locale: a language tag; ``"tr"`` and ``"az"`` map i to İ. Other languages have the default mapping.
    """
    return (text.replace("i", "İ") if _turkic(locale) else text).upper()


def lower(text: str, locale: str | None = None) -> str:
    """Lower case by Unicode's full mapping: a final Σ becomes ς.

    Args:
        text: any.
        locale: a language tag; ``"tr"`` and ``"az"`` map I to ı and İ to i. Other languages have the default mapping.
    """
    if _turkic(locale):
        text = (
            "".join(map(_lower_turkic_i, graphemes(text))) if "I\u0307" in unicodedata.normalize("NFD", text) else text
        )
        text = text.replace("I", "ı")
    return text.lower()


def _lower_turkic_i(cluster: str) -> str:
    """i for İ, also where the dot is a mark of its own behind marks below the letter (SpecialCasing's Before_Dot)."""
    if cluster[0] == "İ":
        return "i" + cluster[1:]
    if cluster[0] == "I":
        for place, mark in enumerate(cluster[1:], 1):
            if mark == "\u0307":
                return "i" + cluster[1:place] + cluster[place + 1 :]
            if unicodedata.combining(mark) in (0, 230):
                break
    return cluster


def capitalize(text: str, locale: str | None = None) -> str:
    """The first letter in title case (ǆ becomes ǅ), the others in lower case.

    Args:
        text: any.
        locale: as in :func:`lower`.
    """
    place = next((i for i, letter in enumerate(text) if letter.isalpha() or letter.isnumeric()), None)
    if place is None:
        return lower(text, locale)
    first = text[place]
    large = {"i": "İ", "ı": "I"}.get(first, first.title()) if _turkic(locale) else first.title()
    # In its whole, for what depends on the neighbourhood (Σ, and I before a dot).
    head = lower(text[:place] + first, locale)
    whole = lower(text, locale)
    if _turkic(locale) and first in "Iİ":
        dotted = first == "İ" or whole[len(head) - 1] == "i"
        return whole[: len(head) - 1] + ("İ" if dotted else "I") + whole[len(head) :]
    return text[:place] + large + whole[len(head) :]


def title(text: str, locale: str | None = None) -> str:
    """Each word as :func:`capitalize` gives it; words stand between white space, so that don't becomes Don't.

    Args:
        text: any.
        locale: as in :func:`lower`.
    """
    return "".join(capitalize("".join(run), locale) if _is_word(run) else "".join(run) for run in _words(text))


# ---------------------------------------------------------------------------------------------------------------- draws


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


# ----------------------------------------------------------------------------------------------------------- transforms


def _probability(owner: str, name: str, value: float) -> float:
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


class _RandomCase(TextTransform):
    _case: Callable[[str, str | None], str]

    def __init__(self, p: float = 0.5, locale: str | None = None) -> None:
        self.p = _probability(type(self).__name__, "p", p)
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
        self.p = _probability("RandomCharSwap", "p", p)

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        clusters = graphemes(text)
        swapped, last = list(clusters), -2
        for place in draws.happen(max(0, len(clusters) - 1), self.p):
            one, other = clusters[place], clusters[place + 1]
            if place > last + 1 and not one.isspace() and not other.isspace():  # what has just moved stays
                swapped[place : place + 2] = other, one
                last = place
        return _joined(swapped, text)


class RandomTypo(TextTransform):
    """Mistypes characters, each with probability `p`: a neighbour on the keyboard comes instead, in the same case.

    Args:
        p: of each character that is on the keyboard.
        layout: a name of :data:`LAYOUTS`, or the keyboard's rows from the top, unshifted.
        locale: as in :func:`upper`, for the case of i.
    """

    def __init__(self, p: float = 0.02, layout: str | Sequence[str] = "qwerty", locale: str | None = None) -> None:
        self.p = _probability("RandomTypo", "p", p)
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
        return _joined(typed, text)

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
        self.p = _probability("RandomCharDelete", "p", p)

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        clusters = graphemes(text)
        gone = {place for place in draws.happen(len(clusters), self.p) if not clusters[place].isspace()}
        if not gone:
            return text
        kept = [cluster for place, cluster in enumerate(clusters) if place not in gone]
        return _joined(kept, text) if any(not c.isspace() for c in kept) else text


class RandomWordDelete(TextTransform):
    """Leaves out words with the white space behind them, each with probability `p`; one word at least stays."""

    def __init__(self, p: float = 0.1) -> None:
        self.p = _probability("RandomWordDelete", "p", p)

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        runs = _words(text)
        words = [place for place, run in enumerate(runs) if _is_word(run)]
        gone = {words[number] for number in draws.happen(len(words), self.p)}
        if not gone or len(gone) == len(words):
            return text
        kept = [run for place, run in enumerate(runs) if place not in gone and (_is_word(run) or place - 1 not in gone)]
        # Where the last words are gone, so is the white space before them.
        if not _is_word(kept[-1]) and _is_word(runs[-1]):
            kept.pop()
        return _joined_runs(kept, text)


class RandomWordOrder(TextTransform):
    """Shuffles words with probability `p`, each by `distance` places at most (Lample et al. 2018, section 2.3)."""

    def __init__(self, p: float = 0.5, distance: int = 3) -> None:
        self.p = _probability("RandomWordOrder", "p", p)
        if distance < 1:
            raise ValueError(f"RandomWordOrder: distance must be at least 1, got {distance}")
        self.distance = distance

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        if draws.uniform(1)[0] >= self.p:
            return text
        runs = _words(text)
        places = [place for place, run in enumerate(runs) if _is_word(run)]
        shifted = [at + u * (self.distance + 1) for at, u in enumerate(draws.uniform(len(places)))]
        order = sorted(range(len(places)), key=shifted.__getitem__)
        shuffled = list(runs)
        for place, source in zip(places, order, strict=True):
            shuffled[place] = runs[places[source]]
        return _joined_runs(shuffled, text)


class RandomWordCrop(TextTransform):
    """Keeps some consecutive words, as a crop keeps a part of an image.

    Args:
        scale: range of the share of the words that is kept; one word at least.
    """

    def __init__(self, scale: tuple[float, float] = (0.5, 1.0)) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"RandomWordCrop: scale must be a range within (0, 1], got {scale}")
        self.scale = (float(scale[0]), float(scale[1]))

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        runs = _words(text)
        places = [place for place, run in enumerate(runs) if _is_word(run)]
        share, start = draws.uniform(2)
        least, most = self.scale
        count = max(1, round(len(places) * (least + (most - least) * share)))
        if count >= len(places):
            return text
        first = int(start * (len(places) - count + 1))
        kept = runs[places[first] : places[first + count - 1] + 1]
        return _joined_runs(kept, text)


class RandomSynonym(TextTransform):
    """Replaces words, each with probability `p`, by one of what a table gives for them.

    Args:
        table: what may stand for a word: a text or several. Words are looked up without regard to case, Unicode's
            normal forms and the punctuation around them; the case of the first letter, or of all, is carried over.
        p: of each word that the table has.
        locale: as in :func:`lower`.
    """

    def __init__(self, table: Mapping[str, str | Sequence[str]], p: float = 0.1, locale: str | None = None) -> None:
        self.p = _probability("RandomSynonym", "p", p)
        self.locale = locale
        self._table: dict[str, tuple[str, ...]] = {}
        for word, given in table.items():
            synonyms = (given,) if isinstance(given, str) else tuple(given)
            if not word or any(c.isspace() for c in word) or not synonyms or not all(synonyms):
                raise ValueError(f"RandomSynonym: table must have texts for single words, got {word!r}: {given!r}")
            self._table[self._key(word)] = synonyms

    def _key(self, word: str) -> str:
        return unicodedata.normalize("NFC", lower(unicodedata.normalize("NFC", word), self.locale).casefold())

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        runs = _words(text)
        places, which = draws.happen(len(runs), self.p), draws.uniform(len(runs))
        replaced = list(runs)
        for place in places:
            replaced[place] = self._replaced(runs[place], which[place])
        return _joined_runs(replaced, text)

    def _replaced(self, run: Sequence[str], drawn: float) -> Sequence[str]:
        inner = [place for place, cluster in enumerate(run) if cluster[0].isalnum()]
        if not inner:
            return run
        first, last = inner[0], inner[-1] + 1
        word = "".join(run[first:last])
        synonyms = self._table.get(self._key(word))
        if synonyms is None:
            return run
        synonym = synonyms[int(drawn * len(synonyms))]
        if len(inner) > 1 and word == upper(word, self.locale) != lower(word, self.locale):
            synonym = upper(synonym, self.locale)
        elif word[0] != lower(word[0], self.locale):
            head = graphemes(synonym)[0]
            synonym = capitalize(head, self.locale) + synonym[len(head) :]
        return [*run[:first], *graphemes(synonym), *run[last:]]


class RandomApply(TextTransform):
    """All of the transforms with probability `p`, or none."""

    def __init__(self, transforms: Sequence[TextTransform], p: float = 0.5) -> None:
        self.transforms = _checked("RandomApply", transforms)
        self.p = _probability("RandomApply", "p", p)

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
        transforms: of this module, in order.
        seed: of all draws, 64 bits; by default drawn from torch's global generator, so that
            :func:`torch.manual_seed` makes it reproducible.

    Raises:
        TypeError: for a transform that is not this module's.
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
