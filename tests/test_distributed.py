"""Losses over 2, 3 and 4 processes (gloo): what DDP ends with equals a single process, and peers' own conventions hold.

The processes of one world run every case in one go and save what they got; each test then judges one case.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fastcl import losses
from fastcl.losses.distributed import gather_with_gradient

WORLDS = [2, 3, 4]
SAMPLES, DIM = 3, 5  # of each process
DTYPES = [torch.float32, torch.float64]
LABELS = torch.tensor([0, 1, 1, 2, 0, 1, 7, 2, 0, 8, 9, 9])  # some processes have more rows with a positive than others

Loss = Callable[..., nn.Module]
Form = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]


def two_views(loss: nn.Module, a: Tensor, b: Tensor, c: Tensor, labels: Tensor) -> Tensor:
    return loss(a, b)


def three_views(loss: nn.Module, a: Tensor, b: Tensor, c: Tensor, labels: Tensor) -> Tensor:
    return loss(a, b, c)


def labelled(loss: nn.Module, a: Tensor, b: Tensor, c: Tensor, labels: Tensor) -> Tensor:
    return loss(a, labels)


def labelled_views(loss: nn.Module, a: Tensor, b: Tensor, c: Tensor, labels: Tensor) -> Tensor:
    return loss(torch.stack([a, b], dim=1), labels)


def unlabelled_views(loss: nn.Module, a: Tensor, b: Tensor, c: Tensor, labels: Tensor) -> Tensor:
    return loss(torch.stack([a, b], dim=1))


class Pairs(nn.Module):
    """Normalises, and has the logit scale and bias that open_clip's models have."""

    def __init__(self, loss: nn.Module, *, bias: bool) -> None:
        super().__init__()
        self.loss = loss
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-2.0)) if bias else None

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        image, text = (functional.normalize(x, dim=1) for x in (image, text))
        return self.loss(image, text, self.log_scale.exp(), self.bias)


def clip(**options: Any) -> nn.Module:
    return Pairs(losses.ClipLoss(**options), bias=False)


def siglip(**options: Any) -> nn.Module:
    return Pairs(losses.SigLipLoss(chunk_size=2, **options), bias=True)


def learnable(loss: Loss) -> Loss:
    return lambda **options: loss(0.2, learnable_temperature=True, **options)


FAMILY: dict[str, tuple[Loss, Form]] = {
    "ntxent": (learnable(losses.NTXentLoss), two_views),
    "ntxent_views": (learnable(losses.NTXentLoss), three_views),
    "supcon": (learnable(losses.SupConLoss), labelled),
    "supcon_views": (learnable(losses.SupConLoss), labelled_views),
    "supcon_unlabelled": (learnable(losses.SupConLoss), unlabelled_views),
    "infonce": (learnable(losses.InfoNCELoss), two_views),
    "dcl": (learnable(losses.DCLLoss), two_views),
    "debiased": (learnable(losses.DebiasedLoss), two_views),
    "hard": (learnable(losses.HardNegativeLoss), two_views),
    "clip": (clip, two_views),
    "siglip": (siglip, two_views),
}
# Each loss in both modes, and open_clip's own switches for the same.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{name}-{mode}": (name, {"distributed": mode}) for name in FAMILY for mode in ("gather", "ring")},
    "ntxent-gather_distributed": ("ntxent", {"gather_distributed": True}),
    "clip-local_loss": ("clip", {"local_loss": True, "gather_with_grad": True}),
    "clip-gather_with_grad": ("clip", {"gather_with_grad": True}),
    **{f"siglip-{impl}": ("siglip", {"dist_impl": impl}) for impl in ("bidir", "shift", "reduce", "gather")},
}
OF_ALL_ROWS = {"clip-gather_with_grad"}  # every process has the loss of all rows


class Step(nn.Module):
    """An encoder, a loss, and what the loss is given."""

    def __init__(self, name: str, dtype: torch.dtype, **options: Any) -> None:
        super().__init__()
        make, self.form = FAMILY[name]
        torch.manual_seed(1)
        self.encoder = nn.Linear(4, DIM)
        self.loss = make(**options)
        self.to(dtype)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.form(self.loss, *self.encoder(x), labels)


def batch(world: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Three views of each sample [3, world * SAMPLES, 4], and labels."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, world * SAMPLES, 4, generator=generator)
    x = x + 0.3 * torch.randn(3, world * SAMPLES, 4, generator=generator)
    return x.to(dtype), LABELS[: world * SAMPLES]


def step(model: nn.Module, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
    loss = model(x, labels)
    loss.backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


# --- what the processes run


def of_rank(options: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """open_clip's losses want to be told."""
    told = {"local_loss", "gather_with_grad", "dist_impl"} & options.keys()
    return {**options, "rank": rank, "world_size": world} if told else options


def run_under_ddp(rank: int, world: int) -> dict[str, Any]:
    results = {}
    for case, (name, options) in CASES.items():
        for dtype in DTYPES:
            x, labels = batch(world, dtype)
            own = slice(rank * SAMPLES, (rank + 1) * SAMPLES)
            model = nn.parallel.DistributedDataParallel(Step(name, dtype, **of_rank(options, rank, world)))
            results[case, dtype] = step(model, x[:, own], labels[own])
    return results


def file_of(package: str, path: str) -> ModuleType | None:
    """One file of a package, without the rest of it, which takes seconds to import."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    spec = importlib.util.spec_from_file_location(f"{package}_alone", Path(found.submodule_search_locations[0]) / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def value_and_gradients(loss: nn.Module, rank: int, *extra: float) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3 + rank)
    views = functional.normalize(torch.randn(2, SAMPLES, DIM, generator=generator, dtype=torch.float64), dim=2)
    inputs = [view.requires_grad_() for view in views.unbind()]
    inputs += [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in extra]
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


CLIP_MODES = [{"local_loss": a, "gather_with_grad": b} for a in (False, True) for b in (False, True)]
SIGLIP_MODES = [{"dist_impl": impl} for impl in (None, "bidir", "shift", "reduce", "gather")]


def run_beside_open_clip(rank: int, world: int) -> dict[str, Any]:
    peer = file_of("open_clip", "loss.py")
    results: dict[str, Any] = {}
    if peer is None:
        return results
    for name, modes, extra in (("ClipLoss", CLIP_MODES, (10.0,)), ("SigLipLoss", SIGLIP_MODES, (10.0, -2.0))):
        for mode in modes:
            made = [getattr(module, name)(**mode, rank=rank, world_size=world) for module in (losses, peer)]
            results[f"{name}{list(mode.values())}"] = [value_and_gradients(loss, rank, *extra) for loss in made]
    return results


def run_beside_lightly(rank: int) -> dict[str, Any]:
    try:
        from lightly.loss import dcl_loss, ntx_ent_loss
    except ImportError:
        return {}
    results: dict[str, Any] = {}
    for name, module in (("NTXentLoss", ntx_ent_loss), ("DCLLoss", dcl_loss), ("DCLWLoss", dcl_loss)):
        made = [getattr(m, name)(0.2, gather_distributed=True) for m in (losses, module)]
        results[name] = [value_and_gradients(loss, rank) for loss in made]
    mine, theirs = (m.NTXentLoss(0.2, (16, DIM), gather_distributed=True) for m in (losses, ntx_ent_loss))
    theirs.memory_bank.bank.copy_(mine.memory_bank.rows)
    results["bank"] = [value_and_gradients(loss.double(), rank) for loss in (mine, theirs)]
    results["bank_after"] = [[mine.memory_bank.rows], [theirs.memory_bank.bank]]
    return results


class LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.untyped_storage().nbytes() // x.element_size())
        return out


def largest_of_ring(rank: int, samples: int) -> dict[str, int]:
    results = {}
    labels = torch.arange(samples) // 2
    for name, (make, form) in FAMILY.items():
        loss = make(distributed="ring")
        views = torch.randn(3, samples, DIM, requires_grad=True)
        with LargestTensor() as largest:
            form(loss, *views, labels).backward()
        results[name] = largest.elements
    return results


def many_rows(dtype: torch.dtype) -> list[Tensor]:
    """Two views of so many rows that the kernels take several tiles."""
    generator = torch.Generator().manual_seed(4)
    views = functional.normalize(torch.randn(2, 600, 40, generator=generator, dtype=torch.float64), dim=2)
    return [view.to(dtype).requires_grad_() for view in (views[0], functional.normalize(views.sum(dim=0), dim=1))]


MANY: dict[str, Callable[..., Tensor]] = {
    "ntxent": lambda a, b, **options: losses.NTXentLoss(0.005, **options)(a, b),
    "clip": lambda a, b, **options: losses.ClipLoss(**options)(a, b, 200.0),
}


def run_many_rows(rank: int, world: int) -> dict[str, Any]:
    """Each process's share of the rows; the exact gradient is what world_size processes sum, over world_size."""
    results: dict[str, Any] = {}
    for name, form in MANY.items():
        for mode in ("gather", "ring"):
            inputs = many_rows(torch.float32)
            form(*(x.chunk(world)[rank] for x in inputs), distributed=mode).backward()
            results[f"{name}-{mode}"] = [x.grad.chunk(world)[rank] / world for x in inputs]
    return results


def run_gather(rank: int) -> dict[str, Tensor]:
    x = torch.full((2, 3), float(rank), dtype=torch.bfloat16, requires_grad=True)
    rows = gather_with_gradient(x)
    (rows * (rank + 1)).sum().backward()
    return {"rows": rows.detach(), "grad": x.grad}


def run_unequal(rank: int) -> dict[str, str]:
    results = {}
    for name, (make, form) in FAMILY.items():
        for mode in ("gather", "ring"):
            rows = SAMPLES + (rank == 0)
            with pytest.raises(ValueError, match="every process must give the same number of rows") as raised:
                form(make(distributed=mode), *torch.randn(3, rows, DIM), LABELS[:rows])
            results[f"{name}-{mode}"] = str(raised.value)
    return results


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    results: dict[str, Any] = {"many": run_many_rows(rank, world)}
    if world in WORLDS:
        results |= run_all(rank, world)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def run_all(rank: int, world: int) -> dict[str, Any]:
    return {
        "ddp": run_under_ddp(rank, world),
        "open_clip": run_beside_open_clip(rank, world),
        "lightly": run_beside_lightly(rank),
        "gather": run_gather(rank),
        "unequal": run_unequal(rank),
        "largest": largest_of_ring(rank, 500) if world == 4 else {},
    }


# --- what the tests judge


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """What the processes of a world saved, by rank."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    known: dict[int, list[dict[str, Any]]] = {}

    def of(world: int) -> list[dict[str, Any]]:
        if world not in known:
            folder = tmp_path_factory.mktemp(f"world{world}")
            # Imports once, then forks; a fork of this process would have its threads' locks but not its threads.
            multiprocessing.set_forkserver_preload(["pytest", "fastcl.losses", "lightly.loss.dcl_loss"])
            torch.multiprocessing.start_processes(work, (world, str(folder)), world, start_method="forkserver")
            known[world] = [torch.load(folder / f"{rank}.pt") for rank in range(world)]
        return known[world]

    return of


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_ddp_ends_with_the_gradient_of_a_single_process(results, world, case, dtype):
    name, _ = CASES[case]
    want = step(Step(name, dtype), *batch(world, dtype))
    got = [result["ddp"][case, dtype] for result in results(world)]
    tolerance = {"rtol": 1e-10, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    if case in OF_ALL_ROWS:
        for each in got:
            torch.testing.assert_close(each["loss"], want["loss"], **tolerance)
    torch.testing.assert_close(sum(each["loss"] for each in got) / world, want["loss"], **tolerance)
    for each in got:
        assert each.keys() == want.keys()
        for key in want.keys() - {"loss"}:
            torch.testing.assert_close(each[key], want[key], **tolerance)


def check_beside(results: list[dict[str, Any]], peer: str, case: str) -> None:
    if not results[0][peer]:
        pytest.skip(f"peer absent: {peer}")
    for result in results:
        mine, theirs = result[peer][case]
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode", CLIP_MODES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_clip_is_open_clips_in_each_of_its_modes(results, world, mode):
    """Value and gradient on each process, not only what DDP makes of them."""
    check_beside(results(world), "open_clip", f"ClipLoss{list(mode.values())}")


@pytest.mark.parametrize("mode", SIGLIP_MODES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
def test_siglip_is_open_clips_in_each_of_its_modes(results, world, mode):
    check_beside(results(world), "open_clip", f"SigLipLoss{list(mode.values())}")


@pytest.mark.parametrize("case", ["NTXentLoss", "DCLLoss", "DCLWLoss", "bank", "bank_after"])
@pytest.mark.parametrize("world", WORLDS)
def test_gather_distributed_is_lightlys(results, world, case):
    check_beside(results(world), "lightly", case)


@pytest.mark.parametrize("mode", ["gather", "ring"])
@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("world", [*WORLDS, 5])  # from 5 on, what travels is added to twice
def test_many_rows_at_a_low_temperature(results, world, name, mode):
    """float32 over processes against float64 in one, in the largest gradient; rounding a logit makes 200 eps."""
    inputs = many_rows(torch.float64)
    MANY[name](*inputs).backward()
    for index, x in enumerate(inputs):
        got = torch.cat([result["many"][f"{name}-{mode}"][index] for result in results(world)])
        assert (got - x.grad).abs().max() <= 8 * 200 * torch.finfo(torch.float32).eps * x.grad.abs().max()


@pytest.mark.parametrize("mode", ["gather", "ring"])
@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("world", WORLDS)
def test_unequal_rows_are_an_error_on_every_process(results, world, name, mode):
    for rank, result in enumerate(results(world)):
        assert f"from rank {rank}" in result["unequal"][f"{name}-{mode}"]


@pytest.mark.parametrize("name", FAMILY)
def test_ring_holds_nothing_of_the_other_processes_size(results, name):
    """The largest tensor of 500 rows a process: at most three views and what travels with them, not four processes'."""
    for result in results(4):
        assert result["largest"][name] <= max(3 * 500 * DIM + 500, 2 * 2 * 500 * DIM)


@pytest.mark.parametrize("world", WORLDS)
def test_gathered_rows_and_their_gradient(results, world):
    total = world * (world + 1) / 2
    for result in results(world):
        rows, grad = result["gather"]["rows"], result["gather"]["grad"]
        assert rows.dtype == grad.dtype == torch.bfloat16
        assert torch.equal(rows, torch.arange(world).repeat_interleave(2)[:, None].expand(-1, 3).to(rows.dtype))
        assert torch.equal(grad, torch.full((2, 3), total, dtype=grad.dtype))
