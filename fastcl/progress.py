"""What a run shows while it works: stages, and a progress bar with loss, samples a second and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from fastcl.pretrain import Pretraining

__all__ = ["Reporter"]


class Reporter:
    """Shows progress on a console; where that is no terminal, a line after every epoch instead of a bar."""

    def __init__(self, console: Console | None = None) -> None:
        """Shows nothing without a console."""
        self._console = console or Console(quiet=True)

    def stage(self, name: str) -> None:
        """A new stage of the job begins."""
        self._console.print(f"[bold]▸ {name}[/bold]", highlight=False)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def training(self, training: Pretraining) -> Iterator[Callable[[Pretraining], None]]:
        """Gives the function to call after every step."""
        if not self._console.is_terminal:
            yield self._line_after_epoch
            return
        columns = (
            TextColumn("  epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn(f"loss {{task.fields[loss]}}  {{task.fields[speed]}} {training.kind}/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(
                "", total=training.steps, completed=training.step, epoch="", loss="–", speed="–"
            )  # fmt: skip

            def on_step(now: Pretraining) -> None:
                epoch = min(now.epoch + 1, now.epochs)
                progress.update(
                    task, completed=now.step, epoch=f"{epoch}/{now.epochs}", loss=f"{now.recent_loss:.3f}",
                    speed=f"{now.images_per_second:,.0f}",
                )  # fmt: skip

            yield on_step

    @contextlib.contextmanager
    def steps(self, name: str) -> Iterator[Callable[[int, int, float], None]]:
        """Gives the function to call after every step of a smaller training: its number, of how many, and the loss."""
        if not self._console.is_terminal:

            def line_at_the_end(step: int, steps: int, loss: float) -> None:
                if step == steps:
                    self.note(f"{name}: {steps:,} steps, loss {loss:.3f}")

            yield line_at_the_end
            return
        columns = (
            TextColumn(f"  {name}"), BarColumn(bar_width=None), TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("", total=None, loss="–")

            def on_step(step: int, steps: int, loss: float) -> None:
                progress.update(task, completed=step, total=steps, loss=f"{loss:.3f}")

            yield on_step

    def _line_after_epoch(self, now: Pretraining) -> None:
        if now.step % now.steps_per_epoch == 0:
            left = (now.steps - now.step) * now.seconds / now.step
            self.note(
                f"epoch {now.epoch:>3}/{now.epochs}  loss {now.recent_loss:.3f}  "
                f"{now.images_per_second:,.0f} {now.kind}/s  {left:.0f} s left"
            )
