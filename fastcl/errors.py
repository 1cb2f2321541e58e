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
    "WorkerError",
    "extra",
    "require_run_extra",
    "run_extra",
]

# What the extras of pyproject.toml bring, by the names they are imported under.
_EXTRAS = {
    "run": ("jinja2", "matplotlib", "mlxtend", "PIL", "pydantic", "safetensors", "sklearn", "tomli"),
    "secure": ("cryptography",),
    "text": ("regex",),
    "compress": ("torch_pruning",),
    "privacy": ("opacus",),
    "fid": ("torch_fidelity",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "lightning": ("lightning",),
}


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
    """The loss or a weight became NaN or infinite.

    Attributes:
        step: at which.
    """

    def __init__(self, message: str, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class WorkerError(UserError):
    """A process that reads data for the training has died."""


class MissingExtraError(UserError):
    """A package of one of fastcl's extras is not installed."""


def require_run_extra() -> None:
    """Checks at the start that nothing of the extra ``run`` will be missed later.

    Raises:
        MissingExtraError: names what is not installed.
    """
    wanted = [name for name in _EXTRAS["run"] if name != "tomli" or sys.version_info < (3, 11)]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"this needs missing packages ({', '.join(missing)}): pip install 'fastcl[run]'")


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Turns the absence of a package of an extra into an error that says how to install it.

    Args:
        name: of the extra, as in ``fastcl[name]``.

    Raises:
        MissingExtraError: where an import inside fails for one of its packages.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS[name]:
            raise
        raise MissingExtraError(f"this needs the package {package}: pip install 'fastcl[{name}]'") from error


def run_extra() -> contextlib.AbstractContextManager[None]:
    """:func:`extra` for the extra ``run``."""
    return extra("run")
