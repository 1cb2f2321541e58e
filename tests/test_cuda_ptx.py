"""What nvcc makes of the samples, run on the emulator; the ops' kernels run so with FASTCL_EMULATOR_PTX=80."""

from __future__ import annotations

import numpy as np
import pytest
from emulator import build, device
from emulator.ptx import replaced_kernels
from emulator.samples import gemm, row_sums, total_sum
from test_cuda_emulator import RNG, operands

try:
    build.nvcc()
    device.runtime()
except build.Unavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

SCHEDULES = ("forward", "reverse", "random:1")


@pytest.fixture(scope="module", params=[75, 80, 90])
def architecture(request):
    row_sums(np.zeros((1, 1), np.float32))  # loads what is replaced
    with replaced_kernels("samples", request.param) as replaced:
        assert replaced > 0
        yield request.param


@pytest.mark.parametrize("product", ["bf16", "f16", "f16 of sm_75", "tf32", "s8"])
def test_products_on_tensor_cores(architecture, product):
    a, b, expected = operands(product, 100, 70, 144)
    for schedule in SCHEDULES:
        with device.schedule(schedule), device.statistics() as counted:
            if architecture == 75 and product in ("bf16", "f16", "tf32"):
                with pytest.raises(RuntimeError, match="trap"):
                    gemm(a, b, product)
                continue
            assert np.array_equal(gemm(a, b, product), expected)
        assert counted.mma > 0
        assert counted.ldmatrix_conflicts == 0


def test_sums(architecture):
    x = RNG.integers(-8, 9, (7, 501)).astype(np.float32)
    for schedule in SCHEDULES:
        with device.schedule(schedule):
            assert np.array_equal(row_sums(x), x.sum(axis=1))
            assert total_sum(x[0], blocks=3) == x[0].sum()
