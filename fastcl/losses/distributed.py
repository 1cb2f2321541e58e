"""Losses over the rows of all processes of ``torch.distributed``, with exact gradients.

A loss asked for ``distributed="gather"`` or ``"ring"`` compares the rows of its own process with those of all. Each
process gets the loss L_r of its own rows (with reduction ``"mean"``, the mean over the processes is the loss of
the whole batch), and backward gives, to the embeddings of process r, the gradient of Σ_s L_s. DDP averages
the gradients of the parameters over the W processes, and (Σ_s L_s) / W is the loss of the whole batch: so
what DDP ends with equals the gradient in a single process. (With reduction ``"sum"`` it is 1/W of that of the sum.)

``"gather"`` collects all keys on every process: memory O(N·D) for the N rows of all processes. ``"ring"`` passes the
keys from process to process, and in backward once more together with their gradients: memory O(N/W·D), the next keys
travelling while the present ones are multiplied. Where queries and keys are the same rows (all losses but InfoNCE, CLIP
and SigLIP), they travel half the way, and the products are half as many. Both are written for gloo and NCCL, in the
default process group.

Every process must give the same number of rows (on the CPU they are asked, and else there is an error; on CUDA the host
would have to wait for that), and every process must call backward where one does. Outside
``torch.distributed``, or with one process, both are the loss of the process's own rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from fastcl.losses.pairwise import Blocks, add_at, softplus_sums_backward, softplus_sums_forward
from fastcl.ops import similarity_lse
from fastcl.ops.checks import check_precision, check_scale
from fastcl.ops.registry import op

Distributed = Literal["gather", "ring"]


def check_distributed(owner: str, distributed: Distributed | None) -> Distributed | None:
    """Wants one of the two, or ``None``."""
    if distributed is not None and distributed not in get_args(Distributed):
        raise ValueError(
            f"{owner}: distributed must be None or one of {', '.join(get_args(Distributed))}, got {distributed!r}"
        )
    if distributed is not None and not dist.is_available():
        raise ValueError(
            f"{owner}: distributed={distributed!r} needs a torch with torch.distributed, which this is not"
        )
    return distributed


def gathered(owner: str, gather_distributed: bool, distributed: Distributed | None) -> Distributed | None:
    """What lightly's ``gather_distributed`` and ``distributed`` come to."""
    if gather_distributed and distributed == "ring":
        raise ValueError(f"{owner}: gather_distributed=True is distributed='gather', got distributed='ring' as well")
    return "gather" if gather_distributed else distributed


_is_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, this process is a world of its own: for what one process does while the others wait."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside torch.distributed."""
    if _is_alone or not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _is_shared(distributed: Distributed | None) -> bool:
    return distributed is not None and world()[1] > 1


def _check_equal_rows(x: Tensor) -> None:
    """Wants as many rows from every process; on the CPU alone, where asking costs no more than a short message."""
    if x.device.type != "cpu":
        return
    count = torch.tensor([x.shape[0], -x.shape[0]])
    dist.all_reduce(count, dist.ReduceOp.MAX)
    most, fewest = int(count[0]), -int(count[1])
    if fewest != most:
        raise ValueError(
            f"losses over processes: every process must give the same number of rows, got {fewest} to {most}, "
            f"{x.shape[0]} from rank {world()[0]}"
        )


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes, by rank, [world * N, ...]; without a gradient."""
    _check_equal_rows(x)
    return _gather(x)


def _gather(x: Tensor) -> Tensor:
    _, size = world()
    out = x.new_empty(size * x.shape[0], *x.shape[1:])
    dist.all_gather_single(out, x.detach().contiguous())
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rank, size = world()
        total = grad.float() if grad.dtype in (torch.float16, torch.bfloat16) else grad.clone()
        if total.is_cuda and "nccl" in dist.get_backend_config():
            own = total.new_empty(total.shape[0] // size, *total.shape[1:])
            dist.reduce_scatter_single(own, total.contiguous())
        else:
            dist.all_reduce(total)
            own = total.chunk(size)[rank]
        return own.to(grad.dtype)


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows of all processes, by rank, [world * N, ...]; backward sums the gradients that all have for ``x``."""
    _check_equal_rows(x)
    rows: Tensor = _Gather.apply(x)
    return rows


class _MeanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return mean_of_all(grad)


def with_mean_gradient(x: Tensor) -> Tensor:
    """``x`` itself; backward gives every process the mean of the gradients of all."""
    same: Tensor = _MeanGradient.apply(x)
    return same


def sum_of_all(x: Tensor) -> Tensor:
    """The sum over the processes, without a gradient."""
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


def mean_of_all(x: Tensor) -> Tensor:
    """The mean over the processes, without a gradient."""
    return sum_of_all(x) / world()[1]


def _pass_on(x: Tensor, by: int = 1) -> Callable[[], Tensor]:
    """Starts sending x that many processes on; what is returned waits for what comes here by that, and gives it."""
    rank, size = world()
    x = x.contiguous()
    received = torch.empty_like(x)
    to, source = (rank + by) % size, (rank - by) % size
    works = dist.batch_isend_irecv([dist.P2POp(dist.isend, x, to), dist.P2POp(dist.irecv, received, source)])

    def wait() -> Tensor:
        for work in works:
            work.wait()
        return received

    return wait


def _around(keys: Tensor, steps: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yields (rank of the owner, its keys), first one's own; the next keys travel while the caller works on these.

    ``steps`` is how far they travel; ``None``: to every process.
    """
    rank, size = world()
    steps = size - 1 if steps is None else steps
    for step in range(steps + 1):
        following = _pass_on(keys) if step < steps else None
        yield (rank - step) % size, keys
        if following is not None:
            keys = following()


class _RingLse(torch.autograd.Function):
    """similarity_lse of own queries against the keys of all, and of own keys (columns) against the queries of all."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, scale: Tensor, group: Tensor, groups: int, columns: bool, precision: str
    ) -> tuple[Tensor, Tensor]:
        lse = op("similarity_lse", q)
        own_group = group + world()[0] * groups
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        row = q.new_full((q.shape[0],), float("-inf"), dtype=dtype)
        col = q.new_full((k.shape[0] if columns else 0,), float("-inf"), dtype=dtype)
        for owner, keys in _around(k):
            part_row, part_col, _ = lse(q, keys, scale, own_group, group + owner * groups, columns, precision)
            row = torch.logaddexp(row, part_row)
            if columns:  # these travel with the keys, and home after the last step
                col = _pass_on(torch.logaddexp(col, part_col))()
        ctx.save_for_backward(q, k, scale, group, row, col)
        ctx.groups, ctx.columns, ctx.precision = groups, columns, precision
        ctx.lse_backward = op("similarity_lse_backward", q)  # of the backend that is in force now
        return row, col

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_row: Tensor, grad_col: Tensor) -> tuple[Tensor | None, ...]:
        q, k, scale, group, row, col = ctx.saved_tensors
        own_group = group + world()[0] * ctx.groups
        grad_q = torch.zeros_like(q, dtype=row.dtype)
        grad_k = torch.zeros_like(k, dtype=row.dtype)
        grad_scale = torch.zeros_like(scale)
        cols = torch.stack([grad_col, col])
        for owner, keys in _around(k):
            # The log-sum-exps over all processes in place of this block's own: its share of the whole gradient.
            part_q, part_k, part_scale = ctx.lse_backward(
                grad_row, cols[0], q, keys, scale, own_group, group + owner * ctx.groups, row, cols[1], True, True,
                ctx.precision,
            )  # fmt: skip
            grad_q += part_q
            grad_scale += part_scale
            grad_k = _pass_on(grad_k + part_k)()
            if ctx.columns:
                cols = _pass_on(cols)()
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_scale, None, None, None, None


class _HalfRingLse(torch.autograd.Function):
    """As _RingLse where queries and keys are the same rows: the block of two processes is formed by one of them.

    Keys travel half the way around. A block gives its rows' log-sum-exps here and its columns' to the keys' owner;
    where the number of processes is even, the two that are opposite each form their own rows of their block.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: Tensor, group: Tensor, groups: int, precision: str) -> Tensor:
        lse = op("similarity_lse", z)
        rank, size = world()
        own_group, shared = group + rank * groups, (size - 1) // 2
        row, theirs, _ = lse(z, None, scale, group, None, False, precision)
        for distance, (owner, keys) in enumerate(_around(z, size // 2)):
            if distance == 0:
                continue
            part, columns, _ = lse(z, keys, scale, own_group, group + owner * groups, distance <= shared, precision)
            row = torch.logaddexp(row, part)
            if distance <= shared:  # collected on the way of the keys
                theirs = columns if distance == 1 else torch.logaddexp(_pass_on(theirs)(), columns)
        if shared:
            row = torch.logaddexp(row, _pass_on(theirs, -shared)())
        ctx.save_for_backward(z, scale, group, row)
        ctx.groups, ctx.precision = groups, precision
        ctx.lse_backward = op("similarity_lse_backward", z)  # of the backend that is in force now
        return cast(Tensor, row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_row: Tensor) -> tuple[Tensor | None, ...]:
        z, scale, group, row = ctx.saved_tensors
        rank, size = world()
        own_group, shared, none = group + rank * ctx.groups, (size - 1) // 2, row.new_empty(0)
        grad, theirs, grad_scale = ctx.lse_backward(
            grad_row, none, z, None, scale, group, None, row, none, True, False, ctx.precision
        )
        rows = _around(torch.stack([grad_row, row]), shared)
        for distance, (owner, keys) in enumerate(_around(z, size // 2)):
            grad_col, col = next(rows)[1] if distance <= shared else (none, none)
            if distance == 0:
                continue
            part, part_theirs, part_scale = ctx.lse_backward(
                grad_row, grad_col, z, keys, scale, own_group, group + owner * ctx.groups, row, col, True, True,
                ctx.precision,
            )  # fmt: skip
            grad, grad_scale = grad + part, grad_scale + part_scale
            theirs = part_theirs if distance == 1 else _pass_on(theirs)() + part_theirs
        return grad + _pass_on(theirs, -(size // 2))(), grad_scale, None, None, None


def lse_of_all(
    q: Tensor,
    k: Tensor,
    scale: float | Tensor,
    group: Tensor,
    groups: int,
    *,
    distributed: Distributed | None = None,
    precision: str | None = None,
) -> Tensor:
    """Log-sum-exp of each own row of ``q`` over the keys of all processes, pairs of equal group left out.

    Args:
        q: own queries [N, D].
        k: own keys [N, D]; ``q`` itself where they are the same.
        scale: 1 / temperature.
        group: of each own row and of each own key, int64 [N], in [0, groups); other processes' are others.
        groups: the number of groups of a process.
        distributed: how the keys of other processes come here; ``None``: they are not asked.
        precision: see :func:`fastcl.ops.similarity_lse`.

    Returns:
        [N], float32 or float64.
    """
    rank, size = world()
    if not _is_shared(distributed):
        same = q is k
        row = similarity_lse(
            q,
            None if same else k,
            scale,
            q_group=group,
            k_group=None if same else group,
            precision=precision,
        )
    elif distributed == "gather":
        k_group = (group + groups * torch.arange(size, device=group.device)[:, None]).reshape(-1)
        q_group = group + groups * rank
        keys = gather_with_gradient(k)
        row = similarity_lse(q, keys, scale, q_group=q_group, k_group=k_group, precision=precision)
    else:
        row, _ = ring_lse(q, k, scale, group, groups, precision=precision)
    return row


def ring_lse(
    q: Tensor,
    k: Tensor,
    scale: float | Tensor,
    group: Tensor,
    groups: int,
    *,
    columns: bool = False,
    precision: str | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`lse_of_all` by ring, and with ``columns`` also of each own key over the queries of all processes."""
    _check_equal_rows(k)
    scale, precision = check_scale("ring_lse", scale, q), check_precision("ring_lse", precision)
    if q is k:
        row = _HalfRingLse.apply(q, scale, group, groups, precision)
        return row, row
    lse: tuple[Tensor, Tensor] = _RingLse.apply(q, k, scale, group, groups, columns, precision)
    return lse


def _sums_of_equals(label: Tensor, keys: Tensor, key_label: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the keys [P, D] of each own row's label [N, D], and how many they are [N]; labels [N] and [P]."""
    n = label.shape[0]
    group = dense_groups(torch.cat([label, key_label]))
    sums = add_at(group[n:], keys, group.shape[0])
    counts = add_at(group[n:], torch.ones_like(key_label), group.shape[0])
    return sums[group[:n]], counts[group[:n]]


class _SumsOfEquals(torch.autograd.Function):
    """Multiplies the keys by the matrix of equal labels, backward by its transpose; ``label`` is ``None`` where it is
    the keys' own."""

    @staticmethod
    def forward(ctx: Any, keys: Tensor, key_label: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        label = key_label if label is None else label
        sums, counts = _sums_of_equals(label, keys, key_label)
        ctx.save_for_backward(label, key_label)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        label, key_label = ctx.saved_tensors
        return _sums_of_equals(key_label, grad, label)[0], None, None


class _RingSumsOfEquals(torch.autograd.Function):
    """As _SumsOfEquals with the keys of all processes: their matrix is symmetric, so that backward is forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        sums, counts = _ring_sums_of_equals(x, label)
        ctx.save_for_backward(label)
        ctx.mark_non_differentiable(counts)
        return sums, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (label,) = ctx.saved_tensors
        return _ring_sums_of_equals(grad, label)[0], None


def _ring_sums_of_equals(x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    labels = _around(label)
    sums, counts = torch.zeros_like(x), torch.zeros_like(label)
    for _, keys in _around(x):
        more_sums, more_counts = _sums_of_equals(label, keys, next(labels)[1])
        sums, counts = sums + more_sums, counts + more_counts
    return sums, counts


def lse_and_sums_of_label(
    x: Tensor, label: Tensor, scale: float | Tensor, *, distributed: Distributed | None, precision: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a supervised loss needs of the rows of all processes; with ``"gather"`` they travel once for both.

    Args:
        x: own rows [N, D].
        label: of each, int64 [N].
        scale: 1 / temperature.
        distributed: as in :func:`lse_of_all`.
        precision: see :func:`fastcl.ops.similarity_lse`.

    Returns:
        The log-sum-exp of each own row over all rows but itself [N]; for each own row the sum of the rows of its label,
        its own included [N, D]; how many rows that is of, int64 [N].
    """
    count = x.shape[0]
    number = torch.arange(count, device=x.device)
    if _is_shared(distributed) and distributed == "gather":
        keys, key_label = gather_with_gradient(x), _gather(label)
        every = torch.arange(len(keys), device=x.device)
        own = number + count * world()[0]
        lse = similarity_lse(x, keys, scale, q_group=own, k_group=every, precision=precision)
        sums, counts = _SumsOfEquals.apply(keys, key_label, label)
        return lse, sums, counts
    lse = lse_of_all(x, x, scale, number, count, distributed=distributed, precision=precision)
    if _is_shared(distributed):
        sums, counts = _RingSumsOfEquals.apply(x, label)
    else:
        sums, counts = _SumsOfEquals.apply(x, label, None)
    return lse, sums, counts


def dense_groups(label: Tensor) -> Tensor:
    """Numbers equal labels [N] alike, from 0 up, int64 [N]; shapes do not depend on the labels."""
    ordered, order = label.sort(stable=True)
    number = torch.zeros_like(order)
    number[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    return torch.zeros_like(order).scatter(0, order, number)


class _RingSoftplusSums(torch.autograd.Function):
    """softplus_sums of own queries against the keys of all processes; ``blocks`` takes the owner's rank."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, scale: Tensor, offset: Tensor, blocks: Callable[[int], Blocks]
    ) -> Tensor:
        ctx.save_for_backward(q, k, scale, offset)
        ctx.blocks = blocks
        sums = torch.zeros_like(offset)
        for owner, keys in _around(k):
            sums += softplus_sums_forward(q, keys, scale, offset, blocks(owner))
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, scale, offset = ctx.saved_tensors
        grad_q, grad_k, grad_offset = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(offset)
        grad_scale = torch.zeros_like(scale)
        for owner, keys in _around(k):
            parts = softplus_sums_backward(grad, q, keys, scale, offset, ctx.blocks(owner))
            grad_q += parts[0]
            grad_k = _pass_on(grad_k + parts[1])()
            grad_scale += parts[2]
            grad_offset += parts[3]
        return grad_q, grad_k, grad_scale, grad_offset, None


def ring_softplus_sums(q: Tensor, k: Tensor, scale: Tensor, offset: Tensor, blocks: Callable[[int], Blocks]) -> Tensor:
    """:func:`fastcl.losses.pairwise.softplus_sums` over the keys of all processes."""
    _check_equal_rows(k)
    sums: Tensor = _RingSoftplusSums.apply(q, k, scale, offset, blocks)
    return sums
