"""Transforms of words: gaps, order, crops and synonyms."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from fastcl.transforms.text.compose import Draws, TextTransform, probability
from fastcl.transforms.text.unicode import capitalize, graphemes, is_word, joined_runs, lower, split_words, upper


class RandomWordDelete(TextTransform):
    """Leaves out words with the white space behind them, each with probability `p`; one word at least stays."""

    def __init__(self, p: float = 0.1) -> None:
        self.p = probability("RandomWordDelete", "p", p)

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        runs = split_words(text)
        words = [place for place, run in enumerate(runs) if is_word(run)]
        gone = {words[number] for number in draws.happen(len(words), self.p)}
        if not gone or len(gone) == len(words):
            return text
        kept = [run for place, run in enumerate(runs) if place not in gone and (is_word(run) or place - 1 not in gone)]
        # Where the last words are gone, so is the white space before them.
        if not is_word(kept[-1]) and is_word(runs[-1]):
            kept.pop()
        return joined_runs(kept, text)


class RandomWordOrder(TextTransform):
    """Shuffles words with probability `p`, each by `distance` places at most (Lample et al. 2018, section 2.3)."""

    def __init__(self, p: float = 0.5, distance: int = 3) -> None:
        self.p = probability("RandomWordOrder", "p", p)
        if distance < 1:
            raise ValueError(f"RandomWordOrder: distance must be at least 1, got {distance}")
        self.distance = distance

    def change(self, text: str, draws: Draws) -> str:
        """See :meth:`TextTransform.change`."""
        if draws.uniform(1)[0] >= self.p:
            return text
        runs = split_words(text)
        places = [place for place, run in enumerate(runs) if is_word(run)]
        shifted = [at + u * (self.distance + 1) for at, u in enumerate(draws.uniform(len(places)))]
        order = sorted(range(len(places)), key=shifted.__getitem__)
        shuffled = list(runs)
        for place, source in zip(places, order, strict=True):
            shuffled[place] = runs[places[source]]
        return joined_runs(shuffled, text)


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
        runs = split_words(text)
        places = [place for place, run in enumerate(runs) if is_word(run)]
        share, start = draws.uniform(2)
        least, most = self.scale
        count = max(1, round(len(places) * (least + (most - least) * share)))
        if count >= len(places):
            return text
        first = int(start * (len(places) - count + 1))
        kept = runs[places[first] : places[first + count - 1] + 1]
        return joined_runs(kept, text)


class RandomSynonym(TextTransform):
    """Replaces words, each with probability `p`, by one of what a table gives for them.

    Args:
        table: what may stand for a word: a text or several. Words are looked up without regard to case, Unicode's
            normal forms and the punctuation around them; the case of the first letter, or of all, is carried over.
        p: of each word that the table has.
        locale: as in :func:`lower`.
    """

    def __init__(self, table: Mapping[str, str | Sequence[str]], p: float = 0.1, locale: str | None = None) -> None:
        self.p = probability("RandomSynonym", "p", p)
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
        runs = split_words(text)
        places, which = draws.happen(len(runs), self.p), draws.uniform(len(runs))
        replaced = list(runs)
        for place in places:
            replaced[place] = self._replaced(runs[place], which[place])
        return joined_runs(replaced, text)

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
