"""The main job: load, augment, pretrain, evaluate, compress, evaluate again, report."""

from __future__ import annotations

import contextlib
import copy
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import fastcl
from fastcl import data
from fastcl.checkpoint import load_checkpoint, save_encoder
from fastcl.compress import to_int8
from fastcl.config import RunConfig, changes, make_config, read_toml, to_toml
from fastcl.data.secure import key_from_env, key_from_file
from fastcl.data.text import from_bytes
from fastcl.encoder import Encoder
from fastcl.errors import ConfigError, DivergedError, RunError, run_extra
from fastcl.evaluate import LinearProbe, accuracy, knn_predict, latency_ms, tfidf
from fastcl.files import TEMPORARY, write_atomically
from fastcl.pretrain import Pretraining
from fastcl.progress import Reporter
from fastcl.recipe import TextRecipe
from fastcl.report import Evidence, write_report

__all__ = ["BASELINES", "FILES", "TIMINGS", "Interrupted", "run", "settings_of"]

FILES = {
    "config": "config.toml",
    "checkpoint": "checkpoint.safetensors",
    "encoder": "encoder.safetensors",
    "int8_encoder": "encoder_int8.safetensors",
    "report": "report.html",
    "metrics": "metrics.json",  # written last: a folder that has it holds a finished run
    "failure": "failure.json",
}

# The metrics that depend on the clock; all others are the same whenever the same run is repeated.
TIMINGS = (
    "train_seconds",
    "images_per_second",
    "latency_ms_batch_1",
    "latency_ms_batch_256",
    "int8_latency_ms_batch_1",
    "int8_latency_ms_batch_256",
)

# What the encoder is held against, by the kind of data; the metrics' names begin with it.
BASELINES = {"images": "raw_pixels", "texts": "tfidf"}

_LATENCY_BATCHES = (1, 256)


class Interrupted(Exception):
    """The run was asked to stop, and left a checkpoint that `--resume` goes on from."""

    def __init__(self, signal_number: int, step: int, steps: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}")
        self.exit_code = 128 + signal_number


@dataclass(frozen=True)
class _Evaluation:
    """What a set of embeddings achieves; no accuracies without labels."""

    train: Tensor
    test: Tensor
    knn: float | None = None
    probe: float | None = None
    predicted: Any = None  # int64 [test images], by the probe


def settings_of(out: Path) -> dict[str, Any] | None:
    """The settings of the run in `out`, or None where there is none."""
    path = out / FILES["config"]
    return read_toml(path) if path.exists() else None


def run(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Does the main job.

    Args:
        config: what to do.
        out: the folder for the results; made where it is missing.
        resume: go on with the run in `out`; a new one starts where there is none.
        overwrite: throw away the run in `out` first.
        command: the command line, for the report.
        reporter: shows progress.

    Returns:
        The metrics, as they stand in ``metrics.json``.

    Raises:
        UserError: its subclasses say what is wrong with the data, the folder, the checkpoint or the training.
        Interrupted: after Ctrl-C or SIGTERM; the run can be resumed.
    """
    reporter = reporter or Reporter()
    config = config.model_copy(update={"threads": config.threads or torch.get_num_threads()})
    if _is_finished(config, out, resume=resume, overwrite=overwrite):
        reporter.note(f"{out} holds this run, finished")
        metrics: dict[str, Any] = json.loads((out / FILES["metrics"]).read_text(encoding="utf-8"))
        return metrics
    with _threads(config.threads or 1):
        try:
            return _run(config, out, overwrite, command, reporter)
        except OSError as error:
            raise RunError(f"the run in {out} stopped: {error}; --resume goes on with it") from error


def _run(config: RunConfig, out: Path, overwrite: bool, command: str, reporter: Reporter) -> dict[str, Any]:
    reporter.stage("load")
    images = _load(config)
    if (images.kind == "texts") != isinstance(config.recipe, TextRecipe):
        raise ConfigError(
            f"data: {config.data} holds {images.kind}; encrypted images are secure:PATH, texts are secure-text:PATH"
        )
    reporter.note(_describe(images))
    training = Pretraining(images.train_images, config)  # all that pretraining ever sees
    random_encoder = copy.deepcopy(training.encoder)
    _begin(config, out, overwrite)
    environment = {"fastcl": fastcl.__version__, "torch": torch.__version__, "backends": fastcl.backends()}
    description = {"data": images.fingerprint(), **environment}
    _restore(training, out / FILES["checkpoint"], description, reporter)

    reporter.stage("augment and pretrain")
    _pretrain(training, out, description, reporter)

    reporter.stage("evaluate")
    encoder = training.encoder.eval()
    trained, probe = _evaluate(config, images, encoder)
    baseline, _ = _evaluate(config, images, None)
    untrained, _ = _evaluate(config, images, random_encoder)

    reporter.stage("compress to int8, evaluate again")
    int8 = to_int8(encoder)
    compressed, _ = _evaluate(config, images, int8, probe)
    encoder_bytes = save_encoder(encoder, out / FILES["encoder"], "float")
    int8_bytes = save_encoder(int8, out / FILES["int8_encoder"], "int8")
    metrics: dict[str, Any] = {
        "knn_accuracy": trained.knn,
        "linear_probe_accuracy": trained.probe,
        "int8_knn_accuracy": compressed.knn,
        "int8_linear_probe_accuracy": compressed.probe,
        "random_encoder_knn_accuracy": untrained.knn,
        "random_encoder_linear_probe_accuracy": untrained.probe,
        f"{BASELINES[images.kind]}_knn_accuracy": baseline.knn,
        f"{BASELINES[images.kind]}_linear_probe_accuracy": baseline.probe,
        "int8_cosine_similarity": torch.cosine_similarity(trained.test, compressed.test).mean().item(),
        "final_loss": training.recent_loss,
        "encoder_bytes": encoder_bytes,
        "int8_encoder_bytes": int8_bytes,
        "embedding_dim": encoder.dim,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "steps": training.steps,
        "seed": config.seed,
        "threads": config.threads,
        "train_seconds": training.seconds,
        "images_per_second": training.images_per_second,
    }
    for prefix, model in (("", encoder), ("int8_", int8)):
        for batch in _LATENCY_BATCHES:
            metrics[f"{prefix}latency_ms_batch_{batch}"] = latency_ms(model, images.test_images, batch)

    reporter.stage("report")
    evidence = Evidence(
        data=images,
        config=config,
        transform=training.transform,
        losses=training.losses,
        steps_per_epoch=training.steps_per_epoch,
        train=trained.train,
        test=trained.test,
        predicted=trained.predicted,
        command=command or " ".join(sys.argv),
        metrics=metrics,
    )
    write_report(out / FILES["report"], evidence)
    write_atomically(out / FILES["metrics"], json.dumps(metrics, indent=2) + "\n")
    (out / FILES["checkpoint"]).unlink(missing_ok=True)
    return metrics


def _load(config: RunConfig) -> data.Dataset:
    try:
        return data.load(
            config.data,
            data_dir=config.data_dir,
            image_size=config.image_size,
            text_length=config.text_length,
            limit=config.limit,
            allow_download=config.download,
            key=_key(config),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _key(config: RunConfig) -> Callable[[], bytes] | None:
    if config.key_file is not None:
        return partial(key_from_file, config.key_file)
    return None if config.key_env is None else partial(key_from_env, config.key_env)


def _describe(images: data.Dataset) -> str:
    channels, height, width = images.images.shape[1:]
    labels = f"{len(images.classes)} classes" if images.classes else "no labels"
    if images.kind == "texts":
        return (
            f"{images.name}: {len(images.train):,} texts to learn from, {len(images.test):,} held out, "
            f"{width} bytes at most, {labels}"
        )
    return (
        f"{images.name}: {len(images.train):,} images to learn from, {len(images.test):,} held out, "
        f"{height}×{width}, {'grey' if channels == 1 else 'colour'}, {labels}"
    )


def _restore(training: Pretraining, path: Path, description: dict[str, Any], reporter: Reporter) -> None:
    """Goes to the checkpoint at `path` where there is one."""
    if not path.exists():
        return
    _, saved = load_checkpoint(path)
    if saved.get("data") != description["data"]:
        raise RunError(f"{path}: the data has changed since this run began; start anew with --overwrite")
    changed = [key for key in ("fastcl", "torch", "backends") if saved.get(key) != description[key]]
    if changed:
        reporter.note(f"{', '.join(changed)} changed since this run began: the result may differ in the last digits")
    training.restore(path)
    reporter.note(f"resumed at step {training.step:,} of {training.steps:,}")


def _pretrain(training: Pretraining, out: Path, description: dict[str, Any], reporter: Reporter) -> None:
    with _stop_signal() as stop, reporter.training(training) as on_step:
        try:
            finished = training.run(out / FILES["checkpoint"], description, on_step, lambda: bool(stop))
        except DivergedError as error:
            failure = {"state": "diverged", "step": training.step + 1, "message": str(error)}
            write_atomically(out / FILES["failure"], json.dumps(failure, indent=2) + "\n")
            raise
    if not finished:
        raise Interrupted(stop[0], training.step, training.steps)


def _evaluate(
    config: RunConfig, images: data.Dataset, encoder: Encoder | None, probe: LinearProbe | None = None
) -> tuple[_Evaluation, LinearProbe | None]:
    """Judges an encoder, or the baseline, by the held-out images; with the probe given, or one of its own."""
    parts = images.train_images, images.test_images
    if encoder is not None:
        train, test = map(encoder.embed, parts)
    elif images.kind == "texts":
        train, test = tfidf(*(from_bytes(part[:]) for part in parts))
    else:
        train, test = (torch.cat([rows.flatten(1).float() / 255 for rows in part.split(1024)]) for part in parts)
    train_labels, test_labels = images.train_labels, images.test_labels
    if train_labels is None or test_labels is None:
        return _Evaluation(train, test), None
    probe = probe or LinearProbe(train, train_labels, config.probe_c)
    predicted = probe.predict(test)
    knn = accuracy(knn_predict(train, train_labels, test, config.neighbors), test_labels)
    return _Evaluation(train, test, knn, accuracy(predicted, test_labels), predicted), probe


def _is_finished(config: RunConfig, out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether `out` holds this very run, finished; raises RunError where it holds what is not to be touched."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in out.iterdir() if not path.name.startswith(TEMPORARY)}
    except OSError as error:
        raise RunError(f"{out}: expected a folder that can be written to: {error}") from error
    if overwrite or not names:
        return False
    if FILES["config"] not in names:
        raise RunError(f"{out} is not empty and holds no run of fastcl; choose another --out, or --overwrite")
    finished = FILES["metrics"] in names
    if not resume:
        state = (
            "a finished run"
            if finished
            else "a run that diverged"
            if FILES["failure"] in names
            else "an unfinished run"
        )
        how = "" if finished else "--resume goes on, "
        raise RunError(f"{out} holds {state}; {how}--overwrite throws it away, or choose another --out")
    differences = changes(make_config(settings_of(out) or {}), config)
    if differences:
        raise RunError(f"{out} holds a run with other settings, not resumed: {'; '.join(differences)}")
    return finished


def _begin(config: RunConfig, out: Path, overwrite: bool) -> None:
    """Clears away what an earlier run left, and writes the configuration."""
    thrown_away = FILES.values() if overwrite else (FILES["failure"],)
    try:
        for path in out.iterdir():
            if path.name in thrown_away or path.name.startswith(TEMPORARY):
                path.unlink()
        write_atomically(out / FILES["config"], to_toml(config))
    except OSError as error:
        raise RunError(f"{out}: expected a folder that can be written to: {error}") from error


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch's and BLAS's threads."""
    with run_extra():
        from threadpoolctl import threadpool_limits
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM instead of dying of them; the second one ends the process as usual."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other in numbers:
            signal.signal(other, before[other])

    try:
        before = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # not the main thread: whoever called this handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
