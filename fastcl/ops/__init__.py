"""The fused ops: each has one file here, one folder in ``csrc/``, one test and one bench, all of one name."""

from fastcl.ops.ntxent import ntxent
from fastcl.ops.registry import BackendError, backends, use_backend
from fastcl.ops.similarity_lse import similarity_lse


__all__ = ["BackendError", "backends", "ntxent", "similarity_lse", "use_backend"]
