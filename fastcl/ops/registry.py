"""Declares the ops with torch.library, loads the native kernels, and says which backend runs what.

A backend is a namespace of the dispatcher, and every op stands in each of them with the same schema:

``fastcl``            the native kernel where one was built for the tensor's device, else the reference
``fastcl_reference``  always the pure-PyTorch reference

The rows of ops (``ntxent.py``, ``augment.py``, ...) call :func:`register` once for each op and :func:`op` at each call.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastcl.ops.schemas import SCHEMAS

__all__ = ["BACKENDS", "BackendError", "backends", "native_library", "op", "register", "runs_native", "use_backend"]

Function = TypeVar("Function", bound=Callable[..., Any])

BACKENDS = ("auto", "native", "reference")
_namespaces = {"auto": "fastcl", "native": "fastcl", "reference": "fastcl_reference"}
_libraries = {namespace: torch.library.Library(namespace, "DEF") for namespace in set(_namespaces.values())}
_registered: dict[str, tuple[Any, Any, Any]] = {}  # reference, fake, autograd


class BackendError(RuntimeError):
    """A backend was asked for that is not there; the message says how to get it."""


def _load_native() -> tuple[Path | None, str]:
    """Loads the extension; returns its path, and why there is none where there is none."""
    if os.environ.get("FASTCL_BACKEND") == "reference":
        return None, "FASTCL_BACKEND=reference"
    found = [path for path in Path(__file__).parents[1].glob("_C*") if path.suffix in (".so", ".pyd", ".dylib")]
    if not found:
        return None, "fastcl was installed without a C++ compiler"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return None, f"{found[0].name} did not load: {error}"
    return found[0], ""


native_library, native_absent_because = _load_native()
_backend = os.environ.get("FASTCL_BACKEND", "auto")
if _backend not in BACKENDS:
    raise BackendError(f"FASTCL_BACKEND: expected one of {', '.join(BACKENDS)}, got {_backend!r}")


def _without_autocast(reference: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel computes in the types of its arguments, so its reference does too."""

    @functools.wraps(reference)
    def run(*arguments: Any) -> Any:
        device = next(argument.device.type for argument in arguments if isinstance(argument, torch.Tensor))
        with torch.autocast(device, enabled=False):
            return reference(*arguments)

    return run


def register(
    name: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    autograd: Callable[[Any], tuple[Callable[..., None], Callable[..., Any]]] | None = None,
) -> None:
    """Declares one op in every namespace.

    Args:
        name: a key of ``SCHEMAS``.
        reference: the op in pure PyTorch, for any device.
        fake: the shapes and dtypes of the results (meta tensors, ``torch.compile``).
        autograd: takes the namespace (``torch.ops.<namespace>``) and gives ``setup_context`` and ``backward``, so that
            the backward of each backend calls that backend's own ops.
    """
    _registered[name] = _without_autocast(reference), fake, autograd
    for namespace in _libraries:
        _declare(namespace, name)


def no_second_derivative(name: str) -> Callable[[Any], tuple[Callable[..., None], Callable[..., Any]]]:
    """The `autograd` of a backward op: an error where torch alone would warn, and leave its share out of the result."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(f"{name}: has no second derivative; compute the loss in plain PyTorch where one is needed")

    return lambda ops: (setup_context, backward)


def _declare(namespace: str, name: str) -> None:
    library, qualified = _libraries[namespace], f"{namespace}::{name}"
    reference, fake, autograd = _registered[name]
    library.define(name + SCHEMAS[name], tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=library)
    if autograd is not None:
        setup_context, backward = autograd(getattr(torch.ops, namespace))
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=library)


def add_backend(backend: str, namespace: str, library: Path) -> None:
    """Declares every op in one more namespace, whose kernels `library` registers; other ops run the reference there.

    For the tests, which run the CUDA kernels on the CPU this way. Users have :data:`BACKENDS`.
    """
    _libraries[namespace] = torch.library.Library(namespace, "DEF")
    for name in _registered:
        _declare(namespace, name)
    torch.ops.load_library(str(library))
    _namespaces[backend] = namespace


@functools.cache  # the dispatcher takes microseconds to answer
def _has_native(name: str, device_type: str, namespace: str = "fastcl") -> bool:
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", key)


def _require_native(name: str, device_type: str) -> None:
    if _has_native(name, device_type):
        return
    how = {
        "cpu": "install a C++ compiler and reinstall fastcl from source",
        "cuda": "reinstall fastcl from source with CUDA_HOME set to a toolkit and FASTCL_BUILD=cuda",
    }.get(device_type, "use a tensor on the CPU or a CUDA device, or backend 'reference'")
    because = f" ({native_absent_because})" if native_absent_because else ""
    raise BackendError(f"{name}: backend 'native' is not there for {device_type} tensors{because}; to get it, {how}")


def op(name: str, tensor: torch.Tensor) -> Any:
    """The op `name` of the backend in force, for arguments like `tensor`; float64 is always the reference's."""
    if _backend == "reference" or tensor.dtype == torch.float64:
        return getattr(torch.ops.fastcl_reference, name)
    if _backend == "native" and not torch.compiler.is_compiling():
        _require_native(name, tensor.device.type)
    return getattr(getattr(torch.ops, _namespaces[_backend]), name)


def constant_in_graphs(function: Function) -> Function:
    """What torch.compiler.assume_constant_result does, without its import of all of torch._dynamo (two seconds)."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def runs_plainly() -> bool:
    """Whether an op is called for its result alone, on the native kernels: no gradient, graph or other backend."""
    return _namespaces[_backend] == "fastcl" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


@constant_in_graphs
def runs_native(name: str, device_type: str) -> bool:
    """Whether the op `name` runs a native kernel on tensors of that device, under the backend in force."""
    return _backend != "reference" and _has_native(name, device_type, _namespaces[_backend])


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Runs the ops called inside on one backend.

    Args:
        backend: ``"auto"`` (native where it was built, else the reference), ``"native"`` (or :class:`BackendError`) or
            ``"reference"``. The default of the process is the environment variable ``FASTCL_BACKEND``, or ``"auto"``.
            The setting is the process's, not the thread's.

    Raises:
        ValueError: for any other name.
    """
    global _backend
    if backend not in _namespaces:
        raise ValueError(f"use_backend: backend must be one of {', '.join(_namespaces)}, got {backend!r}")
    before, _backend = _backend, backend
    try:
        yield
    finally:
        _backend = before


def backends() -> dict[str, dict[str, str]]:
    """Which kernel runs each op on each device: ``{op: {"cpu": "native" | "reference", "cuda": ...}}``."""
    return {
        name: {device: "native" if _has_native(name, device) else "reference" for device in ("cpu", "cuda")}
        for name in sorted(_registered)
    }
