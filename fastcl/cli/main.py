"""Puts the commands together, and turns errors that a user can mend into one line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

import fastcl
from fastcl.cli.info import info
from fastcl.errors import ConfigError, MissingExtraError, UserError, run_extra

__all__ = ["app", "main"]

app = typer.Typer(
    name="fastcl",
    help="Fast label-free learning: augment, contrast, compress.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(info)
try:
    with run_extra():
        from fastcl.cli.compress import compress
        from fastcl.cli.embed import embed
        from fastcl.cli.encrypt import encrypt, rotate_key
        from fastcl.cli.export import export
        from fastcl.cli.generate import generate
        from fastcl.cli.preview import preview
        from fastcl.cli.run import run
        from fastcl.cli.shard import shard
    for command in (run, generate, compress, export, embed, preview, encrypt, rotate_key, shard):
        app.command()(command)
except MissingExtraError as error:
    _missing = error
    for name in ("run", "generate", "compress", "export", "embed", "preview", "encrypt", "rotate-key", "shard"):

        @app.command(
            name,
            help=f"Not there: {_missing}",
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
        )
        def _absent(context: typer.Context) -> None:
            raise _missing


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"fastcl {fastcl.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fast label-free learning: augment, contrast, compress."""


def main() -> None:
    """Runs the command line; exit code 1 for what a user can mend, 2 for a wrong command line or configuration."""
    try:
        app()
    except UserError as error:
        Console(stderr=True).print(f"[bold red]fastcl:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
