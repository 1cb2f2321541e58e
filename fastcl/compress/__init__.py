"""Smaller encoders without labels: distillation into a smaller student, structured pruning, int8.

Each step takes any torch encoder (images in, one embedding a row out) and unlabelled images.
"""

from fastcl.compress.distill import DistillConfig, SimilarityDistillationLoss, distill
from fastcl.compress.int8 import to_int8
from fastcl.compress.prune import PruneReport, prune_

__all__ = ["DistillConfig", "PruneReport", "SimilarityDistillationLoss", "distill", "prune_", "to_int8"]
