"""The ladder of ever smaller encoders, made from a trained one without labels, and what each rung costs and keeps."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcl.checkpoint import encoder_origin, load_encoder, pack_encoder, save_encoder
from fastcl.compress.distill import DistillConfig, distill
from fastcl.compress.int8 import to_int8
from fastcl.compress.prune import prune_
from fastcl.config import RunConfig
from fastcl.data import Dataset
from fastcl.encoder import Encoder
from fastcl.errors import CheckpointError, RunError
from fastcl.evaluate import Evaluation, evaluate, latency_ms, neighbor_agreement
from fastcl.progress import Reporter
from fastcl.recipe import Recipe, build_transform

__all__ = ["LADDER_BATCHES", "Ladder", "LadderConfig", "Rung", "climb"]

LADDER_BATCHES = (1, 256)  # images, of the latencies
_LEAST_WIDTH = 2


@dataclass(frozen=True)
class LadderConfig:
    """Which rungs there are, and what the chosen one must keep to.

    Attributes:
        prune: shares of channels that pruned encoders lose, above 0 and below 1.
        widths: of the students' first convolution; None takes 1/2, 1/3 and 1/4 of the encoder's.
        epochs: of each distillation.
        target_bytes: the file of the chosen encoder is no larger; a student just as wide as that allows is added.
        target_latency_ms: the chosen encoder takes no longer for a batch of ``latency_batch`` images.
        latency_batch: 1 or 256.

    Raises:
        ValueError: for a value out of range.
    """

    prune: tuple[float, ...] = (0.3, 0.5)
    widths: tuple[int, ...] | None = None
    epochs: int = 10
    target_bytes: int | None = None
    target_latency_ms: float | None = None
    latency_batch: int = 1

    def __post_init__(self) -> None:
        if not all(0 < ratio < 1 for ratio in self.prune):
            raise ValueError(f"prune: expected shares above 0 and below 1, got {list(self.prune)}")
        if not all(width >= _LEAST_WIDTH for width in self.widths or ()):
            raise ValueError(f"widths: expected at least {_LEAST_WIDTH}, got {list(self.widths or ())}")
        if self.epochs < 1:
            raise ValueError(f"epochs: expected at least 1, got {self.epochs}")
        for name in ("target_bytes", "target_latency_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected more than 0, got {value}")
        if self.latency_batch not in LADDER_BATCHES:
            raise ValueError(f"latency_batch: expected one of {LADDER_BATCHES}, got {self.latency_batch}")


@dataclass(frozen=True)
class Rung:
    """One encoder of the ladder.

    Attributes:
        name: ``float32``, ``int8``, ``pruned-30-int8`` (lost 30% of its channels), ``student-12-int8`` (width 12).
        file: the encoder's, seen from the run's folder; None where it misses the target and was not trained.
        bytes: of its file.
        latency_ms: median time to embed a batch, by the number of images in it.
        meets_target: whether size and latency are within the targets.
        agreement: with the float encoder about each training image's 10 nearest others, 0 to 1; needs no labels.
        linear_probe: accuracy on held-out images, by a probe of its own (int8: by the float encoder's).
        knn: accuracy on held-out images.
        on_frontier: whether no other rung is as small, as fast and agrees as much, and better in one of these.
    """

    name: str
    file: str | None
    bytes: int
    latency_ms: dict[int, float]
    meets_target: bool
    agreement: float | None = None
    linear_probe: float | None = None
    knn: float | None = None
    on_frontier: bool = False


@dataclass(frozen=True)
class Ladder:
    """All rungs, and the one to take.

    Attributes:
        config: what was asked for.
        rungs: largest file first.
        chosen: the name of the rung within the targets that agrees most with the float encoder; None without a target.
        seconds: that distillation took in this call.
    """

    config: LadderConfig
    rungs: tuple[Rung, ...]
    chosen: str | None
    seconds: float

    def __getitem__(self, name: str) -> Rung:
        return next(rung for rung in self.rungs if rung.name == name)

    def to_json(self) -> dict[str, Any]:
        """What ``compression.json`` holds."""
        return {
            "config": asdict(self.config),
            "chosen": self.chosen,
            "seconds": self.seconds,
            "rungs": [asdict(rung) for rung in self.rungs],
        }


@dataclass
class _Candidate:
    """A rung to be: its size and speed are known before it is trained."""

    name: str
    model: Encoder  # what is to be trained, or the finished float or int8 encoder
    path: Path
    trained: bool
    bytes: int = 0
    latency_ms: dict[int, float] = dataclasses.field(default_factory=dict)


def climb(
    encoder: Encoder,
    files: Mapping[str, Path],
    folder: Path,
    images: Dataset,
    run: RunConfig,
    config: LadderConfig,
    reporter: Reporter,
    known: Mapping[str, Evaluation] | None = None,
) -> Ladder:
    """Makes and judges every rung; those in `folder` that an earlier, unfinished call made of the same are kept.

    Distillation and the choice see training images alone, and no labels; these are for the accuracies.

    Args:
        encoder: the float encoder.
        files: of the run's encoders ``"float32"`` and ``"int8"``, in the run's folder.
        folder: for the encoders that are made, below the run's.
        images: the run's.
        run: its settings.
        config: the rungs and targets.
        reporter: shows progress.
        known: evaluations that were made already, by rung.

    Returns:
        The ladder.

    Raises:
        RunError: where no rung can meet the targets, which is known before any is trained; says what is nearest.
        MissingExtraError: for pruned rungs without the package torch-pruning.
    """
    teacher = copy.deepcopy(encoder).eval().to(memory_format=torch.channels_last)
    settings = DistillConfig(epochs=config.epochs, batch_size=run.batch_size, seed=run.seed)
    origin = json.dumps([images.fingerprint(), run.recipe.model_dump(), asdict(settings), _digest(teacher)])
    candidates = _candidates(teacher, files, folder, config, origin)
    for candidate in candidates:
        int8 = candidate.model if not candidate.trained else to_int8(candidate.model)
        if candidate.trained:
            candidate.bytes = len(pack_encoder(int8, "int8", _origin(origin, candidate)))
        candidate.latency_ms = {
            batch: latency_ms(int8, images.test_images, batch, seconds=1.0) for batch in LADDER_BATCHES
        }
    candidates.sort(key=lambda candidate: -candidate.bytes)
    _check_reachable(candidates, config)

    assert isinstance(run.recipe, Recipe)  # who calls this has refused texts
    transform = build_transform(
        run.recipe, teacher.config.image_size, teacher.config.mean, teacher.config.std, run.seed
    )
    wanted = [candidate for candidate in candidates if _meets(candidate, config)]
    reference = teacher.embed(images.judged.train_images)
    evaluations = dict(known or {})
    started, seconds = time.perf_counter(), 0.0
    rungs = []
    for candidate in candidates:
        if candidate.trained and candidate in wanted:
            made_by = _origin(origin, candidate)
            model = _kept(candidate.path, made_by)
            if model is None:
                started = time.perf_counter()
                with reporter.steps(candidate.name) as on_step:
                    distill(teacher, candidate.model, images.train_images, transform, settings, on_step)
                seconds += time.perf_counter() - started
                model = to_int8(candidate.model)
                folder.mkdir(exist_ok=True)
                save_encoder(model, candidate.path, "int8", made_by)
            else:
                reporter.note(f"{candidate.name}: kept from before")
            candidate.model = model
        rungs.append(_rung(candidate, candidate in wanted, config, evaluations, images, run, reference, folder.parent))
    chosen = None
    if config.target_bytes is not None or config.target_latency_ms is not None:
        chosen = max((rung for rung in rungs if rung.meets_target), key=lambda rung: (_quality(rung), -rung.bytes)).name
    return Ladder(config, _with_frontier(rungs, config), chosen, seconds)


def _candidates(
    teacher: Encoder, files: Mapping[str, Path], folder: Path, config: LadderConfig, origin: str
) -> list[_Candidate]:
    found = []
    for name, path in files.items():
        found.append(_Candidate(name, load_encoder(path)[0], path, False, bytes=path.stat().st_size))
    for ratio in config.prune:
        name = f"pruned-{100 * ratio:g}-int8"
        found.append(_Candidate(name, _pruned(teacher, ratio), folder / f"{name}.safetensors", True))
    width = teacher.config.width
    shares = {max(_LEAST_WIDTH, round(width / share)) for share in (2, 3, 4)}
    widths = set(config.widths or (narrow for narrow in shares if narrow < width))
    if config.target_bytes is not None:
        widths |= _fitting_width(teacher, folder, config.target_bytes, origin)
    for narrow in sorted(widths, reverse=True):
        found.append(_student(teacher, narrow, folder))
    return found


def _student(teacher: Encoder, width: int, folder: Path) -> _Candidate:
    name = f"student-{width}-int8"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        model = Encoder(dataclasses.replace(teacher.config, width=width, widths=None))
    return _Candidate(name, model.to(memory_format=torch.channels_last), folder / f"{name}.safetensors", True)


def _fitting_width(teacher: Encoder, folder: Path, target: int, origin: str) -> set[int]:
    """The largest width below the teacher's whose int8 file is no larger than the target; none where none is."""
    low, high = _LEAST_WIDTH - 1, teacher.config.width - 1
    while low < high:
        middle = (low + high + 1) // 2
        candidate = _student(teacher, middle, folder)
        size = len(pack_encoder(to_int8(candidate.model), "int8", _origin(origin, candidate)))
        low, high = (middle, high) if size <= target else (low, middle - 1)
    return {low} if low >= _LEAST_WIDTH else set()


def _pruned(teacher: Encoder, ratio: float) -> Encoder:
    model = copy.deepcopy(teacher)
    size = teacher.config.image_size
    prune_(model, torch.zeros(2, teacher.config.channels, size, size), ratio)
    widths = tuple(module.out_channels for module in model.layers if isinstance(module, nn.Conv2d))
    pruned = Encoder(dataclasses.replace(teacher.config, widths=widths))
    pruned.load_state_dict(model.state_dict())
    return pruned.to(memory_format=torch.channels_last)


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().reshape(-1).numpy().data)
    return digest.hexdigest()[:16]


def _origin(origin: str, candidate: _Candidate) -> dict[str, Any]:
    """What the encoder of a rung is made from, in short; the same origin gives the same encoder."""
    return {"rung": candidate.name, "from": hashlib.sha256(origin.encode()).hexdigest()[:16]}


def _kept(path: Path, origin: dict[str, Any]) -> Encoder | None:
    """The encoder at `path` where it was made from the same."""
    try:
        return load_encoder(path)[0] if path.exists() and encoder_origin(path) == origin else None
    except CheckpointError:
        return None


def _meets(candidate: _Candidate, config: LadderConfig) -> bool:
    return (config.target_bytes is None or candidate.bytes <= config.target_bytes) and (
        config.target_latency_ms is None or candidate.latency_ms[config.latency_batch] <= config.target_latency_ms
    )


def _check_reachable(candidates: list[_Candidate], config: LadderConfig) -> None:
    if any(_meets(candidate, config) for candidate in candidates):
        return
    batch = config.latency_batch
    smallest = min(candidates, key=lambda candidate: candidate.bytes)
    fastest = min(candidates, key=lambda candidate: candidate.latency_ms[batch])
    targets = [f"{config.target_bytes:,} bytes"] if config.target_bytes is not None else []
    if config.target_latency_ms is not None:
        targets.append(f"{config.target_latency_ms:g} ms for {batch} image{'s' * (batch > 1)}")
    raise RunError(
        f"no encoder of the ladder keeps to {' and '.join(targets)}: the smallest is {smallest.name} with "
        f"{smallest.bytes:,} bytes and {smallest.latency_ms[batch]:.3g} ms, the fastest is {fastest.name} with "
        f"{fastest.bytes:,} bytes and {fastest.latency_ms[batch]:.3g} ms; nothing was trained"
    )


def _rung(
    candidate: _Candidate,
    meets_target: bool,
    config: LadderConfig,
    evaluations: dict[str, Evaluation],
    images: Dataset,
    run: RunConfig,
    reference: torch.Tensor,
    run_folder: Path,
) -> Rung:
    name = candidate.name
    rung = Rung(name, None, candidate.bytes, candidate.latency_ms, meets_target)
    if candidate.trained and not meets_target:
        return rung
    if name not in evaluations:
        # The int8 encoder shares the float one's space, and its probe; the others have spaces of their own.
        probe = evaluations["float32"].probe if name == "int8" and "float32" in evaluations else None
        evaluations[name] = evaluate(images, candidate.model, run.neighbors, run.probe_c, probe)
    judged = evaluations[name]
    return dataclasses.replace(
        rung,
        file=candidate.path.relative_to(run_folder).as_posix(),
        agreement=neighbor_agreement(reference, judged.train),
        linear_probe=judged.linear_probe,
        knn=judged.knn,
    )


def _quality(rung: Rung) -> float:
    return -1.0 if rung.agreement is None else rung.agreement


def _with_frontier(rungs: list[Rung], config: LadderConfig) -> tuple[Rung, ...]:
    def costs(rung: Rung) -> tuple[float, ...]:
        return (rung.bytes, rung.latency_ms[config.latency_batch], -_quality(rung))

    def dominated(rung: Rung) -> bool:
        mine = costs(rung)
        return any(
            costs(other) != mine and all(a <= b for a, b in zip(costs(other), mine, strict=True)) for other in rungs
        )

    return tuple(
        dataclasses.replace(rung, on_frontier=rung.agreement is not None and not dominated(rung)) for rung in rungs
    )
