"""The command ``fastcl``: one file here for each of its commands."""

from fastcl.cli.main import main

__all__ = ["main"]
