"""``fastcl compress``: smaller encoders from that of a finished run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fastcl.errors import ConfigError, require_run_extra
from fastcl.progress import Reporter

__all__ = ["compress"]


def compress(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    target_size: Annotated[int | None, typer.Option(help="Largest file of the encoder to choose, bytes.")] = None,
    target_latency: Annotated[
        float | None, typer.Option(help="Longest time for a batch by the encoder to choose, ms.")
    ] = None,
    latency_batch: Annotated[int, typer.Option(help="Images in that batch: 1 or 256.")] = 1,
    epochs: Annotated[int, typer.Option(help="Of each distillation.")] = 10,
    prune: Annotated[
        list[float] | None, typer.Option(help="Share of channels to prune, once for each rung. (default: 0.3, 0.5)")
    ] = None,
    student: Annotated[
        list[int] | None,
        typer.Option(help="Width of a student, once for each rung. (default: 1/2, 1/3 and 1/4 of the encoder's)"),
    ] = None,
) -> None:
    """Make smaller encoders without labels: pruned ones and narrow students, distilled, in int8.

    Shows what each costs and keeps, here and in the run's report. With a target, only what can meet it is trained, and
    the encoder that agrees most with the run's own becomes encoder_compressed.safetensors. Stopped, the same command
    goes on.
    """
    require_run_extra()
    from fastcl import run as job
    from fastcl.compress.ladder import LadderConfig

    try:
        config = LadderConfig(
            prune=tuple(prune) if prune else LadderConfig.prune,
            widths=tuple(student) if student else None,
            epochs=epochs,
            target_bytes=target_size,
            target_latency_ms=target_latency,
            latency_batch=latency_batch,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    console = Console()
    try:
        ladder = job.compress(run, config, reporter=Reporter(console))
    except KeyboardInterrupt as stopped:
        how = shlex.join(["fastcl", *sys.argv[1:]])
        console.print(f"stopped; to go on: {how}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(getattr(stopped, "exit_code", 130)) from None
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for column in ("linear probe", "k-NN", "same neighbours", "file", "smaller", "1 image", "256 images"):
        table.add_column(column, justify="right")
    largest = ladder["float32"].bytes
    for rung in ladder.rungs:
        shares = [rung.linear_probe, rung.knn, rung.agreement]
        table.add_row(
            rung.name,
            *("–" if share is None else f"{100 * share:.1f} %" for share in shares),
            f"{rung.bytes / 1000:,.1f} kB",
            f"{largest / rung.bytes:.1f}×",
            *(f"{ms:.2f} ms" for ms in rung.latency_ms.values()),
            style="bold" if rung.name == ladder.chosen else "" if rung.meets_target else "dim",
        )
    console.print(table)
    if ladder.chosen is not None:
        chosen = f"chosen: {ladder.chosen}, now {run / job.FILES['compressed_encoder']}"
        console.print(chosen, highlight=False, markup=False, soft_wrap=True)
    console.print(f"report: {run / job.FILES['report']}", highlight=False, markup=False, soft_wrap=True)
