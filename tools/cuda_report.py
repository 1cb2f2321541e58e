"""Compiles every CUDA kernel for every architecture and reports what ptxas made of it, within limits.

    python tools/cuda_report.py [--architectures 75,80,...] [--markdown]

For each kernel and architecture: registers, bytes of stack, bytes of spills, static shared memory, resident warps
(computed, from registers and static shared memory alone), and how many instructions of each kind stand in the code.
Exits 1 where a limit of tools/cuda_limits.toml is broken.

Needs nvcc 13.0 (CUDA_HOME, or the pip packages nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt, nvidia-cuda-runtime and
nvidia-cuda-cccl), and for the instructions cuobjdump and nvdisasm (pip: nvidia-cuda-cuobjdump==13.5.37,
nvidia-cuda-nvdisasm==13.5.37).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from emulator.build import NVCC_FLAGS, Unavailable, nvcc, toolkits  # noqa: E402

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# CUDA C++ Programming Guide, "Technical specifications per compute capability": warps and bytes of shared memory of a
# multiprocessor; 64 Ki registers each, handed out to warps by 256.
WARPS = {75: 32, 80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}
SHARED = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
# Each needs to match at the start of the opcode.
INSTRUCTIONS = {
    "HMMA": r"HMMA",
    "IMMA": r"IMMA",
    "LDSM": r"LDSM",
    "LDGSTS": r"LDGSTS",
    "LDG_128": r"LDG\.(\w+\.)*128",
    "LDG": r"LDG\.",
    "STG_128": r"STG\.(\w+\.)*128",
    "STG": r"STG\.",
    "LDS": r"LDS(?!M)",
    "STS": r"STS",
    "FFMA": r"FFMA",
    "MUFU": r"MUFU",
    "SHFL": r"SHFL",
    "BAR": r"BAR\.SYNC",
    "ATOM": r"(ATOM|RED)[GS.]",
}
COLUMNS = ("registers", "stack", "spills", "shared", "warps", "instructions", *INSTRUCTIONS)


def tool(name: str) -> str:
    """cuobjdump or nvdisasm: from a toolkit, the pip packages, or PATH."""
    for folder in toolkits():
        if (folder / "bin" / name).exists():
            return str(folder / "bin" / name)
    if found := shutil.which(name):
        return found
    raise Unavailable(f"no {name}: pip install nvidia-cuda-cuobjdump==13.5.37 nvidia-cuda-nvdisasm==13.5.37")


def demangled(name: str) -> str:
    """Without namespaces of ours, arguments and return type."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    text = re.sub(r"\(anonymous namespace\)::|fastcl::|^void ", "", text)
    depth = 0
    for at, character in enumerate(text):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            return text[:at]
    return text


def compile_kernels(source: Path, architecture: int, folder: Path) -> tuple[Path, str]:
    """The cubin, and what ptxas says about each kernel."""
    cubin = folder / f"{source.stem}-{architecture}.cubin"
    command = [nvcc(), "-cubin", f"-arch=sm_{architecture}", "-Xptxas=-v", *NVCC_FLAGS, source, "-o", cubin]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{source.relative_to(ROOT)} does not compile for sm_{architecture}:\n{done.stderr}")
    return cubin, done.stderr


def resources(messages: str) -> dict[str, dict[str, int]]:
    """{mangled name: columns} of ptxas -v."""
    found: dict[str, dict[str, int]] = {}
    name = ""
    for line in messages.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            name = match[1]
            found[name] = dict.fromkeys(COLUMNS, 0)
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if name:
                found[name].update(stack=int(match[1]), spills=int(match[2]) + int(match[3]))
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name].update(registers=int(match[1]), shared=int(shared[1]) if shared else 0)
            name = ""
    return found


def count_instructions(cubin: Path) -> dict[str, dict[str, int]]:
    """{mangled name: columns} of the disassembly."""
    environment = os.environ | {"PATH": f"{Path(tool('nvdisasm')).parent}:{os.environ['PATH']}"}
    text = subprocess.run(
        [tool("cuobjdump"), "-sass", cubin], capture_output=True, text=True, check=True, env=environment
    ).stdout
    found: dict[str, dict[str, int]] = {}
    counts: dict[str, int] = {}
    for line in text.splitlines():
        if match := re.search(r"Function : (\S+)", line):
            counts = found[match[1]] = dict.fromkeys(["instructions", *INSTRUCTIONS], 0)
        elif match := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            counts["instructions"] += match[1] != "NOP"
            for kind, pattern in INSTRUCTIONS.items():
                counts[kind] += bool(re.match(pattern, match[1]))
    return found


def resident_warps(registers: int, shared: int, threads: int, architecture: int) -> int:
    """Of one multiprocessor, from what is known when compiling: dynamic shared memory may lower it."""
    warps_of_block = -(-threads // 32)
    blocks = min(
        65536 // (-(-registers * 32 // 256) * 256) // warps_of_block if registers else 32,
        WARPS[architecture] // warps_of_block,
        SHARED[architecture] * 1024 // (shared + 1024) if shared else 32,
    )
    return blocks * warps_of_block


def block_sizes(cubin: Path) -> dict[str, int]:
    """{mangled name: threads}, as __launch_bounds__ says; the most there may be without."""
    text = subprocess.run([tool("cuobjdump"), "-elf", cubin], capture_output=True, text=True, check=True).stdout
    sizes: dict[str, int] = {}
    for section in re.split(r"^\.nv\.info\.", text, flags=re.M)[1:]:
        match = re.search(r"EIATTR_MAX_THREADS\s+Format:\s+\w+\s+Value:\s+(\w+) (\w+) (\w+)", section)
        sizes[section.split()[0]] = int(match[1], 16) * int(match[2], 16) * int(match[3], 16) if match else 1024
    return sizes


def report(sources: list[Path], architectures: list[int]) -> Iterator[tuple[str, int, dict[str, int]]]:
    """(kernel, architecture, columns)."""
    tool("cuobjdump"), tool("nvdisasm")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [(source, architecture) for source in sources for architecture in architectures]
        compiled = pool.map(lambda job: compile_kernels(*job, Path(folder)), jobs)
        for (_, architecture), (cubin, messages) in zip(jobs, compiled, strict=True):
            counts, sizes = count_instructions(cubin), block_sizes(cubin)
            for name, columns in resources(messages).items():
                columns.update(counts.get(name, {}))
                columns["warps"] = resident_warps(columns["registers"], columns["shared"], sizes[name], architecture)
                yield demangled(name), architecture, columns


def broken(rules: list[dict], kernel: str, architecture: int, columns: dict[str, int]) -> list[str]:
    """The bounds that do not hold."""
    failures = []
    for rule in rules:
        if re.search(rule["kernel"], kernel) and architecture in rule.get("architectures", ARCHITECTURES):
            for bound in rule["bounds"]:
                if not eval(bound, {"__builtins__": {}}, columns):
                    failures.append(f"{kernel}, sm_{architecture}: {bound} does not hold ({_values(bound, columns)})")
    return failures


def _values(bound: str, columns: dict[str, int]) -> str:
    return ", ".join(f"{name} is {columns[name]}" for name in re.findall(r"[A-Za-z_]\w*", bound))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", default=",".join(map(str, ARCHITECTURES)))
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    parser.add_argument("sources", nargs="*", type=Path, help="default: every .cu of csrc/")
    arguments = parser.parse_args()
    sources = [path.resolve() for path in arguments.sources] or sorted((ROOT / "csrc").rglob("*.cu"))
    rules = tomllib.loads((ROOT / "tools" / "cuda_limits.toml").read_text())["rule"]
    failures: list[str] = []
    matched: set[int] = set()
    separator = " | " if arguments.markdown else " "
    edge = "|" if arguments.markdown else ""
    print(edge + separator.join([f"{'kernel':54s}", "  sm", *(f"{c:>7s}" for c in COLUMNS)]) + edge)
    if arguments.markdown:
        print("|---" * (2 + len(COLUMNS)) + "|")
    rows = report(sources, [int(a) for a in arguments.architectures.split(",")])
    for kernel, architecture, columns in rows:
        values = [f"{columns[c]:{max(7, len(c))}d}" for c in COLUMNS]
        print(edge + separator.join([f"{kernel:54s}", f"{architecture:4d}", *values]) + edge, flush=True)
        failures += broken(rules, kernel, architecture, columns)
        matched |= {n for n, rule in enumerate(rules) if re.search(rule["kernel"], kernel)}
    if not arguments.sources:
        failures += [f"no kernel matches {rule['kernel']!r}" for n, rule in enumerate(rules) if n not in matched]
    if failures:
        raise SystemExit("\n".join(["limits of tools/cuda_limits.toml are broken:", *failures]))


if __name__ == "__main__":
    try:
        main()
    except Unavailable as reason:
        raise SystemExit(str(reason)) from None
