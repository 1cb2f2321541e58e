"""How far two sets of images are apart: the Fréchet distance of their features (Heusel et al. 2017)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastcl.errors import DataError, extra

__all__ = ["frechet_distance", "gaussian_distance", "inception_features"]


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The Fréchet distance between Gaussians fitted to two sets of features.

    With few samples it is biased upwards: compare only distances of as many samples.

    Args:
        first: features [N, dim], at least two.
        second: features [M, dim], at least two.

    Returns:
        0 for equal means and covariances; in the squared unit of the features.

    Raises:
        ValueError: for features of other shapes, or that are not finite.
    """
    if first.dim() != 2 or second.dim() != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            "frechet_distance: first and second must be [N, dim] and [M, dim] with at least 2 rows, got "
            f"{list(first.shape)} and {list(second.shape)}"
        )
    if not bool(first.isfinite().all() and second.isfinite().all()):
        raise ValueError("frechet_distance: first and second must be finite, got NaN or infinity")
    moments = [(rows.double().mean(0), torch.atleast_2d(torch.cov(rows.double().T))) for rows in (first, second)]
    return gaussian_distance(*moments[0], *moments[1])


def gaussian_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """|a - b|² + tr(A + B - 2 (A^½ B A^½)^½): Dowson and Landau 1982.

    Args:
        mean_a: [dim], float64.
        covariance_a: [dim, dim], symmetric and not negative.
        mean_b: as mean_a.
        covariance_b: as covariance_a.
    """
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * shared
    return max(0.0, float(distance))


@torch.no_grad()
def inception_features(images: Tensor, weights: str | Path, batch_size: int = 64) -> Tensor:
    """The features that the published FID is measured on: Inception v3's last pool, by the package torch-fidelity.

    Args:
        images: uint8 [N, C, H, W], C being 1 or 3; resized to 299 x 299.
        weights: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``, which is not fetched here.
        batch_size: images at a time.

    Returns:
        float32 [N, 2048].

    Raises:
        DataError: where there are no such weights.
        MissingExtraError: without torch-fidelity.
    """
    if not Path(weights).is_file():
        raise DataError(f"{weights}: expected the Inception weights of torch-fidelity; they are not fetched")
    with extra("fid"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    except Exception as error:  # whatever the file makes of the reader, an UnpicklingError included
        raise DataError(f"{weights}: expected the Inception weights of torch-fidelity: {error}") from error
    three = images.expand(-1, 3, -1, -1)
    return torch.cat([network(part.contiguous())[0] for part in three.split(batch_size)])
