"""The main job: load, augment, pretrain, evaluate, compress, evaluate again, report."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastcl
from fastcl import data, distributed
from fastcl.checkpoint import load_checkpoint, load_encoder, newest_checkpoint, remove_checkpoint, save_encoder
from fastcl.compress import to_int8
from fastcl.compress.ladder import LADDER_BATCHES, Ladder, LadderConfig, climb
from fastcl.config import RunConfig, changes, make_config, read_toml, to_toml
from fastcl.data.secure import key_from_env, key_from_file
from fastcl.encoder import Encoder
from fastcl.errors import ConfigError, DivergedError, RunError, run_extra
from fastcl.evaluate import Evaluation, evaluate, latency_ms
from fastcl.files import TEMPORARY, locked, write_atomically
from fastcl.generate import GeneratedDataset
from fastcl.generate import job as generation
from fastcl.pretrain import Pretraining
from fastcl.private import PrivatePretraining
from fastcl.progress import Reporter
from fastcl.recipe import TextRecipe
from fastcl.report import Evidence, Generation, replace_frontier, write_report
from fastcl.signals import stop_signal, termination_raises

__all__ = [
    "BASELINES",
    "FILES",
    "GENERATED_FOLDER",
    "LADDER_FOLDER",
    "TIMINGS",
    "Interrupted",
    "compress",
    "holds",
    "load_run",
    "run",
    "settings_of",
]

FILES = {
    "config": "config.toml",
    "checkpoint": "checkpoint.safetensors",
    "previous_checkpoint": "checkpoint.previous.safetensors",  # in case the last one is damaged
    "encoder": "encoder.safetensors",
    "int8_encoder": "encoder_int8.safetensors",
    "report": "report.html",
    "metrics": "metrics.json",  # written last: a folder that has it holds a finished run
    "failure": "failure.json",
    "compression": "compression.json",
    "compressed_encoder": "encoder_compressed.safetensors",
}
LADDER_FOLDER = "compressed"  # the encoders of the ladder
GENERATED_FOLDER = "generated"  # the generator, and those of the comparison

# The metrics that depend on the clock; all others are the same whenever the same run is repeated.
TIMINGS = (
    "train_seconds",
    "images_per_second",
    "latency_ms_batch_1",
    "latency_ms_batch_256",
    "int8_latency_ms_batch_1",
    "int8_latency_ms_batch_256",
    "student_latency_ms_batch_1",
    "student_latency_ms_batch_256",
)

# What the encoder is held against, by the kind of data; the metrics' names begin with it.
BASELINES = {"images": "raw_pixels", "texts": "tfidf"}


class Interrupted(Exception):
    """The run was asked to stop, and left a checkpoint that `--resume` goes on from."""

    def __init__(self, signal_number: int, step: int, steps: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}")
        self.exit_code = 128 + signal_number


def settings_of(out: Path) -> dict[str, Any] | None:
    """The settings of the run in `out`, or None where there is none."""
    path = out / FILES["config"]
    return read_toml(path) if path.exists() else None


def holds(out: Path, config: RunConfig) -> bool:
    """Whether the run in `out`, finished or not, has these settings."""
    stored = settings_of(out)
    if stored is None:
        return False
    before = make_config(stored)
    return not changes(before, config.model_copy(update={"threads": config.threads or before.threads}))


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
    if distributed.restarted():  # with the command line of the first time
        resume, overwrite = True, overwrite and not _is_unfinished(config, out)
    with distributed.joined(config.device), _threads(config.threads or 1), contextlib.ExitStack() as stack:
        distributed.on_first(lambda: stack.enter_context(_exclusive(out)))
        stack.enter_context(termination_raises())
        config = distributed.on_first(lambda: config)  # whose --resume may have read a stored one
        if not distributed.is_first():
            reporter = Reporter()
        try:
            if distributed.on_first(lambda: _is_finished(config, out, resume=resume, overwrite=overwrite)):
                reporter.note(f"{out} holds this run, finished")
                return distributed.on_first(lambda: _read_metrics(out))
            return _run(config, out, overwrite, command, reporter)
        except OSError as error:
            raise RunError(f"the run in {out} stopped: {error}; {_advice(error)}--resume goes on with it") from error


def _read_metrics(out: Path) -> dict[str, Any]:
    path = out / FILES["metrics"]
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: expected the metrics of a finished run: {error}; --overwrite runs it anew") from error
    return metrics


@contextlib.contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Makes the folder, and keeps other runs out of it."""
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out))
        except OSError as error:
            raise _not_writable(out, error) from error
        yield


_ADVICE = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "make the folder writable for you",
    errno.EPERM: "make the folder writable for you",
}


def _advice(error: OSError) -> str:
    """What to do first."""
    advice = _ADVICE.get(error.errno or 0)
    return f"{advice}, then " if advice else ""


def _not_writable(out: Path, error: OSError) -> RunError:
    return RunError(f"{out}: expected a folder that can be written to: {error}; choose another --out, or mend this one")


def _run(config: RunConfig, out: Path, overwrite: bool, command: str, reporter: Reporter) -> dict[str, Any]:
    reporter.stage("load")
    with distributed.one_at_first() if config.download else contextlib.nullcontext():
        images = _load(config)
    fingerprint = images.fingerprint()
    distributed.check_same("data", fingerprint)
    if (images.kind == "texts") != isinstance(config.recipe, TextRecipe):
        raise ConfigError(
            f"data: {config.data} holds {images.kind}; encrypted images are secure:PATH, texts are secure-text:PATH"
        )
    reporter.note(_describe(images))
    _tell_skipped(images, reporter)
    _check_generate(config, images)
    _check_private(config)
    training = _pretraining(images.train_images, config)  # all that pretraining ever sees
    distributed.on_first(lambda: _begin(config, out, overwrite))
    environment = {"fastcl": fastcl.__version__, "torch": torch.__version__, "backends": fastcl.backends()}
    description = {
        "data": fingerprint, "skipped": len(images.skipped), **environment, "processes": distributed.world()[1]
    }  # fmt: skip
    generated = None
    if config.generate:
        generated = distributed.on_first(lambda: _generate(config, out, images, description, reporter))
        mixed = GeneratedDataset.mixed(images.train_images, generated.generator, config.generate, config.seed)
        training = Pretraining(mixed, config)
    random_encoder = copy.deepcopy(training.encoder).cpu()
    _restore(training, out / FILES["checkpoint"], description, reporter)

    reporter.stage("augment and pretrain")
    _pretrain(training, out, description, reporter)
    return distributed.on_first(
        lambda: _finish(config, out, images, generated, training, random_encoder, command, reporter)
    )


def _finish(
    config: RunConfig,
    out: Path,
    images: data.Dataset,
    generated: Generation | None,
    training: Pretraining,
    random_encoder: Encoder,
    command: str,
    reporter: Reporter,
) -> dict[str, Any]:
    """All that comes after pretraining."""
    reporter.stage("evaluate")
    encoder = training.encoder.eval().cpu()
    trained = evaluate(images, encoder, config.neighbors, config.probe_c)
    baseline = evaluate(images, None, config.neighbors, config.probe_c)
    untrained = evaluate(images, random_encoder, config.neighbors, config.probe_c)

    reporter.stage("compress to int8, evaluate again")
    int8 = to_int8(encoder)
    compressed = evaluate(images, int8, config.neighbors, config.probe_c, trained.probe)
    encoder_bytes = save_encoder(encoder, out / FILES["encoder"], "float")
    int8_bytes = save_encoder(int8, out / FILES["int8_encoder"], "int8")
    metrics: dict[str, Any] = {
        "knn_accuracy": trained.knn,
        "linear_probe_accuracy": trained.linear_probe,
        "int8_knn_accuracy": compressed.knn,
        "int8_linear_probe_accuracy": compressed.linear_probe,
        "random_encoder_knn_accuracy": untrained.knn,
        "random_encoder_linear_probe_accuracy": untrained.linear_probe,
        f"{BASELINES[images.kind]}_knn_accuracy": baseline.knn,
        f"{BASELINES[images.kind]}_linear_probe_accuracy": baseline.linear_probe,
        "int8_cosine_similarity": torch.cosine_similarity(trained.test, compressed.test).mean().item(),
        "final_loss": training.recent_loss,
        "encoder_bytes": encoder_bytes,
        "int8_encoder_bytes": int8_bytes,
        "embedding_dim": encoder.dim,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "skipped_images": len(images.skipped),
        "steps": training.steps,
        "seed": config.seed,
        "threads": config.threads,
        "train_seconds": training.seconds,
        "images_per_second": training.images_per_second,
    }
    if isinstance(training, PrivatePretraining):
        metrics |= {"dp_epsilon": config.dp_epsilon, "dp_delta": config.dp_delta, "dp_noise": training.noise}
    for prefix, model in (("", encoder), ("int8_", int8)):
        for batch in LADDER_BATCHES:
            metrics[f"{prefix}latency_ms_batch_{batch}"] = latency_ms(model, images.test_images, batch)

    ladder = None
    if config.ladder != "none" and images.kind == "images":
        reporter.stage("distill into smaller encoders")
        wanted = LadderConfig(prune=(), widths=_half(config.width)) if config.ladder == "student" else LadderConfig()
        wanted = dataclasses.replace(wanted, epochs=config.distill_epochs)
        known = {"float32": trained, "int8": compressed}
        ladder = _climb(config, out, images, encoder, wanted, reporter, known)
        metrics |= _student_metrics(ladder, config)

    if generated is not None:
        metrics |= generated.metrics
    reporter.stage("report")
    evidence = Evidence(
        data=images.judged,
        config=config,
        transform=training.transform,
        losses=training.losses,
        steps_per_epoch=training.steps_per_epoch,
        train=trained.train,
        test=trained.test,
        predicted=trained.predicted,
        command=command or " ".join(sys.argv),
        metrics=metrics,
        ladder=ladder,
        generation=generated,
    )
    write_report(out / FILES["report"], evidence)
    write_atomically(out / FILES["metrics"], json.dumps(metrics, indent=2) + "\n")
    remove_checkpoint(out / FILES["checkpoint"])
    return metrics


def load_run(out: Path) -> tuple[RunConfig, data.Dataset]:
    """The settings and the images of a finished run.

    Raises:
        RunError: where there is none.
        UserError: its other subclasses, for what is wrong with the data.
    """
    settings = settings_of(out)
    if settings is None or not (out / FILES["metrics"]).exists():
        state = "no run of fastcl" if settings is None else "an unfinished run; fastcl run --resume goes on with it"
        raise RunError(f"{out}: expected the folder of a finished run, found {state}")
    config = make_config(settings)
    return config, _load(config)


def compress(out: Path, config: LadderConfig, *, reporter: Reporter | None = None) -> Ladder:
    """Makes smaller encoders from that of a finished run, and shows them in its report.

    A call that was stopped leaves the run as it was, with the encoders that were finished, and the same call goes on.

    Args:
        out: the run's folder.
        config: which encoders, and what the chosen one must keep to.
        reporter: shows progress.

    Returns:
        The ladder. It stands in ``compression.json`` and the report; with a target, the chosen encoder in
        ``encoder_compressed.safetensors``.

    Raises:
        RunError: where there is no finished run, or no rung meets the targets.
        UserError: its other subclasses, for what is wrong with the data or the files.
    """
    reporter = reporter or Reporter()
    reporter.stage("load")
    run_config, images = load_run(out)
    if images.kind != "images":
        raise RunError(f"{out} holds a run on {images.kind}; smaller encoders are made for images alone")
    if run_config.dp_epsilon is not None:
        raise RunError(
            f"{out} holds a run with differential privacy; smaller encoders would be learnt from its images without"
        )
    with _exclusive(out), termination_raises(), _threads(run_config.threads or torch.get_num_threads()):
        try:
            encoder, _ = load_encoder(out / FILES["encoder"])
            for folder in (out, out / LADDER_FOLDER):
                for path in folder.glob(f"{TEMPORARY}*"):
                    path.unlink()
            reporter.stage("distill into smaller encoders")
            ladder = _climb(run_config, out, images, encoder, config, reporter, {})
            if ladder.chosen is not None:
                chosen = (out / str(ladder[ladder.chosen].file)).read_bytes()
                write_atomically(out / FILES["compressed_encoder"], chosen)
            if not replace_frontier(out / FILES["report"], ladder, run_config):
                reporter.note(f"{out / FILES['report']} is none that the result fits into; it is in compression.json")
        except OSError as error:
            message = f"compressing the run in {out} stopped: {error}; {_advice(error)}the same command goes on"
            raise RunError(message) from error
    return ladder


def _climb(
    config: RunConfig,
    out: Path,
    images: data.Dataset,
    encoder: Encoder,
    wanted: LadderConfig,
    reporter: Reporter,
    known: dict[str, Evaluation],
) -> Ladder:
    files = {"float32": out / FILES["encoder"], "int8": out / FILES["int8_encoder"]}
    ladder = climb(encoder, files, out / LADDER_FOLDER, images, config, wanted, reporter, known)
    write_atomically(out / FILES["compression"], json.dumps(ladder.to_json(), indent=2) + "\n")
    return ladder


def _half(width: int) -> tuple[int, ...]:
    return (width // 2,)


def _student_metrics(ladder: Ladder, config: RunConfig) -> dict[str, Any]:
    """Of the student of half the width."""
    rung = ladder[f"student-{_half(config.width)[0]}-int8"]
    metrics: dict[str, Any] = {
        "student_knn_accuracy": rung.knn,
        "student_linear_probe_accuracy": rung.linear_probe,
        "student_neighbor_agreement": rung.agreement,
        "student_encoder_bytes": rung.bytes,
    }
    return metrics | {f"student_latency_ms_batch_{batch}": ms for batch, ms in rung.latency_ms.items()}


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


def _tell_skipped(images: data.Dataset, reporter: Reporter) -> None:
    if images.skipped:
        first = "; ".join(f"{name}: {why}" for name, why in list(images.skipped.items())[:3])
        more = f"; and {len(images.skipped) - 3} more, in the report" if len(images.skipped) > 3 else ""
        reporter.note(f"skipped {len(images.skipped):,} that cannot be read: {first}{more}")


def _check_generate(config: RunConfig, images: data.Dataset) -> None:
    if config.generate and images.kind != "images":
        raise ConfigError(f"generate: images alone can be generated, {config.data} holds {images.kind}")
    if config.generate and images.private:
        raise ConfigError("generate: a generator can show what it learnt from, so none is made of encrypted images")
    if config.generate and not isinstance(images.images, torch.Tensor):
        raise ConfigError(
            f"generate: the images must fit into memory; --limit takes some of the {len(images.images):,}"
        )


def _check_private(config: RunConfig) -> None:
    """Refuses what would look at the training images again, without protection."""
    if config.dp_epsilon is not None and (config.generate or config.ladder != "none"):
        raise ConfigError(
            "dp_epsilon: generated images and smaller encoders would be learnt from the images without protection; "
            "it goes with --generate 0 and --ladder none"
        )


def _pretraining(images: torch.Tensor, config: RunConfig) -> Pretraining:
    return Pretraining(images, config) if config.dp_epsilon is None else PrivatePretraining(images, config)


def _generate(
    config: RunConfig, out: Path, images: data.Dataset, description: dict[str, Any], reporter: Reporter
) -> Generation:
    """Trains the generator, and compares pretraining with and without its images where there are labels to judge by."""
    folder, origin = out / GENERATED_FOLDER, {"data": description["data"]}
    comparisons: list[generation.Comparison] = []
    with stop_signal() as stop:
        try:
            reporter.stage("generate")
            gan = generation.gan_config(config)
            generator = generation.make_generator(
                images.train_images, folder, gan, config, origin, reporter, lambda: bool(stop)
            )
            if config.ablation_epochs and images.labels is not None:
                reporter.stage("compare pretraining with and without generated images")
                comparisons = generation.compare(images, folder, config, origin, reporter, lambda: bool(stop))
        except generation.Stopped as stopped:
            raise Interrupted(stop[0], stopped.step, stopped.steps) from stopped
        except DivergedError as error:
            _write_failure(out, error)
            raise
    return Generation(generator, comparisons, generation.distances(folder, images))


def _restore(training: Pretraining, path: Path, description: dict[str, Any], reporter: Reporter) -> None:
    """Goes to the checkpoint at `path` where there is one; where it is damaged, to the one before."""
    newest = distributed.on_first(lambda: newest_checkpoint(path, reporter.note))
    if newest is None:
        return
    saved = distributed.on_first(lambda: load_checkpoint(newest)[1])
    if saved.get("data") != description["data"]:
        left_out = f" (left out, as unreadable, before: {saved.get('skipped', 0)}, now: {description['skipped']})"
        raise RunError(f"{newest}: the data has changed since this run began{left_out}; start anew with --overwrite")
    changed = [key for key in ("fastcl", "torch", "backends", "processes") if saved.get(key) != description[key]]
    if changed:
        reporter.note(f"{', '.join(changed)} changed since this run began: the result may differ in the last digits")
    training.restore(newest)
    reporter.note(f"resumed at step {training.step:,} of {training.steps:,}")


def _pretrain(training: Pretraining, out: Path, description: dict[str, Any], reporter: Reporter) -> None:
    with stop_signal() as stop, reporter.training(training) as on_step:
        try:
            finished = training.run(out / FILES["checkpoint"], description, on_step, lambda: bool(stop))
        except DivergedError as error:
            if distributed.is_first():
                _write_failure(out, error)
            raise
    if not finished:
        number = stop[0] if stop else signal.SIGTERM  # which went to another process
        raise Interrupted(number, training.step, training.steps)


def _write_failure(out: Path, error: DivergedError) -> None:
    failure = {"state": "diverged", "step": error.step, "message": str(error)}
    with contextlib.suppress(OSError):  # what diverged says more than that the disk is full, too
        write_atomically(out / FILES["failure"], json.dumps(failure, indent=2) + "\n")


def _is_finished(config: RunConfig, out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether `out` holds this very run, finished; raises RunError where it holds what is not to be touched."""
    try:
        names = {path.name for path in out.iterdir() if not path.name.startswith(TEMPORARY)}
    except OSError as error:
        raise _not_writable(out, error) from error
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
        raise RunError(
            f"{out} holds a run with other settings, not resumed: {'; '.join(differences)}; to go on, leave "
            "those flags out; or choose another --out, or --overwrite"
        )
    return finished


def _is_unfinished(config: RunConfig, out: Path) -> bool:
    """Whether `out` holds this very run, begun."""
    settings = settings_of(out)
    begun = settings is not None and not (out / FILES["metrics"]).exists()
    return begun and not changes(make_config(settings or {}), config)


def _begin(config: RunConfig, out: Path, overwrite: bool) -> None:
    """Clears away what an earlier run left, and writes the configuration."""
    thrown_away = FILES.values() if overwrite else (FILES["failure"],)
    try:
        for path in out.iterdir():
            if path.name in thrown_away or path.name.startswith(TEMPORARY):
                path.unlink()
            elif overwrite and path.name in (LADDER_FOLDER, GENERATED_FOLDER):
                shutil.rmtree(path)
        write_atomically(out / FILES["config"], to_toml(config))
    except OSError as error:
        raise _not_writable(out, error) from error


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
