"""``fastcl preview``: a picture of what a recipe does to images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import typer

from fastcl.errors import ConfigError, RunError, require_run_extra

__all__ = ["preview"]

_SHOWN_PIXELS = 84  # smallest side of a tile in the picture


def preview(
    data: Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, or a folder of images.")] = "digits",
    config: Annotated[
        Path | None, typer.Option(help="A TOML file as for `fastcl run`: its data and its recipe.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the IDX files of mnist or fashion-mnist.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels of a folder's images. (default: 64)")] = None,
    out: Annotated[Path, typer.Option(help="The .png file to write.")] = Path("preview.png"),
    images: Annotated[int, typer.Option(min=1, help="Images, a row each.")] = 8,
    views: Annotated[int, typer.Option(min=1, help="Views of each.")] = 8,
    epoch: Annotated[int, typer.Option(min=0, help="Whose draws to show.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Draw images, and beside each the views that its recipe makes of it."""
    require_run_extra()
    import numpy as np
    from PIL import Image

    from fastcl.config import make_config, read_toml
    from fastcl.data import load
    from fastcl.files import write_atomically
    from fastcl.pretrain import image_statistics
    from fastcl.recipe import Recipe, build_transform
    from fastcl.transforms import preview_grid

    flags: dict[str, Any] = {"seed": seed}
    flags |= {"data_dir": str(data_dir)} if data_dir else {}
    flags |= {"image_size": image_size} if image_size else {}
    settings = make_config(read_toml(config) if config else {"data": data}, flags)
    if not isinstance(settings.recipe, Recipe):
        raise ConfigError("preview draws images; the report of `fastcl run` shows the views of texts")
    if settings.data.startswith("secure:"):
        raise ConfigError("preview writes images in the clear, and draws no encrypted ones")
    train = load(settings.data, data_dir=settings.data_dir, image_size=settings.image_size).train_images
    transform = build_transform(settings.recipe, train.shape[2], *image_statistics(train), settings.seed)
    rows = np.linspace(0, len(train) - 1, min(images, len(train))).astype(int)
    grid = preview_grid(train[rows], transform, views, epoch)
    zoom = max(1, -(-_SHOWN_PIXELS // train.shape[2]))
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    try:
        write_atomically(out, buffer.getvalue())
    except OSError as error:
        raise RunError(f"{out}: expected a file that can be written: {error}") from error
    typer.echo(f"{out}: {len(rows)} images and {views} views of each")
