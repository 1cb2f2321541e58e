"""Fills ``report.html``, the template beside this file."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcl.config import RunConfig, to_toml
from fastcl.data import Dataset
from fastcl.data.text import TextViews
from fastcl.errors import run_extra
from fastcl.files import write_atomically
from fastcl.report import figures, texts
from fastcl.transforms import Compose

__all__ = ["Evidence", "write_report"]

_PACKAGES = ("fastcl", "torch", "numpy", "scikit-learn", "safetensors", "matplotlib")


@dataclass(frozen=True)
class Evidence:
    """What a report shows."""

    data: Dataset
    config: RunConfig
    transform: Compose | TextViews
    losses: list[float]  # of every step
    steps_per_epoch: int
    train: Tensor  # embeddings of the training images, [N, dim]
    test: Tensor  # embeddings of the held-out images, [M, dim]
    predicted: Any  # classes of the held-out images by the linear probe, int64 [M], or None without labels
    command: str
    metrics: dict[str, Any]


def write_report(path: Path, evidence: Evidence) -> None:
    """Writes the report as one self-contained HTML file.

    Args:
        path: of the file.
        evidence: what it shows.

    Raises:
        MissingExtraError: without jinja2 or matplotlib.
    """
    with run_extra():
        from jinja2 import Environment, StrictUndefined
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    page = template.render(
        data=evidence.data,
        config=evidence.config,
        config_toml=to_toml(evidence.config),
        metrics=evidence.metrics,
        pictures=_pictures(evidence),
        texts=_texts(evidence),
        command=evidence.command,
        versions=_versions(),
        machine=_machine(),
    )
    write_atomically(path, page)


def _pictures(evidence: Evidence) -> dict[str, str]:
    """The pictures by name, as data URIs."""
    data = evidence.data
    labels = data.test_labels
    pictures = {
        "loss": figures.loss_curve(evidence.losses, evidence.steps_per_epoch),
        "map": figures.embedding_map(evidence.test, labels, data.classes),
    }
    if isinstance(evidence.transform, Compose) and not data.private:
        pictures["views"] = figures.views(data.train_images, evidence.transform)
        pictures["neighbors"] = figures.neighbors(data, evidence.train, evidence.test)
    if labels is not None and evidence.predicted is not None:
        pictures["confusion"] = figures.confusion_matrix(labels.numpy(), evidence.predicted, data.classes)
    return pictures


def _texts(evidence: Evidence) -> dict[str, Any]:
    """What stands in words instead."""
    if isinstance(evidence.transform, Compose) or evidence.data.private:
        return {}
    return {
        "views": texts.views(evidence.data.train_images, evidence.transform),
        "neighbors": texts.neighbors(evidence.data, evidence.train, evidence.test),
    }


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}"
