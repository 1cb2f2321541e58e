"""Prints every ratio that the losses' benchmarks promise, and draws the plot: ``python bench/ratios.py``.

The forms are those of ``bench_losses.py``, timed in turn in one process; medians, with the ratio of each to fastcl's.
Sections are picked by name: ``python bench/ratios.py rates ntxent``. Each runs in a process of its own, those that
form the matrix of all pairs with ordinary and with huge pages (``THP_MEM_ALLOC_ENABLE``).
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import bench_losses as forms  # noqa: E402

from fastcl.losses import NTXentLoss  # noqa: E402

Step = Callable[[], Any]


def step_of(form: forms.Form, n: int, dim: int = forms.DIM) -> Step:
    """One forward and backward pass of `form` on fresh views [n, dim]."""
    torch.manual_seed(0)
    views = [functional.normalize(torch.randn(n, dim), dim=1).requires_grad_() for _ in range(2)]

    def step() -> None:
        for view in views:
            view.grad = None
        form(*views).backward()

    return step


def medians(steps: dict[str, Step], seconds: float) -> dict[str, float]:
    """Median times, ms, of the steps in turn; at least three rounds."""
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, step in steps.items():
            time.sleep(0.2)  # threads that another library keeps for the form before spin for a while
            run_for(step, 0.02)
            times[name] += run_for(step, 0.02)
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def run_for(step: Step, seconds: float) -> list[float]:
    """Seconds of each step; at least one."""
    times = []
    while sum(times) < seconds:
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return times


def peer(name: str) -> Any:
    return pytest.importorskip(name)


def available(makes: dict[str, Callable[[Any], forms.Form]], n: int, skip: tuple[str, ...] = ()) -> dict[str, Step]:
    """The steps of the forms that run here; the others are named."""
    steps = {}
    for name, make in makes.items():
        if name in skip:
            continue
        try:
            step = step_of(make(peer), n)
            step()
            steps[name] = step
        except (pytest.skip.Exception, RuntimeError, NotImplementedError) as error:
            print(f"  {name}: left out, {str(error).splitlines()[0]}")
    return steps


def print_ratios(title: str, times: dict[str, float], ours: str = "fastcl") -> None:
    print(f"{title}: " + ", ".join(f"{name} {t:.3g} ms ({t / times[ours]:.2f}x)" for name, t in times.items()))


def ntxent() -> None:
    skip = ("pytorch_metric_learning", "pytorch_metric_learning_supcon", "fastcl_bf16_products")
    for n in (256, 1024, 4096):
        steps = available(forms.NTXENT, n, skip)
        s, z = torch.randn(2 * n, 2 * n).numpy(), torch.randn(2 * n, forms.DIM).numpy()
        steps["numpy, the same flop"] = lambda s=s, z=z: (s @ z, s @ z)
        print_ratios(f"NT-Xent N={n}", medians(steps, 10))


def clip() -> None:
    for n in (64, 256, 1024, 4096):
        print_ratios(f"CLIP N={n}", medians(available(forms.CLIP, n), 8))


def siglip() -> None:
    for n in (64, 256, 1024, 4096):
        print_ratios(f"SigLIP N={n}", medians(available(forms.FAMILY["siglip"], n), 4))


def _rates() -> ctypes.CDLL | None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        print("no C++ compiler: no rates")
        return None
    library = Path(tempfile.mkdtemp()) / "peak.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, HERE / "peak.cpp"], check=True)
    loaded = ctypes.CDLL(str(library))
    for name in ("fma_avx512", "fma_avx2", "dot_bf16"):
        getattr(loaded, name).restype = ctypes.c_double
        getattr(loaded, name).argtypes = [ctypes.c_long]
    return loaded


def _rates_of(calls: dict[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """GFLOP/s of one core, ascending: calls that give their flop in turn, in the thread's own time."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(rates.values()))) < 5:
        for name, call in calls.items():
            begin = time.thread_time()
            flop = call()
            rates[name].append(flop / (time.thread_time() - begin) / 1e9)
    return {name: sorted(each) for name, each in rates.items()}


def rates() -> None:
    """What the processor multiplies, and how much of it NT-Xent reaches, on one thread."""
    library = _rates()
    if library is None:
        return
    names = ("fma_avx512", "fma_avx2", "dot_bf16")
    for name, record in _rates_of({name: partial(getattr(library, name), 200_000) for name in names}, 1).items():
        print(f"{name}: {record[-1]:.0f} GFLOP/s a core at best, {statistics.median(record):.0f} in the median")
    torch.set_num_threads(1)
    peak = library.fma_avx2 if os.environ.get("FASTCL_CPU") == "avx2" else library.fma_avx512
    for dim, n in ((64, 2048), (128, 2048), (256, 2048), (512, 1024), (1024, 1024)):
        step = step_of(NTXentLoss(forms.T), n, dim)
        step()

        def loss(step: Step = step, flop: float = 4 * (2 * n) ** 2 * dim) -> float:
            step()
            return flop

        got = _rates_of({"loss": loss, "peak": partial(peak, 2_000_000)}, 4)
        best, median = (100 * of(got["loss"]) / of(got["peak"]) for of in (max, statistics.median))
        print(f"NT-Xent N={n} D={dim}: {best:.0f} % of the processor's peak, best to best; {median:.0f} % in medians")


def exponent() -> None:
    sizes = (1024, 2048, 4096, 8192)
    times = [medians({"fastcl": step_of(NTXentLoss(forms.T), n)}, 2)["fastcl"] for n in sizes]
    x, y = [math.log(n) for n in sizes], [math.log(t) for t in times]
    slope = statistics.linear_regression(x, y).slope
    print("NT-Xent: " + ", ".join(f"N={n} {t:.3g} ms" for n, t in zip(sizes, times, strict=True)))
    print(f"time grows as N to the power {slope:.2f}")


def overhead() -> None:
    """A batch of one has next to nothing to multiply: what is left is the call."""
    for name, makes in (("NT-Xent", forms.NTXENT), ("CLIP", forms.CLIP)):
        steps = {form: step_of(makes[form](peer), 1) for form in ("fastcl", "plain")}
        print_ratios(f"{name} N=1, forward and backward", medians(steps, 2))


@contextmanager
def _busy(core: int) -> Iterator[None]:
    """Another process that computes on that core all the time."""
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def taken() -> None:
    """One core taken by another process, against one thread on a core of its own."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        print("needs Linux and two cores")
        return
    threads = torch.get_num_threads()
    for n in (256, 4096):
        step = step_of(NTXentLoss(forms.T), n)
        torch.set_num_threads(1)
        alone = medians({"": step}, 2)[""]
        torch.set_num_threads(threads)
        with _busy(max(os.sched_getaffinity(0))):
            shared = medians({"": step}, 3)[""]
        print(f"NT-Xent N={n}: one thread alone {alone:.3g} ms, {threads} threads and a core taken {shared:.3g} ms")


def plot() -> None:
    """docs/losses.png: time by N."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = (256, 512, 1024, 2048, 4096)
    wanted = ("fastcl", "lightly", "plain", "plain_compiled", "chunked_compiled")
    times: dict[str, list[float]] = {name: [] for name in wanted}
    for n in sizes:
        steps = available({name: forms.NTXENT[name] for name in wanted}, n)
        measured = medians(steps, 4)
        for name in wanted:
            times[name].append(measured.get(name, math.nan))
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, record in times.items():
        axes.loglog(sizes, record, marker="o", label=name.replace("_", ", "), linewidth=2 if name == "fastcl" else 1)
    axes.set(
        xlabel="N (2N rows)", ylabel="ms", title=f"NT-Xent, forward and backward, {torch.get_num_threads()} threads"
    )
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.set_xticks([], minor=True)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(HERE.parent / "docs" / "losses.png", dpi=120)


SECTIONS: dict[str, Step] = {
    section.__name__: section for section in (rates, ntxent, clip, siglip, exponent, overhead, taken, plot)
}
ENVIRONMENTS: dict[str, list[dict[str, str]]] = {
    "rates": [{}, {"FASTCL_CPU": "avx2"}],
    "ntxent": [{"THP_MEM_ALLOC_ENABLE": "0"}, {"THP_MEM_ALLOC_ENABLE": "1"}],
    "clip": [{"THP_MEM_ALLOC_ENABLE": "0"}, {"THP_MEM_ALLOC_ENABLE": "1"}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=", ".join(SECTIONS))
    parser.add_argument("--here", action="store_true", help="in this process, as its environment is")
    arguments = parser.parse_args()
    chosen = arguments.sections or list(SECTIONS)
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}")
    for name in chosen:
        if arguments.here:
            SECTIONS[name]()
            continue
        for environment in ENVIRONMENTS.get(name, [{}]):
            print(f"== {name} " + " ".join(f"{key}={value}" for key, value in environment.items()), flush=True)
            subprocess.run([sys.executable, __file__, "--here", name], env={**os.environ, **environment}, check=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
