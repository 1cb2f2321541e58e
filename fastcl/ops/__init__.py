"""The fused ops: each has one file here, one folder in ``csrc/``, one test and one bench, all of one name."""

from fastcl.ops.augment import augment_apply, augment_sample
from fastcl.ops.ntxent import ntxent
from fastcl.ops.registry import BackendError, backends, use_backend

__all__ = ["BackendError", "augment_apply", "augment_sample", "backends", "ntxent", "use_backend"]
