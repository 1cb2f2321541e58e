"""Contrastive losses as modules; each takes a batch's embeddings and never builds the matrix of all pairs."""

from fastcl.losses.ntxent import NTXentLoss

__all__ = ["NTXentLoss"]
