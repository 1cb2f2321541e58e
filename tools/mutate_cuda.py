"""Plants bugs at random places of the CUDA kernels and prints how many the emulated tests catch.

    python tools/mutate_cuda.py [--count 10] [--seed 0]

Works on a copy of the tree. Each bug is one small change of one place: a barrier or wait left out, a comparison, a
sign or an index off by one, two arguments swapped, a mask cut. A bug is caught if the ops' emulated tests fail (backend
"emulated"), be it by a wrong result or by an error of the emulator. What is not caught may also be a change that means
the same: the list printed at the end is for a person to read.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# name, what to find, what to put there
MUTATIONS = [
    ("barrier left out", r"__syncthreads\(\);", ";"),
    ("warp barrier left out", r"__syncwarp\(\);", ";"),
    ("fence left out", r"__threadfence\(\);", ";"),
    ("wait left out", r"(?:cuda::)?cp_async_wait<[^>]+>\(\);", ";"),
    ("waits for one group less", r"cp_async_wait<(P::kStages) - 2>", r"cp_async_wait<\1 - 1>"),
    ("< becomes <=", r"(?<![<\-=]) < (?![<=])", " <= "),
    (">= becomes >", r" >= ", " > "),
    ("+ 1 lost", r" \+ 1\b", ""),
    ("* becomes /", r"(?<=\w) \* (?=\d)", " / "),
    ("+ becomes -", r"(?<=[\w)]) \+ (?=[\w(])", " - "),
    ("% becomes /", r"(?<=\w) % (?=\w)", " / "),
    ("half of the mask", r"~0u", "0xFFFFu"),
    ("shuffle from another lane", r"step\)", "step ^ 1)"),
    ("maximum becomes minimum", r"\bfmaxf\(", "fminf("),
    ("operands swapped", r"\b(low|high)\[2\] = \{r\[(\d)\], r\[(\d)\]\}", r"\1[2] = {r[\3], r[\2]}"),
    ("true becomes false", r"\breturn true;", "return false;"),
]


# The tests that a bug is planted for, by the folder that it is in.
AUGMENT = ("augment_cuda", "augment", "augment_torchvision", "augment_draws", "ragged")
LOSSES = "tests/test_ntxent.py tests/test_similarity_lse.py"
TESTS = {
    "augment": " ".join(f"tests/test_{name}.py" for name in AUGMENT),
    "int8_linear": "tests/test_int8_cuda.py tests/test_int8_linear.py tests/test_int8_conv2d.py",
}


@dataclass
class Place:
    """One place of a file, and what to put there."""

    path: Path
    start: int
    end: int
    name: str
    replacement: str

    def line(self, text: str) -> int:
        """Its line in the file's `text`."""
        return text.count("\n", 0, self.start) + 1


def kernel_files() -> list[Path]:
    """What runs on the device, but for the headers that all share."""
    names = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*_cuda*") if "common" not in path.parts]
    return sorted(name for name in names if name.suffix in (".cu", ".h") and "_ops" not in name.name)


def places(path: Path) -> list[Place]:
    """Where device code of a file can be changed."""
    text = (ROOT / path).read_text()
    code = re.sub(r"//[^\n]*|#[^\n]*|\"[^\"\n]*\"", lambda match: " " * len(match[0]), text)
    host = text.find("// ---- host")
    found = []
    for name, pattern, replacement in MUTATIONS:
        for match in re.finditer(pattern, code):
            before = code[code.rfind("\n", 0, match.start()) : match.start()]
            if "template" not in before and (host < 0 or match.start() < host):
                found.append(Place(path, match.start(), match.end(), name, match.expand(replacement)))
    return found


def choose(count: int, seed: int, folder: str = "") -> list[Place]:
    """As many kinds of bugs as there are places for, in turn; in one folder of csrc/, where it is given."""
    generator = random.Random(seed)
    by_kind: dict[str, list[Place]] = {}
    for path in [path for path in kernel_files() if folder in ("", path.parent.name)]:
        for place in places(path):
            by_kind.setdefault(place.name, []).append(place)
    kinds = list(by_kind)
    generator.shuffle(kinds)
    chosen: list[Place] = []
    while len(chosen) < count:
        for kind in kinds[: count - len(chosen)]:
            chosen.append(generator.choice(by_kind[kind]))
    return chosen


def first_failure(output: str) -> str:
    """What pytest says went wrong."""
    match = re.search(r"^E +(.+)$", output, flags=re.M)
    return match[1][:110] if match else "tests failed"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", help="instead of those of the folder that a bug is planted in")
    parser.add_argument("--folder", default="", help="of csrc/ to plant all bugs in")
    parser.add_argument("--list", action="store_true", help="print the bugs, run nothing")
    arguments = parser.parse_args()
    bugs = choose(arguments.count, arguments.seed, arguments.folder)
    slipped = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv*", ".git", "build", "runs", "site", "ptx"))
        environment = os.environ | {"PYTHONPATH": str(tree)}
        for number, bug in enumerate(bugs, 1):
            text = (ROOT / bug.path).read_text()
            where = f"{bug.path}:{bug.line(text)}: {bug.name}"
            source = text.splitlines()[bug.line(text) - 1].strip()
            print(f"{number:2d}. {where}\n      {source}", flush=True)
            if arguments.list:
                continue
            (tree / bug.path).write_text(text[: bug.start] + bug.replacement + text[bug.end :])
            began = time.monotonic()
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-k", "emulated or _cuda"]
            command += (arguments.tests or TESTS.get(bug.path.parent.name, LOSSES)).split()
            try:
                done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment, timeout=1200)
                caught, how = done.returncode != 0, first_failure(done.stdout)
            except subprocess.TimeoutExpired:
                caught, how = True, "does not end"
            (tree / bug.path).write_text(text)
            verdict = f"caught: {how}" if caught else "SLIPPED THROUGH"
            print(f"      {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
            if not caught:
                slipped.append(f"{where}: {source}")
    if not arguments.list:
        print(f"\n{len(bugs) - len(slipped)} of {len(bugs)} planted bugs were caught (seed {arguments.seed}).")
        print("\n".join(["Not caught:", *slipped]) if slipped else "")


if __name__ == "__main__":
    main()
