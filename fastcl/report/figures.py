"""The pictures of a report, as PNG data URIs; grey text on nothing, so that they suit a light and a dark page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastcl.compress.ladder import Ladder
from fastcl.data import Dataset
from fastcl.errors import run_extra
from fastcl.evaluate import nearest
from fastcl.transforms import Compose

with run_extra():
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Array = npt.NDArray[Any]

__all__ = [
    "confusion_matrix",
    "embedding_map",
    "frontier",
    "grid",
    "loss_curve",
    "nearest_pixels",
    "neighbors",
    "png",
    "views",
]

_GREY, _BLUE, _GREEN, _RED = "#808890", "#4c86c6", "#3d9a5f", "#d0534f"
_PALETTE = (
    "#4c86c6", "#e0883a", "#4fa25a", "#cf5450", "#8f6fc0", "#94685c", "#d877b4", "#85888c", "#b3b23f", "#3fb0bd",
)  # fmt: skip
_ZOOM, _GAP = 4, 12  # of a mosaic: pixels a pixel, and between pictures
_MAP_POINTS = 2000  # of the held-out images, at most


def png(figure: Figure, dpi: int = 144) -> str:
    """The figure as a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, transparent=True, bbox_inches="tight", pad_inches=0.05)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plain(axes: Axes, ticks: bool = True) -> Axes:
    for side, spine in axes.spines.items():
        spine.set_visible(ticks and side in ("left", "bottom"))
        spine.set_color(_GREY)
    axes.tick_params(colors=_GREY, labelsize=8, length=3 if ticks else 0)
    if not ticks:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.xaxis.label.set_color(_GREY)
    axes.yaxis.label.set_color(_GREY)
    return axes


def _mosaic(rows: Sequence[Sequence[Tensor]], frames: Sequence[Sequence[str | None]] | None = None) -> Array:
    """One picture of many, in rows of equal length, with see-through gaps.

    Args:
        rows: uint8 [C, H, W] each, C being 1 or 3.
        frames: a colour for the frame of each picture, or None.

    Returns:
        RGBA of 0 to 1, [height, width, 4].
    """
    with run_extra():
        from matplotlib.colors import to_rgba
    height, width = (side * _ZOOM for side in rows[0][0].shape[1:])
    stride = (height + _GAP, width + _GAP)
    out = np.zeros((len(rows) * stride[0], len(rows[0]) * stride[1], 4))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            tile = out[i * stride[0] : (i + 1) * stride[0], j * stride[1] : (j + 1) * stride[1]]
            if frames is not None and frames[i][j] is not None:
                tile[:] = to_rgba(str(frames[i][j]))
            inner = tile[_GAP // 2 : _GAP // 2 + height, _GAP // 2 : _GAP // 2 + width]
            inner[..., :3] = image.permute(1, 2, 0).numpy().repeat(_ZOOM, 0).repeat(_ZOOM, 1) / 255
            inner[..., 3] = 1
    return out


def views(images: Tensor, transform: Compose, columns: int = 12, pairs: int = 2) -> str:
    """Images in the first row, and below each the views that pretraining saw of it in the first epochs.

    Args:
        images: the training images, uint8 [N, C, H, W].
        transform: the one that pretraining used.
        columns: images shown.
        pairs: epochs shown.
    """
    index = torch.linspace(0, len(images) - 1, min(columns, len(images))).long()
    batch = images[index]
    rows: list[tuple[str, Tensor]] = [("image", batch)]
    for epoch in range(pairs):
        for view in (0, 1):
            params = transform.sample(index, (batch.shape[2], batch.shape[3]), epoch=epoch, view=view)
            rows.append((f"epoch {epoch + 1}, view {'AB'[view]}", transform.apply(batch, params, pictures=True)))
    figure = Figure(figsize=(0.72 * len(index) + 0.9, 0.72 * len(rows)))
    axes = _plain(figure.subplots(), ticks=False)
    mosaic = _mosaic([list(row) for _, row in rows])
    axes.imshow(mosaic, interpolation="none")
    axes.set_yticks((np.arange(len(rows)) + 0.5) * len(mosaic) / len(rows), [name for name, _ in rows], fontsize=8)
    return png(figure)


def grid(images: Tensor, columns: int = 10) -> str:
    """Images uint8 [N, C, H, W] in rows of `columns`; what does not fill a row is left out."""
    rows = [list(row) for row in images.split(columns) if len(row) == columns]
    figure = Figure(figsize=(0.6 * columns, 0.6 * len(rows) * images.shape[2] / images.shape[3]))
    _plain(figure.subplots(), ticks=False).imshow(_mosaic(rows), interpolation="none")
    return png(figure)


def nearest_pixels(made: Tensor, images: Tensor, columns: int = 10) -> str:
    """Generated images in the first row, and below each the image of the data that is nearest by its pixels.

    Args:
        made: uint8 [M, C, H, W]; the first `columns` are shown.
        images: uint8 [N, C, H, W].
        columns: of the picture.
    """
    made = made[:columns]
    distances = [torch.cdist(made.flatten(1).float(), part.flatten(1).float()) for part in images.split(1024)]
    figure = Figure(figsize=(0.6 * len(made), 1.2 * made.shape[2] / made.shape[3]))
    mosaic = _mosaic([list(made), list(images[torch.cat(distances, dim=1).argmin(1)])])
    _plain(figure.subplots(), ticks=False).imshow(mosaic, interpolation="none")
    return png(figure)


def loss_curve(losses: list[float], steps_per_epoch: int) -> str:
    """The loss of every step, faint, and its mean over each epoch."""
    figure = Figure(figsize=(5.2, 3.0))
    axes = _plain(figure.subplots())
    steps = (np.arange(len(losses)) + 1) / steps_per_epoch
    axes.plot(steps, losses, color=_BLUE, alpha=0.3, linewidth=0.8)
    whole = len(losses) // steps_per_epoch
    means = np.asarray(losses[: whole * steps_per_epoch]).reshape(whole, steps_per_epoch).mean(axis=1)
    axes.plot(np.arange(whole) + 0.5, means, color=_BLUE, linewidth=1.8, marker="o" if whole < 4 else None)
    axes.set_xlabel("epoch")
    axes.set_ylabel("NT-Xent loss")
    axes.grid(axis="y", color=_GREY, alpha=0.2)
    return png(figure)


def embedding_map(embeddings: Tensor, labels: Tensor | None, classes: tuple[str, ...]) -> str:
    """The held-out images on a plane, by t-SNE of the first 50 principal components; coloured by class."""
    with run_extra():
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    rows = np.linspace(0, len(embeddings) - 1, min(_MAP_POINTS, len(embeddings))).astype(int)
    points = torch.nn.functional.normalize(embeddings.double(), dim=1).numpy()[rows]
    points = PCA(min(50, *points.shape), random_state=0).fit_transform(points)
    if len(points) > 15:
        perplexity = min(30.0, (len(points) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(points)
    figure = Figure(figsize=(5.2, 4.4))
    axes = _plain(figure.subplots(), ticks=False)
    second = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    if labels is None:
        axes.scatter(points[:, 0], second, s=6, color=_BLUE, linewidths=0)
    else:
        groups = labels.numpy()[rows]
        for group, name in enumerate(classes):
            chosen = groups == group
            color = _PALETTE[group % len(_PALETTE)]
            axes.scatter(points[chosen, 0], second[chosen], s=6, color=color, linewidths=0, label=name)
        if len(classes) <= 20:
            axes.legend(
                loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False, markerscale=2.5,
                labelcolor=_GREY, handletextpad=0.2,
            )  # fmt: skip
    return png(figure)


def neighbors(data: Dataset, train_embeddings: Tensor, test_embeddings: Tensor, queries: int = 8, k: int = 8) -> str:
    """A few held-out images and the training images nearest to each.

    Args:
        data: the images.
        train_embeddings: of the training images, [N, dim].
        test_embeddings: of the held-out images, [M, dim].
        queries: held-out images shown.
        k: training images shown for each.
    """
    chosen = _one_of_each(data.test_labels, len(data.test), queries)
    train, test = data.train_images, data.test_images
    found = nearest(train_embeddings, test_embeddings[chosen], k)
    k = found.shape[1]
    rows, frames = [], []
    for query, neighbors_of_it in zip(chosen, found.tolist(), strict=True):
        rows.append([test[query], *(train[row] for row in neighbors_of_it)])
        frames.append([None, *(_agreement(data, query, row) for row in neighbors_of_it)])
    figure = Figure(figsize=(0.72 * (k + 1), 0.72 * len(chosen)))
    axes = _plain(figure.subplots(), ticks=False)
    mosaic = _mosaic(rows, frames)
    axes.imshow(mosaic, interpolation="none")
    column = mosaic.shape[1] / (k + 1)
    axes.axvline(column, color=_GREY, linewidth=1)
    axes.xaxis.tick_top()
    axes.set_xticks([0.5 * column, (1 + k / 2) * column], ["held out", "nearest →"], fontsize=8)
    return png(figure)


def _agreement(data: Dataset, query: int, row: int) -> str | None:
    """The colour that says whether a held-out and a training image are of one class."""
    if data.train_labels is None or data.test_labels is None:
        return None
    return _GREEN if data.train_labels[row] == data.test_labels[query] else _RED


def _one_of_each(labels: Tensor | None, count: int, wanted: int) -> list[int]:
    """Rows of a few images, of different classes where there are labels."""
    if labels is None:
        return torch.linspace(0, count - 1, min(wanted, count)).long().tolist()
    return [int((labels == group).nonzero()[0]) for group in labels.unique(sorted=True)[:wanted]]


def confusion_matrix(labels: Array, predicted: Array, classes: tuple[str, ...]) -> str:
    """How many held-out images of each class (rows) the linear probe took for each class (columns)."""
    with run_extra():
        from matplotlib.colors import to_rgb
    size = len(classes)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    figure = Figure(figsize=(max(3.4, 0.42 * size + 1), max(3.2, 0.42 * size + 0.8)))
    axes = _plain(figure.subplots(), ticks=False)
    cells = np.empty((size, size, 4))
    cells[..., :3] = to_rgb(_BLUE)
    cells[..., 3] = np.sqrt(shares)  # the root shows rare mistakes
    axes.imshow(cells)
    names = [name if len(name) <= 12 else name[:11] + "…" for name in classes]
    upright = max(map(len, names)) <= 2
    axes.set_xticks(range(size), names, fontsize=8)
    if not upright:
        axes.tick_params(axis="x", labelrotation=60)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), names, fontsize=8)
    if size <= 25:
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "white" if shares[row, column] > 0.3 else _GREY
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=color)
    axes.set_xlabel("recognised as", fontsize=8)
    axes.set_ylabel("shows", fontsize=8)
    return png(figure)


def frontier(ladder: Ladder) -> str:
    """What the rungs of a ladder achieve, against the size of their files and against their latency."""
    rungs = [rung for rung in ladder.rungs if rung.agreement is not None]
    labelled = rungs[0].linear_probe is not None
    measures = [("linear_probe", "linear probe", "o", _BLUE), ("knn", "k-NN", "s", _GREEN)] if labelled else []
    measures = measures or [("agreement", "same neighbours", "o", _BLUE)]
    batch, config = ladder.config.latency_batch, ladder.config
    figure = Figure(figsize=(9.4, 3.6))
    panels = figure.subplots(1, 2, sharey=True)
    costs = (
        ("file, kB", [rung.bytes / 1000 for rung in rungs], config.target_bytes and config.target_bytes / 1000),
        (f"{batch} image{'s' * (batch > 1)}, ms", [rung.latency_ms[batch] for rung in rungs], config.target_latency_ms),
    )
    for axes, (label, xs, target) in zip(panels, costs, strict=True):
        _plain(axes)
        for attribute, name, marker, color in measures:
            ys = [100 * getattr(rung, attribute) for rung in rungs]
            filled = [color if rung.on_frontier else "none" for rung in rungs]
            axes.scatter(xs, ys, s=34, marker=marker, facecolors=filled, edgecolors=color, linewidths=1.2, label=name)
        for rung, x in zip(rungs, xs, strict=True):
            y = max(100 * getattr(rung, attribute) for attribute, *_ in measures)
            weight = "bold" if rung.name == ladder.chosen else "normal"
            axes.annotate(
                rung.name.removesuffix("-int8"), (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=7,
                color=_GREY, fontweight=weight,
            )  # fmt: skip
        if target:
            axes.axvline(target, color=_RED, linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.12)
        axes.set_xlabel(label)
        axes.grid(axis="y", color=_GREY, alpha=0.2)
    panels[0].set_ylabel("%")
    panels[0].legend(loc="lower right", fontsize=8, frameon=False, labelcolor=_GREY)
    return png(figure)
