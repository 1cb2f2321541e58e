"""``fastcl run``: the main job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from fastcl.config import RunConfig, make_config, read_toml
from fastcl.distributed import is_first
from fastcl.errors import require_run_extra
from fastcl.progress import Reporter
from fastcl.recipe import Recipe, TextRecipe

__all__ = ["run"]


_PANELS: dict[type[BaseModel], str] = {
    RunConfig: "Settings",
    Recipe: "Augmentation of images",
    TextRecipe: "Augmentation of texts",
}


def _setting(name: str, help: str, *flags: str) -> Any:
    """A flag for a setting of RunConfig, Recipe or TextRecipe; the help shows the setting's default."""
    model, panel = next((model, panel) for model, panel in _PANELS.items() if name in model.model_fields)
    default = "by data" if model is Recipe else model.model_fields[name].default
    shown = "" if default in (None, "") or isinstance(default, bool) else f" (default: {default})"
    return typer.Option(*(flags or (f"--{name.replace('_', '-')}",)), help=help + shown, rich_help_panel=panel)


def run(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. (default: runs/<data>)")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; flags win over it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw away the run in --out.")] = False,
    data: Annotated[
        str | None,
        _setting(
            "data",
            "digits, mnist, fashion-mnist, a folder of images (subfolders: classes), 'shards/{000000..000009}.tar', "
            "text[:PATH], secure[-text]:PATH.",
        ),
    ] = None,
    data_dir: Annotated[Path | None, _setting("data_dir", "Folder of the IDX files of mnist or fashion-mnist.")] = None,
    download: Annotated[
        bool | None, _setting("download", "Fetch missing files of mnist and fashion-mnist (torchvision).", "--download")
    ] = None,
    key_file: Annotated[Path | None, _setting("key_file", "File with the key of secure:PATH.")] = None,
    key_env: Annotated[str | None, _setting("key_env", "Environment variable with that key, instead.")] = None,
    limit: Annotated[int | None, _setting("limit", "Use about so many images.")] = None,
    image_size: Annotated[int | None, _setting("image_size", "Pixels of a folder's images. (default: 64)")] = None,
    text_length: Annotated[int | None, _setting("text_length", "Bytes of a text that are read.")] = None,
    epochs: Annotated[int | None, _setting("epochs", "Passes over the training images.")] = None,
    batch_size: Annotated[
        int | None, _setting("batch_size", "Images in a step of all processes, two views of each.")
    ] = None,
    negatives: Annotated[
        str | None, _setting("negatives", "With torchrun, views to compare with: of all (gather or ring), or local.")
    ] = None,
    lr: Annotated[float | None, _setting("lr", "Highest learning rate (AdamW, warm-up, cosine decay).")] = None,
    warmup_epochs: Annotated[float | None, _setting("warmup_epochs", "Epochs of warm-up.")] = None,
    weight_decay: Annotated[float | None, _setting("weight_decay", "AdamW's weight decay.")] = None,
    temperature: Annotated[float | None, _setting("temperature", "Temperature of NT-Xent.")] = None,
    width: Annotated[int | None, _setting("width", "Channels of the encoder's first convolution.")] = None,
    hidden: Annotated[int | None, _setting("hidden", "Hidden width of the projection head.")] = None,
    projection: Annotated[int | None, _setting("projection", "Dimensions in which views are compared.")] = None,
    neighbors: Annotated[int | None, _setting("neighbors", "k of the k-NN evaluation.")] = None,
    probe_c: Annotated[float | None, _setting("probe_c", "Inverse regularisation of the linear probe.")] = None,
    ladder: Annotated[
        str | None, _setting("ladder", "Smaller encoders at the end: none, student (half the width) or full.")
    ] = None,
    distill_epochs: Annotated[int | None, _setting("distill_epochs", "Epochs in which each of them learns.")] = None,
    generate: Annotated[
        float | None, _setting("generate", "Share of generated images to pretrain on, by a GAN of the training images.")
    ] = None,
    gan_steps: Annotated[int | None, _setting("gan_steps", "Steps of the GAN.")] = None,
    ablation_epochs: Annotated[
        int | None, _setting("ablation_epochs", "Epochs to compare pretraining with and without them; 0: not.")
    ] = None,
    dp_epsilon: Annotated[
        float | None, _setting("dp_epsilon", "Pretrain with differential privacy: epsilon of replacing one image.")
    ] = None,
    dp_delta: Annotated[float | None, _setting("dp_delta", "Its delta.")] = None,
    dp_group: Annotated[int | None, _setting("dp_group", "Images contrasted with each other, clipped as one.")] = None,
    dp_clip: Annotated[float | None, _setting("dp_clip", "Largest norm of their gradient.")] = None,
    seed: Annotated[int | None, _setting("seed", "Of weights, order and draws.")] = None,
    device: Annotated[str | None, _setting("device", "Where pretraining runs: cpu or cuda.")] = None,
    threads: Annotated[
        int | None, _setting("threads", "Threads of a process. (default: all cores; with torchrun 1)")
    ] = None,
    workers: Annotated[int | None, _setting("workers", "Processes that read and decode shards.")] = None,
    checkpoint_steps: Annotated[
        int | None, _setting("checkpoint_steps", "Steps between checkpoints. (default: an epoch)")
    ] = None,
    crop_scale: Annotated[float | None, _setting("crop_scale", "Smallest share of the area that a crop keeps.")] = None,
    rotation: Annotated[float | None, _setting("rotation", "Largest rotation, degrees.")] = None,
    translate: Annotated[float | None, _setting("translate", "Largest shift, share of the size.")] = None,
    zoom: Annotated[float | None, _setting("zoom", "Largest change of size, share.")] = None,
    shear: Annotated[float | None, _setting("shear", "Largest shear, degrees.")] = None,
    flip: Annotated[float | None, _setting("flip", "Probability of a horizontal flip.")] = None,
    jitter: Annotated[float | None, _setting("jitter", "Strength of the colour jitter.")] = None,
    grayscale: Annotated[float | None, _setting("grayscale", "Probability of losing the colour.")] = None,
    blur: Annotated[float | None, _setting("blur", "Largest sigma of the blur, pixels.")] = None,
    word_crop: Annotated[float | None, _setting("word_crop", "Smallest share of the words that is kept.")] = None,
    word_delete: Annotated[float | None, _setting("word_delete", "Probability of leaving out a word.")] = None,
    word_order: Annotated[float | None, _setting("word_order", "Probability of shuffling the words a little.")] = None,
    typo: Annotated[float | None, _setting("typo", "Probability of mistyping a character.")] = None,
    char_swap: Annotated[float | None, _setting("char_swap", "Probability of swapping two characters.")] = None,
    char_delete: Annotated[float | None, _setting("char_delete", "Probability of leaving out a character.")] = None,
    case: Annotated[float | None, _setting("case", "Probability of another case.")] = None,
    locale: Annotated[str | None, _setting("locale", "Language, where case depends on it: tr, az.")] = None,
) -> None:
    """Learn images or texts without labels, judge the encoder, shrink it to int8, and write a report.

    Ctrl-C leaves a run that --resume goes on with. The same seed, machine and number of threads give the same result.
    """
    require_run_extra()
    from fastcl import run as job

    given = {name: value for name, value in context.params.items() if value is not None}
    flags: dict[str, Any] = {name: _plain(given[name]) for name in RunConfig.model_fields if name in given}
    recipes = (*Recipe.model_fields, *TextRecipe.model_fields)
    flags["recipe"] = {name: given[name] for name in recipes if name in given}
    layers = [read_toml(config)] if config else []
    source = Path(make_config(*layers, flags).data.rpartition(":")[2])
    out = out or Path("runs") / (source.resolve().parent if source.suffix == ".tar" else source).name
    stored = job.settings_of(out) if resume else None
    settings = make_config(*([stored] if stored else []), *layers, flags)

    console = Console(quiet=not is_first())
    command = "fastcl " + shlex.join(sys.argv[1:])
    try:
        metrics = job.run(
            settings, out, resume=resume, overwrite=overwrite, command=command, reporter=Reporter(console)
        )
    except (job.Interrupted, KeyboardInterrupt) as stopped:
        why = str(stopped) or "stopped"
        # Before the settings are written there is nothing to go on with, or another run's.
        how = f"fastcl run --resume --out {shlex.quote(str(out))}" if job.holds(out, settings) else command
        console.print(f"{why}; to go on: {how}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(getattr(stopped, "exit_code", 130)) from None
    console.print(_table(metrics))
    console.print(f"report: {out / job.FILES['report']}", highlight=False, markup=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _table(metrics: dict[str, Any]) -> Table:
    """The result in brief."""
    kind = "texts" if "tfidf_knn_accuracy" in metrics else "images"
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for column in ("linear probe", "k-NN", "file", f"256 {kind}"):
        table.add_column(column, justify="right")

    def row(name: str, prefix: str, encoder: str | None) -> None:
        shares = [metrics[f"{prefix}{key}_accuracy"] for key in ("linear_probe", "knn")]
        cells = ["–" if share is None else f"{100 * share:.1f} %" for share in shares]
        if encoder is not None:
            cells += [f"{metrics[f'{encoder}encoder_bytes'] / 1000:,.0f} kB"]
            cells += [f"{metrics[f'{encoder}latency_ms_batch_256']:.1f} ms"]
        table.add_row(name, *cells)

    if kind == "texts":
        row("TF-IDF of the words", "tfidf_", None)
    else:
        row("raw pixels", "raw_pixels_", None)
    row("random encoder", "random_encoder_", None)
    row("pretrained, float32", "", "")
    row("pretrained, int8", "int8_", "int8_")
    if "student_encoder_bytes" in metrics:
        row("student, int8", "student_", "student_")
    return table
