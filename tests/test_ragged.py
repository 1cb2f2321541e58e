"""Images of different sizes: the batch itself, and augmentation that gives each image what it gets alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from augment_helpers import check_refused
from torch import Tensor

import fastcl
from fastcl import transforms as T
from fastcl.data import RaggedBatch
from fastcl.ops import augment_sample_ragged, augment_views_ragged
from fastcl.ops.augment_table import PARAM_NAMES
from fastcl.transforms.compose import crop_of_views, crops_first

SIZES = [(1, 1), (5, 120), (120, 5), (64, 64), (97, 131), (3, 2), (16, 16), (200, 90)]
BACKENDS = ("reference", "native")


def noise(channels: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    values = torch.randint(0, 256, (channels, *size), dtype=torch.uint8, generator=generator, device="cpu")
    return values.to(torch.get_default_device())


def images(channels: int = 3) -> list[Tensor]:
    return [noise(channels, size, seed) for seed, size in enumerate(SIZES)]


# -------------------------------------------------------------------------------------------------------- the batch


def test_a_batch_holds_its_images():
    given = images()
    batch = RaggedBatch.of(given)
    assert len(batch) == len(given)
    assert batch.shapes.tolist() == [[*size, 3] for size in SIZES]
    assert batch.data.numel() == sum(image.numel() for image in given)
    assert all(torch.equal(batch[i], image) for i, image in enumerate(given))
    chosen = batch[torch.tensor([6, 1])]
    assert torch.equal(chosen[0], given[6])
    assert torch.equal(chosen[1], given[1])
    assert chosen.data.data_ptr() == batch.data.data_ptr()
    assert len(RaggedBatch.of([])) == 0


def test_arrays_and_pictures_become_a_batch():
    image = pytest.importorskip("PIL.Image")
    array = noise(3, (4, 6)).permute(1, 2, 0).numpy().copy()
    batch = RaggedBatch.of([array, image.fromarray(array), image.fromarray(array).convert("RGBA")])
    assert all((batch[i].permute(1, 2, 0).numpy() == array).all() for i in range(3))
    gray = RaggedBatch.of([array[..., 0], image.fromarray(array[..., 0].copy())])
    assert gray.shapes.tolist() == [[4, 6, 1]] * 2
    assert (gray[1][0].numpy() == array[..., 0]).all()


BAD_IMAGES = {
    "float": (torch.zeros(3, 4, 4), TypeError, r"image 1 must be a uint8 Tensor .*, got torch.float32"),
    "batch": (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), TypeError, r"image 1 .* got torch.uint8 \[1, 3, 4, 4\]"),
    "array": (np.zeros((4, 4), np.float32), TypeError, "image 1 .* got float32"),
    "text": ("a.jpg", TypeError, "image 1 .* got str"),
    "no_rows": (torch.zeros(3, 0, 4, dtype=torch.uint8), ValueError, r"image 1 must have pixels, got .* \[0, 4, 3\]"),
    "channels": (torch.zeros(1, 4, 4, dtype=torch.uint8), ValueError, "image 1 .*channels must be those of image 0"),
    "no_channels": (torch.zeros(0, 4, 4, dtype=torch.uint8), ValueError, "image 1 must have pixels"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_does_not_fit_is_named(name):
    image, error, message = BAD_IMAGES[name]
    with pytest.raises(error, match=message):
        RaggedBatch.of([noise(3, (2, 2)), image])


BAD_BATCHES = {
    "past_the_end": ("offsets", 1, 61, r"image 1 \(shapes\[1\] = \[4, 5, 3\], offsets\[1\] = 61\): must lie inside"),
    "far_past_the_end": ("offsets", 1, 2**63 - 1, "image 1 .*must lie inside the 120 bytes of data"),
    "negative": ("offsets", 0, -1, "image 0 .*must lie inside"),
    "most_negative": ("offsets", 0, -(2**63), "image 0 .*must lie inside"),
    "zero_height": ("shapes", (1, 0), 0, r"image 1 .*height and width must be from 1 to 1048576"),
    "huge_width": ("shapes", (1, 1), 2**31 - 1, "image 1 .*height and width must be"),
    "wide": ("shapes", (0, 1), 1000, "image 0 .*must lie inside"),
    "negative_channels": ("shapes", (0, 2), -3, "image 0 .*channels must be"),
    "other_channels": ("shapes", (1, 2), 1, "image 1 .*channels"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_batch_that_does_not_fit_its_bytes_is_an_error(backend, name):
    part, at, value, message = BAD_BATCHES[name]
    batch = RaggedBatch.of([noise(3, (4, 5)), noise(3, (4, 5))])
    transform = T.Compose([T.RandomResizedCrop(4)], seed=0)
    params = transform.sample(2, (4, 5))
    getattr(batch, part)[at] = value  # behind the batch's back: the op must see it all the same
    wrong = at if isinstance(at, int) else at[0]
    check_refused(
        backend, wrong, message, lambda: augment_views_ragged(batch, [params], [(4, 4)], dtype=torch.float32)[0]
    )
    with pytest.raises(ValueError, match=message):
        RaggedBatch(batch.data, batch.offsets, batch.shapes)


def test_tensors_of_other_kinds_are_refused():
    data, offsets, shapes = torch.zeros(12, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), [[2, 2, 3]]
    sizes = torch.tensor(shapes, dtype=torch.int32)
    with pytest.raises(TypeError, match=r"data must be a Tensor of torch\.uint8, got torch\.float32"):
        RaggedBatch(data.float(), offsets, sizes)
    with pytest.raises(TypeError, match=r"offsets must be a Tensor of torch\.int64, got list"):
        RaggedBatch(data, [0], sizes)
    with pytest.raises(TypeError, match=r"shapes must be a Tensor of torch\.int32, got torch\.int64"):
        RaggedBatch(data, offsets, sizes.long())
    with pytest.raises(ValueError, match=r"offsets must be \[n\] and shapes \[n, 3\], got \[1\] and \[2, 3\]"):
        RaggedBatch(data, offsets, sizes.repeat(2, 1))
    with pytest.raises(ValueError, match=r"data must be contiguous"):
        RaggedBatch(data[::2], offsets, sizes)


def cut(given: list[Tensor], boxes: list[tuple[int, int, int, int]]) -> RaggedBatch:
    """The parts (top, left, height, width) of images."""
    parts = [image[:, t : t + h, x : x + w] for image, (t, x, h, w) in zip(given, boxes, strict=True)]
    places = [(t, x, *image.shape[1:]) for image, (t, x, _, _) in zip(given, boxes, strict=True)]
    batch = RaggedBatch.of(parts)
    return RaggedBatch(batch.data, batch.offsets, batch.shapes, torch.tensor(places, dtype=torch.int32))


def test_parts_of_images_remember_where_they_were():
    batch = cut([noise(3, (9, 7)), noise(3, (5, 6))], [(2, 1, 4, 3), (0, 0, 5, 6)])
    assert batch.shapes.tolist() == [[4, 3, 3], [5, 6, 3]]
    assert batch.whole_shapes.tolist() == [[9, 7, 3], [5, 6, 3]]
    assert batch[[1]].whole_shapes.tolist() == [[5, 6, 3]]
    assert batch.to("cpu").boxes.tolist() == [[2, 1, 9, 7], [0, 0, 5, 6]]
    for at, value in (((0, 0), 6), ((1, 1), -1), ((0, 3), 3), ((1, 2), 2**30)):
        boxes = batch.boxes.clone()
        boxes[at] = value
        with pytest.raises(ValueError, match=rf"image {at[0]} .*boxes\[{at[0]}\] = .*inside the whole image"):
            RaggedBatch(batch.data, batch.offsets, batch.shapes, boxes)
    with pytest.raises(ValueError, match=r"boxes must be \[2, 4\], got \[1, 4\]"):
        RaggedBatch(batch.data, batch.offsets, batch.shapes, batch.boxes[:1])
    with pytest.raises(TypeError, match=r"boxes must be a Tensor of torch\.int32"):
        RaggedBatch(batch.data, batch.offsets, batch.shapes, batch.boxes.long())


# ----------------------------------------------------------------------------------------------------- augmentation


CROPPED = {
    "simclr": lambda: T.SimCLRTransform(12, rr_prob=0.5, seed=3),
    "cubic_views_of_two_sizes": lambda: T.DINOTransform(16, (0.2, 0.5), 9, (0.05, 0.2), n_local_views=2, seed=3),
    "center": lambda: T.Compose([T.CenterCrop(2), T.RandomRotation(40), T.ColorJitter(0.5)], seed=3),
    "several_passes": lambda: T.Compose([T.RandomResizedCrop(9), T.RandomCube(), T.RandomRotation(40)], seed=3),
}


@pytest.mark.parametrize("name", CROPPED)
def test_parts_that_hold_the_crops_give_what_the_whole_images_do(backend, name):
    transform = CROPPED[name]()
    views = transform.numbered_views() if isinstance(transform, T.MultiViewTransform) else [(transform, 0)]
    assert all(crops_first(compose) for compose, _ in views)
    given, index = [noise(3, size, seed) for seed, size in enumerate(SIZES) if min(size) > 1], torch.arange(7)
    seeds = [3] * len(views)
    boxes = [crop_of_views(views, seeds, i, (image.shape[1], image.shape[2]), epoch=2) for i, image in enumerate(given)]
    parts, whole = cut(given, boxes), RaggedBatch.of(given)
    assert parts.data.numel() < whole.data.numel()
    want, got = transform(whole, index=index, epoch=2), transform(parts, index=index, epoch=2)
    if isinstance(transform, T.Compose):
        want, got = [want], [got]
        assert torch.equal(transform.apply(parts, transform.sample(index, parts.whole_shapes, epoch=2)), got[0])
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_what_does_not_begin_with_a_crop_needs_the_whole_image():
    for steps in ([T.Resize((8, 8))], [T.RandomHorizontalFlip()], [T.ElasticTransform(), T.RandomResizedCrop(8)]):
        assert not crops_first(T.Compose(steps))
    for steps in ([T.RandomHorizontalFlip(), T.RandomResizedCrop(8)], [T.CenterCrop(8)]):
        assert crops_first(T.Compose(steps))


def test_a_crop_outside_of_its_part_is_refused(backend):
    batch = cut([noise(3, (9, 9)), noise(3, (9, 9))], [(0, 0, 9, 9), (3, 0, 6, 9)])
    params = T.Compose([T.RandomResizedCrop(4)], seed=0).sample(2, batch.whole_shapes)
    params[:, :4] = torch.tensor([2.0, 0.0, 5.0, 5.0])
    refused = r"params\[0\]\[1\] has crop_top = -1"
    check_refused(backend, 1, refused, lambda: augment_views_ragged(batch, [params], [(4, 4)], dtype=torch.float32)[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_gets_what_it_gets_alone(backend, channels):
    given = images(channels)
    normalize = {"mean": [0.5] * channels, "std": [0.2] * channels}
    transform = T.SimCLRTransform(12, rr_prob=0.5, normalize=normalize, seed=3)
    index = torch.tensor([5, 0, 7, 2, 2**40, 11, 1, 3])
    views = transform(RaggedBatch.of(given), index=index, epoch=2)
    for i, image in enumerate(given):
        alone = transform(image, index=index[i], epoch=2)
        assert all(torch.equal(view[i], want) for view, want in zip(views, alone, strict=True)), SIZES[i]


def test_sizes_of_one_kind_are_the_batch_of_a_tensor(backend):
    batch = torch.stack([noise(3, (20, 30), seed) for seed in range(4)])
    transform = T.Compose([T.RandomResizedCrop(8), T.ColorJitter(0.4, 0.4, 0.4, 0.1), T.GaussianBlur(3)], seed=1)
    assert torch.equal(transform(RaggedBatch.of(list(batch)), index=torch.arange(4)), transform(batch, torch.arange(4)))


def test_both_backends_draw_the_same_bits():
    if fastcl.backends()["augment_sample_ragged"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    recipe = T.SimCLRTransform(12, rr_prob=0.5).transform.recipe[0]
    shapes, tables = RaggedBatch.of(images()).shapes, []
    for name in BACKENDS:
        with fastcl.use_backend(name):
            stream = {"seed": -9, "epoch": 3, "view": 1, "shapes": shapes, "out_size": (12, 9)}
            tables.append(augment_sample_ragged(recipe, torch.arange(len(SIZES)), **stream))
    assert torch.equal(tables[0].view(torch.int32), tables[1].view(torch.int32))


def test_several_passes_and_out(backend):
    given = images()
    transform = T.Compose([T.RandomResizedCrop(16), T.ColorJitter(0.5), T.RandomRotation(90)], seed=2)
    assert len(transform.passes) == 2
    index = torch.arange(len(given))
    views = transform(RaggedBatch.of(given), index=index)
    out = torch.empty_like(views)
    assert transform(RaggedBatch.of(given), index=index, out=out) is out
    assert torch.equal(out, views)
    for i, image in enumerate(given):
        assert torch.equal(views[i], transform(image, index=i))
    params = transform.sample(index, RaggedBatch.of(given).shapes)
    assert torch.equal(transform.apply(RaggedBatch.of(given), params), views)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_output_types(backend, dtype):
    batch = RaggedBatch.of(images())
    steps = [T.RandomResizedCrop((5, 9)), T.ToDtype(dtype, scale=True)]
    views = T.Compose(steps, seed=1)(batch, index=torch.arange(len(batch)))
    assert views.dtype == dtype
    assert torch.equal(views[3], T.Compose(steps, seed=1)(batch[3], index=3))


def test_sizes_that_stay_different_are_refused():
    batch = RaggedBatch.of(images())
    with pytest.raises(ValueError, match="images of different sizes need a crop or resize to one"):
        T.Compose([T.RandomHorizontalFlip()])(batch)
    with pytest.raises(ValueError, match="images of different sizes need"):
        T.Compose([T.Resize(16), T.CenterCrop(16)])(batch)


def test_arguments_that_do_not_fit(backend):
    batch = RaggedBatch.of(images())
    transform = T.Compose([T.RandomResizedCrop(4)], seed=0)
    params = transform.sample(len(batch), batch.shapes)
    with pytest.raises(TypeError, match="images must be a RaggedBatch, got Tensor"):
        augment_views_ragged(batch[3][None], [params], [(4, 4)])
    with pytest.raises(ValueError, match=r"params\[0\] must be \[8, "):
        augment_views_ragged(batch, [params[:3]], [(4, 4)])
    with pytest.raises(ValueError, match="at least one image"):
        augment_views_ragged(RaggedBatch.of([]), [params[:0]], [(4, 4)])
    with pytest.raises(ValueError, match=r"out\[0\] must be contiguous or channels_last \[8, 3, 4, 4\]"):
        augment_views_ragged(batch, [params], [(4, 4)], out=[torch.empty(8, 1, 4, 4, dtype=torch.uint8)])
    with pytest.raises(TypeError, match=r"shapes must be int32 \[n, 3\], got torch\.int64"):
        augment_sample_ragged(transform.recipe[0], torch.arange(8), seed=0, shapes=batch.shapes.long(), out_size=(4, 4))
    with pytest.raises(ValueError, match=r"shapes must be \[7, 3\], got \[8, 3\]"):
        augment_sample_ragged(transform.recipe[0], torch.arange(7), seed=0, shapes=batch.shapes, out_size=(4, 4))
    empty = batch.shapes.clone()
    empty[2, 0] = 0
    stream = {"seed": 0, "shapes": empty, "out_size": (4, 4)}
    if backend in ("emulated", "cuda"):  # drawn all the same, as a row that fits no image
        drawn = augment_sample_ragged(transform.recipe[0], torch.arange(8), **stream)
        assert drawn[2, PARAM_NAMES.index("crop_height")] < 1
        return
    with pytest.raises(RuntimeError, match=r"image 2 \(shapes\[2\] = \[0, 5, 3\]\)"):
        augment_sample_ragged(transform.recipe[0], torch.arange(8), **stream)


def test_views_in_one_call_are_those_of_many(backend):
    batch, index, tables = RaggedBatch.of(images()), torch.arange(len(SIZES)), []
    sizes, recipe = [(12, 9), (6, 6), (12, 9)], T.SimCLRTransform(12).transform.recipe[0]
    for view, size in enumerate(sizes):
        tables.append(augment_sample_ragged(recipe, index, seed=1, view=view, shapes=batch.shapes, out_size=size))
    together = augment_views_ragged(batch, tables, sizes, resize="bicubic")
    for got, table, size in zip(together, tables, sizes, strict=True):
        assert torch.equal(got, augment_views_ragged(batch, [table], [size], resize="bicubic")[0])
    out = [torch.empty_like(view) for view in together]
    assert all(
        a is b for a, b in zip(augment_views_ragged(batch, tables, sizes, resize="bicubic", out=out), out, strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(out, together, strict=True))
    last = [torch.empty_like(view, memory_format=torch.channels_last) for view in together]
    augment_views_ragged(batch, tables, sizes, resize="bicubic", out=last)
    assert all(torch.equal(a, b) for a, b in zip(last, together, strict=True))
    with pytest.raises(ValueError, match="one entry for each view, got 3, 2"):
        augment_views_ragged(batch, tables, sizes[:2])


def test_one_large_view_is_made_by_all_threads():
    """Fewer images than threads: the rows are shared out."""
    batch, transform = RaggedBatch.of([noise(3, (150, 170))]), T.SimCLRTransform(160, gaussian_blur=1, seed=1)
    threads = torch.get_num_threads()
    try:
        one = transform(batch, index=[0])
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(one, transform(batch, index=[0]), strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("column", ["crop_top", "crop_width", "hue"])
def test_a_row_is_checked_against_its_own_image(backend, column):
    batch = RaggedBatch.of(images())
    params = T.Compose([T.RandomResizedCrop(4)], seed=0).sample(len(batch), batch.shapes)
    params[1, PARAM_NAMES.index(column)] = 100.0 if column != "hue" else float("nan")  # image 4 has room for it
    if column == "crop_width":
        params[1, PARAM_NAMES.index("crop_left")] = 30  # 30 + 100 > 120
    refused = rf"augment_views: params\[0\]\[1\] has {column}"
    check_refused(backend, 1, refused, lambda: augment_views_ragged(batch, [params], [(4, 4)])[0])


@pytest.mark.parametrize("namespace", ["fastcl", "fastcl_reference"])
def test_opcheck(namespace):
    ops = getattr(torch.ops, namespace)
    batch, recipe = RaggedBatch.of(images()[2:5]), T.SimCLRTransform(8).transform.recipe[0]
    sample = (recipe, torch.arange(3), batch.shapes, 5, 1, 0, 8, 8)
    torch.library.opcheck(ops.augment_sample_ragged.default, sample)
    params = ops.augment_sample_ragged(*sample)
    for how in (("nearest", [], [], [], "bilinear", []), ("bilinear", [1.0], [0.5], [0.5], "bicubic", [0.1])):
        out = [torch.zeros(3, 3, 8, 8), torch.zeros(3, 3, 8, 8)]
        arguments = (batch.data, batch.offsets, batch.shapes, [params, params], *how, out)
        torch.library.opcheck(ops.augment_views_ragged.default, arguments)


@pytest.mark.parametrize("ragged", [True, False])
def test_model_and_transform_compile_as_one_graph(backend, ragged):
    torch._dynamo.reset()
    transform, model = T.SimCLRTransform(8, seed=1), torch.nn.Conv2d(3, 4, 3)
    batch: Any = RaggedBatch.of(images()) if ragged else torch.stack([noise(3, (9, 14), seed) for seed in range(8)])

    def step(batch: Any, index: Tensor) -> Tensor:
        first, second = (model(view) for view in transform(batch, index=index))
        return (first - second).square().mean()

    compiled, index = torch.compile(step, fullgraph=True, backend="aot_eager"), torch.arange(8)
    torch.testing.assert_close(compiled(batch, index), step(batch, index))
    compiled(batch, index).backward()
    assert model.weight.grad is not None
