from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import fastcl
from fastcl.ops import ntxent, registry, similarity_lse


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


def test_use_backend_is_undone_after_an_error():
    with pytest.raises(ZeroDivisionError), fastcl.use_backend("reference"):
        raise ZeroDivisionError
    assert registry._backend == os.environ.get("FASTCL_BACKEND", "auto")


def test_unknown_backend():
    # In a process of its own, where no test has added the emulator's.
    done = python("import fastcl; fastcl.use_backend('cuda').__enter__()")
    assert "ValueError: use_backend: backend must be one of auto, native, reference, got 'cuda'" in done.stderr


def test_the_environment_chooses_the_backend():
    done = python("import fastcl; print(set(fastcl.backends()['ntxent'].values()))", FASTCL_BACKEND="reference")
    assert done.stdout == "{'reference'}\n", done.stderr


def test_an_unknown_backend_in_the_environment():
    done = python("import fastcl", FASTCL_BACKEND="gpu")
    assert "BackendError: FASTCL_BACKEND: expected one of auto, native, reference, got 'gpu'" in done.stderr


def test_a_backend_that_is_absent_is_an_error_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(registry, "_has_native", lambda name, device: False)
    with fastcl.use_backend("native"), pytest.raises(fastcl.BackendError, match="C\\+\\+ compiler"):
        ntxent(torch.ones(2, 3), torch.ones(2, 3), 1.0)


def test_an_unknown_instruction_set_in_the_environment():
    if registry.native_library is None:
        pytest.skip("native kernels were not built")
    code = "import torch; from fastcl.ops import ntxent; ntxent(torch.ones(2, 3), torch.ones(2, 3), 1.0)"
    done = python(code, FASTCL_CPU="sse9")
    assert "expected portable, avx2, avx512 or avx512_bf16, got 'sse9'" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("op", ["ntxent", "similarity_lse"])
def test_a_second_derivative_is_an_error(backend, op):
    z = torch.randn(4, 3, requires_grad=True)
    losses = ntxent(z, 2 * z, 1.0) if op == "ntxent" else similarity_lse(z, None, 1.0)
    (grad,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op}: has no second derivative"):
        (losses.sum() + grad.square().sum()).backward()
