"""``fastcl info``: what is here, which kernel runs each op and why, and how to get what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import typer

import fastcl
from fastcl.ops import registry

__all__ = ["info"]

_PACKAGES = {
    "numpy": "fastcl",
    "scikit-learn": "fastcl[run]",
    "safetensors": "fastcl[run]",
    "matplotlib": "fastcl[run]",
    "pydantic": "fastcl[run]",
    "jinja2": "fastcl[run]",
    "pillow": "fastcl[run]",
    "mlxtend": "fastcl[run]",
    "torch-pruning": "fastcl[compress]",
    "onnx": "fastcl[export]",
    "onnxruntime": "fastcl[export]",
    "onnxscript": "fastcl[export]",
    "regex": "fastcl[run]",
    "cryptography": "fastcl[secure]",
}
_CPU_FEATURES = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8",
    "amx_bf16",
)  # fmt: skip


def info() -> None:
    """Show versions, the processor, which kernel runs each op and why, and what is missing."""
    missing = []
    _title("versions")
    _row("fastcl", fastcl.__version__)
    _row("python", platform.python_version())
    _row("torch", torch.__version__)
    for package, source in _PACKAGES.items():
        try:
            _row(package, version(package))
        except PackageNotFoundError:
            _row(package, "not installed")
            missing.append((package, f"pip install '{source}'"))

    _title("machine")
    _row(
        "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    )
    _row("processor", _processor())
    _row("instructions", _instructions())
    _row("CUDA device", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")

    _title("ops: what runs them on cpu, on cuda")
    native = registry.native_library
    for name, devices in fastcl.backends().items():
        _row(name, f"{devices['cpu']}, {devices['cuda']}")
    _row("native library", str(native) if native else f"none: {registry.native_absent_because}")
    if native is None:
        how = "install a C++ compiler (Debian: apt install g++), then pip install --force-reinstall fastcl from source"
        if os.environ.get("FASTCL_BACKEND") == "reference":
            how = "unset FASTCL_BACKEND"
        missing.append(("native CPU kernels", how))
    elif not any(devices["cuda"] == "native" for devices in fastcl.backends().values()):
        why = (
            "no CUDA device here" if not torch.cuda.is_available() else "set CUDA_HOME and FASTCL_BUILD=cuda, reinstall"
        )
        missing.append(("CUDA kernels", why))
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        missing.append(("C++ compiler", "needed only to build from source"))

    _title("missing")
    for name, how in missing:
        _row(name, how)
    if not missing:
        typer.echo("  nothing")


def _title(text: str) -> None:
    typer.secho(text, bold=True)


def _row(name: str, value: str) -> None:
    typer.echo(f"  {name:<24} {value}")


def _cpuinfo(key: str) -> str | None:
    """A field of Linux's /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def _instructions() -> str:
    flags = (_cpuinfo("flags") or "").split()
    found = [name for name in _CPU_FEATURES if name in flags]
    return ", ".join(found) if found else f"PyTorch sees {torch.backends.cpu.get_cpu_capability()}"
