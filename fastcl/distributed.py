"""A run by many processes, as ``torchrun`` starts them: what all agree on, and a model that learns as one.

Each process takes its share of every batch. The first (rank 0) alone touches the run's folder, evaluates and reports;
what it finds there, and its errors, are told to the others. With one process every function here does the obvious.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fastcl.errors import ConfigError, RunError
from fastcl.losses.distributed import alone, world

__all__ = [
    "as_one",
    "check_same",
    "is_first",
    "joined",
    "mean_of_all",
    "on_first",
    "one_at_first",
    "restarted",
    "world",
]

Result = TypeVar("Result")

_TO_MEET = timedelta(minutes=5)
# The others wait while the first evaluates; that a machine is gone torchrun notices, not this.
_TO_WAIT = timedelta(days=7)
_CPU = torch.device("cpu")


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, where it did; gloo on the CPU, NCCL on GPUs.

    Args:
        device: ``"cpu"`` or ``"cuda"``; of the latter, each process on a machine takes its own.

    Raises:
        ConfigError: for a GPU where there is none.
    """
    if device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"device: expected cpu, or a GPU for each process: this is process {local} on a machine with "
                f"{torch.cuda.device_count()} that torch can use"
            )
        torch.cuda.set_device(local)
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ
    if not launched or dist.is_initialized():
        yield
        return
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    store, rank, size = next(dist.rendezvous("env://", timeout=_TO_MEET))  # type: ignore[attr-defined]
    # torchrun keeps its store over restarts, and what processes that are dead wrote there would be taken for new.
    store = dist.PrefixStore(f"start {_starts_before()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TO_MEET)
    group: Any = dist.group.WORLD
    group.set_timeout(_TO_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that speaks for all; also before they have joined."""
    joined_already = dist.is_available() and dist.is_initialized()
    return (world()[0] if joined_already else int(os.environ.get("RANK", "0"))) == 0


def restarted() -> bool:
    """Whether ``torchrun`` started this anew, after a process failed."""
    return _starts_before() > 0


def _starts_before() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def on_first(function: Callable[[], Result]) -> Result:
    """What ``function`` returns on the first process, on all of them; what it calls sees that process alone.

    Raises:
        RunError: on the others, where it raises on the first.
    """
    rank, size = world()
    if size == 1:
        return function()
    told: list[Any] = [None, None]  # result, error
    if rank == 0:
        try:
            with alone():
                told[0] = function()
        except BaseException as error:
            dist.broadcast_object_list([None, str(error) or type(error).__name__], device=_CPU)
            raise
    dist.broadcast_object_list(told, device=_CPU)
    if told[1] is not None:
        raise RunError(f"process {rank} stopped with the first: {told[1]}")
    result: Result = told[0]
    return result


def mean_of_all(value: float) -> float:
    """The mean over the processes."""
    size = world()[1]
    if size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item() / size


def check_same(name: str, value: str) -> None:
    """Wants the same value from every process.

    Raises:
        ConfigError: names the processes that differ from the first.
    """
    size = world()[1]
    values: list[Any] = [value] * size
    if size > 1:
        dist.all_gather_object(values, value)
    others = [rank for rank, other in enumerate(values) if other != values[0]]
    if others:
        raise ConfigError(f"{name}: expected the same on all processes; rank {others} differ from rank 0")


@contextlib.contextmanager
def one_at_first() -> Iterator[None]:
    """Lets the first process of each machine through before its others, which then find what it left on the disk."""
    waits = int(os.environ.get("LOCAL_RANK", "0")) > 0
    if world()[1] == 1:
        yield
        return
    if waits:
        dist.barrier()
    yield
    if not waits:
        dist.barrier()


def as_one(module: nn.Module) -> nn.Module:
    """The module, such that training it on shares of a batch is training it on the whole batch.

    Batch normalisation takes the statistics of all processes, gradients are averaged. Parameters and buffers stay the
    module's own, and the module itself still works in one process alone.
    """
    if world()[1] == 1:
        return module
    tensors = [*module.parameters(), *module.buffers()]
    shared = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    if tensors[0].is_cuda:
        shared = nn.SyncBatchNorm.convert_sync_batchnorm(shared)
    else:
        for name, layer in list(shared.named_modules()):
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                shared.set_submodule(name, _SyncBatchNorm(layer))
    return nn.parallel.DistributedDataParallel(shared, gradient_as_bucket_view=True)


class _SyncBatchNorm(nn.Module):
    """Batch normalisation in training by the mean and variance over all processes; torch's own is for GPUs alone."""

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        """Shares the layer's parameters and buffers; ``momentum`` must be a number."""
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [N, C] or [N, C, H, W], of as many or other N on every process."""
        layer: Any = self.layer
        y, mean, var, count = _NormalizedByAll.apply(x, layer.weight, layer.bias, layer.eps)
        with torch.no_grad():
            layer.running_mean.lerp_(mean, layer.momentum)
            layer.running_var.lerp_(var * count / (count - 1), layer.momentum)
            layer.num_batches_tracked += 1
        return y  # type: ignore[no-any-return]


class _NormalizedByAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        own = torch.stack([mean, var, torch.full_like(mean, x.numel() / x.shape[1])])[None]
        every = own.new_empty(world()[1], *own.shape[1:])
        dist.all_gather_single(every, own)
        # Variances around each process's own mean, then put together: nothing cancels.
        means, variances, counts = every.unbind(1)
        count = counts.sum(0)
        share = counts / count
        mean = (share * means).sum(0)
        var = (share * (variances + (means - mean).square())).sum(0)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, count)
        return functional.batch_norm(x, mean, var, weight, bias, eps=eps), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        # As if mean and variance were constants; then the part that goes through them, which has a share of all rows.
        through_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([grad_weight, grad_bias])
        dist.all_reduce(sums)
        inverse = (var + ctx.eps).rsqrt()
        of_x, constant = sums * (weight * inverse / count)
        of_x = of_x * inverse
        constant = constant - of_x * mean
        shape = [1, -1, *[1] * (x.dim() - 2)]
        return through_x - torch.addcmul(constant.view(shape), x, of_x.view(shape)), grad_weight, grad_bias, None
