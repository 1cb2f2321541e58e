"""``fastcl embed``: an encoder of ``fastcl run`` on new images or texts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fastcl.errors import DataError, RunError, require_run_extra

__all__ = ["embed"]


def embed(
    encoder: Annotated[Path, typer.Argument(help="encoder.safetensors or encoder_int8.safetensors of a run.")],
    images: Annotated[
        list[Path], typer.Argument(help="Image files, and folders of them; for an encoder of texts, text files.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The .npy file to write: float32, a row for each image or text.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images or texts at a time.")] = 256,
) -> None:
    """Turn images into embeddings; the names of the files go beside them, a line a row, into <out>.txt.

    An encoder of texts takes text files, a text a line; the texts go beside the embeddings instead.
    """
    require_run_extra()
    from fastcl.checkpoint import load_encoder
    from fastcl.data.folder import find_images, read_images
    from fastcl.data.text import read_text_files, to_bytes
    from fastcl.encoder import TextEncoder
    from fastcl.files import write_atomically

    model, kind = load_encoder(encoder)
    config: Any = model.config
    sources: list[str] = []  # of the rows, a line each
    rows = []
    if isinstance(model, TextEncoder):
        for path in images:
            sources += read_text_files(path)[0]
        for first in range(0, len(sources), batch_size):
            batch = to_bytes(sources[first : first + batch_size], config.length)
            rows.append(model.embed(batch, batch_size).numpy())
    else:
        paths: list[Path] = []
        for path in images:
            if not path.exists():
                raise DataError(f"{path}: expected an image or a folder of images, found nothing")
            paths += find_images(path) if path.is_dir() else [path]
        skipped: dict[str, str] = {}
        for first in range(0, len(paths), batch_size):
            batch = read_images(paths[first : first + batch_size], config.image_size, config.channels, skipped)
            if len(batch):
                rows.append(model.embed(batch, batch_size).numpy())
        sources = [str(path) for path in paths if str(path) not in skipped]
        for source, why in skipped.items():
            typer.echo(f"skipped {source}: {why}", err=True)
        if not rows:
            raise DataError(f"none of the {len(paths)} images can be read")
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(rows))
    names = out.with_name(out.name + ".txt")
    try:
        write_atomically(out, buffer.getvalue())
        write_atomically(names, "".join(f"{source}\n" for source in sources))
    except OSError as error:
        raise RunError(f"{out}: expected a file that can be written: {error}") from error
    typer.echo(f"{out}: {len(sources)} × {model.dim} float32 by the {kind} encoder; what each row is of in {names}")
