"""Loader: the same views however they are made, and none of them overwritten while somebody has them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fastcl
from fastcl import transforms as T
from fastcl.data import DataError, ImageFiles, Loader, RaggedBatch, collate, decode

SIZES = [(20 + 3 * i % 17, 15 + 5 * i % 23) for i in range(21)]
NORMALIZE = {"mean": [0.5] * 3, "std": [0.25] * 3}


def noise(size: tuple[int, int], seed: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, *size), dtype=torch.uint8, generator=generator)


class Pictures(Dataset[Any]):
    """Images of different sizes with their numbers as labels; those in `bad` cannot be read."""

    def __init__(self, bad: tuple[int, ...] = ()) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return len(SIZES)

    def __getitem__(self, index: int) -> Any:
        if index in self.bad:
            raise OSError(f"picture {index} is damaged")
        return noise(SIZES[index], index), index


def simclr(seed: int | None = 5) -> T.SimCLRTransform:
    return T.SimCLRTransform(12, normalize=NORMALIZE, seed=seed)


def by_label(loader: Any) -> dict[int, tuple[Tensor, ...]]:
    """The views of each sample; every batch is kept until the end."""
    batches = list(loader)
    return {
        int(label): tuple(view[row] for view in views) for views, labels in batches for row, label in enumerate(labels)
    }


WAYS = {
    "one_by_one": {"batch_size": 1, "prefetch": 1},
    "all_at_once": {"batch_size": 512},
    "no_prefetch": {"batch_size": 4, "prefetch": 0},
    "far_ahead": {"batch_size": 4, "prefetch": 5},
    "shuffled": {"batch_size": 4, "shuffle": True, "seed": 1},
    "workers": {"batch_size": 4, "num_workers": 4, "prefetch": 1},
    "workers_shuffled": {"batch_size": 5, "num_workers": 2, "shuffle": True, "seed": 2},
}


@pytest.mark.parametrize("name", WAYS)
def test_the_views_do_not_depend_on_how_they_are_loaded(name):
    loader = Loader(Pictures(), simclr(), **WAYS[name])
    for epoch in range(2):
        got = by_label(loader)
        assert loader.epoch == epoch
        assert sorted(got) == list(range(len(SIZES)))
        for number in (0, 7, 20):
            want = simclr()(noise(SIZES[number], number), index=number, epoch=epoch)
            assert all(torch.equal(view, alone) for view, alone in zip(got[number], want, strict=True))


KINDS = {
    "tensor": lambda images: images,
    "ragged": lambda images: RaggedBatch.of(list(images)),
    "items": lambda images: list(images),
    "arrays": lambda images: [image.permute(1, 2, 0).numpy() for image in images],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_set_gives_the_same(kind):
    images = torch.stack([noise((16, 18), i) for i in range(10)])
    index = torch.tensor([8, 9])
    *_, last = list(Loader(KINDS[kind](images), simclr(), batch_size=4))
    assert all(torch.equal(a, b) for a, b in zip(last, simclr()(images[8:], index=index, epoch=0), strict=True))


@pytest.mark.parametrize("prefetch", [0, 1])
def test_views_may_have_their_channels_last(prefetch):
    images = torch.stack([noise((16, 18), i) for i in range(10)])
    want = list(Loader(images, simclr(), batch_size=4))
    got = list(Loader(images, simclr(), batch_size=4, memory_format=torch.channels_last, prefetch=prefetch))
    for one, other in zip(want, got, strict=True):
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in other)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    with pytest.raises(ValueError, match="memory_format must be torch"):
        Loader(images, simclr(), memory_format=torch.preserve_format)


def test_what_stands_beside_an_image_comes_along():
    images, labels, weights = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6), torch.rand(6)
    for data in (TensorDataset(images, labels, weights), list(zip(images, labels, weights, strict=True))):
        _, got, floats = list(Loader(data, simclr(), batch_size=4))[1]
        assert got.tolist() == [4, 5]
        assert torch.equal(floats, weights[4:])


def test_a_compose_gives_one_tensor_and_a_function_what_it_likes():
    images = torch.stack([noise((9, 9), i) for i in range(5)])
    compose = T.Compose([T.RandomResizedCrop(4), T.RandomHorizontalFlip()], seed=0)
    assert [batch.shape for batch in Loader(images, compose, batch_size=2)] == [(2, 3, 4, 4)] * 2 + [(1, 3, 4, 4)]
    assert next(iter(Loader(images, T.RandomResizedCrop(4), batch_size=2))).shape == (2, 3, 4, 4)
    got = list(Loader(images, lambda batch, index, epoch: (batch.float().mean(), index, epoch), batch_size=5))
    assert got[0][1].tolist() == [0, 1, 2, 3, 4]
    assert got[0][0] == images.float().mean()


def test_orders():
    images = torch.arange(40, dtype=torch.uint8).view(10, 1, 2, 2)

    def orders(loader: Loader) -> list[list[int]]:
        return [[int(i) for batch in loader for i in batch[:, 0, 0, 0] // 4] for _ in range(2)]

    first = orders(Loader(images, keep, batch_size=3, shuffle=True, seed=4))
    assert sorted(first[0]) == sorted(first[1]) == list(range(10))
    assert first[0] != first[1]
    assert orders(Loader(images, keep, batch_size=4, shuffle=True, seed=4)) == first
    assert orders(Loader(images, keep, batch_size=3, shuffle=True, seed=5)) != first
    assert orders(Loader(images, keep, batch_size=4, drop_last=True)) == [list(range(8))] * 2
    sampler = torch.utils.data.DistributedSampler(images, num_replicas=2, rank=1, seed=3)
    halves = orders(Loader(images, keep, batch_size=4, sampler=sampler))
    assert halves[0] != halves[1]  # set_epoch was called
    assert set(halves[0]).isdisjoint(list(torch.utils.data.DistributedSampler(images, 2, 0, seed=3)))
    assert len(Loader(images, keep, batch_size=4, sampler=sampler)) == 2
    assert len(Loader(images, keep, batch_size=3)) == 4
    assert len(Loader(images, keep, batch_size=3, drop_last=True)) == 3


def keep(images: Tensor, index: Tensor, epoch: int) -> Tensor:
    return images.clone()


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3, 5, 6, 8])
def test_a_resumed_stream_goes_on_where_it_was(num_workers, taken):
    def stream(loader: Loader) -> Any:
        while True:
            yield from loader

    torch.manual_seed(1)
    whole = stream(Loader(Pictures(), simclr(None), batch_size=4, shuffle=True))  # 6 batches an epoch
    want = [next(whole) for _ in range(14)]
    torch.manual_seed(1)
    before = Loader(Pictures(), simclr(None), batch_size=4, shuffle=True, num_workers=num_workers)
    batches = stream(before)
    for _ in range(taken):
        next(batches)
    state = before.state_dict()
    torch.manual_seed(99)  # another process: other seeds, until it is told
    after = Loader(Pictures(), simclr(None), batch_size=4, shuffle=True, num_workers=num_workers)
    after.load_state_dict(state)
    assert after.state_dict()["batch"] in (taken, taken - 6)
    batches = stream(after)
    for views, labels in want[taken:]:
        got_views, got_labels = next(batches)
        assert torch.equal(got_labels, labels)
        assert all(torch.equal(a, b) for a, b in zip(got_views, views, strict=True))


def test_a_state_of_another_loader_is_refused():
    state = Loader(Pictures(), simclr(), batch_size=4).state_dict()
    with pytest.raises(ValueError, match="state is of batch_size 4 and 1 transforms, got 5 and 1"):
        Loader(Pictures(), simclr(), batch_size=5).load_state_dict(state)
    with pytest.raises(ValueError, match="got 4 and 3"):
        Loader(Pictures(), T.DINOTransform(16, local_crop_size=8), batch_size=4).load_state_dict(state)


def test_an_epoch_that_was_left_is_followed_by_the_next():
    loader = Loader(Pictures(), simclr(), batch_size=4)
    for _ in loader:
        break
    assert (loader.epoch, loader.state_dict()["batch"]) == (0, 1)
    got = by_label(loader)
    assert loader.epoch == 1
    assert torch.equal(got[3][1], simclr()(noise(SIZES[3], 3), index=3, epoch=1)[1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_seeds_of_a_state_reach_workers_that_are_running(num_workers):
    """They cut images to the crops that these seeds draw."""
    want = by_label(Loader(Pictures(), simclr(5), batch_size=4))
    state = Loader(Pictures(), simclr(5), batch_size=4).state_dict()
    loader = Loader(Pictures(), simclr(6), batch_size=4, num_workers=num_workers)
    by_label(loader)
    loader.load_state_dict(state)
    got = by_label(loader)
    assert all(torch.equal(a, b) for number in want for a, b in zip(got[number], want[number], strict=True))


# ------------------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("num_workers", [0, 2])
def test_of_an_image_only_the_box_around_its_crops_is_kept(monkeypatch, num_workers):
    transform, seen = T.SimCLRTransform(8, normalize=NORMALIZE, seed=5), []
    monkeypatch.setattr(Loader, "_views", lambda self, images, index, epoch: seen.append(images))
    list(Loader(Pictures(), transform, batch_size=4, num_workers=num_workers, prefetch=0))
    boxes = torch.cat([batch.boxes for batch in seen])
    shapes = torch.cat([batch.shapes for batch in seen])
    for number, (size, box, shape) in enumerate(zip(SIZES, boxes.tolist(), shapes.tolist(), strict=True)):
        tables = [transform.transform.sample([number], size, view=view)[0, :4].tolist() for view in (0, 1)]
        ends = [(top + height, left + width) for top, left, height, width in tables]
        top, left = (int(min(table[axis] for table in tables)) for axis in (0, 1))
        bottom, right = (int(max(end[axis] for end in ends)) for axis in (0, 1))
        assert box == [top, left, *size]
        assert shape == [bottom - top, right - left, 3]
    assert sum(batch.data.numel() for batch in seen) == shapes.prod(1).sum() < 3 * sum(h * w for h, w in SIZES)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_memory_is_used_again_and_only_when_nobody_has_it(prefetch):
    images = torch.stack([noise((16, 16), i) for i in range(64)])
    loader = Loader(images, simclr(), batch_size=4, prefetch=prefetch)
    allocated = []
    for views in loader:
        allocated.append(loader._buffers.allocated)
        assert torch.isfinite(views[0]).all()
    # Of images and two views: those in use, those made ahead and those being made, in 16 batches.
    assert allocated[-1] <= 3 * (prefetch + 2)
    if prefetch == 0:
        assert len(set(allocated[2:])) == 1

    kept, copies = [], []
    for views in loader:
        kept.append([view[1:, :2] for view in views])  # views of the views hold the memory
        copies.append([view.clone() for view in kept[-1]])
        del views
    assert all(
        torch.equal(a, b) for one, other in zip(kept, copies, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_what_a_graph_has_saved_is_not_overwritten():
    images = torch.stack([noise((16, 16), i) for i in range(16)])
    weight = torch.ones((), requires_grad=True)
    losses, want = [], 0.0
    for views in Loader(images, simclr(), batch_size=2):
        want += views[0].sum().item()
        losses.append((views[0] * weight).sum())  # backward needs the view
    del views
    torch.stack(losses).sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == pytest.approx(want, rel=1e-5)


def test_a_training_step_allocates_the_same_again_and_again():
    """Counted by torch's own profiler, in this thread and in the one that makes the views."""
    if fastcl.backends()["augment_views"]["cpu"] != "native":
        pytest.skip("native kernels are not there: the reference allocates by what is drawn")
    images = torch.stack([noise((32, 32), i) for i in range(80)])
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(8))
    loader, allocated = Loader(images, simclr(), batch_size=8, prefetch=0), []
    batches = iter(loader)
    for _ in range(10):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            views = next(batches)
            loss = (model(views[0]) - model(views[1])).square().mean()
            loss.backward()
            model.zero_grad(set_to_none=True)
            del loss
        events = [e for e in profile.events() if e.name == "[memory]" or e.self_cpu_memory_usage > 0]
        allocated.append(sum(max(event.self_cpu_memory_usage, 0) for event in events))
    assert len(set(allocated[3:])) == 1, allocated


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_is_an_error_or_skipped_and_counted(num_workers):
    settings = {"batch_size": 4, "num_workers": num_workers, "prefetch": num_workers // 2}
    with pytest.raises(OSError, match="picture 9 is damaged"):
        list(Loader(Pictures((9,)), simclr(), **settings))
    loader = Loader(Pictures((8, 9, 10, 11, 20)), simclr(), on_error="skip", **settings)
    got = by_label(loader)
    assert sorted(got) == [i for i in range(20) if i not in (8, 9, 10, 11)]  # two whole batches among them
    assert sorted(loader.skipped) == [8, 9, 10, 11, 20]
    assert loader.skipped[9] == "picture 9 is damaged"
    assert torch.equal(got[12][0], simclr()(noise(SIZES[12], 12), index=12, epoch=0)[0])


BAD_ITEMS = {
    "float": (torch.zeros(3, 4, 4), TypeError, "image 0 of the data set must be a uint8 Tensor"),
    "no_pixels": (torch.zeros(3, 0, 4, dtype=torch.uint8), ValueError, "image 0 of the data set must have pixels"),
    "number": (3, TypeError, "image 0 of the data set .* got int"),
}


@pytest.mark.parametrize("name", BAD_ITEMS)
def test_an_item_that_is_no_image_is_named(name):
    item, error, message = BAD_ITEMS[name]
    with pytest.raises(error, match=message):
        list(Loader([item], simclr()))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_of_other_channels_are_named(num_workers):
    images = [noise((9, 9), 0), noise((9, 9), 1), noise((9, 9), 2, channels=1)]
    with pytest.raises(ValueError, match="image 2 of the data set must have as many channels as image 0, 3, got 1"):
        list(Loader(images, simclr(), batch_size=3, num_workers=num_workers))


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Loader(Pictures(), simclr(), batch_size=0)
    with pytest.raises(ValueError, match="on_error must be raise or skip"):
        Loader(Pictures(), simclr(), on_error="ignore")
    with pytest.raises(ValueError, match="shuffle is the sampler's business"):
        Loader(Pictures(), simclr(), shuffle=True, sampler=range(3))
    with pytest.raises(TypeError, match=r"images must be uint8 \[N, C, H, W\], got torch.float32"):
        Loader(torch.zeros(4, 3, 8, 8), simclr())


def test_an_error_in_the_transform_reaches_the_loop():
    def fails(images: Tensor, index: Tensor, epoch: int) -> Tensor:
        raise ArithmeticError(f"batch of {index.tolist()}")

    with pytest.raises(ArithmeticError, match=r"batch of \[0, 1\]"):
        list(Loader(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), fails, batch_size=2, prefetch=1))


def test_images_per_second_are_counted():
    loader = Loader(torch.zeros(64, 3, 8, 8, dtype=torch.uint8), simclr(), batch_size=8)
    assert loader.images_per_second == 0
    for _ in loader:
        assert loader.images_per_second > 0
    assert loader.waited >= 0


# ------------------------------------------------------------------------------------------------------------- files


def test_collate_is_a_dataloader_s():
    loader = DataLoader(Pictures(), batch_size=4, collate_fn=collate, num_workers=1)
    images, labels = next(iter(loader))
    assert isinstance(images, RaggedBatch)
    assert labels.tolist() == [0, 1, 2, 3]
    assert all(torch.equal(images[i], noise(SIZES[i], i)) for i in range(4))
    assert simclr()(images, index=labels)[0].shape == (4, 3, 12, 12)
    assert len(collate([noise((4, 5), 0), noise((5, 4), 1)])) == 2
    with pytest.raises(ValueError, match="collate: samples must hold at least one image"):
        collate([])


def photograph(height: int, width: int) -> Any:
    """A smooth picture."""
    image = pytest.importorskip("PIL.Image")
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / a + y / b) for a, b in ((9, 14), (21, 8), (30, 40))]
    return image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


def encoded(picture: Any, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def test_decode():
    picture = photograph(40, 60)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(decode(encoded(picture, "PNG")), pixels)
    assert decode(encoded(picture, "PNG"), channels=1).shape == (1, 40, 60)
    # JPEG at its best quality: a few levels, by the rounding of its transform and colours
    assert (decode(encoded(picture, "JPEG", quality=100, subsampling=0)).int() - pixels.int()).abs().max() <= 4
    turned = encoded(
        picture, "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0II*\0\b\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    )
    assert decode(turned).shape == (3, 60, 40)  # orientation 6: lies on its side


@pytest.mark.parametrize(
    ("min_side", "size"),
    [
        (None, (400, 600)),
        (400, (400, 600)),
        (201, (400, 600)),
        (200, (200, 300)),
        (100, (100, 150)),
        (64, (100, 150)),
        (50, (50, 75)),
        (3, (50, 75)),
    ],
)
def test_a_jpeg_is_decoded_no_larger_than_it_must_be(min_side, size):
    got = decode(encoded(photograph(400, 600), "JPEG", quality=95), min_side=min_side)
    assert got.shape == (3, *size)
    small = torch.from_numpy(np.array(photograph(400, 600))).permute(2, 0, 1).float()
    want = torch.nn.functional.interpolate(small[None], size, mode="area")[0]
    assert (got.float() - want).abs().mean() < 3  # the same picture


def test_image_files(tmp_path: Path):
    for number in range(6):
        folder = tmp_path / ("cats" if number % 2 else "dogs")
        folder.mkdir(exist_ok=True)
        photograph(30 + number, 50 - number).save(folder / f"{number}.png")
    files = ImageFiles.from_folder(tmp_path)
    assert (len(files), files.classes, files.labels.tolist()) == (6, ("cats", "dogs"), [0, 0, 0, 1, 1, 1])
    image, label = files[4]
    assert (image.shape, label) == ((3, 32, 48), 1)
    views, labels = next(iter(Loader(files, simclr(), batch_size=6, num_workers=2)))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(views[1][4], simclr()(image, index=4, epoch=0)[1])
    assert ImageFiles(sorted(tmp_path.rglob("*.png")), channels=1)[0].shape == (1, 31, 49)
    with pytest.raises(DataError, match="expected a folder of images"):
        ImageFiles.from_folder(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"labels must be \[1\], got \[2\]"):
        ImageFiles([tmp_path / "a.png"], [1, 2])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_named_or_skipped(tmp_path: Path, kind, share):
    for number in range(4):
        content = encoded(photograph(60, 80), kind)
        (tmp_path / f"{number}.{kind.lower()}").write_bytes(
            content[: int(len(content) * share)] if number == 2 else content
        )
    files = ImageFiles.from_folder(tmp_path)
    with pytest.raises(DataError, match=rf"2\.{kind.lower()}: expected a readable image"):
        list(Loader(files, simclr(), batch_size=4))
    loader = Loader(files, simclr(), batch_size=4, on_error="skip")
    (views,) = list(loader)
    assert views[0].shape[0] == 3
    assert list(loader.skipped) == [2]
    assert f"2.{kind.lower()}" in loader.skipped[2]


def test_decode_refuses_other_arguments():
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        decode(b"", channels=4)
    with pytest.raises(ValueError, match="min_side at least 1"):
        decode(b"", min_side=0)
    with pytest.raises(DataError, match="9 bytes: expected a readable image"):
        decode(b"not a PNG")


def test_the_python_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    page = Path(__file__).parents[1] / "docs" / "data.md"
    if not page.exists():
        pytest.skip("the documentation is not beside the tests")
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        folder = tmp_path / "photographs" / ("cats" if number % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        photograph(40 + number, 60 - number).save(folder / f"{number}.jpg")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(block, names)
    assert [view.shape for view in names["views"]] == [(6, 3, 224, 224)] * 2
    assert torch.equal(names["chosen"][1], names["batch"][0])
    assert "images/s" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "drop_last", "sizes"), [(22, True, [8, 8]), (22, False, [8, 8, 6]), (17, False, [8, 8])])
def test_the_shares_of_two_processes_are_the_batches_of_one(n, drop_last, sizes):
    """Of a last batch both take as many: of 6 images 3 each, of a single one none."""
    images = torch.stack([noise((16, 16), row) for row in range(n)])
    transform = T.SimCLRTransform(8, seed=3)
    whole, *parts = (
        Loader(images, transform, 8, True, drop_last=drop_last, seed=5, rank=rank, world_size=world)
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    assert len(parts[0]) == len(parts[1]) == len(sizes)
    parts[1].load_state_dict(whole.state_dict())  # of any number of processes
    for size, one, *shares in zip(sizes, *(list(loader) for loader in (whole, *parts)), strict=False):
        assert [len(share[0]) for share in shares] == [size // 2] * 2
        for view, joined in zip(one, map(torch.cat, zip(*shares, strict=True)), strict=True):
            assert torch.equal(view[:size], joined)


def test_wrong_ranks_are_refused():
    for rank, world, size in ((2, 2, 4), (-1, 2, 4), (0, 2, 5)):
        with pytest.raises(ValueError, match=f"rank {rank}, world_size {world} and batch_size {size}"):
            Loader(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), T.SimCLRTransform(8), size, rank=rank, world_size=world)
