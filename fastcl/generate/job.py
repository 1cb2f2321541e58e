"""What `fastcl run --generate` and `fastcl generate` do with a generator: train it, and find out whether it helps."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fastcl.checkpoint import (
    encoder_origin,
    load_checkpoint,
    load_encoder,
    newest_checkpoint,
    remove_checkpoint,
    save_encoder,
)
from fastcl.config import RunConfig
from fastcl.data import Dataset
from fastcl.encoder import Encoder
from fastcl.errors import CheckpointError, RunError, run_extra
from fastcl.evaluate import evaluate
from fastcl.files import write_atomically
from fastcl.generate.dataset import GeneratedDataset, generated_count
from fastcl.generate.frechet import frechet_distance
from fastcl.generate.networks import Generator, load_generator, save_generator
from fastcl.generate.training import GanConfig, GanTraining
from fastcl.pretrain import Pretraining
from fastcl.progress import Reporter

__all__ = [
    "FILES",
    "SHARES",
    "Comparison",
    "Stopped",
    "compare",
    "distances",
    "gan_config",
    "make_generator",
    "write_samples",
]

FILES = {
    "checkpoint": "gan.safetensors",
    "generator": "generator.safetensors",
    "judge": "judge.safetensors",
    "pretraining": "pretraining.safetensors",
    "comparison": "comparison.json",
    "samples": "samples.png",
}
SHARES = (1.0, 0.1, 0.01)  # of the training images, in the comparison
_FEWEST = 8  # images that a share must have
_JUDGE_STEPS = 150  # of pretraining the encoder whose features the distance is between


class Stopped(Exception):
    """It was asked to stop, and the same call goes on."""

    def __init__(self, what: str, step: int, steps: int) -> None:
        super().__init__(f"{what}: stopped at step {step} of {steps}")
        self.step, self.steps = step, steps


def gan_config(config: RunConfig, share: float = 1.0) -> GanConfig:
    """Of the generator of a run, and of a comparison on a share of the images."""
    steps = config.gan_steps if share == 1 else max(1, config.gan_steps // 4)
    return GanConfig(steps=steps, check_every=min(500, max(1, steps // 4)), seed=config.seed)


def make_generator(
    images: Tensor,
    folder: Path,
    gan: GanConfig,
    config: RunConfig,
    origin: dict[str, Any],
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> Generator:
    """The generator in `folder`, trained or trained further where it is not there or not finished.

    Args:
        images: to learn from, uint8 [N, C, H, W]; no others are seen.
        folder: for its files; made where it is missing.
        gan: of the training.
        config: of the encoder that gives the features.
        origin: what identifies the images and the run; a checkpoint of others is refused.
        reporter: shows progress.
        should_stop: asked after every step.

    Raises:
        Stopped: after saving.
        DivergedError: the last checkpoint stands.
        RunError: for a checkpoint of other images or settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = {"gan": asdict(gan), **origin}
    finished = folder / FILES["generator"]
    if finished.exists():
        generator, found = load_generator(finished)
        _refuse_another(finished, found, described)
        return generator
    training = GanTraining(images, gan, _judge(images, folder, config, origin, reporter))
    checkpoint = folder / FILES["checkpoint"]
    newest = newest_checkpoint(checkpoint, reporter.note)
    if newest is not None:
        _refuse_another(newest, load_checkpoint(newest)[1], described)
        training.restore(newest)
        reporter.note(f"resumed at step {training.step:,} of {training.steps:,}")
    with reporter.steps(f"generator of {len(images):,} images") as on_step:

        def show(now: GanTraining) -> None:
            on_step(now.step, now.steps, now.losses[-1][1])

        if not training.run(checkpoint, described, show, should_stop):
            raise Stopped("generator", training.step, training.steps)
    best = training.best_step
    measured = {"step": best, "distance": training.distances[best], "distances": list(training.distances.items())}
    save_generator(training.best, finished, {**described, **measured, "seconds": training.seconds})
    reporter.note(f"best at step {best:,}: Fréchet distance {training.distances[best]:.3g}")
    remove_checkpoint(checkpoint)
    return load_generator(finished)[0]


def _refuse_another(path: Path, found: dict[str, Any], origin: dict[str, Any]) -> None:
    differing = [key for key, value in origin.items() if found.get(key) != value]
    if differing:
        raise RunError(f"{path}: is of another {' and '.join(differing)}; choose another --out")


def _judge(images: Tensor, folder: Path, config: RunConfig, origin: dict[str, Any], reporter: Reporter) -> Encoder:
    """A briefly pretrained encoder of the same images, whose features tell them apart better than pixels do."""
    path = folder / FILES["judge"]
    if not path.exists():
        training = _pretraining(images, config, min(config.batch_size, len(images)), _JUDGE_STEPS)
        with reporter.steps("encoder that judges") as on_step:
            training.run(
                folder / FILES["pretraining"],
                {},
                lambda now: on_step(now.step, now.steps, now.losses[-1]),
                lambda: False,
            )
        save_encoder(training.encoder, path, "float", origin)
        remove_checkpoint(folder / FILES["pretraining"])
    _refuse_another(path, encoder_origin(path), origin)
    return load_encoder(path)[0]


def _pretraining(images: Tensor, config: RunConfig, batch_size: int, steps: int) -> Pretraining:
    """Of about so many steps: whole epochs."""
    epochs = max(1, round(steps / (len(images) // batch_size)))
    small = {"epochs": epochs, "batch_size": batch_size, "warmup_epochs": config.warmup_epochs / config.epochs * epochs}
    return Pretraining(images, config.model_copy(update={**small, "checkpoint_steps": None, "device": "cpu"}))


def write_samples(generator: Generator, folder: Path, seed: int) -> None:
    """Draws ten rows of ten generated images."""
    with run_extra():
        from PIL import Image
    made = GeneratedDataset(generator, 100, seed).images
    framed = functional.pad(made, (1, 1, 1, 1), value=128)
    rows = torch.cat([torch.cat(list(row), dim=2) for row in framed.split(10)], dim=1)
    buffer = io.BytesIO()
    Image.fromarray(rows.permute(1, 2, 0).squeeze(2).contiguous().numpy()).save(buffer, format="PNG")
    write_atomically(folder / FILES["samples"], buffer.getvalue())


def distances(folder: Path, images: Dataset) -> dict[str, float | None]:
    """Fréchet distances of a finished generator's and of the held-out images from the training images.

    As many generated images as are held out, since the distance falls with their number; None for less than two.
    """
    encoder, _ = load_encoder(folder / FILES["judge"])
    count = len(images.test)
    made = GeneratedDataset(folder / FILES["generator"], count, seed=1).images
    real = encoder.embed(images.train_images)
    return {
        f"{name}_frechet_distance": None if count < 2 else frechet_distance(real, encoder.embed(others))
        for name, others in (("generated", made), ("held_out", images.test_images))
    }


@dataclass(frozen=True)
class Comparison:
    """Pretraining with and without generated images, at one share of the data, for as many steps."""

    share: float  # of the training images
    images: int  # real ones
    generated: int  # beside them, where there are
    steps: int  # of pretraining without generated images
    steps_with: int  # and with them; not the same, as only whole epochs are run
    gan_steps: int  # of the generator, which saw the same share alone
    distance: float  # of its images, from this share's, on its own encoder's features
    linear_probe: float
    linear_probe_with: float
    knn: float
    knn_with: float


def compare(
    images: Dataset,
    folder: Path,
    config: RunConfig,
    origin: dict[str, Any],
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> list[Comparison]:
    """Pretrains with and without generated images at each of :data:`SHARES`.

    Both encoders of a share are trained for as many steps in batches as large, and judged by the same labels: those of
    all training and held-out images.

    Args:
        images: of the run, with labels.
        folder: of the run's generator; those of the smaller shares get folders in it.
        config: of the run.
        origin: as :func:`make_generator`'s.
        reporter: shows progress.
        should_stop: asked after every step.

    Returns:
        One for each share that has enough images.

    Raises:
        Stopped: what is finished stands in ``comparison.json`` of `folder`.
        UserError: its subclasses, as :func:`make_generator`.
    """
    path = folder / FILES["comparison"]
    done = _read_comparisons(path)
    learnt = images.train_images
    # Not stratified: whoever has no labels cannot.
    order = torch.from_numpy(np.random.RandomState(config.seed).permutation(len(learnt)))
    steps = config.ablation_epochs * (len(learnt) // config.batch_size)
    for share in SHARES:
        count = round(share * len(learnt))
        if share in (row.share for row in done):
            continue
        if count < _FEWEST:
            reporter.note(f"{100 * share:g} % of the data is {count} images: too few to compare")
            continue
        part = learnt[order[:count]] if share < 1 else learnt
        own = folder if share == 1 else folder / f"{100 * share:g}-percent"
        gan = gan_config(config, share)
        generator = make_generator(part, own, gan, config, origin, reporter, should_stop)
        batch = min(config.batch_size, count)
        mixed = GeneratedDataset.mixed(part, generator, config.generate, config.seed)
        results = []
        for name, seen in (("without", part), ("with", mixed)):
            checkpoint = own / f"{name}-{FILES['pretraining']}"
            training = _pretraining(seen, config, batch, steps)
            newest = newest_checkpoint(checkpoint, reporter.note)
            if newest is not None:
                training.restore(newest)
            with reporter.steps(f"{100 * share:g} % {name} generated images") as on_step:

                def show(now: Pretraining, on_step: Callable[[int, int, float], None] = on_step) -> None:
                    on_step(now.step, now.steps, now.losses[-1])

                if not training.run(checkpoint, origin, show, should_stop):
                    raise Stopped("comparison", training.step, training.steps)
            judged = evaluate(images, training.encoder.eval(), config.neighbors, config.probe_c)
            results.append((training.steps, judged))
        (steps_without, without), (steps_with, with_them) = results
        distance = load_generator(own / FILES["generator"])[1]["distance"]
        row = Comparison(
            share, count, generated_count(count, config.generate), steps_without, steps_with, gan.steps, distance,
            float(without.linear_probe or 0), float(with_them.linear_probe or 0),
            float(without.knn or 0), float(with_them.knn or 0),
        )  # fmt: skip
        done.append(row)
        write_atomically(path, json.dumps([asdict(row) for row in done], indent=2) + "\n")
        for name in ("without", "with"):
            remove_checkpoint(own / f"{name}-{FILES['pretraining']}")
    return done


def _read_comparisons(path: Path) -> list[Comparison]:
    if not path.exists():
        return []
    try:
        return [Comparison(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: expected a comparison of `fastcl run`: {error}") from error
