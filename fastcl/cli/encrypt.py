"""``fastcl encrypt`` and ``fastcl rotate-key``: data sets encrypted at rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcl.errors import ConfigError, require_run_extra

__all__ = ["KeyEnv", "KeyFile", "encrypt", "read_key", "rotate_key"]

KeyFile = Annotated[Path | None, typer.Option(help="File with the key: 32 bytes, or 64 hexadecimal digits.")]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable with the key, instead.")]


def encrypt(
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist.")],
    data: Annotated[str, typer.Option(help="digits, mnist, fashion-mnist, a folder of images, text, or text:PATH.")],
    key_file: KeyFile = None,
    key_env: KeyEnv = None,
    create_key: Annotated[bool, typer.Option("--create-key", help="Write a new key into --key-file first.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the IDX files of mnist or fashion-mnist.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Pixels of a folder's images. (default: 64)")] = None,
) -> None:
    """Encrypt a data set (AES-256-GCM), to be read by `fastcl run --data secure:OUT` (texts: secure-text:OUT)."""
    require_run_extra()
    from fastcl.data import load, secure

    loaded = load(data, data_dir=data_dir, image_size=image_size)
    key = read_key(key_file, key_env, create_key)
    secure.encrypt(loaded, out, key)
    for path, why in loaded.skipped.items():
        typer.echo(f"skipped {path}: {why}", err=True)
    typer.echo(f"{out}: {len(loaded.images):,} {loaded.kind}, encrypted; nothing opens it without the key")


def rotate_key(
    paths: Annotated[list[Path], typer.Argument(help="The folders of encrypted data sets, or of encrypted shards.")],
    key_file: KeyFile = None,
    key_env: KeyEnv = None,
    new_key_file: Annotated[Path | None, typer.Option(help="File with the new key.")] = None,
    new_key_env: Annotated[str | None, typer.Option(help="Environment variable with the new key, instead.")] = None,
    create_key: Annotated[
        bool, typer.Option("--create-key", help="Write a new key into --new-key-file first.")
    ] = False,
) -> None:
    """Put encrypted data sets under another key; the data itself is not written again.

    Stopped among several, the same command without --create-key goes on.
    """
    from fastcl.data import secure
    from fastcl.errors import DataError

    def opened_by(path: Path, key: bytes) -> bool:
        try:
            secure.SecureImages(path, key)
        except DataError:
            return False
        return True

    old = read_key(key_file, key_env, False)
    new = None if create_key else read_key(new_key_file, new_key_env, False)
    left = [path for path in paths if new is None or not opened_by(path, new)]
    for path in left:
        secure.SecureImages(path, old)  # before a new key is made, or anything is changed
    new = new or read_key(new_key_file, new_key_env, create_key)
    for path in left:
        secure.rotate_key(path, old, new)
    typer.echo(f"{', '.join(map(str, paths))}: opened by the new key, no longer by the old one")


def read_key(file: Path | None, env: str | None, create: bool) -> bytes:
    """The key that the options name."""
    from fastcl.data.secure import create_key_file, key_from_env, key_from_file

    if (file is None) == (env is None) or (create and file is None):
        raise ConfigError("a key is needed: either a file (which --create-key can write) or an environment variable")
    if create and file is not None:
        create_key_file(file)
    return key_from_file(file) if file is not None else key_from_env(str(env))
