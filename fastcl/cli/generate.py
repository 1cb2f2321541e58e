"""``fastcl generate``: a generator of images, learnt from images."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastcl.errors import ConfigError, RunError, require_run_extra
from fastcl.progress import Reporter

__all__ = ["generate"]


def generate(
    out: Annotated[Path, typer.Option(help="Folder for the generator and the picture.")],
    data: Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, or a folder of images.")] = "digits",
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the IDX files of mnist or fashion-mnist.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels of a folder's images. (default: 64)")] = None,
    limit: Annotated[int | None, typer.Option(help="Use about so many images.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the training.")] = 3000,
    batch_size: Annotated[int, typer.Option(min=2, help="Real, and as many generated, images in a step.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and draws.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to use. (default: all cores)")] = None,
) -> None:
    """Learn to make images like those given, without labels; write the generator and a picture of 100 samples.

    Ctrl-C leaves a training that the same command goes on with. fastcl run --generate does this and pretrains with the
    result.
    """
    require_run_extra()
    import torch

    from fastcl.config import make_config
    from fastcl.data import load
    from fastcl.files import locked
    from fastcl.generate import GanConfig, job
    from fastcl.signals import stop_signal

    if data.partition(":")[0] in ("text", "secure", "secure-text"):
        raise ConfigError(f"generate: expected images in the clear, got {data}")
    gan = GanConfig(steps=steps, batch_size=batch_size, check_every=min(500, steps), seed=seed)
    config = make_config({"data": data, "seed": seed})
    images = load(data, data_dir=data_dir, image_size=image_size, limit=limit)
    console = Console()
    torch.set_num_threads(threads or torch.get_num_threads())
    try:
        origin = {"data": images.fingerprint()}
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            with stop_signal() as stop:
                generator = job.make_generator(
                    images.train_images, out, gan, config, origin, Reporter(console), lambda: bool(stop)
                )
            job.write_samples(generator, out, seed)
    except (KeyboardInterrupt, job.Stopped):
        how = shlex.join(["fastcl", *sys.argv[1:]])
        console.print(f"stopped; to go on: {how}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None
    except OSError as error:
        raise RunError(f"{out}: expected a folder that can be written to: {error}; the same command goes on") from error
    for name, distance in job.distances(out, images).items():
        if distance is not None:
            console.print(f"{name.replace('_', ' ')}: {distance:.3g}", highlight=False)
    console.print(f"samples: {out / job.FILES['samples']}", highlight=False, markup=False, soft_wrap=True)
