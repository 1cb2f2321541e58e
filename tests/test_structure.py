"""A stranger finds every op's files from its name; nothing here runs an op."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fastcl
from fastcl.ops.schemas import SCHEMAS

ROOT = Path(__file__).parents[1]
# Two ops of one row share its files; a backward stands beside its forward.
AUGMENT = ("augment_sample", "augment_apply", "augment_apply_out", "augment_views", "augment_views_out")
ROWS = dict.fromkeys((*AUGMENT, "augment_sample_ragged", "augment_views_ragged"), "augment")
ROWS["int8_conv2d_packed"] = "int8_conv2d"
ROWS.update(dict.fromkeys(("int8_pack_weight", "int8_linear_packed"), "int8_linear"))
OPS = sorted({ROWS.get(name, name) for name in (schema.removesuffix("_backward") for schema in SCHEMAS)})


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_its_row_of_files(op):
    row = [
        f"fastcl/ops/{op}.py",
        f"csrc/{op}/{op}.h",
        f"csrc/{op}/{op}_ops.h",
        f"csrc/{op}/{op}_cpu.cpp",
        f"csrc/{op}/{op}_cpu_ops.cpp",
        f"tests/test_{op}.py",
        f"bench/bench_{op}.py",
    ]
    assert not [path for path in row if not (ROOT / path).exists()]


def test_every_folder_of_kernels_is_an_op_or_shared():
    assert {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()} == {*OPS, "common", "contrast"}


def test_every_schema_is_registered_in_every_namespace():
    for namespace in ("fastcl", "fastcl_reference"):
        for name in SCHEMAS:
            assert hasattr(getattr(torch.ops, namespace), name)
    assert sorted(SCHEMAS) == sorted(fastcl.backends())


def test_kernels_see_no_torch():
    for path in [*(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cu")]:
        is_torch_side = "_ops." in path.name or path.name in ("check.h", "parallel_torch.cpp")
        assert is_torch_side or "#include <torch" not in path.read_text(), path


def test_few_files_know_which_compiler_reads_the_kernels():
    knowing = {"csrc/common/cuda/launch.h", "csrc/common/cuda/ptx.h", "csrc/common/cuda_ops.h"}
    for path in [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        assert name in knowing or "FASTCL_EMULATED" not in text, path
        is_cuda = "cuda" in name
        assert not is_cuda or name == "csrc/common/cuda/ptx.h" or not re.search(r"\basm\b", text), path


def test_no_two_sources_of_one_stem_in_a_folder():
    """setuptools would write both to one object file."""
    stems = [path.with_suffix("") for suffix in ("*.cpp", "*.cu") for path in (ROOT / "csrc").rglob(suffix)]
    assert len(stems) == len(set(stems))
