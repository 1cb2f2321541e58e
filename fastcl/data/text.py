"""Texts: paragraphs of Python's own documentation, which comes along with Python, and the user's text files.

A text is kept as its UTF-8 bytes, zeros filling its row: what a byte-level encoder reads, and a tensor as images are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcl.errors import DataError
from fastcl.transforms.text import Compose, graphemes

__all__ = ["TextViews", "from_bytes", "read_python_docs", "read_text_files", "to_bytes"]

_SHORTEST = 40  # characters of a paragraph that tells something
_LETTERS = 0.75  # the share of letters and spaces in prose; tables and code have less
_SMALLEST_CLASS = 30  # paragraphs of a topic that can be learnt and judged


def to_bytes(texts: Sequence[str], length: int) -> Tensor:
    """Texts as UTF-8, cut between two characters (grapheme clusters) where they are longer than `length` bytes.

    Args:
        texts: any; U+0000 cannot be told from the filling, and is left out.
        length: bytes of a row.

    Returns:
        uint8 [len(texts), 1, 1, length], filled with zeros.
    """
    rows = bytearray(len(texts) * length)
    for row, text in enumerate(texts):
        data = text.replace("\0", "").encode()
        if len(data) > length:
            data = _cut(text.replace("\0", ""), length)
        rows[row * length : row * length + len(data)] = data
    return (
        torch.frombuffer(rows, dtype=torch.uint8).reshape(len(texts), 1, 1, length)
        if rows
        else torch.empty((0, 1, 1, length), dtype=torch.uint8)
    )


def _cut(text: str, length: int) -> bytes:
    kept, size = [], 0
    for cluster in graphemes(text[: length + 1]):
        data = cluster.encode()
        size += len(data)
        if size > length:
            break
        kept.append(data)
    return b"".join(kept)


def from_bytes(rows: Tensor) -> list[str]:
    """The texts of :func:`to_bytes`.

    Args:
        rows: uint8 [n, 1, 1, length].
    """
    return [bytes(row).rstrip(b"\0").decode() for row in rows.reshape(len(rows), -1).numpy()]


class TextViews:
    """A transform of texts as a transform of their bytes, to be called as one of images."""

    def __init__(self, transform: Compose, length: int) -> None:
        """The transform, and the bytes of a row that comes out."""
        self.transform, self.length = transform, length

    def __call__(self, rows: Tensor, index: Any = None, epoch: int = 0, view: int = 0) -> Tensor:
        """Rows of bytes, uint8 [B, 1, 1, any], as views, uint8 [B, 1, 1, length]."""
        return to_bytes(self.transform(from_bytes(rows), index, epoch, view), self.length)

    def two(self, rows: Tensor, index: Any = None, epoch: int = 0) -> list[Tensor]:
        """The first two views of the rows, as a :class:`fastcl.data.Loader` asks for them."""
        return [self(rows, index, epoch, view) for view in (0, 1)]


def read_python_docs() -> tuple[list[str], list[int], tuple[str, ...]]:
    """The prose of ``pydoc_data.topics``: the language reference as it stands behind Python's ``help()``.

    A paragraph that stands under several topics counts for the shortest of them; topics of fewer than 30 paragraphs are
    left out. The texts are those of the Python that runs, so that versions of Python differ a little.

    Returns:
        Paragraphs, their labels, and the topics' names.

    Raises:
        DataError: where Python comes without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("text: this Python comes without pydoc_data.topics; name text files: text:PATH") from error
    homes: dict[str, str] = {}
    for name, page in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        for paragraph in re.split(r"\n\s*\n", page):
            text = " ".join(paragraph.split())
            prose = sum(letter.isalpha() or letter == " " for letter in text)
            if len(text) >= _SHORTEST and prose >= _LETTERS * len(text):
                homes.setdefault(text, name)
    counts = Counter(homes.values())
    classes = tuple(sorted(name for name, count in counts.items() if count >= _SMALLEST_CLASS))
    kept = [(text, classes.index(name)) for text, name in homes.items() if name in classes]
    return [text for text, _ in kept], [label for _, label in kept], classes


def read_text_files(path: Path) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """Text files in UTF-8, a text a line; empty lines are left out.

    Args:
        path: a file, whose texts have no labels, or a folder of ``.txt`` files, each a class named after it.

    Returns:
        Texts, their labels (None for one file), and the classes' names.

    Raises:
        DataError: for files that are missing, empty or no UTF-8.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: expected .txt files, found none")
    texts: list[str] = []
    labels: list[int] = []
    for label, file in enumerate(files):
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: expected a text file in UTF-8: {error}") from error
        lines = [line for line in lines if line.replace("\0", "")]
        if not lines:
            raise DataError(f"{file}: expected a text a line, found none")
        texts += lines
        labels += [label] * len(lines)
    return texts, labels if len(files) > 1 else None, tuple(file.stem for file in files) if len(files) > 1 else ()
