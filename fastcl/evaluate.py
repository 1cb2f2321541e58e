"""How good embeddings are, judged with labels: k nearest neighbours and a linear probe on held-out samples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastcl.data import Dataset
from fastcl.data.text import from_bytes
from fastcl.encoder import Encoder
from fastcl.errors import run_extra

__all__ = [
    "Evaluation",
    "LinearProbe",
    "evaluate",
    "knn_predict",
    "latency_ms",
    "nearest",
    "neighbor_agreement",
    "tfidf",
]

Array = npt.NDArray[Any]


def _unit_rows(embeddings: Tensor) -> Array:
    array: Array = torch.nn.functional.normalize(embeddings.double(), dim=1).numpy()
    return array


def knn_predict(train: Tensor, train_labels: Tensor, test: Tensor, k: int) -> Array:
    """Classes of `test` by the `k` most similar of `train` (cosine), each with the weight 1 / distance.

    Args:
        train: embeddings [N, dim].
        train_labels: int64 [N].
        test: embeddings [M, dim].
        k: neighbours; at most N are used.

    Returns:
        int64 [M].
    """
    with run_extra():
        from sklearn.neighbors import KNeighborsClassifier
    # Between unit rows the Euclidean distance ranks as the cosine does.
    model = KNeighborsClassifier(min(k, len(train)), weights="distance", algorithm="brute")
    predicted: Array = model.fit(_unit_rows(train), train_labels.numpy()).predict(_unit_rows(test))
    return predicted


def nearest(train: Tensor, test: Tensor, k: int) -> Tensor:
    """Rows of the `k` embeddings of `train` most similar (cosine) to each of `test`, int64 [M, k], nearest first."""
    similarity = torch.from_numpy(_unit_rows(test)) @ torch.from_numpy(_unit_rows(train)).T
    return similarity.topk(min(k, len(train)), dim=1).indices


def tfidf(train: Sequence[str], test: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What an encoder of texts is held against: how often each word stands in a text, rare words counting more.

    Args:
        train: texts; their words are the columns.
        test: texts.

    Returns:
        float32 [len(train), words] and [len(test), words].
    """
    with run_extra():
        from sklearn.feature_extraction.text import TfidfVectorizer
    model = TfidfVectorizer(sublinear_tf=True, max_features=10_000, token_pattern=r"\w+", dtype=np.float32)
    rows = model.fit_transform(train).toarray(), model.transform(test).toarray()
    return torch.from_numpy(rows[0]), torch.from_numpy(rows[1])


class LinearProbe:
    """Multinomial logistic regression on standardised embeddings (L-BFGS, L2)."""

    def __init__(self, embeddings: Tensor, labels: Tensor, c: float) -> None:
        """Fits the probe.

        Args:
            embeddings: of the training images, [N, dim].
            labels: int64 [N].
            c: inverse strength of the regularisation; fixed beforehand, not chosen by the test images.
        """
        with run_extra():
            from sklearn.linear_model import LogisticRegression
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
        self._model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        self._model.fit(embeddings.double().numpy(), labels.numpy())

    def predict(self, embeddings: Tensor) -> Array:
        """Classes of embeddings [M, dim], int64 [M]."""
        predicted: Array = self._model.predict(embeddings.double().numpy())
        return predicted


def accuracy(predicted: Array, labels: Tensor) -> float:
    """The share of right predictions."""
    return float(np.mean(predicted == labels.numpy()))


@dataclass(frozen=True)
class Evaluation:
    """What a set of embeddings achieves; no accuracies without labels."""

    train: Tensor  # embeddings of the training images, [N, dim]
    test: Tensor  # of the held-out images, [M, dim]
    knn: float | None = None
    linear_probe: float | None = None
    predicted: Any = None  # classes of the held-out images by the probe, int64 [M]
    probe: LinearProbe | None = None


def evaluate(
    images: Dataset, encoder: Encoder | None, neighbors: int, probe_c: float, probe: LinearProbe | None = None
) -> Evaluation:
    """Judges an encoder, or where it is None the raw pixels (TF-IDF of texts), by the held-out images.

    Args:
        images: of the run.
        encoder: float or int8.
        neighbors: k of the k-NN evaluation.
        probe_c: inverse regularisation of the linear probe.
        probe: to judge by, fitted to other embeddings of the same space; by default one fitted to these.
    """
    images = images.judged
    parts = images.train_images, images.test_images
    if encoder is not None:
        train, test = map(encoder.embed, parts)
    elif images.kind == "texts":
        train, test = tfidf(*(from_bytes(part[:]) for part in parts))
    else:
        train, test = (torch.cat([rows.flatten(1).float() / 255 for rows in part.split(1024)]) for part in parts)
    train_labels, test_labels = images.train_labels, images.test_labels
    if train_labels is None or test_labels is None:
        return Evaluation(train, test)
    probe = probe or LinearProbe(train, train_labels, probe_c)
    predicted = probe.predict(test)
    knn = accuracy(knn_predict(train, train_labels, test, neighbors), test_labels)
    return Evaluation(train, test, knn, accuracy(predicted, test_labels), predicted, probe)


def neighbor_agreement(first: Tensor, second: Tensor, k: int = 10, images: int = 2000) -> float:
    """How alike two encoders find images: the shared part of each image's `k` nearest others (cosine); needs no labels.

    Args:
        first: embeddings [N, dim] by the one.
        second: of the same images by the other, [N, any dim].
        k: neighbours of an image.
        images: so many of the N are used at most, evenly spaced.

    Returns:
        From 0 to 1, where 1 is the same neighbours for every image.
    """
    rows = torch.linspace(0, len(first) - 1, min(images, len(first))).long()
    k = min(k, len(rows) - 1)
    shared = torch.zeros(len(rows), len(rows), dtype=torch.int8)
    for embeddings in (first, second):
        units = torch.nn.functional.normalize(embeddings[rows].double(), dim=1)
        found = (units @ units.T).fill_diagonal_(-2).topk(k, dim=1).indices
        shared.scatter_add_(1, found, torch.ones_like(found, dtype=torch.int8))
    return (shared == 2).sum().item() / (len(rows) * k)


def latency_ms(encoder: Encoder, images: Tensor, batch_size: int, repeats: int = 20, seconds: float = 3.0) -> float:
    """Median time to embed a batch of uint8 images, normalisation included, in milliseconds.

    Args:
        encoder: float or int8.
        images: uint8 [N, C, H, W] to make the batch of.
        batch_size: images in it.
        repeats: calls at most.
        seconds: after which no call is begun.
    """
    batch = images[torch.arange(batch_size) % len(images)]
    encoder.embed(batch, batch_size)  # packs the weights, fills the caches
    times: list[float] = []
    while not times or (len(times) < repeats and sum(times) < seconds):
        started = time.perf_counter()
        encoder.embed(batch, batch_size)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)
