"""fastcl: fast, memory-lean augmentation, contrastive losses and int8 layers for learning without labels."""

from importlib.metadata import version as _version

from fastcl.ops import BackendError, backends, use_backend

__version__ = _version("fastcl")
__all__ = ["BackendError", "__version__", "backends", "use_backend"]
