"""Tar shards, plain and encrypted: the same images, views and metrics however they are read; damage is told."""

from __future__ import annotations

import contextlib
import io
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

for package in ("cryptography", "pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend", "PIL"):
    pytest.importorskip(package)

from PIL import Image
from run_helpers import TINY, lasting_metrics
from typer.testing import CliRunner

from fastcl.cli.main import app
from fastcl.config import make_config
from fastcl.data import DataError, ImageFiles, Loader, ShardImages, ShardSampler, load
from fastcl.data import shards as module
from fastcl.data.folder import read_images
from fastcl.data.secure import KEY_BYTES, key_from_file
from fastcl.data.shards import expand, write_shards
from fastcl.run import run
from fastcl.transforms import SimCLRTransform

KEY = bytes(range(KEY_BYTES))
SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty digits of three classes, of PNG and JPEG."""
    folder = tmp_path_factory.mktemp("images")
    data = load("digits")
    assert data.labels is not None
    rows = torch.cat([(data.labels == label).nonzero()[:20, 0] for label in range(3)])
    for row in rows.tolist():
        kind = "jpg" if row % 2 else "png"
        path = folder / ("zero", "one", "two")[int(data.labels[row])] / f"{row}.{kind}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(data.images[row, 0].numpy()).save(path)
    return folder


def shards_of(folder: Path, out: Path, key: bytes | None = None, shard_bytes: int = 20_000) -> list[Path]:
    files = ImageFiles.from_folder(folder)
    count, skipped = write_shards(files.paths, files.labels, files.classes, out, shard_bytes=shard_bytes, key=key)
    assert not skipped
    return [out / f"{number:06d}.tar" for number in range(count)]


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards_of(folder, tmp_path_factory.mktemp("plain") / "shards")


@pytest.fixture(scope="module")
def sealed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return shards_of(folder, tmp_path_factory.mktemp("sealed") / "shards", KEY)


def test_the_images_are_those_of_the_folder(folder: Path, plain: list[Path], sealed: list[Path]):
    assert len(plain) == len(sealed) > 3
    files = ImageFiles.from_folder(folder)
    whole = read_images(files.paths, SIZE)
    for images in (ShardImages(plain, SIZE), ShardImages(sealed, SIZE, key=KEY)):
        assert images.classes == files.classes == ("one", "two", "zero")
        assert images.shape == (60, 3, SIZE, SIZE)
        numbers = torch.tensor([int(key.rpartition("/")[2]) for key in images.keys])  # as the writer numbered them
        assert sorted(numbers.tolist()) == list(range(60))
        assert numbers.tolist() != list(range(60))
        assert torch.equal(images[:], whole[numbers])
        assert torch.equal(images.labels, files.labels[numbers])
        rows = torch.tensor([7, 50, 7, 0])
        assert torch.equal(images[rows], whole[numbers[rows]])
        assert torch.equal(images[-1], whole[numbers[-1]])
        assert torch.equal(images.select(torch.tensor([9, 4]))[[1]], whole[numbers[[4]]])
        assert torch.equal(torch.cat(list(images.split(13))), whole[numbers])
        with pytest.raises(IndexError):
            images[60]


def test_a_tar_of_a_folder_and_one_of_webdataset(folder: Path, tmp_path: Path):
    """What others write: `tar cf` gives classes by folders; .cls gives numbers; other files of a sample are let be."""
    with tarfile.open(tmp_path / "folder.tar", "w") as tar:
        tar.add(folder, arcname=".")
    images = ShardImages([tmp_path / "folder.tar"], SIZE)
    assert (len(images), images.classes) == (60, ("one", "two", "zero"))
    picture = next(folder.rglob("*.jpg")).read_bytes()
    with tarfile.open(tmp_path / "web.tar", "w") as tar:
        for number in range(4):
            key = f"sample{number}"
            for end, content in (("cls", b"%d\n" % (5 * (number % 2))), ("json", b"{}"), ("left.JPG", picture)):
                member = tarfile.TarInfo(f"{key}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    images = ShardImages([tmp_path / "web.tar"], SIZE)
    assert images.keys == [f"sample{number}" for number in range(4)]
    assert (images.labels.tolist(), images.classes) == ([0, 1, 0, 1], ("0", "5"))


def test_webdataset_reads_what_is_written(plain: list[Path], folder: Path):
    webdataset = pytest.importorskip("webdataset")
    files = ImageFiles.from_folder(folder)
    samples = list(webdataset.WebDataset(list(map(str, plain)), shardshuffle=False))
    assert len(samples) == 60
    for sample in samples:
        number = int(sample["__key__"].rpartition("/")[2])
        assert int(sample["cls"]) == files.labels[number]
        assert sample[files.paths[number].suffix[1:]] == files.paths[number].read_bytes()


def test_patterns(plain: list[Path]):
    parent = plain[0].parent
    assert expand(f"{parent}/{{000000..{len(plain) - 1:06d}}}.tar") == plain
    assert expand(f"{parent}/*.tar") == plain
    assert expand(f"{parent}/00000{{1..2}}.tar") == plain[1:3]
    with pytest.raises(DataError, match=r"000099\.tar: expected a shard, found nothing"):
        expand(f"{parent}/{{000098..000099}}.tar".replace("000098", "000099"))
    with pytest.raises(DataError, match=r"expected shards \(\.tar\), found none"):
        expand(f"{parent}/x*.tar")


# ----------------------------------------------------------------------------------------------------------- the views


def stream(images: Any, **options: Any) -> list[Tensor]:
    loader = Loader(images, SimCLRTransform(SIZE, seed=3), 7, seed=1, **options)
    return [torch.stack(views) for _ in range(2) for views in loader]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_the_views_are_the_same_for_workers_encryption_and_a_tensor(plain: list[Path], sealed: list[Path]):
    images = ShardImages(plain, SIZE)
    want = stream(images[:], shuffle=True)
    for got in (
        stream(images, shuffle=True),
        stream(images, shuffle=True, num_workers=4),
        stream(ShardImages(sealed, SIZE, key=KEY), shuffle=True, num_workers=1),
    ):
        assert len(got) == len(want)
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_a_stream_goes_on_in_the_middle_of_an_epoch(plain: list[Path]):
    images = ShardImages(plain, SIZE)

    def loader() -> Loader:
        return Loader(images, SimCLRTransform(SIZE, seed=3), 7, sampler=ShardSampler(images), num_workers=1, seed=1)

    whole, first = loader(), loader()
    want = [views[0] for views in whole]
    got = [views[0] for _, views in zip(range(3), first, strict=False)]
    rest = loader()
    rest.load_state_dict(first.state_dict())
    got += [views[0] for views in rest]
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_process_reads_shards_of_its_own(world: int, plain: list[Path]):
    images = ShardImages(plain, SIZE)
    for epoch in range(2):
        orders = []
        for rank in range(world):
            sampler = ShardSampler(images, 5, 2, rank=rank, world=world)
            sampler.set_epoch(epoch)
            orders.append(list(sampler))
            assert len(orders[-1]) == len(sampler) == 60 // world
            assert list(sampler) == orders[-1]
        shards = [set(images.shard_of[order].tolist()) for order in orders]
        assert sum(map(len, shards)) == len(set().union(*shards))
        if world == 1:
            assert sorted(orders[0]) == list(range(60))
            runs = images.shard_of[orders[0]]  # two shards at a time
            assert len(runs[: int((images.shard_of == runs[0]).sum())].unique()) <= 2
    sampler = ShardSampler(images, 5)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    with pytest.raises(ValueError, match="a shard for each process"):
        ShardSampler(images, rank=0, world=len(plain) + 1)


# ----------------------------------------------------------------------------------------------------------- main job


def test_plain_and_encrypted_shards_give_the_same_metrics(
    plain: list[Path], sealed: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("fastcl.run", "fastcl.compress.ladder"):
        monkeypatch.setattr(f"{name}.latency_ms", lambda *arguments, **options: 1.0)  # no part of this
    monkeypatch.setattr(module, "_JUDGED", 45)
    (tmp_path / "key").write_bytes(KEY)
    settings = TINY | {"limit": None, "image_size": SIZE, "epochs": 1, "batch_size": 16}
    settings |= {"ladder": "student", "distill_epochs": 1}
    pattern = f"{{000000..{len(plain) - 1:06d}}}.tar"
    one = make_config(settings | {"data": f"{plain[0].parent}/{pattern}"})
    other = make_config(settings | {"data": f"secure:{sealed[0].parent}/{pattern}", "key_file": str(tmp_path / "key")})
    run(one, tmp_path / "plain")
    run(other.model_copy(update={"workers": 1}), tmp_path / "sealed")
    metrics = lasting_metrics(tmp_path / "plain")
    assert metrics == lasting_metrics(tmp_path / "sealed")
    assert metrics["train_images"] + metrics["test_images"] == 60
    assert metrics["knn_accuracy"] > 0.4  # of nine held-out images; guessing gives a third
    assert metrics["student_neighbor_agreement"] > 0.3
    assert 'id="views"' in (tmp_path / "plain" / "report.html").read_text()
    assert 'id="views"' not in (tmp_path / "sealed" / "report.html").read_text()
    with pytest.raises(DataError, match="expected a key"):
        load(f"secure:{sealed[0].parent}/{pattern}")
    with pytest.raises(DataError, match=r"got a shard of one; name it secure:.*000000\.tar"):
        load(f"secure:{sealed[0]}/", key=KEY)


def test_an_encoder_is_judged_on_some_images_where_there_are_many(plain: list[Path], monkeypatch: pytest.MonkeyPatch):
    data = load(f"{plain[0].parent}/*.tar", image_size=SIZE)
    assert isinstance(data.train_images, ShardImages)
    assert isinstance(data.judged.images, Tensor)
    assert torch.equal(data.judged.train_images, data.train_images[:])
    monkeypatch.setattr(module, "_JUDGED", 30)
    few = load(f"{plain[0].parent}/*.tar", image_size=SIZE).judged
    assert len(few.images) == 30
    assert few.test_labels.bincount().tolist() == [2, 2, 2]


def test_commands(folder: Path, tmp_path: Path):
    out = tmp_path / "shards"
    key = ["--key-file", str(tmp_path / "key")]
    done = CliRunner().invoke(app, ["shard", str(folder), str(out), "--shard-size=0.03", *key, "--create-key"])
    assert done.exit_code == 0, done.output
    pattern = done.output.rpartition("--data '")[2].rstrip("'\n ")
    data = load(pattern, key=key_from_file(tmp_path / "key"))
    assert (len(data.images), data.private) == (60, True)
    other = ["--new-key-file", str(tmp_path / "other")]
    paths = sorted(map(str, out.iterdir()))
    for given in (
        [paths[0], "--create-key"],
        paths,
        paths,
    ):  # stopped after the first; gone on with; nothing left to do
        assert CliRunner().invoke(app, ["rotate-key", *given, *key, *other]).exit_code == 0
    assert len(load(pattern, key=key_from_file(tmp_path / "other")).images) == 60
    with pytest.raises(DataError, match="the key does not open it"):
        load(pattern, key=key_from_file(tmp_path / "key"))
    again = CliRunner().invoke(app, ["shard", str(folder), str(out)])
    assert isinstance(again.exception, DataError)
    assert "expected a folder that does not exist yet" in str(again.exception)


# ------------------------------------------------------------------------------------------------------------- faults


def test_images_that_cannot_be_read_are_not_written(folder: Path, tmp_path: Path):
    files = ImageFiles.from_folder(folder)
    broken = tmp_path / "broken.png"
    broken.write_bytes(files.paths[0].read_bytes()[:-100])
    paths = [broken, tmp_path / "missing.png", *files.paths[2:10]]
    count, skipped = write_shards(paths, None, (), tmp_path / "out")
    assert list(map(Path, sorted(skipped))) == [broken, tmp_path / "missing.png"]
    assert len(ShardImages([tmp_path / "out" / "000000.tar"], SIZE)) == 8
    assert count == 1


def damaged(plain: list[Path], folder: Path, shard: int) -> list[Path]:
    """A copy of the shards, of which one may be damaged."""
    folder.mkdir()
    copies = [folder / path.name for path in plain]
    for path, copy in zip(plain, copies, strict=True):
        copy.write_bytes(path.read_bytes())
    assert shard < len(copies)
    return copies


def test_a_corrupt_image_in_a_shard_is_skipped(plain: list[Path], tmp_path: Path):
    copies = damaged(plain, tmp_path / "shards", 1)
    whole = ShardImages(plain, SIZE)
    bad = int((whole.shard_of == 1).nonzero()[2, 0])
    start = int(whole._places[bad, 0])
    content = bytearray(copies[1].read_bytes())
    content[start : start + 16] = bytes(16)
    copies[1].write_bytes(content)
    data = load(f"{tmp_path}/shards/*.tar", image_size=SIZE)
    told = "expected a readable image: cannot identify image file"
    assert data.skipped == {f"{copies[1]}:{whole.keys[bad]}": told}
    kept = torch.tensor([row for row in range(60) if row != bad])
    assert torch.equal(data.images[:], whole[kept])
    assert torch.equal(data.labels, whole.labels[kept])
    assert data.fingerprint() != load(f"{plain[0].parent}/*.tar", image_size=SIZE).fingerprint()
    images = ShardImages(copies, SIZE)
    with pytest.raises(DataError, match=rf"000001\.tar:{whole.keys[bad]}: expected a readable image"):
        images[bad]
    for workers in (0, 1):
        loader = Loader(images, SimCLRTransform(SIZE, seed=3), 7, seed=1, num_workers=workers, on_error="skip")
        assert sum(len(views[0]) for views in loader) == 59
        assert list(loader.skipped) == [bad]


@pytest.mark.parametrize("kept", [0, 3000, 9000])
def test_a_truncated_shard_gives_what_is_whole(kept: int, plain: list[Path], tmp_path: Path):
    copies = damaged(plain, tmp_path / "shards", 1)
    copies[1].write_bytes(copies[1].read_bytes()[:kept])
    data = load(f"{tmp_path}/shards/*.tar", image_size=SIZE)
    assert list(data.skipped) == [str(copies[1])]
    assert "the rest is left out" in data.skipped[str(copies[1])]
    whole = ShardImages(plain, SIZE)
    ends = whole._places.sum(1)
    here = torch.tensor([row for row in range(60) if whole.shard_of[row] != 1 or ends[row] <= kept])
    assert torch.equal(data.images[:], whole[here])


def test_a_missing_shard_and_one_that_is_none_are_refused(tmp_path: Path, plain: list[Path]):
    copies = damaged(plain, tmp_path / "shards", 0)
    images = ShardImages(copies, SIZE)
    copies[0].unlink()
    with pytest.raises(DataError, match=r"000000\.tar: expected a shard, found nothing"):
        load(f"{tmp_path}/shards/{{000000..000001}}.tar")
    with pytest.raises(DataError, match=r"000000\.tar: expected a shard"):
        images[0]
    (tmp_path / "none.tar").write_bytes(b"x" * 5000)
    with pytest.raises(DataError, match=r"expected tar shards with images, found none; the first: damaged"):
        load(str(tmp_path / "none.tar"))


def test_a_changed_encrypted_shard_is_refused(sealed: list[Path], tmp_path: Path):
    """Any byte of key or data, and a shard cut off: refused, never skipped, and no crash."""
    import shutil

    shutil.copytree(sealed[0], tmp_path / "000000.tar")
    pattern = f"secure:{tmp_path}/000000.tar"
    assert len(load(pattern, key=KEY, image_size=SIZE).images) > 5
    generator = random.Random(0)
    for _ in range(60):
        path = tmp_path / "000000.tar" / generator.choice(["data", "data", "key"])
        whole = path.read_bytes()
        content = bytearray(whole)
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)
        with pytest.raises(DataError):
            ShardImages([path.parent], SIZE, key=KEY).verify()
        path.write_bytes(whole[: generator.randrange(len(whole))])
        with pytest.raises(DataError):
            ShardImages([path.parent], SIZE, key=KEY).verify()
        path.write_bytes(whole)
    with pytest.raises(DataError, match="the key does not open it"):
        load(pattern, key=bytes(KEY_BYTES))


def test_nothing_is_in_the_clear(sealed: list[Path], folder: Path):
    content = b"".join(path.read_bytes() for shard in sealed for path in shard.iterdir())
    for path in list(folder.rglob("*.png"))[:20]:
        assert path.read_bytes()[40:80] not in content
    assert b"ustar" not in content
    assert b"zero" not in content


def test_an_interrupted_writer_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")
        real(descriptor)

    files = ImageFiles.from_folder(folder)
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device"):
            write_shards(files.paths, files.labels, files.classes, tmp_path / "out", shard_bytes=20_000)
    assert not list(tmp_path.iterdir())


def test_random_bytes_never_crash_the_index(tmp_path: Path, plain: list[Path]):
    """Damaged tars: read in part, or refused with a DataError."""
    whole = plain[0].read_bytes()
    generator = np.random.RandomState(0)
    path = tmp_path / "a.tar"
    for _ in range(200):
        content = bytearray(whole[: generator.randint(len(whole) // 2, len(whole))])
        headers = [at for at in range(0, len(content) - 512, 512) if content[at + 257 : at + 262] == b"ustar"]
        for _ in range(generator.randint(1, 4)):
            content[headers[generator.randint(len(headers))] + generator.randint(512)] = generator.randint(256)
        path.write_bytes(content)
        with contextlib.suppress(DataError):
            images = ShardImages([path], 8)
            images.readable(torch.arange(min(1, len(images))))
