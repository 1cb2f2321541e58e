from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcl.data import DataError, load
from fastcl.data.dataset import stratified_split
from fastcl.data.digits import read_digits
from fastcl.data.folder import read_images
from fastcl.data.idx import read_idx, read_split

Image = pytest.importorskip("PIL.Image")


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, name: str, array: np.ndarray, packed: bool) -> Path:
    path = folder / (name + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    return path


@pytest.fixture(params=[False, True], ids=["plain", "gz"])
def mnist_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rng = np.random.RandomState(0)
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = np.arange(count).astype(np.uint8) % 10
        write_idx(tmp_path, f"{prefix}-images-idx3-ubyte", images, request.param)
        write_idx(tmp_path, f"{prefix}-labels-idx1-ubyte", labels, request.param)
    return tmp_path


def test_digits_are_5000_with_a_stratified_split():
    data = load("digits")
    assert data.images.shape == (5000, 1, 28, 28)
    assert data.images.dtype == torch.uint8
    assert data.labels is not None
    assert data.labels.bincount().tolist() == [500] * 10
    assert data.train_images.shape[0] == 4000
    assert data.test_labels.bincount().tolist() == [100] * 10
    assert sorted([*data.train.tolist(), *data.test.tolist()]) == list(range(5000))
    # The split is part of what accuracies mean: it must never change.
    assert data.test[:5].tolist() == [1, 10, 12, 15, 21]
    assert load("digits").fingerprint() == data.fingerprint()


def test_limit_keeps_the_shares_of_the_classes():
    data = load("digits", limit=200)
    assert (len(data.train), len(data.test)) == (160, 40)
    assert data.test_labels.bincount().tolist() == [4] * 10


def test_split_without_labels():
    train, test = stratified_split(None, 10, 0.2)
    assert (len(train), len(test)) == (8, 2)
    assert set(train.tolist()) | set(test.tolist()) == set(range(10))


def test_split_refuses_a_class_of_one():
    with pytest.raises(DataError, match="class number 1 has 1 image"):
        stratified_split(torch.tensor([0, 0, 1]), 3, 0.5)


def test_mnist_files(mnist_folder: Path):
    data = load("mnist", data_dir=mnist_folder)
    assert data.images.shape == (60, 1, 28, 28)
    assert data.train.tolist() == list(range(40))
    assert data.test.tolist() == list(range(40, 60))
    assert data.test_labels.tolist() == [row % 10 for row in range(20)]
    first = np.random.RandomState(0).randint(0, 256, (40, 28, 28)).astype(np.uint8)
    assert (data.train_images[:, 0].numpy() == first).all()


def test_fashion_mnist_has_class_names(mnist_folder: Path):
    assert load("fashion-mnist", data_dir=mnist_folder).classes[9] == "ankle boot"


BAD_IDX = {
    "empty": (b"", "too few for a header"),
    "wrong_magic": (b"\x00\x00\x09\x03" + bytes(12), "starts with 00000803"),
    "not_idx": (b"hello, this is no IDX file", "starts with 00000803"),
    "other_size": (idx_bytes(np.zeros((2, 27, 28), np.uint8)), "got 2×27×28"),
    "no_rows": (idx_bytes(np.zeros((0, 28, 28), np.uint8)), "at least one row"),
    "truncated": (idx_bytes(np.zeros((2, 28, 28), np.uint8))[:-1], "truncated or damaged"),
    "bytes_left_over": (idx_bytes(np.zeros((2, 28, 28), np.uint8)) + b"x", "truncated or damaged"),
    "huge_header": (b"\x00\x00\x08\x03" + struct.pack(">3I", 2**32 - 1, 28, 28), "truncated or damaged"),
}


@pytest.mark.parametrize("name", BAD_IDX)
def test_bad_idx_files_are_named(name: str, tmp_path: Path):
    content, message = BAD_IDX[name]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_idx(path, (None, 28, 28))
    assert str(path) in str(raised.value)


def test_truncated_gzip_is_named(tmp_path: Path):
    path = write_idx(tmp_path, "a", np.zeros((9, 28, 28), np.uint8), packed=True)
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"a\.gz: expected a gzipped IDX file"):
        read_idx(path, (None, 28, 28))


def test_labels_must_fit_the_images(mnist_folder: Path):
    for path in mnist_folder.glob("train-labels*"):
        path.unlink()
    with pytest.raises(DataError, match="expected a file train-labels-idx1-ubyte"):
        read_split(mnist_folder, "train")
    write_idx(mnist_folder, "train-labels-idx1-ubyte", np.zeros(39, np.uint8), packed=False)
    with pytest.raises(DataError, match="expected 40 labels, one for each image, got 39"):
        read_split(mnist_folder, "train")
    write_idx(mnist_folder, "train-labels-idx1-ubyte", np.full(40, 11, np.uint8), packed=False)
    with pytest.raises(DataError, match="labels of 0 to 9, got 11"):
        read_split(mnist_folder, "train")


def test_mnist_without_files_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"/usr/share/datasets/mnist.*--data-dir.*--download"):
        load("mnist")


BAD_DIGITS = {
    "empty": (b"", "expected"),
    "no_gzip": (b"1,2,3\n", "expected a gzipped CSV"),
    "few_columns": (gzip.compress(b"1,2,3\n"), "got 1 lines of 3 numbers"),
    "no_numbers": (gzip.compress(b"a,b\n"), "expected a gzipped CSV"),
    "no_pixels": (gzip.compress((",".join(["999"] * 784) + ",1\n").encode()), "between 1 and 999"),
    "no_label": (gzip.compress((",".join(["9"] * 784) + ",10\n").encode()), "label of 0 to 9"),
    "truncated": (gzip.compress((",".join(["9"] * 784) + ",1\n").encode())[:-5], "expected a gzipped CSV"),
}


@pytest.mark.parametrize("name", BAD_DIGITS)
@pytest.mark.filterwarnings("ignore:loadtxt. input contained no data")
def test_bad_digits_are_named(name: str, tmp_path: Path):
    content, message = BAD_DIGITS[name]
    path = tmp_path / "mnist_5k.csv.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_digits(path)
    assert str(path) in str(raised.value)


def save_image(path: Path, size: tuple[int, int], color: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_folder_with_classes(tmp_path: Path):
    for row in range(5):
        save_image(tmp_path / "red" / f"{row}.png", (40, 20), (255, 0, 0))
        save_image(tmp_path / "blue" / "deeper" / f"{row}.jpg", (20, 40), (0, 0, 255))
    data = load(tmp_path, image_size=16)
    assert data.images.shape == (10, 3, 16, 16)
    assert data.classes == ("blue", "red")
    assert data.labels.tolist() == [0] * 5 + [1] * 5
    assert data.test_labels.tolist() == [0, 1]
    assert data.images[9].flatten(1).float().mean(1).tolist() == [255, 0, 0]


def test_flat_folder_has_no_labels(tmp_path: Path):
    for row in range(5):
        save_image(tmp_path / f"{row}.png", (8, 8), (row, row, row))
    data = load(tmp_path, image_size=8)
    assert data.labels is None
    assert data.train_labels is None
    assert data.classes == ()
    assert (len(data.train), len(data.test)) == (4, 1)
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_images_are_cropped_to_their_centre(tmp_path: Path):
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert read_images([tmp_path / "a.png"], 10, 1).unique().tolist() == [200]


def test_bad_images_are_named(tmp_path: Path):
    save_image(tmp_path / "good.png", (8, 8), (1, 2, 3))
    for content in ((tmp_path / "good.png").read_bytes()[:-30], b""):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.png: expected a readable image"):
            read_images([tmp_path / "bad.png"], 8)


def test_empty_and_missing_folders(tmp_path: Path):
    with pytest.raises(DataError, match="expected image files"):
        load(tmp_path)
    with pytest.raises(DataError, match="expected digits, mnist, fashion-mnist or a folder"):
        load(tmp_path / "missing")
    with pytest.raises(DataError, match="expected a folder with the IDX files"):
        load("mnist", data_dir=tmp_path / "missing")


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="test_fraction"):
        load("digits", test_fraction=1.0)
    with pytest.raises(ValueError, match="image_size is for folders"):
        load("digits", image_size=64)
    with pytest.raises(ValueError, match="limit"):
        load("digits", limit=1)
