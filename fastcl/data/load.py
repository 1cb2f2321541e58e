"""``load``: a data set by its name or its path."""

from __future__ import annotations

from pathlib import Path

import torch

from fastcl.data import digits, folder, idx, text
from fastcl.data.dataset import Dataset, limited, stratified_split
from fastcl.data.secure import Key, open_secure
from fastcl.data.shards import open_shards
from fastcl.errors import DataError

__all__ = ["NAMES", "load"]

NAMES = ("digits", "mnist", "fashion-mnist")
_TEXT, _SECURE = "text", ("secure", "secure-text")


def load(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    test_fraction: float = 0.2,
    text_length: int = 256,
    limit: int | None = None,
    allow_download: bool = False,
    key: Key | None = None,
) -> Dataset:
    """Loads images with a fixed split into training and held-out images, stratified by class.

    Args:
        name_or_path: ``"digits"`` (5,000 MNIST digits that come along), ``"mnist"``, ``"fashion-mnist"``, a folder
            of images, where subfolders are classes, ``"text"`` (paragraphs of Python's documentation), or
            ``"text:PATH"``: a text file, or a folder of .txt files, which are classes; each line is a text.
            ``"secure:PATH"`` are images that :func:`fastcl.data.secure.encrypt` wrote, with their split, and
            ``"secure-text:PATH"`` texts. ``"shards/{000000..000009}.tar"`` are the images of tar shards (see
            :mod:`fastcl.data.shards`), and ``"secure:shards/{000000..000009}.tar"`` of encrypted ones.
        data_dir: where the IDX files of ``mnist`` and ``fashion-mnist`` lie; by default known places are looked at.
        image_size: height and width to which a folder's images are brought, in pixels; 64 if not given.
        test_fraction: the share of the images held out; ``mnist`` and ``fashion-mnist`` come with test images of
            their own, and ignore it.
        text_length: bytes of a text that are read.
        limit: keep about so many images or texts, the same share of each class, before anything else.
        allow_download: fetch missing files of ``mnist`` and ``fashion-mnist`` with torchvision, into `data_dir`.
        key: of a data set that is encrypted.

    Returns:
        The data set; always the same for the same arguments and files. Images of a folder that cannot be read are left
        out; its ``skipped`` has them, with why.

    Raises:
        DataError: for files that are missing, truncated, empty or wrong; names the file and what was expected.
        ValueError: for arguments out of range.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"load: test_fraction must be above 0 and below 1, got {test_fraction}")
    name, directory = str(name_or_path), None if data_dir is None else Path(data_dir)
    if name in NAMES and image_size not in (None, 28):
        raise ValueError(f"load: image_size is for folders of images; {name} has 28 pixels, got {image_size}")
    if name == "digits":
        images, labels = digits.read_digits()
        train, test = stratified_split(labels, len(images), test_fraction)
        data = Dataset(name, images, labels, digits.CLASSES, train, test)
    elif name in NAMES:
        data = _load_idx(name, directory, allow_download)
    elif Path(name).is_dir():
        images, folder_labels, classes, skipped = folder.read_folder(Path(name), image_size or 64)
        train, test = stratified_split(folder_labels, len(images), test_fraction)
        data = Dataset(Path(name).resolve().name, images, folder_labels, classes, train, test, skipped=skipped)
    elif name.endswith(".tar"):
        sealed = name.startswith("secure:")
        if sealed and key is None:
            raise DataError(f"{name}: expected a key: --key-file or --key-env")
        pattern = name.removeprefix("secure:")
        data = open_shards(pattern, image_size or 64, test_fraction, key=key if sealed else None)
    elif name.partition(":")[0] == _TEXT:
        data = _load_text(name, text_length, test_fraction)
    elif name.partition(":")[0] in _SECURE:
        if key is None:
            raise DataError(f"{name}: expected a key: --key-file or --key-env")
        data = open_secure(name.partition(":")[2], key)
    else:
        raise DataError(
            f"{name}: expected {', '.join(NAMES)} or a folder of images; or shards/{{000000..000009}}.tar, "
            "text, text:PATH, secure:PATH, secure-text:PATH"
        )
    return data if limit is None else limited(data, limit)


def _load_text(name: str, length: int, test_fraction: float) -> Dataset:
    _, _, path = name.partition(":")
    texts, listed, classes = text.read_text_files(Path(path)) if path else text.read_python_docs()
    labels = None if listed is None else torch.tensor(listed)
    train, test = stratified_split(labels, len(texts), test_fraction)
    title = Path(path).resolve().name if path else name
    return Dataset(title, text.to_bytes(texts, length), labels, classes, train, test, "texts")


def _load_idx(name: str, directory: Path | None, allow_download: bool) -> Dataset:
    try:
        place = idx.find_folder(name, directory)
        parts = [idx.read_split(place, split) for split in ("train", "test")]
    except DataError:
        if not allow_download:
            raise
        place = idx.download(name, directory or Path("data"))
        parts = [idx.read_split(place, split) for split in ("train", "test")]
    (train_images, train_labels), (test_images, test_labels) = parts
    rows = torch.arange(len(train_images) + len(test_images))
    return Dataset(
        name,
        torch.cat([train_images, test_images]),
        torch.cat([train_labels, test_labels]),
        idx.CLASSES[name],
        rows[: len(train_images)],
        rows[len(train_images) :],
    )
