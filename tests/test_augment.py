from __future__ import annotations

import re

import pytest
import torch
from augment_helpers import EVERYTHING, SIZES, SMOOTH, check, check_refused, error, noise, recipe, require_native, row
from torch import Tensor

import fastcl
from fastcl.ops.augment import augment_apply, augment_sample, augment_views
from fastcl.ops.augment_table import PARAM_NAMES


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_everything_at_once_matches_fp64(backend, size, channels, interpolation):
    images = noise(8, channels, size[0])
    entries = recipe(**EVERYTHING, **SMOOTH, perspective=0.5 if interpolation == "bilinear" else -1)
    params = augment_sample(entries, torch.arange(8), seed=3, size=size[0], out_size=size[1])
    unit = images.double() / 255
    with fastcl.use_backend("reference"):
        exact = augment_apply(unit, params, size[1], interpolation=interpolation, fill=[0.5])
        plain = augment_apply(unit.float(), params, size[1], interpolation=interpolation, fill=[0.5])
    # A hue is a quotient by the chroma: noise of 1e-7 grows where a pixel is nearly gray, to 2e-6 of 1, 0.0005 levels.
    for got in (
        augment_apply(images, params, size[1], interpolation=interpolation, fill=[127.5], dtype=torch.float32),
        augment_apply(unit.float(), params, size[1], interpolation=interpolation, fill=[0.5]),
    ):
        assert error(got, exact) <= 2 * error(plain, exact) + 2e-6


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("source", [torch.uint8, torch.float32])
def test_layouts_and_strides_give_the_same(backend, channels, layout, source):
    size = (23, 17)
    images = noise(4, channels, size)
    images = images if source == torch.uint8 else images / 255
    geometry = recipe(**{**EVERYTHING, "jitter_p": 0, "grayscale_p": 0})
    params = augment_sample(geometry, torch.arange(4), seed=3, size=size, out_size=(12, 14))
    want = augment_apply(images, params, (12, 14))
    assert torch.equal(augment_apply(images.contiguous(memory_format=layout), params, (12, 14)), want)
    wide = torch.zeros(4, channels, 23, 34, dtype=images.dtype)
    wide[..., ::2] = images
    assert torch.equal(augment_apply(wide[..., ::2], params, (12, 14)), want)
    assert torch.equal(augment_apply(images, params.t().contiguous().t(), (12, 14)), want)
    assert want.is_contiguous()


def test_an_identity_row_changes_no_bit(backend):
    images = noise(3, 3, (11, 13))
    params = row((11, 13)).expand(3, -1)
    assert torch.equal(augment_apply(images, params, (11, 13)), images)
    assert torch.equal(augment_apply(images / 255, params, (11, 13)), images / 255)
    flipped = params.clone()
    flipped[:, 4:6] = 1
    assert torch.equal(augment_apply(images, flipped, (11, 13)), images.flip(2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_outputs_are_the_float_output_rounded(backend, dtype):
    images = noise(4, 3, (16, 20))
    params = augment_sample(recipe(**EVERYTHING), torch.arange(4), seed=1, size=(16, 20), out_size=(8, 8))
    arguments = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    single = augment_apply(images, params, (8, 8), dtype=torch.float32, **arguments)
    assert torch.equal(augment_apply(images, params, (8, 8), dtype=dtype, **arguments), single.to(dtype))


def test_out_is_written_in_place(backend):
    images = noise(4, 3, (16, 20))
    params = augment_sample(recipe(**EVERYTHING), torch.arange(4), seed=1, size=(16, 20), out_size=(8, 9))
    for dtype in (torch.uint8, torch.float32, torch.bfloat16):
        out = torch.zeros(4, 3, 8, 9, dtype=dtype)
        assert augment_apply(images, params, (8, 9), out=out) is out
        assert torch.equal(out, augment_apply(images, params, (8, 9), dtype=dtype))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(8, 9), (1, 6), (7, 1)])
def test_an_output_may_have_its_channels_last(backend, size, dtype, channels):
    images, how = noise(4, channels, (16, 20)), {"interpolation": "bilinear", "fill": [7.0]}
    entries = {**EVERYTHING, **SMOOTH, "blur_p": 0.5} | (
        {} if channels in (1, 3) else {"jitter_p": 0, "grayscale_p": 0}
    )
    tables = [
        augment_sample(recipe(**entries), torch.arange(4), seed=1, view=view, size=(16, 20), out_size=size)
        for view in (0, 1)
    ]
    want = augment_views(images, tables, [size, size], **how, dtype=dtype)
    out = [torch.zeros_like(view, memory_format=torch.channels_last) for view in want]
    for got, into, view in zip(augment_views(images, tables, [size] * 2, **how, out=out), out, want, strict=True):
        assert got is into
        assert torch.equal(got, view)
    apart = [torch.zeros(channels, *size, dtype=dtype).permute(1, 2, 0).contiguous() for _ in range(4)]
    for i in range(4):  # one image, which torch describes by other strides
        into = apart[i].permute(2, 0, 1)[None]
        assert torch.equal(augment_apply(images[i : i + 1], tables[0][i : i + 1], size, **how, out=into)[0], want[0][i])
    for strided in (torch.zeros(4, channels + 1, *size, dtype=dtype)[:, 1:], want[0][:1].expand_as(want[0])):
        with pytest.raises(ValueError, match=r"out must be contiguous or channels_last .* got strided"):
            augment_apply(images, tables[0], size, out=strided)


def test_normalisation(backend):
    images = noise(2, 3, (5, 6))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    got = augment_apply(images, row((5, 6)).expand(2, -1), (5, 6), dtype=torch.float32, mean=mean, std=std)
    want = (images.double() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(
        got.double(), want, rtol=0, atol=2e-6
    )  # values up to 2.7, each of three steps rounds once
    one = augment_apply(images, row((5, 6)).expand(2, -1), (5, 6), dtype=torch.float32, mean=[0.5], std=[0.25])
    torch.testing.assert_close(one, (images / 255 - 0.5) / 0.25, rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_solarize_comes_after_blur(backend, dtype):
    images = noise(2, 3, (11, 13))
    blur = {"blur_sigma": 1.5, "blur_radius_x": 3, "blur_radius_y": 2}
    plain = augment_apply(images, row((11, 13), **blur).expand(2, -1), (11, 13), dtype=torch.float32)
    params = row((11, 13), **blur, solarize=1, solarize_threshold=0.4).expand(2, -1)
    arguments = {} if dtype == torch.uint8 else {"mean": [0.2], "std": [0.5]}
    got = augment_apply(images, params, (11, 13), dtype=dtype, **arguments)
    want = torch.where(plain >= 0.4, 1 - plain, plain)
    assert 0.1 < (plain >= 0.4).float().mean() < 0.9
    if dtype == torch.uint8:
        check(got, want * 255, 0.5001)
    else:  # values up to 1.6, whose half a unit in bfloat16 is 2^-8
        check(got, (want - 0.2) / 0.5, 2e-6 if dtype == torch.float32 else 2.0**-8)


def test_perspective_and_degenerate_maps(backend):
    images = noise(1, 3, (9, 9))
    behind = row((9, 9), map_8=0)  # every point at infinity
    assert (augment_apply(images, behind, (9, 9), fill=[7]) == 7).all()
    far = row((9, 9), map_2=1e38)
    assert (augment_apply(images, far, (9, 9), fill=[7], interpolation="bilinear") == 7).all()
    double = row((9, 9), map_0=2, map_4=2, map_8=2)  # homogeneous: the identity
    assert torch.equal(augment_apply(images, double, (9, 9)), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_views_are_those_of_single_calls(backend, dtype):
    images = noise(3, 3, (20, 30))
    sizes = [(16, 16), (8, 9), (16, 16)]
    entries = recipe(**EVERYTHING, **SMOOTH)
    tables = [
        augment_sample(entries, torch.arange(3), seed=1, view=view, size=(20, 30), out_size=size)
        for view, size in enumerate(sizes)
    ]
    how = {"interpolation": "bilinear", "resize": "bicubic", "erase": [7.0], "fill": [9.0], "dtype": dtype}
    want = [augment_apply(images, table, size, **how) for table, size in zip(tables, sizes, strict=True)]
    got = augment_views(images, tables, sizes, **how)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    out = [torch.zeros_like(view) for view in want]
    assert all(a is b for a, b in zip(augment_views(images, tables, sizes, **how, out=out), out, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))
    tables[1][2, 0] = torch.nan
    refused = r"params\[1\]\[2\] has crop_top = nan"
    check_refused(backend, 2, refused, lambda: augment_views(images, tables, sizes, **how)[1])
    with pytest.raises(ValueError, match="one entry for each view, got 3, 2"):
        augment_views(images, tables, sizes[:2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("last", [True, False], ids=["blurred", "sharpened"])
def test_rows_of_a_large_image_are_shared_out(dtype, last):
    """One image on several threads has the bits that it has in a batch."""
    require_native()
    entries = {**EVERYTHING, "blur_p": 1} if last else {**EVERYTHING, **SMOOTH, "sharpen_p": 1, "blur_p": 0.5}
    images = noise(1, 3, (70, 90)).expand(8, -1, -1, -1).contiguous()
    threads = torch.get_num_threads()
    for index in range(6):
        params = augment_sample(recipe(**entries), torch.tensor([index]), seed=3, size=(70, 90), out_size=(203, 211))
        try:
            torch.set_num_threads(1)
            want = augment_apply(images, params.expand(8, -1), (203, 211), interpolation="bilinear", dtype=dtype)
            torch.set_num_threads(3)
            got = augment_apply(images[:1], params, (203, 211), interpolation="bilinear", dtype=dtype)
            last = torch.empty_like(got, memory_format=torch.channels_last)
            augment_apply(images[:1], params, (203, 211), interpolation="bilinear", out=last)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(got[0], want[7])
        assert torch.equal(last, got)


MAPS = {  # affine, output pixel to source pixel
    "half_pixel": [1, 0, 0.5, 0, 1, 0.5],
    "half_sizes": [0.5, 0, 0.25, 0, 2, 0.5],
    "diagonal": [0.5, 0.5, 0, -0.5, 0.5, 0],
    "near_ties": [1, 0, 0.5 - 2.0**-20, 0, 1, 0.5 + 2.0**-17],
    "turned": [0.98, -0.17, 0.3, 0.17, 0.98, -0.2],
    "far": [1, 0, 20000.5, 0, 1, 0],
    "steep": [3000.25, 1, 0, 1, -4000, 0],
}


@pytest.mark.parametrize("size", [(28, 28), (33, 47), (1, 1), (5, 1100), (1100, 5), (60, 1024)], ids=str)
def test_the_nearest_pixel_is_the_reference_s(backend, size):
    """At ties and next to them too; 16384 pixels away; in rows that are longer than what is looked up at once."""
    if backend == "reference":
        pytest.skip("it is the reference")
    maps = MAPS.values()
    table = torch.cat([row(size, **{f"map_{i}": value for i, value in enumerate(map_)}) for map_ in maps])
    for channels in (1, 2):
        images = noise(len(table), channels, size)
        for how in ({}, {"fill": [77.0]}, {"mean": [0.4], "std": [0.3], "dtype": torch.float32}):
            got = augment_apply(images, table, size, **how)
            with fastcl.use_backend("reference"):
                want = augment_apply(images, table, size, **how)
            assert (got - want).abs().max() <= (0 if got.dtype == torch.uint8 else 1e-6)


# ----------------------------------------------------------------------------------------------------------- bad input


BAD_ROWS = {
    "nan": ({"hue": float("nan")}, "hue = nan"),
    "inf": ({"map_2": float("inf")}, "map_2 = inf"),
    "above": ({"crop_top": 5}, "crop_top = 5"),
    "outside": ({"crop_top": 3}, "crop_height = 5"),
    "negative": ({"crop_left": -1}, "crop_left = -1"),
    "empty_crop": ({"crop_width": 0}, "crop_width = 0"),
    "too_wide": ({"crop_width": 8}, "crop_width = 8"),
    "half_pixel": ({"crop_height": 4, "crop_top": 0.5}, "crop_top = 0.5"),
    "solarize": ({"solarize": 0.5}, "solarize = 0.5"),
    "posterize": ({"posterize": 257}, "posterize = 257"),
    "sharpness": ({"sharpness": -1}, "sharpness = -1"),
    "equalize": ({"equalize": 2}, "equalize = 2"),
    "erase": ({"erase_top": 2, "erase_height": 4}, "erase_height = 4"),
    "erase_beyond": ({"erase_left": 10}, "erase_left = 10"),
    "erase_seed": ({"erase_seed": 0.5}, "erase_seed = 0.5"),
    "unknown_op": ({"color_op_1": 5}, "color_op_1 = 5"),
    "half_op": ({"color_op_1": 1.5}, "color_op_1 = 1.5"),
    "negative_factor": ({"contrast": -0.1}, "contrast = -0.1"),
    "hue": ({"hue": 0.6}, "hue = 0.6"),
    "radius": ({"blur_sigma": 1, "blur_radius_x": 9}, "blur_radius_x = 9"),
    "huge": ({"crop_left": 1e30}, "crop_left = 1"),
}


@pytest.mark.parametrize(("columns", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named(backend, columns, message):
    images = noise(2, 3, (5, 7))
    params = torch.cat([row((5, 7)), row((5, 7), **columns)])
    refused = rf"augment_apply: params\[1\] has {re.escape(message)}"
    check_refused(backend, 1, refused, lambda: augment_apply(images, params, (5, 9), dtype=torch.float32))
    if backend in ("emulated", "cuda"):
        check_refused(backend, 1, refused, lambda: augment_apply(images, params, (5, 9)))


def test_colour_needs_one_or_three_channels(backend):
    images = noise(1, 2, (4, 4))
    check_refused(backend, 0, "grayscale = 1", lambda: augment_apply(images, row((4, 4), grayscale=1), (4, 4)))
    assert torch.equal(augment_apply(images, row((4, 4), hflip=1), (4, 4)), images.flip(3))


def test_random_tables_are_refused_or_applied_alike():
    require_native()
    generator = torch.Generator().manual_seed(4)
    applied = refused = 0
    for _ in range(400):
        height, width, channels = (int(torch.randint(1, most, (), generator=generator)) for most in (12, 12, 4))
        size = tuple(torch.randint(1, 12, (2,), generator=generator).tolist())
        images = noise(1, channels, (height, width))
        params = augment_sample(
            recipe(**{**EVERYTHING, **SMOOTH, "jitter_p": channels != 2, "grayscale_p": 0}),
            torch.randint(2**60, (1,), generator=generator),
            seed=9,
            size=(height, width),
            out_size=size,
        )
        wild = torch.tensor([float("nan"), float("inf"), -1.0, 0.5, 3.0, 1e30, -1e30, 1e-30, 7.0, 2.0**31])
        for _ in range(int(torch.randint(0, 3, (), generator=generator))):
            column = int(torch.randint(len(PARAM_NAMES), (), generator=generator))
            params[0, column] = wild[int(torch.randint(len(wild), (), generator=generator))]
        results = []
        for name in ("native", "reference"):
            with fastcl.use_backend(name):
                try:
                    results.append(augment_apply(images, params, size, interpolation="bilinear", dtype=torch.float32))
                except RuntimeError as error:
                    results.append(str(error))
        if isinstance(results[0], str) or isinstance(results[1], str):
            assert results[0] == results[1]
            refused += 1
        else:
            torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)
            applied += 1
    assert applied > 50
    assert refused > 50


IMAGES, PARAMS = noise(2, 3, (4, 4)), row((4, 4)).expand(2, -1)
BAD = {
    "dims": ((IMAGES[0], PARAMS, (4, 4)), {}, ValueError, r"images must be \[B, C, H, W\]"),
    "empty": ((IMAGES[:, :, :0], PARAMS, (4, 4)), {}, ValueError, "not 0"),
    "integers": ((IMAGES.int(), PARAMS, (4, 4)), {}, TypeError, "got torch.int32"),
    "list": (([1], PARAMS, (4, 4)), {}, TypeError, "got list"),
    "rows": ((IMAGES, PARAMS[:1], (4, 4)), {}, ValueError, r"params must be \[2, 40\], got \[1, 40\]"),
    "columns": ((IMAGES, PARAMS[:, :5], (4, 4)), {}, ValueError, r"params must be \[2, 40\], got \[2, 5\]"),
    "double": ((IMAGES, PARAMS.double(), (4, 4)), {}, TypeError, "params must be a float32 Tensor"),
    "size": ((IMAGES, PARAMS, (0, 4)), {}, ValueError, "sides must be from 1"),
    "huge": ((IMAGES, PARAMS, (4, 2**40)), {}, ValueError, "sides must be from 1"),
    "cubic": ((IMAGES, PARAMS, (4, 4)), {"interpolation": "bicubic"}, ValueError, "nearest or bilinear, got 'bicubic'"),
    "fill": ((IMAGES, PARAMS, (4, 4)), {"fill": [1, 2]}, ValueError, "fill must have 1 or 3 values, got 2"),
    "mean": ((IMAGES, PARAMS, (4, 4)), {"mean": [0.5]}, ValueError, "given together"),
    "std": ((IMAGES, PARAMS, (4, 4)), {"mean": [0.5], "std": [0.0]}, ValueError, "std must be finite and not 0"),
    "bytes": ((IMAGES, PARAMS, (4, 4)), {"mean": [0.5], "std": [1.0]}, TypeError, "floating dtype"),
    "out_list": ((IMAGES, PARAMS, (4, 4)), {"out": [1]}, TypeError, "out must be a Tensor, got list"),
    "out_shape": (
        (IMAGES, PARAMS, (4, 5)),
        {"out": torch.zeros(2, 3, 5, 4)},
        ValueError,
        r"out must be contiguous or channels_last \[2, 3, 4, 5\] of torch.float32 on cpu, got \[2, 3, 5, 4\]",
    ),
    "out_strided": ((IMAGES, PARAMS, (4, 5)), {"out": torch.zeros(2, 3, 5, 4).mT}, ValueError, "got strided"),
    "out_dtype": (
        (IMAGES, PARAMS, (4, 4)),
        {"out": torch.zeros(2, 3, 4, 4), "dtype": torch.uint8},
        ValueError,
        "of torch.uint8",
    ),
    "dtype": ((IMAGES, PARAMS, (4, 4)), {"dtype": torch.int32}, TypeError, "dtype must be"),
}


@pytest.mark.parametrize(("arguments", "named", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_arguments(backend, arguments, named, kind, message):
    with pytest.raises(kind, match=f"augment_apply: .*{message}"):
        augment_apply(*arguments, **named)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"recipe": torch.zeros(3, dtype=torch.float64)}, TypeError, "recipe must be float64"),
        ({"index": torch.zeros(3)}, TypeError, "index must be int64"),
        ({"epoch": -1}, ValueError, "epoch must be in"),
        ({"view": 1 << 16}, ValueError, "view in"),
        ({"size": (0, 4)}, ValueError, "size must be two numbers from 1"),
        ({"out_size": (4, 1 << 30)}, ValueError, "out_size must be"),
    ],
)
def test_bad_streams(backend, changes, kind, message):
    arguments = {"recipe": recipe(), "index": torch.arange(2), "seed": 0, "size": (4, 4), "out_size": (4, 4)}
    with pytest.raises(kind, match=f"augment_sample: .*{message}"):
        augment_sample(**{**arguments, **changes})


def test_the_kernel_itself_refuses_what_does_not_fit():
    require_native()
    apply, tail = torch.ops.fastcl.augment_apply, ("nearest", [], [], [], torch.uint8)
    with pytest.raises(RuntimeError, match=r"params must be \[2, 40\]"):
        apply(IMAGES, PARAMS[:1], 4, 4, *tail)
    with pytest.raises(RuntimeError, match="images must be uint8 or float32"):
        apply(IMAGES.bfloat16(), PARAMS, 4, 4, *tail)
    with pytest.raises(RuntimeError, match="sides must be"):
        apply(IMAGES, PARAMS, -1, 4, *tail)
    with pytest.raises(RuntimeError, match="fill must have 1 or 3 values"):
        apply(IMAGES, PARAMS, 4, 4, "nearest", [1.0, 2.0], [], [], torch.uint8)
    for out in (torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4).mT, torch.zeros(4)):
        with pytest.raises(RuntimeError, match="out must be"):
            torch.ops.fastcl.augment_apply_out(IMAGES, PARAMS, *tail[:-1], out)
    with pytest.raises(RuntimeError, match="recipe must be"):
        torch.ops.fastcl.augment_sample(torch.zeros(3).double(), torch.arange(2), 0, 0, 0, 4, 4, 4, 4)


def test_an_empty_batch_gives_an_empty_batch(backend):
    table = augment_sample(recipe(), torch.arange(0), seed=0, size=(4, 4), out_size=(2, 2))
    assert table.shape == (0, len(PARAM_NAMES))
    assert augment_apply(IMAGES[:0], table, (2, 2)).shape == (0, 3, 2, 2)


# ----------------------------------------------------------------------------------------------------------- machinery


@pytest.mark.parametrize("namespace", ["fastcl", "fastcl_reference"])
def test_opcheck(namespace):
    ops = getattr(torch.ops, namespace)
    sample = (recipe(**EVERYTHING), torch.arange(3), 5, 1, 0, 12, 10, 8, 8)
    torch.library.opcheck(ops.augment_sample.default, sample)
    images, params = noise(3, 3, (12, 10)), ops.augment_sample(*sample)
    for tail in (("nearest", [], [], [], torch.uint8), ("bilinear", [1.0], [0.5], [0.5], torch.bfloat16)):
        torch.library.opcheck(ops.augment_apply.default, (images, params, 8, 8, *tail))
        out = torch.zeros(3, 3, 8, 8, dtype=tail[-1])
        torch.library.opcheck(ops.augment_apply_out.default, (images, params, *tail[:-1], out))
        rest = ("bilinear", [7.0])
        torch.library.opcheck(ops.augment_views.default, (images, [params, params], [8, 5], [8, 6], *tail, *rest))
        outs = [torch.zeros(3, 3, 8, 8, dtype=tail[-1]) for _ in range(2)]
        torch.library.opcheck(ops.augment_views_out.default, (images, [params, params], *tail[:-1], *rest, outs))


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()

    def views(images: Tensor, index: Tensor) -> Tensor:
        params = augment_sample(recipe_, index, seed=1, size=(12, 10), out_size=(8, 8))
        return augment_apply(images, params, (8, 8), mean=[0.5], std=[0.2], dtype=torch.float32) * 2

    recipe_ = recipe(**EVERYTHING)
    compiled = torch.compile(views, fullgraph=True, backend="aot_eager")
    arguments = noise(3, 3, (12, 10)), torch.arange(3)
    assert torch.equal(compiled(*arguments), views(*arguments))

    def into(images: Tensor, params: Tensor, out: Tensor) -> Tensor:
        return augment_apply(images, params, (8, 8), out=out) + 1

    params = augment_sample(recipe_, torch.arange(3), seed=1, size=(12, 10), out_size=(8, 8))
    out, compiled = torch.zeros(3, 3, 8, 8), torch.compile(into, fullgraph=True, backend="aot_eager")
    want = augment_apply(arguments[0], params, (8, 8), dtype=torch.float32)
    assert torch.equal(compiled(arguments[0], params, out), want + 1)
    assert torch.equal(out, want)


def test_a_large_output_has_the_bits_of_small_ones():
    """Large outputs are written past the caches; widths of 223 leave rows that are not aligned for that."""
    for side in (224, 223):
        images = noise(29, 3, (40, 50))
        params = augment_sample(recipe(**EVERYTHING), torch.arange(29), seed=3, size=(40, 50), out_size=(side, side))
        whole = augment_apply(images, params, (side, side), dtype=torch.float32)
        assert whole.numel() * 4 > 16 << 20
        for i in range(0, 29, 4):
            one = augment_apply(images[i : i + 1], params[i : i + 1], (side, side), dtype=torch.float32)
            assert torch.equal(whole[i], one[0])


def test_the_same_bits_on_any_number_of_threads():
    images = noise(9, 3, (20, 30))
    params = augment_sample(recipe(**EVERYTHING), torch.arange(9), seed=3, size=(20, 30), out_size=(16, 16))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = augment_apply(images, params, (16, 16))
        torch.set_num_threads(3)
        assert torch.equal(augment_apply(images, params, (16, 16)), one)
    finally:
        torch.set_num_threads(threads)
