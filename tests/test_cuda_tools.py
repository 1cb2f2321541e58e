"""tools/cuda_report.py and the translator, on text alone; CI runs the report itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from emulator.ptx import same_name
from emulator.ptx_to_cpp import Translator, Unsupported

TOOLS = Path(__file__).parents[1] / "tools"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


report = load("cuda_report")
PTXAS = """
ptxas info    : Compiling entry function '_Z4tilePf' for 'sm_80'
ptxas info    : Function properties for _Z4tilePf
    48 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1152 bytes smem
"""


def test_report_reads_ptxas_and_holds_kernels_to_bounds():
    columns = report.resources(PTXAS)["_Z4tilePf"]
    assert [columns[c] for c in ("registers", "stack", "spills", "shared")] == [255, 48, 20, 1152]
    rules = [{"kernel": "tile", "architectures": [80], "bounds": ["spills == 0", "registers <= 255"]}]
    assert report.broken(rules, "tile", 80, columns) == ["tile, sm_80: spills == 0 does not hold (spills is 20)"]
    assert not report.broken(rules, "tile", 90, columns)
    assert not report.broken(rules, "other", 80, columns)


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "architecture", "warps"),
    [
        (32, 0, 256, 80, 64),  # as many as there may be
        (255, 0, 128, 80, 8),  # 8,192 registers a warp
        (128, 0, 128, 75, 16),
        (32, 48 * 1024, 128, 80, 12),  # three blocks of 49 KiB
    ],
)
def test_resident_warps(registers, shared, threads, architecture, warps):
    assert report.resident_warps(registers, shared, threads, architecture) == warps


def test_every_bound_names_a_column():
    for rule in report.tomllib.loads((TOOLS / "cuda_limits.toml").read_text())["rule"]:
        columns = dict.fromkeys(report.COLUMNS, 0)
        for bound in rule["bounds"]:
            assert eval(bound, {"__builtins__": {}}, columns) in (True, False)


def test_mutations_change_device_code_alone():
    mutate = load("mutate_cuda")
    bugs = mutate.choose(20, seed=1)
    assert len({(bug.path, bug.start, bug.name) for bug in bugs}) >= 15
    for bug in bugs:
        text = (mutate.ROOT / bug.path).read_text()
        assert text[bug.start : bug.end] != bug.replacement
        host = text.find("// ---- host")
        assert host < 0 or bug.start < host


def test_anonymous_namespaces_have_one_name():
    name = "_ZN6fastcl49_GLOBAL__N__055048c1_16_contrast_cuda_cu_5bec40da13prepare_sidesENS0_12PrepareSidesE"
    assert same_name(name) == "_ZN6fastcl12_GLOBAL__N_113prepare_sidesENS0_12PrepareSidesE"


def test_the_translator_refuses_what_it_does_not_know():
    ptx = ".visible .entry k(\n.param .u64 k_param_0\n)\n{\n.reg .b32 %r<2>;\nfrobnicate.sync.b32 %r0, %r1;\nret;\n}\n"
    with pytest.raises(Unsupported, match="frobnicate"):
        Translator().translate(ptx)
    [(name, code)] = Translator().translate(ptx.replace("frobnicate.sync.b32 %r0, %r1", "add.s32 %r0, %r1, -3")).items()
    assert name == "k"
    assert "_r0 = (int32_t)((uint32_t)_r1 + (uint32_t)-3ll);" in code
