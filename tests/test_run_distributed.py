"""The main job by two and three processes (gloo): one process's result, and under torchrun nothing lost with a rank.

``FASTCL_KILLS=10`` kills a rank ten times instead of once (`make test-elastic`).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend", "PIL"):
    pytest.importorskip(package)

from run_helpers import TINY, lasting_metrics, tiny_flags

from fastcl import distributed
from fastcl.checkpoint import load_checkpoint
from fastcl.config import RunConfig, make_config
from fastcl.data import load
from fastcl.errors import CheckpointError, ConfigError, RunError
from fastcl.losses import NTXentLoss
from fastcl.losses.distributed import Distributed
from fastcl.pretrain import Pretraining
from fastcl.run import FILES, run

NEGATIVES: list[Distributed] = ["gather", "ring"]
ROWS_OF_LOSS = 6  # of each process
DTYPES = [torch.float32, torch.float64]
ROWS = [5, 3, 2]  # of each process
KILLS = int(os.environ.get("FASTCL_KILLS", "1"))

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")


def config_of(negatives: str, **changed: Any) -> RunConfig:
    return make_config(TINY | {"negatives": negatives, **changed})


# What is disturbed: long enough to be killed so often.
LONG = config_of("gather", epochs=5 + 10 * (KILLS - 1))


def normalising(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    layer = kind(4).double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return nn.Sequential(layer)


def rows(*shape: int) -> tuple[Tensor, Tensor]:
    """What goes in, far from 0, and the gradient that comes back."""
    generator = torch.Generator().manual_seed(2)
    x, grad = torch.randn(2, sum(ROWS), 4, *shape, generator=generator, dtype=torch.float64)
    return x + 1000, grad


def normalise(model: nn.Module, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Two steps."""
    for _ in range(2):
        x = x.detach().requires_grad_()
        y = model(x)
        model.zero_grad()
        y.backward(grad)
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **{name.rpartition(".")[2]: grad for name, grad in gradients.items()}}


NORMS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {"1d": (nn.BatchNorm1d, ()), "2d": (nn.BatchNorm2d, (3, 3))}


def losses_of(config: RunConfig, folder: Path, dtype: torch.dtype, stop: bool = False) -> list[float]:
    """Of pretraining alone; in float64 what is left of the order of sums is far below what training magnifies."""
    torch.set_default_dtype(dtype)
    try:
        training = Pretraining(load("digits", limit=200).train_images, config)
        training._project.register_forward_pre_hook(lambda _, views: (views[0].to(dtype),))
        training.run(folder / "checkpoint", {}, lambda _: None, lambda: stop)
    finally:
        torch.set_default_dtype(torch.float32)
    return training.losses


# --- what the processes run


def errors_of(rank: int) -> dict[str, str]:
    def fail() -> None:
        raise CheckpointError("it is damaged")

    results = {}
    cases: dict[str, Callable[[], Any]] = {
        "first": lambda: distributed.on_first(fail),
        "same": lambda: distributed.check_same("data", "abc" if rank < 2 else "abd"),
        "batch": lambda: Pretraining(load("digits", limit=200).train_images, make_config(TINY)),
    }
    for name, case in cases.items():
        with pytest.raises((CheckpointError, ConfigError, RunError)) as raised:
            case()
        results[name] = str(raised.value)
    return results


def received_by_loss(negatives: Distributed) -> tuple[int, int]:
    """Bytes that the loss receives from others, forward and backward; gathered gradients only NCCL scatters."""
    received = [0]

    def all_gather(out: Tensor, own: Tensor) -> None:
        received[-1] += (out.numel() - own.numel()) * out.element_size()
        dist.all_gather_single(out, own)

    def batch(operations: list[dist.P2POp]) -> Any:
        received[-1] += sum(each.tensor.nbytes for each in operations if each.op is dist.irecv)
        return dist.batch_isend_irecv(operations)

    counted = SimpleNamespace(**{**vars(dist), "all_gather_single": all_gather, "batch_isend_irecv": batch})
    views = torch.randn(2, ROWS_OF_LOSS // 2, 5, requires_grad=True)
    with mock.patch("fastcl.losses.distributed.dist", counted):
        loss = NTXentLoss(0.2, distributed=negatives)(*views)
        received.append(0)
        loss.backward()
    return received[0], received[1]


def work_of_three(rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {"errors": errors_of(rank), "told": distributed.on_first(lambda: f"by {rank}")}
    results["received"] = {negatives: received_by_loss(negatives) for negatives in NEGATIVES}
    for name, (kind, shape) in NORMS.items():
        model = normalising(kind)
        x, grad = (whole.split(ROWS)[rank] for whole in rows(*shape))
        results[name] = normalise(distributed.as_one(model), x, grad)
        results[name] |= {"state": model.state_dict(), "alone": model.eval()(x).detach()}
    return results


def work_of_two(rank: int, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {
        negatives: {dtype: losses_of(config_of(negatives), folder, dtype) for dtype in DTYPES}
        for negatives in NEGATIVES
    }
    results["received"] = {negatives: received_by_loss(negatives) for negatives in NEGATIVES}
    results["local"] = losses_of(config_of("local"), folder, torch.float32, stop=rank == 1)
    for negatives in NEGATIVES:  # a folder that the second process does not see: as on another machine
        out = folder / negatives if rank == 0 else folder / "not there"
        results[f"{negatives} metrics"] = run(config_of(negatives), out)
    if KILLS > 1:
        run(LONG, folder / "undisturbed" if rank == 0 else folder / "not there")
    results["again"] = run(config_of("gather"), folder / "gather" if rank == 0 else folder / "not there", resume=True)
    return results


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timedelta(seconds=100)
    )
    results = work_of_two(rank, Path(folder)) if world == 2 else work_of_three(rank)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def start(world: int, folder: Path) -> list[dict[str, Any]]:
    """What the processes saved, by rank."""
    # Imports once, then forks.
    preload = ["pytest", "fastcl.run", "sklearn.linear_model", "sklearn.neighbors", "matplotlib.pyplot", "mlxtend.data"]
    multiprocessing.set_forkserver_preload([*preload, "torch._dynamo", "torch.distributed.rpc"])
    torch.multiprocessing.start_processes(work, (world, str(folder)), world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two")
    return folder, start(2, folder)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return start(3, tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[torch.dtype, list[float]]]:
    """Metrics and losses of one process."""
    folder = tmp_path_factory.mktemp("one")
    run(make_config(TINY), folder / "out")
    return lasting_metrics(folder / "out"), {dtype: losses_of(make_config(TINY), folder, dtype) for dtype in DTYPES}


# --- what the tests judge


@pytest.mark.parametrize("name", NORMS)
def test_batch_normalisation_over_processes_is_that_of_the_whole_batch(three, name):
    """Outputs, gradients and running statistics, with other numbers of rows on each process."""
    kind, shape = NORMS[name]
    model = normalising(kind)
    x, grad = rows(*shape)
    want = normalise(model, x, grad)
    shares = zip(three, *(whole.split(ROWS) for whole in (x, want["y"], want["x"])), strict=True)
    for result, own, own_y, own_grad in shares:
        got = result[name]
        for key, wanted in {"y": own_y, "x": own_grad, "weight": want["weight"] / 3, "bias": want["bias"] / 3}.items():
            torch.testing.assert_close(got[key], wanted, rtol=1e-12, atol=1e-11)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(got["state"][key], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got["alone"], model.eval()(own), rtol=1e-12, atol=1e-11)


def test_what_goes_wrong_on_the_first_process_ends_all(three):
    for rank, result in enumerate(three):
        assert result["told"] == "by 0"
        expected = "it is damaged" if rank == 0 else f"process {rank} stopped with the first: it is damaged"
        assert result["errors"]["first"] == expected
        assert result["errors"]["same"] == "data: expected the same on all processes; rank [2] differ from rank 0"
        assert result["errors"]["batch"] == "batch_size: expected a multiple of the 3 processes, got 40"


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64"])
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_two_processes_give_the_losses_of_one(two, alone, negatives, dtype):
    """Step by step; sums come in another order, and training magnifies the difference a thousandfold in 20 steps."""
    first, second = (torch.tensor(result[negatives][dtype], dtype=torch.float64) for result in two[1])
    want = torch.tensor(alone[1][dtype], dtype=torch.float64)
    assert torch.equal(first, second)
    error = (first / want - 1).abs()
    assert error[0] <= 64 * torch.finfo(dtype).eps
    assert error.max() <= 20_000 * torch.finfo(dtype).eps


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_two_processes_give_the_metrics_of_one(two, alone, negatives):
    """Accuracies may differ by one of the 40 held-out digits."""
    folder, results = two
    metrics = lasting_metrics(folder / negatives)
    assert metrics.keys() == alone[0].keys()
    for key, want in alone[0].items():
        within = 0.0251 if key.endswith("accuracy") else 1e-3 * want if key == "final_loss" else 1e-3
        assert metrics[key] == pytest.approx(want, abs=within), key
    for result in results:
        assert result[f"{negatives} metrics"] == json.loads((folder / negatives / "metrics.json").read_text())
    assert results[1]["again"] == results[0]["gather metrics"]
    assert not (folder / "not there").exists()


def test_local_negatives_are_another_loss_and_one_asked_to_stop_stops_all(two, alone):
    folder, results = two
    assert [len(result["local"]) for result in results] == [1, 1]
    assert results[0]["local"] == results[1]["local"]
    training = Pretraining(load("digits", limit=200).train_images, config_of("local"))
    training.restore(folder / "checkpoint")  # one process goes on where two have stopped
    assert training.run(folder / "checkpoint", {}, lambda _: None, lambda: False)
    assert training.losses[:1] == results[0]["local"]
    assert len(training.losses) == 20
    assert results[0]["local"][0] < alone[1][torch.float32][0] - 0.3  # half as many negatives: log 2 less


def test_the_loss_sends_what_the_scaling_page_computes(two, three):
    scaling = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "scaling.py"))
    for world, results in ((2, two[1]), (3, three)):
        for result in results:
            assert result["received"]["ring"] == scaling["ring_bytes"](ROWS_OF_LOSS, 5, world, 4)
            assert result["received"]["gather"][0] == scaling["gather_bytes"](ROWS_OF_LOSS, 5, world, 4)[0]


def workers_of(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(pid) for pid in children.read_text().split()]


def wait_for(condition: Callable[[], Any], launcher: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not condition() and launcher.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_rank_killed_at_random_leaves_the_result_as_it_was(two, tmp_path):
    """torchrun starts all anew, and they go on from the last checkpoint: the same bits."""
    out, log, moments = tmp_path / "out", tmp_path / "log", random.Random()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={KILLS}", "-m", "fastcl", "run", *tiny_flags(epochs=LONG.epochs), f"--out={out}"]
    steps = sorted(moments.randrange(1, 4 * LONG.epochs - 2) for _ in range(KILLS))
    killed: list[tuple[str, int]] = []
    old: set[int] = set()  # processes of earlier starts

    def has_come_to(step: int) -> bool:
        checkpoint = out / FILES["checkpoint"]
        return checkpoint.exists() and load_checkpoint(checkpoint)[1]["step"] >= step

    with (
        log.open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True) as launcher,
    ):
        try:
            for kill, step in enumerate(steps):
                wait_for(lambda: len(set(workers_of(launcher.pid)) - old) == 2, launcher)
                workers = sorted(set(workers_of(launcher.pid)) - old)
                old.update(workers)
                at_step = (KILLS - kill) % 2 == 1
                if at_step:  # in training
                    wait_for(lambda step=step: has_come_to(step), launcher)
                    time.sleep(moments.random() * 0.05)
                else:  # anywhere: imports, joining, training, evaluation
                    time.sleep(moments.random() * 8)
                assert launcher.poll() is None, log.read_text()
                rank = moments.randrange(2)
                os.kill(workers[rank], signal.SIGKILL)
                killed.append((f"step {step}" if at_step else "any moment", rank))
            code = launcher.wait(timeout=300)
        finally:
            launcher.terminate()
    text = log.read_text()
    assert code == 0, text
    print(f"{len(killed)} kills (when, the rank): {killed}")
    undisturbed = two[0] / ("undisturbed" if KILLS > 1 else "gather")
    assert lasting_metrics(out) == lasting_metrics(undisturbed), killed
    assert (out / FILES["encoder"]).read_bytes() == (undisturbed / FILES["encoder"]).read_bytes()
    assert "resumed at step" in text
    assert 1 <= text.count("report: ") <= KILLS
    assert 1 <= text.count(f"epoch {LONG.epochs:>3}/{LONG.epochs}") <= KILLS
