"""Builds the native extension; everything else about the package stands in pyproject.toml.

FASTCL_BUILD says what to build: ``auto`` (the default: C++ where a compiler is found, CUDA where a toolkit is found as
well), ``reference`` (nothing native), ``cpu`` or ``cuda`` (and an error where that is not possible).
"""

import os
import shutil
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent.resolve()
CSRC = Path("csrc")
CHOICES = ("auto", "reference", "cpu", "cuda")
# The oldest torch whose stable ABI the binary uses: one build serves this torch and every later one.
TORCH_TARGET = "0x020d000000000000"
CUDA_ARCHITECTURES = "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"


def sources(pattern: str) -> list[str]:
    os.chdir(ROOT)
    return sorted(str(path) for path in CSRC.rglob(pattern))


def find_compiler() -> str | None:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++", "cl"]
    return next((found for name in candidates if (found := shutil.which(name.split()[0]))), None)


def find_cuda() -> str | None:
    """The toolkit's folder, from CUDA_HOME alone: an nvcc on PATH may be a wrapper that misleads torch."""
    home = os.environ.get("CUDA_HOME")
    return home if home and (Path(home) / "bin" / "nvcc").exists() else None


def extension_arguments() -> dict:
    choice = os.environ.get("FASTCL_BUILD", "auto")
    if choice not in CHOICES:
        raise SystemExit(f"FASTCL_BUILD: expected one of {', '.join(CHOICES)}, got {choice!r}")
    compiler, cuda = find_compiler(), find_cuda()
    if choice == "reference":
        print("fastcl: FASTCL_BUILD=reference, building no native kernels")
        return {}
    if compiler is None:
        if choice != "auto":
            raise SystemExit(f"FASTCL_BUILD={choice}: no C++ compiler found (tried $CXX, c++, g++, clang++, cl)")
        print("fastcl: no C++ compiler found, building no native kernels; fastcl will run its PyTorch reference")
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        print("fastcl: torch is not installed where the build runs, building no native kernels")
        return {}
    kernels = sources("*.cu")
    if choice == "cuda" and not (cuda and kernels):
        raise SystemExit("FASTCL_BUILD=cuda: " + ("no CUDA sources in csrc/" if cuda else "CUDA_HOME names no toolkit"))
    with_cuda = bool(cuda and kernels) and choice != "cpu"
    print(f"fastcl: building C++ kernels with {compiler}" + (f" and CUDA kernels with {cuda}" if with_cuda else ""))
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)  # else what GPUs this machine happens to have
    windows = os.name == "nt"
    flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    # No contraction: where a fused multiply-add is meant the source says so, and every compiler gives the same bits.
    cxx = (
        ["/std:c++20", "/O2", "/fp:precise"]
        if windows
        else ["-std=c++20", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall"]
    )
    # g++ 12 sees uninitialised values inside its own AVX-512 headers (GCC bug 105593).
    cxx += [] if windows else ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
    # With CUDA it is a CppExtension all the same: a CUDAExtension needs torch's CUDA libraries to load, this one loads
    # beside a CPU-only torch too. The runtime is linked in.
    cuda_parts = {
        "include_dirs": [str(ROOT / CSRC), f"{cuda}/include"],
        "library_dirs": [f"{cuda}/lib64", f"{cuda}/lib"],
        "libraries": ["cudart_static", *([] if windows else ["dl", "rt", "pthread"])],
    }
    extension = CppExtension(
        "fastcl._C",
        [path for path in sources("*.cpp") if with_cuda or not path.endswith("_cuda_ops.cpp")]
        + (kernels if with_cuda else []),
        **(cuda_parts if with_cuda else {"include_dirs": [str(ROOT / CSRC)]}),
        extra_compile_args={"cxx": flags + cxx, "nvcc": [*flags, "-std=c++20", "-O3", "-fmad=false"]},
        depends=sources("*.h"),
        py_limited_api=True,
    )

    class Build(BuildExtension):
        def get_export_symbols(self, ext):  # the library registers ops when it is loaded; it is no Python module
            return []

    return {"ext_modules": [extension], "cmdclass": {"build_ext": Build.with_options(no_python_abi_suffix=True)}}


setup(**extension_arguments(), options={"bdist_wheel": {"py_limited_api": "cp310"}})
