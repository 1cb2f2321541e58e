"""Contrastive losses as modules; each takes a batch's embeddings and never builds the matrix of all pairs.

Each is one call of the primitive :func:`fastcl.ops.similarity_lse` (``lse`` below, with the pairs that it leaves out)
and O(N·D) of plain PyTorch, s being the similarity of a row to its positive, divided by the temperature:

| loss                    | lse                                  | of a row                                            |
|-------------------------|--------------------------------------|-----------------------------------------------------|
| NTXentLoss              | all rows but its sample's            | softplus(lse - s), fused: `fastcl.ops.ntxent`       |
| … three or more views   | all rows but itself                  | lse - mean of s                                     |
| … with a memory bank    | the bank's rows                      | softplus(lse - s)                                   |
| SupConLoss              | all rows but itself                  | lse - mean of s, by sums over the classes           |
| InfoNCELoss             | other positives, or given negatives  | softplus(lse - s)                                   |
| DCLLoss, DCLWLoss       | all rows but its sample's            | lse - weight · s                                    |
| DebiasedLoss            | all rows but its sample's            | softplus(log(debiased exp(lse)) - s)                |
| HardNegativeLoss        | the same at (1 + β)/T and at β/T     | the same of log(count) + their difference           |
| ClipLoss                | others' keys; rows and columns in 1  | mean of both softplus(lse - s)                      |
| SigLipLoss              | none: a sum of log-sigmoids          | `fastcl.losses.pairwise.softplus_sums`              |

Positives that the sum leaves out come back by ``softplus(lse - s) = log(exp(s) + exp(lse)) - s``, which keeps small
losses exact. Between processes see :mod:`fastcl.losses.distributed`. :mod:`fastcl.compat` has other packages' names and
conventions.
"""

from fastcl.losses.clip import ClipLoss
from fastcl.losses.dcl import DCLLoss, DCLWLoss
from fastcl.losses.debiased import DebiasedLoss, HardNegativeLoss
from fastcl.losses.info_nce import InfoNCELoss
from fastcl.losses.memory_bank import MemoryBank
from fastcl.losses.ntxent import NTXentLoss
from fastcl.losses.siglip import SigLipLoss
from fastcl.losses.supcon import SupConLoss

__all__ = [
    "ClipLoss",
    "DCLLoss",
    "DCLWLoss",
    "DebiasedLoss",
    "HardNegativeLoss",
    "InfoNCELoss",
    "MemoryBank",
    "NTXentLoss",
    "SigLipLoss",
    "SupConLoss",
]
