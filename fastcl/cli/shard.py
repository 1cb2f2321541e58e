"""``fastcl shard``: a folder of images as tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcl.cli.encrypt import KeyEnv, KeyFile, read_key
from fastcl.errors import require_run_extra

__all__ = ["shard"]


def shard(
    folder: Annotated[Path, typer.Argument(help="Images; where all lie in subfolders, these are the classes.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    shard_size: Annotated[
        float, typer.Option(min=0.001, help="Megabytes of a shard, about; it is made in memory.")
    ] = 64,
    key_file: KeyFile = None,
    key_env: KeyEnv = None,
    create_key: Annotated[bool, typer.Option("--create-key", help="Write a new key into --key-file first.")] = False,
) -> None:
    """Copy images into tar shards (WebDataset's layout), with a key encrypted, for `fastcl run --data OUT/*.tar`."""
    require_run_extra()
    from fastcl.data import ImageFiles
    from fastcl.data.shards import write_shards

    files = ImageFiles.from_folder(folder)
    key = read_key(key_file, key_env, create_key) if key_file or key_env else None
    size = round(shard_size * 1_000_000)
    shards, skipped = write_shards(files.paths, files.labels, files.classes, out, shard_bytes=size, key=key)
    for path, why in skipped.items():
        typer.echo(f"skipped {path}: {why}", err=True)
    last = f"..{shards - 1:06d}" if shards > 1 else ""
    pattern = f"{out}/{{000000{last}}}.tar" if last else f"{out}/000000.tar"
    pattern = f"secure:{pattern}" if key else pattern
    typer.echo(f"{len(files) - len(skipped):,} images in {shards} shards, for fastcl run --data '{pattern}'")
