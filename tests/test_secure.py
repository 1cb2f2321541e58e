from __future__ import annotations

import ast
import contextlib
import os
import pickle
import random
import shutil
import stat
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import fastcl
from fastcl.data import DataError, load, secure
from fastcl.data.dataset import Dataset
from fastcl.transforms.scramble import BlockScramble

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def small(count: int = 23, shape: tuple[int, int, int] = (1, 8, 8)) -> Dataset:
    images = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (count, *shape)).astype(np.uint8))
    rows = torch.arange(count)
    return Dataset("secret-name", images, rows % 3, ("ant", "bee", "cat"), rows[: count - 6], rows[count - 6 :])


def everything(path: Path, key: secure.Key = KEY) -> tuple[torch.Tensor, Dataset]:
    data = secure.open_secure(path, key)
    return torch.cat(list(data.images.split(5))), data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    secure.encrypt(small(), tmp_path / "safe", KEY, rows_per_chunk=4)
    return tmp_path / "safe"


@pytest.mark.parametrize("per_chunk", [1, 4, 23, 100, None])
def test_comes_back(per_chunk: int | None, tmp_path: Path):
    plain = small()
    secure.encrypt(plain, tmp_path / "safe", KEY, rows_per_chunk=per_chunk)
    images, data = everything(tmp_path / "safe")
    assert torch.equal(images, plain.images)
    assert (data.name, data.classes, data.kind, data.private) == (plain.name, plain.classes, "images", True)
    for part in ("labels", "train", "test", "train_labels", "test_labels"):
        assert torch.equal(getattr(data, part), getattr(plain, part))
    assert data.fingerprint() == plain.fingerprint()
    assert torch.equal(torch.cat(list(data.test_images.split(4))), plain.test_images)


def test_random_access(folder: Path):
    plain, data = small().images, secure.open_secure(folder, KEY).images
    index = torch.from_numpy(np.random.RandomState(1).randint(0, 23, 50))
    assert torch.equal(data[index], plain[index])
    assert torch.equal(data[index.tolist()], plain[index])
    assert torch.equal(data[5:20:3], plain[5:20:3])
    assert torch.equal(data[-1], plain[-1])
    assert torch.equal(data.select(index)[torch.tensor([3, 1])], plain[index[[3, 1]]])
    assert torch.equal(data.select(index).select(torch.tensor([4]))[0], plain[index[4]])
    assert data[torch.empty(0, dtype=torch.int64)].shape == (0, 1, 8, 8)
    assert (len(data), data.shape, data.dtype) == (23, plain.shape, torch.uint8)
    for row in (23, -24):
        with pytest.raises(IndexError):
            data[row]
    with pytest.raises(IndexError):
        data[torch.tensor([23])]


def test_nothing_is_in_the_clear(folder: Path):
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    plain = small()
    assert KEY not in content
    for secret in (b"ant", b"secret-name", *(image.numpy().tobytes()[:8] for image in plain.images)):
        assert secret not in content
    assert {path.name for path in folder.iterdir()} == {"key", "data"}
    assert [path.name for path in folder.parent.iterdir()] == ["safe"]


def test_1000_random_corruptions_are_all_refused(folder: Path):
    files = {name: (folder / name).read_bytes() for name in ("key", "data")}
    rng = random.Random(0)
    for number in range(1000):
        name = rng.choices(list(files), [len(content) for content in files.values()])[0] if number >= 84 else "key"
        content = bytearray(files[name])
        place = rng.randrange(len(content)) if number >= 84 else number  # each byte of the small file
        content[place] ^= rng.randrange(1, 256)
        (folder / name).write_bytes(content)
        with pytest.raises(DataError, match="safe"):
            everything(folder)
        (folder / name).write_bytes(files[name])
    assert torch.equal(everything(folder)[0], small().images)


def _chunk(number: int) -> slice:
    """Where a chunk stands from the end: five of four rows, and a last one of three."""
    full, last = 4 * 64 + 16, 3 * 64 + 16
    end = 5 * full + last
    return slice(-end + number * full, (-end + (number + 1) * full) or None)


def test_moved_repeated_and_foreign_chunks_are_refused(folder: Path, tmp_path: Path):
    whole = (folder / "data").read_bytes()
    secure.encrypt(small(), tmp_path / "twin", KEY, rows_per_chunk=4)
    twin = (tmp_path / "twin" / "data").read_bytes()
    for name, content in {
        "swapped": _with(_with(whole, 1, whole[_chunk(2)]), 2, whole[_chunk(1)]),
        "repeated": _with(whole, 3, whole[_chunk(0)]),
        "foreign": _with(whole, 3, twin[_chunk(3)]),
        "other_file": twin,
        "fewer_rows": whole[:24] + (19).to_bytes(8, "big") + whole[32:-208],
        "other_chunking": whole[:40] + (5).to_bytes(8, "big") + whole[48:],
        "chunks_of_none": whole[:40] + bytes(8) + whole[48:],
        "huge": whole[:24] + b"\xff" * 24 + whole[48:],
    }.items():
        (folder / "data").write_bytes(content)
        with pytest.raises(DataError) as raised:
            everything(folder)
        assert str(folder) in str(raised.value), name


def _with(content: bytes, number: int, chunk: bytes) -> bytes:
    place = _chunk(number)
    changed = bytearray(content)
    changed[place] = chunk
    assert len(changed) == len(content)
    return bytes(changed)


def test_truncated_and_longer_files_are_refused(folder: Path):
    for name in ("key", "data"):
        content = (folder / name).read_bytes()
        for kept in [*range(0, 130, 7), len(content) // 2, len(content) - 16, len(content) - 1]:
            if kept < len(content):
                (folder / name).write_bytes(content[:kept])
                with pytest.raises(DataError):
                    everything(folder)
        (folder / name).write_bytes(content + b"\0")
        with pytest.raises(DataError):
            everything(folder)
        (folder / name).unlink()
        with pytest.raises(DataError, match="expected a file of an encrypted data set"):
            everything(folder)
        (folder / name).write_bytes(content)


def test_a_file_cut_while_it_is_read_is_refused(folder: Path):
    data = secure.open_secure(folder, KEY)
    os.truncate(folder / "data", 500)
    with pytest.raises(DataError):
        data.images[torch.arange(23)]


def test_keys(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="the key does not open it"):
        everything(folder, OTHER)
    (tmp_path / "raw").write_bytes(KEY)
    (tmp_path / "hex").write_text(KEY.hex() + "\n")
    (tmp_path / "bad").write_text("correct horse battery staple")
    monkeypatch.setenv("MY_KEY", KEY.hex())
    monkeypatch.setenv("BAD_KEY", "zz" * 32)
    for key in (KEY, lambda: KEY, partial(secure.key_from_file, tmp_path / "raw"), secure.key_from_env("MY_KEY")):
        assert torch.equal(everything(folder, key)[0], small().images)
    assert secure.key_from_file(tmp_path / "hex") == KEY
    for call in (
        partial(secure.key_from_file, tmp_path / "bad"), partial(secure.key_from_env, "BAD_KEY"),
        partial(secure.key_from_file, tmp_path / "missing"), partial(secure.key_from_env, "NO_SUCH_KEY"),
        partial(everything, folder, b"short"), partial(everything, folder, lambda: "text"),
    ):  # fmt: skip
        with pytest.raises(DataError, match="expected") as raised:
            call()
        assert "horse" not in str(raised.value)
        assert "zz" not in str(raised.value)
    secure.create_key_file(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert len(secure.key_from_file(tmp_path / "new")) == 32
    with pytest.raises(DataError, match="expected to write a new key"):
        secure.create_key_file(tmp_path / "new")


def test_rotation_replaces_the_key_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = {name: (folder / name).read_bytes() for name in ("key", "data")}
    inode = (folder / "data").stat().st_ino
    with pytest.raises(DataError, match="does not open it"):
        secure.rotate_key(folder, OTHER, KEY)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(DataError, match="disk full"):
            secure.rotate_key(folder, KEY, OTHER)
    assert (folder / "key").read_bytes() == before["key"]
    secure.rotate_key(folder, KEY, OTHER)
    assert (folder / "data").read_bytes() == before["data"]
    assert (folder / "data").stat().st_ino == inode
    assert torch.equal(everything(folder, OTHER)[0], small().images)
    with pytest.raises(DataError, match="does not open it"):
        everything(folder, KEY)


def test_no_nonce_comes_twice_under_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[bytes, bytes]] = []

    class Watched:
        def __init__(self, key: bytes) -> None:
            self._key, self._cipher = key, AESGCM(key)

        def encrypt(self, nonce: bytes, data: Any, associated: bytes) -> bytes:
            seen.append((self._key, nonce))
            return self._cipher.encrypt(nonce, data, associated)

        def decrypt(self, nonce: bytes, data: Any, associated: bytes) -> bytes:
            return self._cipher.decrypt(nonce, data, associated)

    monkeypatch.setattr("cryptography.hazmat.primitives.ciphers.aead.AESGCM", Watched)
    for name in ("a", "b"):
        secure.encrypt(small(), tmp_path / name, KEY, rows_per_chunk=2)
    with contextlib.suppress(DataError), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        secure.encrypt(small(), tmp_path / "c", KEY, rows_per_chunk=2)
    secure.encrypt(small(), tmp_path / "c", KEY, rows_per_chunk=2)
    for _ in range(20):
        secure.rotate_key(tmp_path / "a", KEY, KEY)
    assert len(seen) == 4 * (1 + 1 + 12) + 20
    assert len(set(seen)) == len(seen)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DataError, match="disk full"):
        secure.encrypt(small(), tmp_path / "safe", KEY)
    assert list(tmp_path.iterdir()) == []


def test_what_encrypt_refuses(folder: Path, tmp_path: Path):
    with pytest.raises(DataError, match="expected a new folder"):
        secure.encrypt(small(), folder, KEY)
    with pytest.raises(DataError, match="expected a folder that can be written"):
        secure.encrypt(small(), tmp_path / "missing" / "safe", KEY)
    with pytest.raises(ValueError, match="rows_per_chunk must be at least 1"):
        secure.encrypt(small(), tmp_path / "x", KEY, rows_per_chunk=0)
    data = small()
    floats = Dataset("x", data.images.float(), None, (), data.train, data.test)
    with pytest.raises(ValueError, match="images must be uint8"):
        secure.encrypt(floats, tmp_path / "x", KEY)


def give_key() -> bytes:
    return KEY


def test_workers(folder: Path):
    from torch.utils.data import DataLoader

    with pytest.raises(TypeError, match="opened with a callable"):
        pickle.dumps(secure.SecureImages(folder, KEY))
    images = secure.SecureImages(folder, give_key).select(torch.arange(3, 15))
    pickled = pickle.dumps(images)
    assert KEY not in pickled
    assert torch.equal(pickle.loads(pickled)[:], small().images[3:15])
    loaded = torch.cat(list(DataLoader(images, batch_size=5, num_workers=1)))  # forked: they share the file
    assert torch.equal(loaded, small().images[3:15])


def test_same_batches_and_same_metrics_as_plain(tmp_path: Path):
    for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend"):
        pytest.importorskip(package)
    from run_helpers import TINY, lasting_metrics

    from fastcl.config import make_config
    from fastcl.pretrain import Pretraining
    from fastcl.run import run

    plain = load("digits", limit=200)
    secure.encrypt(plain, tmp_path / "safe", KEY)
    (tmp_path / "my.key").write_bytes(KEY)
    recipe = make_config(TINY).recipe.model_dump()
    tiny = TINY | {"epochs": 1, "ladder": "none"}
    base = tiny | {"limit": None, "data": f"secure:{tmp_path / 'safe'}", "recipe": recipe}
    config = make_config(base | {"key_file": str(tmp_path / "my.key")})
    with pytest.raises(DataError, match="expected a key"):
        run(make_config(base), tmp_path / "out")
    run(config, tmp_path / "out")
    run(make_config(tiny), tmp_path / "plain")
    assert lasting_metrics(tmp_path / "out") == lasting_metrics(tmp_path / "plain")
    for name in ("encoder.safetensors", "encoder_int8.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    # Nothing that was written shows an image.
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="views"' not in report
    assert 'id="neighbors"' not in report
    assert "no image is shown here" in report
    for path in (path for path in (tmp_path / "out").rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert KEY.hex().encode() not in content
        assert not any(image.numpy().tobytes() in content for image in plain.images[:20])
    # Another place of the key is the same run.
    os.environ["MY_SAFE_KEY"] = KEY.hex()
    try:
        run(make_config(base | {"key_env": "MY_SAFE_KEY"}), tmp_path / "out", resume=True)
    finally:
        del os.environ["MY_SAFE_KEY"]
    encrypted = secure.open_secure(tmp_path / "safe", KEY).train_images
    first, second = (Pretraining(images, config)._loader for images in (encrypted, plain.train_images))
    for views, others in islice(zip(first, second, strict=True), 3):
        assert all(torch.equal(view, other) for view, other in zip(views, others, strict=True))


def test_distillation_reads_encrypted_images(folder: Path):
    from fastcl.compress import DistillConfig, distill

    students = []
    for images in (small().images, secure.SecureImages(folder, KEY)):
        torch.manual_seed(0)
        teacher, student = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)) for _ in range(2))
        distill(teacher, student, images, lambda batch: batch.float() / 255, DistillConfig(epochs=2, batch_size=8))
        students.append(student)
    assert torch.equal(students[0][1].weight, students[1][1].weight)


def test_encrypted_texts(tmp_path: Path):
    for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "regex"):
        pytest.importorskip(package)
    from run_helpers import lasting_metrics

    from fastcl.config import make_config
    from fastcl.data.text import from_bytes
    from fastcl.errors import ConfigError
    from fastcl.run import run

    plain = load("text", text_length=64, limit=300)
    secure.encrypt(plain, tmp_path / "safe", KEY)
    (tmp_path / "my.key").write_bytes(KEY)
    settings = {"epochs": 1, "width": 4, "batch_size": 64, "threads": 1, "key_file": str(tmp_path / "my.key")}
    with pytest.raises(ConfigError, match="texts are secure-text:PATH"):
        run(make_config(settings | {"data": f"secure:{tmp_path / 'safe'}"}), tmp_path / "out")
    run(make_config(settings | {"data": f"secure-text:{tmp_path / 'safe'}"}), tmp_path / "out", overwrite=True)
    run(make_config(settings | {"data": "text", "text_length": 64, "limit": 300}), tmp_path / "plain")
    assert lasting_metrics(tmp_path / "out") == lasting_metrics(tmp_path / "plain")
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "no text is shown here" in report
    assert not any(text[:30] in report for text in from_bytes(plain.images))


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend"):
        pytest.importorskip(package)
    from fastcl.cli import main

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fastcl", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), " ".join((captured.out + captured.err).split())

    from PIL import Image

    (tmp_path / "images").mkdir()
    for row in range(12):
        Image.new("RGB", (8, 8), (row, 2 * row, 3 * row)).save(tmp_path / "images" / f"{row}.png")
    safe, first, second = (str(tmp_path / name) for name in ("safe", "first.key", "second.key"))
    what = ("encrypt", "--data", str(tmp_path / "images"), "--image-size=8", "--out", safe)
    assert call(*what)[0] == 2
    code, output = call(*what, "--key-file", first, "--create-key")
    assert (code, "12 images, encrypted" in output) == (0, True), output
    assert call(*what, "--key-file", first)[0] == 1  # it exists
    data = load(f"secure:{safe}", key=secure.key_from_file(first))
    assert torch.equal(data.images[:], load(tmp_path / "images", image_size=8).images)
    assert call("rotate-key", safe, "--key-file", first, "--new-key-file", second, "--create-key")[0] == 0
    code, output = call("rotate-key", safe, "--key-file", first, "--new-key-file", str(tmp_path / "x"), "--create-key")
    assert (code, "does not open it" in output, (tmp_path / "x").exists()) == (1, True, False)
    assert len(load(f"secure:{safe}", key=secure.key_from_file(second), limit=6).images) == 6


def test_without_cryptography_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fastcl.errors import MissingExtraError

    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcl\[secure\]'"):
        secure.encrypt(small(), tmp_path / "safe", KEY)


# ---------------------------------------------------------------------------------------------------------- scrambling


@pytest.mark.parametrize(("shape", "block"), [((3, 8, 12), 4), ((1, 28, 28), 7), ((3, 6, 6), 1), ((3, 5, 5), 5)])
def test_scrambling_is_undone_by_the_key_alone(shape: tuple[int, int, int], block: int):
    images = small(7, shape).images
    scramble = BlockScramble(KEY, block)
    hidden = scramble(images)
    assert hidden.dtype == torch.uint8
    assert torch.equal(scramble.inverse(hidden), images)
    assert torch.equal(BlockScramble(KEY, block)(images[2]), hidden[2])  # one alone, by another object
    assert not torch.equal(BlockScramble(OTHER, block).inverse(hidden), images)
    assert (hidden != images).float().mean() > 0.3


def test_scrambling_keeps_blocks_whole():
    """What is done to a block is one of 8 turns, an order of colours and perhaps an inversion: nothing else."""
    images = small(1, (3, 8, 8)).images[0]
    blocks = images.reshape(3, 2, 4, 2, 4).permute(1, 3, 0, 2, 4).reshape(4, 3, 4, 4)
    known = set()
    for block in blocks:
        for turn in range(8):
            turned = torch.rot90(block, turn % 4, (1, 2))
            turned = turned.flip(2) if turn >= 4 else turned
            for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
                known |= {(turned[list(order)] ^ mask).numpy().tobytes() for mask in (0, 255)}
    for key in range(50):
        hidden = BlockScramble(key.to_bytes(16, "big"), 4)(images)
        parts = hidden.reshape(3, 2, 4, 2, 4).permute(1, 3, 0, 2, 4).reshape(4, 3, 4, 4)
        assert all(part.contiguous().numpy().tobytes() in known for part in parts)


def test_the_orders_of_many_keys_are_uniform():
    """Where the first block goes, over 4,000 keys: chi-square of 15 degrees, beyond 44.3 once in 10,000."""
    image = torch.zeros(1, 4, 4, dtype=torch.uint8)
    image[0, 0, 0] = 60  # 60, or 195 where inverted; others are 0 or 255
    counts = np.zeros(16)
    for key in range(4000):
        hidden = BlockScramble(key.to_bytes(16, "big"), 1)(image).flatten()
        counts[int(((hidden == 60) | (hidden == 195)).nonzero()[0])] += 1
    assert ((counts - 250) ** 2 / 250).sum() < 44.3


def test_a_few_pairs_undo_scrambling_without_the_key():
    """What the documentation warns of: whoever knows some images and what became of them restores all others."""
    known, unseen = small(60).images, small(70).images[60:]
    scramble = BlockScramble(KEY, 4)
    before, after = known.flatten(1).T, scramble(known).flatten(1).T
    source = [((before == row).all(1) | (before == 255 - row).all(1)).nonzero()[0].item() for row in after]
    inverted = (before[source] != after).all(1)
    hidden = scramble(unseen).flatten(1)
    restored = torch.empty_like(hidden)
    restored[:, source] = torch.where(inverted, 255 - hidden, hidden)
    assert torch.equal(restored.reshape(unseen.shape), unseen)


def test_scrambling_refuses():
    for call, message in (
        (lambda: BlockScramble(b"short"), "16 bytes at least"),
        (lambda: BlockScramble(KEY, 0), "block must be at least 1"),
        (lambda: BlockScramble(KEY, 3)(small().images), "sides that 3 divides"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="must be bytes"):
        BlockScramble("text")
    with pytest.raises(TypeError, match="uint8"):
        BlockScramble(KEY)(small().images.float())
    assert KEY.hex() not in repr(BlockScramble(KEY))


# ------------------------------------------------------------------------------------------------- nothing is unpickled

UNSAFE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}


def test_nothing_in_the_package_unpickles():
    calls = 0
    for path in Path(fastcl.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                assert not UNSAFE & {name.partition(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                calls += 1
                called, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
                if called in ("torch.load", "torch.hub.load_state_dict_from_url"):
                    assert given.get("weights_only") == "True", f"{path}: {called}"
                if called in ("np.load", "numpy.load"):
                    assert given.get("allow_pickle", "False") == "False", f"{path}: {called}"
                assert called not in ("eval", "exec", "yaml.load", "pd.read_pickle", "torch.jit.load"), (
                    f"{path}: {called}"
                )
    assert calls > 1000


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path):
    pytest.importorskip("safetensors")
    from fastcl.checkpoint import load_checkpoint, load_encoder
    from fastcl.errors import CheckpointError, UserError

    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.exists()  # the payload works
    ran.unlink()
    safe = tmp_path / "safe"
    secure.encrypt(small(), safe, KEY)
    by_torch = tmp_path / "by_torch"
    torch.save(Payload(ran), by_torch)
    for content in (pickle.dumps(Payload(ran)), by_torch.read_bytes()):
        evil = tmp_path / "evil.safetensors"
        evil.write_bytes(content)
        for read in (load_checkpoint, load_encoder):
            with pytest.raises(CheckpointError):
                read(evil)
        for name in ("key", "data"):
            shutil.copytree(safe, tmp_path / "copy", dirs_exist_ok=True)
            (tmp_path / "copy" / name).write_bytes(content)
            with pytest.raises(UserError):
                everything(tmp_path / "copy")
    assert not ran.exists()
