"""The fused ops: each has one file here, one folder in ``csrc/``, one test and one bench, all of one name."""

from fastcl.ops.augment import augment_apply, augment_sample, augment_views
from fastcl.ops.augment_ragged import augment_sample_ragged, augment_views_ragged
from fastcl.ops.int8_conv2d import int8_conv2d
from fastcl.ops.int8_linear import int8_linear, int8_pack_weight
from fastcl.ops.max_pool2d import max_pool2d
from fastcl.ops.ntxent import ntxent
from fastcl.ops.registry import BackendError, backends, use_backend
from fastcl.ops.similarity_lse import similarity_lse

__all__ = [
    "BackendError",
    "augment_apply",
    "augment_sample",
    "augment_sample_ragged",
    "augment_views",
    "augment_views_ragged",
    "backends",
    "int8_conv2d",
    "int8_linear",
    "int8_pack_weight",
    "max_pool2d",
    "ntxent",
    "similarity_lse",
    "use_backend",
]
