"""Compiles the emulator, its samples and the CUDA kernels with g++, once for all test processes.

    python tests/emulator/build.py [samples] [ops] [--sanitizer thread|address]

Needs a C++ compiler on x86-64 Linux, ninja, and CUDA's headers: from ``CUDA_HOME``, or from the pip packages that the
``test`` extra names. :class:`Unavailable` says what is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
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
# As setup.py and torch have them.
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}"]
NVCC_FLAGS += [f"-D__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS")]
NVCC_FLAGS += ["-D__CUDA_NO_BFLOAT16_CONVERSIONS__"]


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


def toolkits() -> list[Path]:
    """Where a CUDA toolkit, or part of one, may be: CUDA_HOME, the usual place, the pip packages."""
    found = importlib.util.find_spec("nvidia")
    packages = [Path(path) / "cu13" for path in (found.submodule_search_locations or [] if found else [])]
    return [Path(home) for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home] + packages


def nvcc() -> Path:
    """The compiler in a toolkit's own folder."""
    for toolkit in toolkits():
        if (toolkit / "bin" / "nvcc").exists():
            return toolkit / "bin" / "nvcc"
    raise Unavailable(
        "no nvcc: set CUDA_HOME, or pip install nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime"
        " nvidia-cuda-cccl (13.0)"
    )


def cuda_includes() -> list[Path]:
    """The folders that together hold CUDA's headers; no toolkit is needed for them."""
    candidates = [toolkit / "include" for toolkit in toolkits()]
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


def cutlass_include() -> Path:
    """CuTe's headers: of the pip package nvidia-cutlass, beside others or in .venvs/cutlass."""
    found = importlib.util.find_spec("cutlass_library")
    folders = [Path(path) for path in (found.submodule_search_locations or [] if found else [])]
    folders.append(ROOT / ".venvs" / "cutlass" / "cutlass_library")
    for folder in folders:
        if (folder / "source" / "include" / "cute").exists():
            return folder / "source" / "include"
    raise Unavailable("no CuTe: pip install --no-deps --target .venvs/cutlass nvidia-cutlass==4.2.0.0")


def op_sources() -> list[Path]:
    """The ops' CUDA files, host side and kernels."""
    return sorted([*(ROOT / "csrc").rglob("*_cuda_ops.cpp"), *(ROOT / "csrc").rglob("*_cuda.cu")])


class Ninja:
    """A build.ninja of shared libraries."""

    def __init__(self, sanitizer: str = "") -> None:
        includes = [f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}", *(f"-isystem {path}" for path in cuda_includes())]
        flags = " ".join([*FLAGS, *SANITIZERS[sanitizer], *includes])
        cached = "ccache " if shutil.which("ccache") and "ccache" not in _compiler() else ""
        self.lines = [
            "rule compile",
            f"  command = {cached}{_compiler()} {flags} $extra -x c++ -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {_compiler()} -shared {' '.join(SANITIZERS[sanitizer])} $in -o $out $libraries",
        ]

    def library(
        self, name: str, sources: Iterable[Path], extra: str = "", libraries: str = "", runtime: Path | None = None
    ) -> None:
        """Of objects compiled with the flags `extra`; `runtime` is the emulator that it loads."""
        objects = []
        for source in sources:
            objects.append(f"{name}.{source.name}.o")
            self.lines.extend([f"build {objects[-1]}: compile {source}", f"  extra = {extra}"])
        self.lines.extend([f"build {name}.so: link {' '.join(objects)}", f"  libraries = {libraries}"])
        if runtime:
            self.lines[-2] += f" | {runtime}"
            self.lines[-1] += f" {runtime} -Wl,-rpath,{runtime.parent}"

    def run(self, library: Path) -> None:
        """Raises RuntimeError with the compiler's message."""
        rules, file = "\n".join(self.lines) + "\n", library.parent / "build.ninja"
        if not file.exists() or file.read_text() != rules:
            file.write_text(rules)
        command = [_ninja(), "-C", library.parent, library]
        environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # a sanitizer's
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"{library.name} does not compile:\n{done.stdout[-8000:]}{done.stderr[-2000:]}")


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Test processes run side by side; the first one builds."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(target: str, sanitizer: str = "") -> Path:
    """Builds what changed, and returns the library.

    Args:
        target: ``"runtime"`` (the emulator), ``"samples"`` or ``"ops"``.
        sanitizer: ``""``, ``"thread"`` (TSan) or ``"address"`` (ASan and UBSan).

    Raises:
        Unavailable: where something that the build needs is missing.
        RuntimeError: where it fails; the message is the compiler's.
    """
    if target == "ops" and not op_sources():
        raise Unavailable("no op has CUDA sources")
    folder, torch = build_folder(sanitizer), _torch_folder()
    ninja, runtime = Ninja(sanitizer), folder / "runtime.so"
    ninja.library(str(folder / "runtime"), sorted(EMULATOR.glob("*.cpp")))
    ninja.library(str(folder / "samples"), [EMULATOR / "samples" / "samples.cu"], runtime=runtime)
    torch_flags = f"-DTORCH_TARGET_VERSION={TORCH_TARGET} -isystem {torch / 'include'}"
    torch_library = f"-L{torch / 'lib'} -ltorch_cpu"
    ninja.library(str(folder / "ops"), op_sources(), extra=torch_flags, libraries=torch_library, runtime=runtime)
    with one_at_a_time():
        folder.mkdir(exist_ok=True)
        ninja.run(folder / f"{target}.so")
    return folder / f"{target}.so"


def build_folder(sanitizer: str = "") -> Path:
    """Of the libraries for this torch."""
    return BUILD / f"torch-{importlib.metadata.version('torch')}{sanitizer and '-' + sanitizer}"


def _torch_folder() -> Path:
    """Without importing it: processes under a sanitizer do without torch."""
    found = importlib.util.find_spec("torch")
    assert found
    assert found.origin
    return Path(found.origin).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=["samples"], metavar="samples|ops")
    parser.add_argument("--sanitizer", choices=list(SANITIZERS), default="")
    arguments = parser.parse_args()
    for target in arguments.targets:
        print(build(target, arguments.sanitizer))


if __name__ == "__main__":
    main()
