"""The PTX check: kernels as nvcc compiled them, in place of those that g++ compiled, on the same emulator.

``with replaced_kernels("samples", 80):`` runs every launch inside on the translation of nvcc's PTX for sm_80. For the
ops' own tests the environment variable ``FASTCL_EMULATOR_PTX=80`` does so for the whole process, and
``FASTCL_EMULATOR_PTX=80:augment`` for the kernel files alone whose names begin with that.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from emulator import build, device
from emulator.ptx_to_cpp import Translator


def _sources(target: str, only: str) -> list[Path]:
    if target == "samples":
        return [build.EMULATOR / "samples" / "samples.cu"]
    return [path for path in build.op_sources() if path.suffix == ".cu" and path.name.startswith(only)]


def _read_by(source: Path) -> list[Path]:
    """What a kernel file may include."""
    return sorted([*(build.ROOT / "csrc").rglob("*.h"), *build.EMULATOR.rglob("*.h"), source])


def _ptx(source: Path, architecture: int) -> str:
    nvcc = build.nvcc()
    digest = hashlib.sha256(f"{nvcc} {architecture} {build.NVCC_FLAGS}".encode())
    for path in _read_by(source):
        digest.update(path.read_bytes())
    kept = build.BUILD / "ptx" / f"{source.stem}-sm_{architecture}-{digest.hexdigest()[:16]}.ptx"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        command = [nvcc, "-ptx", f"-arch=sm_{architecture}", *build.NVCC_FLAGS, source, "-o", kept.with_suffix(".part")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc refuses {source}:\n{done.stderr}")
        kept.with_suffix(".part").rename(kept)
    return kept.read_text()


def same_name(symbol: str) -> str:
    """A mangled name as g++ has it: nvcc gives each anonymous namespace a name of its own."""
    return re.sub(r"\d+_GLOBAL__N__[0-9a-f]+_\d+_\w+?_cu_[0-9a-f]{8}", "12_GLOBAL__N_1", symbol)


def _normalized(ptx: str) -> str:
    """Without what differs between architectures of the same code."""
    return same_name(re.sub(r"//[^\n]*|^\.target.*$|^\.version.*$", "", ptx, flags=re.M))


def translated(target: str, architecture: int, only: str = "") -> tuple[Path, list[str]]:
    """The library of translated kernels, of files whose names begin with `only`, and their names."""
    kernels: dict[str, str] = {}
    with build.one_at_a_time():
        modules = [_normalized(_ptx(source, architecture)) for source in _sources(target, only)]
    digest = hashlib.sha256("".join(modules).encode())
    for name in ("ptx_to_cpp.py", "ptx_kernel.h", "cuda_emulator.h", "machine.h", "matrix.h", "build.py"):
        digest.update((build.EMULATOR / name).read_bytes())
    folder = build.BUILD / "ptx" / f"{target}-{digest.hexdigest()[:16]}"
    runtime = device.library("runtime")
    with build.one_at_a_time():
        if not (folder / "kernels.so").exists():
            folder.mkdir(exist_ok=True)
            for module in modules:
                kernels |= Translator().translate(module)
            sources = []
            for number, text in enumerate(kernels.values()):
                sources.append(folder / f"kernel_{number}.cpp")
                sources[-1].write_text(text)
            ninja = build.Ninja()
            ninja.library(str(folder / "kernels"), sources, extra="-w -O1", runtime=runtime)
            (folder / "names").write_text("\n".join(kernels))
            ninja.run(folder / "kernels.so")
    return folder / "kernels.so", (folder / "names").read_text().split()


def _addresses(library: Path) -> dict[str, int]:
    """Where each function of a loaded library is, exported or not."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    base = min(int(line.split("-")[0], 16) for line in maps if line.endswith(str(library.resolve())))
    symbols = subprocess.run(["nm", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return {name: base + int(at, 16) for at, kind, name in map(str.split, symbols.splitlines()) if kind in "tTwW"}


@contextlib.contextmanager
def replaced_kernels(target: str, architecture: int, only: str = "") -> Iterator[int]:
    """Launches of the kernels of ``"samples"`` or ``"ops"``, of files whose names begin with `only`, run what nvcc made
    of them; gives how many were replaced.

    Raises:
        build.Unavailable: where there is no nvcc.
        ptx_to_cpp.Unsupported: where nvcc used what the translator does not know.
    """
    path, names = translated(target, architecture, only)
    kernels, runtime = ctypes.CDLL(str(path)), device.runtime()
    compiled = _addresses(device.library(target))
    replaced = []
    for name in names:
        if name in compiled:  # a kernel that the host never launches g++ leaves out
            static = ctypes.c_size_t.in_dll(kernels, f"static_shared_{name}").value
            function = ctypes.cast(getattr(kernels, name), ctypes.c_void_p)
            runtime.fastcl_emulator_replace_kernel(compiled[name], function, static)
            replaced.append(compiled[name])
    try:
        with device.compute_capability(architecture):
            yield len(replaced)
    finally:
        for address in replaced:
            runtime.fastcl_emulator_replace_kernel(address, None, 0)
