"""Augmentation of text: two views of a sentence for a contrastive loss.

Every transform takes one string or a sequence of strings, and draws for each of its own: what it draws depends on
(seed, epoch, sample number, view) alone, as for images. What a reader sees as one character (a letter with its accents,
a flag, a family of emoji: an extended grapheme cluster of UAX #29) is never taken apart, and none is made of parts that
were apart before.
"""

from fastcl.transforms.text.characters import (
    LAYOUTS,
    RandomCapitalize,
    RandomCharDelete,
    RandomCharSwap,
    RandomLower,
    RandomTitle,
    RandomTypo,
    RandomUpper,
)
from fastcl.transforms.text.compose import Compose, Draws, RandomApply, TextTransform
from fastcl.transforms.text.unicode import capitalize, graphemes, lower, title, upper
from fastcl.transforms.text.words import RandomSynonym, RandomWordCrop, RandomWordDelete, RandomWordOrder

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
