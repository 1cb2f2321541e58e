"""Characters as a reader sees them, words, and their case."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, groupby

from fastcl.errors import extra


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


def split_words(text: str) -> list[Sequence[str]]:
    """The text in turns of words and of the white space around them, each as its grapheme clusters."""
    if text.isascii() and "\r" not in text:
        return re.findall(r"\s+|\S+", text)
    return [list(run) for _, run in groupby(graphemes(text), str.isspace)]


def is_word(run: Sequence[str]) -> bool:
    """Whether one of :func:`split_words`' is a word, and not white space."""
    return not run[0].isspace()


def joined(clusters: Iterable[str], otherwise: str) -> str:
    """The clusters as a text, or `otherwise` where some of them would merge in their new neighbourhood."""
    wanted = list(clusters)
    text = "".join(wanted)
    return text if text.isascii() or graphemes(text) == wanted else otherwise


def joined_runs(runs: Sequence[Sequence[str]], otherwise: str) -> str:
    """As :func:`joined`, of words and white space."""
    return joined(chain.from_iterable(runs), otherwise)


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
    return "".join(capitalize("".join(run), locale) if is_word(run) else "".join(run) for run in split_words(text))
