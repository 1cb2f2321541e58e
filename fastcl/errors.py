"""The errors that a command reports as one line instead of a traceback: something outside the program is wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "MissingExtraError",
    "RunError",
    "UserError",
    "require_run_extra",
    "run_extra",
]

# What the extra `run` of pyproject.toml brings, by the names they are imported under.
_RUN_EXTRA = ("jinja2", "matplotlib", "mlxtend", "PIL", "pydantic", "safetensors", "sklearn", "tomli")


class UserError(RuntimeError):
    """The base of them all; the message says what is wrong and what to do."""


class DataError(UserError):
    """A data file is missing, truncated, empty or wrong; the message names the file and what was expected."""


class ConfigError(UserError):
    """A configuration is invalid; the message names the key."""


class CheckpointError(UserError):
    """A checkpoint or encoder file is damaged or of another kind."""


class RunError(UserError):
    """An output folder cannot be used as asked."""


class DivergedError(UserError):
    """The loss became NaN or infinite."""


class MissingExtraError(UserError):
    """A package of the extra ``run`` is not installed."""


def require_run_extra() -> None:
    """Checks at the start that nothing of the extra ``run`` will be missed later.

    Raises:
        MissingExtraError: names what is not installed.
    """
    wanted = [name for name in _RUN_EXTRA if name != "tomli" or sys.version_info < (3, 11)]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"this needs missing packages ({', '.join(missing)}): pip install 'fastcl[run]'")


@contextlib.contextmanager
def run_extra() -> Iterator[None]:
    """Turns the absence of a package of the extra ``run`` into an error that says how to install it.

    Raises:
        MissingExtraError: where an import inside fails for one of those packages.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _RUN_EXTRA:
            raise
        raise MissingExtraError(f"this needs the package {package}: pip install 'fastcl[run]'") from error
