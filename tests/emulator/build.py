"""Compiles the emulator, its samples and the CUDA kernels with g++, once for all test processes.

    python tests/emulator/build.py [samples] [ops] [--sanitizer thread|address]

Needs a C++ compiler on x86-64 Linux, ninja, and CUDA's headers: from ``CUDA_HOME``, or from the pip packages that the
``test`` extra names. :class:`Unavailable` says what is missing.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

EMULATOR = Path(__file__).resolve().parent
ROOT = EMULATOR.parents[1]
BUILD = EMULATOR / "_build"
SANITIZERS = {
    "": ["-O2"],
    "thread": ["-O1", "-fsanitize=thread"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
}
# As setup.py has them for nvcc: no contraction, so that g++ and nvcc mean the same arithmetic.
FLAGS = ["-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-march=native", "-Wall"]
FLAGS += ["-Wno-unknown-pragmas", "-Wno-unused-variable", "-DFASTCL_EMULATED"]
# As torch has them for nvcc.
FLAGS += [f"-D__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS")]
FLAGS += ["-D__CUDA_NO_BFLOAT16_CONVERSIONS__"]
TORCH_TARGET = "0x020d000000000000"


class Unavailable(RuntimeError):
    """The emulator cannot be built here; the message says what is missing."""


def _compiler() -> str:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise Unavailable("the emulator switches stacks by x86-64 assembly, on Linux")
    compiler = shutil.which(os.environ.get("CXX", "g++").split()[0])
    if compiler is None:
        raise Unavailable("no C++ compiler found (tried $CXX, g++)")
    return compiler


def _ninja() -> str:
    beside = Path(sys.executable).parent / "ninja"
    ninja = str(beside) if beside.exists() else shutil.which("ninja")
    if ninja is None:
        raise Unavailable("no ninja found: pip install ninja")
    return ninja


def cuda_includes() -> list[Path]:
    """The folders that together hold CUDA's headers; no toolkit is needed for them."""
    found = importlib.util.find_spec("nvidia")
    candidates = [Path(home) / "include" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    candidates += [Path(path) / "cu13" / "include" for path in (found.submodule_search_locations if found else [])]
    candidates += [folder / "cccl" for folder in candidates]
    wanted = ["cuda_runtime.h", "crt/host_config.h", "cuda_bf16.h", "nv/target"]
    folders = []
    for header in wanted:
        folder = next((folder for folder in candidates if (folder / header).exists()), None)
        if folder is None:
            raise Unavailable(
                f"CUDA's header {header} not found: set CUDA_HOME, or pip install nvidia-cuda-runtime nvidia-cuda-crt"
                " nvidia-cuda-cccl"
            )
        if folder not in folders:
            folders.append(folder)
    return folders


def op_sources() -> list[Path]:
    """The ops' CUDA files, host side and kernels."""
    return sorted([*(ROOT / "csrc").rglob("*_cuda_ops.cpp"), *(ROOT / "csrc").rglob("*_cuda.cu")])


def _rules(sanitizer: str) -> str:
    """What ninja is to do."""
    import torch

    torch_folder = Path(torch.__file__).parent
    includes = [f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}", *(f"-isystem {path}" for path in cuda_includes())]
    flags = " ".join([*FLAGS, *SANITIZERS[sanitizer], *includes])
    torch_flags = f"-DTORCH_TARGET_VERSION={TORCH_TARGET} -isystem {torch_folder / 'include'}"
    ccache = shutil.which("ccache")
    compiler = f"ccache {_compiler()}" if ccache and "ccache" not in _compiler() else _compiler()
    lines = [
        "rule compile",
        f"  command = {compiler} {flags} $extra -x c++ -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {_compiler()} -shared {' '.join(SANITIZERS[sanitizer])} $in -o $out $libraries",
    ]

    def library(name: str, sources: Iterable[Path], extra: str = "", libraries: str = "", after: str = "") -> None:
        objects = []
        for source in sources:
            objects.append(f"{name}.{source.name}.o")
            lines.extend([f"build {objects[-1]}: compile {source}", f"  extra = {extra}"])
        lines.extend([f"build {name}.so: link {' '.join(objects)} {after}", f"  libraries = {libraries}"])

    library("runtime", sorted(EMULATOR.glob("*.cpp")))
    origin = "-Wl,-rpath,'$$ORIGIN'"
    library("samples", [EMULATOR / "samples" / "samples.cu"], after="runtime.so", libraries=origin)
    if op_sources():
        libraries = f"{origin} -L{torch_folder / 'lib'} -ltorch_cpu"
        library("ops", op_sources(), extra=torch_flags, after="runtime.so", libraries=libraries)
    return "\n".join(lines) + "\n"


def build(target: str, sanitizer: str = "") -> Path:
    """Builds what changed, and returns the library.

    Args:
        target: ``"runtime"`` (the emulator), ``"samples"`` or ``"ops"``.
        sanitizer: ``""``, ``"thread"`` (TSan) or ``"address"`` (ASan and UBSan).

    Raises:
        Unavailable: where something that the build needs is missing.
        RuntimeError: where it fails; the message is the compiler's.
    """
    import torch

    if target == "ops" and not op_sources():
        raise Unavailable("no op has CUDA sources")
    folder = BUILD / f"torch-{torch.__version__}{sanitizer and '-' + sanitizer}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rules, file = _rules(sanitizer), folder / "build.ninja"
        if not file.exists() or file.read_text() != rules:
            file.write_text(rules)
        done = subprocess.run([_ninja(), "-C", folder, f"{target}.so"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the emulated {target} do not compile:\n{done.stdout[-8000:]}{done.stderr[-2000:]}")
    return folder / f"{target}.so"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=["samples"], metavar="samples|ops")
    parser.add_argument("--sanitizer", choices=list(SANITIZERS), default="")
    arguments = parser.parse_args()
    for target in arguments.targets:
        print(build(target, arguments.sanitizer))


if __name__ == "__main__":
    main()
