"""Fills ``report.html``, the template beside this file."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcl.compress.ladder import Ladder
from fastcl.config import RunConfig, to_toml
from fastcl.data import Dataset
from fastcl.data.text import TextViews
from fastcl.errors import run_extra
from fastcl.files import write_atomically
from fastcl.generate import GeneratedDataset, Generator
from fastcl.generate.job import Comparison
from fastcl.report import figures, texts
from fastcl.transforms import Compose

__all__ = ["Evidence", "Generation", "replace_frontier", "write_report"]

# What stands between the two in a report is the ladder's.
_BEGIN, _END = "<!-- ladder -->", "<!-- end of ladder -->"

_PACKAGES = ("fastcl", "torch", "numpy", "scikit-learn", "safetensors", "matplotlib")


_SAMPLES = 100  # generated images shown


@dataclass(frozen=True)
class Generation:
    """Of the generated images that pretraining saw."""

    generator: Generator
    comparisons: list[Comparison]  # of pretraining with and without them
    metrics: dict[str, Any]


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
    ladder: Ladder | None = None  # of smaller encoders
    generation: Generation | None = None  # of images beside those of the data


def write_report(path: Path, evidence: Evidence) -> None:
    """Writes the report as one self-contained HTML file.

    Args:
        path: of the file.
        evidence: what it shows.

    Raises:
        MissingExtraError: without jinja2 or matplotlib.
    """
    page = _render(
        "report.html",
        data=evidence.data,
        config=evidence.config,
        config_toml=to_toml(evidence.config),
        metrics=evidence.metrics,
        pictures=_pictures(evidence),
        texts=_texts(evidence),
        generation=evidence.generation,
        command=evidence.command,
        versions=_versions(),
        machine=_machine(),
    )
    if evidence.ladder is not None:
        page = _with_frontier(page, evidence.ladder, evidence.config) or page
    write_atomically(path, page)


def replace_frontier(path: Path, ladder: Ladder, config: RunConfig) -> bool:
    """Puts a ladder into a report that is there, in the place of the one before.

    Args:
        path: of the report.
        ladder: of smaller encoders.
        config: of the run.

    Returns:
        Whether there is a report that has the place.
    """
    try:
        page = _with_frontier(path.read_text(encoding="utf-8"), ladder, config)
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    if page is not None:
        write_atomically(path, page)
    return page is not None


def _with_frontier(page: str, ladder: Ladder, config: RunConfig) -> str | None:
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        return None
    section = _render("ladder.html", ladder=ladder, config=config, picture=figures.frontier(ladder))
    return f"{before}{begin}\n{section}\n{end}{after}"


def _render(template: str, **values: Any) -> str:
    with run_extra():
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        loader=FileSystemLoader(Path(__file__).parent),
    )  # fmt: skip
    return environment.get_template(template).render(**values)


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
    if evidence.generation is not None:
        made = GeneratedDataset(evidence.generation.generator, _SAMPLES, evidence.config.seed).images
        pictures["generated"] = figures.grid(made)
        pictures["copied"] = figures.nearest_pixels(made, data.train_images)
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
