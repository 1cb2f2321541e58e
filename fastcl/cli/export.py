"""``fastcl export``: an encoder of a run as an ONNX file or a torch.export program."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastcl.errors import RunError, require_run_extra

__all__ = ["export"]

_EXAMPLES, _CALIBRATION, _BATCH = 64, 512, 128  # images


class Format(str, Enum):
    """What to write."""

    onnx = "onnx"
    torch = "torch"


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    format: Annotated[Format, typer.Option(help="onnx (any runtime) or torch (torch.export).")] = Format.onnx,
    encoder: Annotated[
        str, typer.Option(help="int8, float, compressed, or a rung of fastcl compress such as student-12-int8.")
    ] = "int8",
    out: Annotated[Path | None, typer.Option(help="The file to write. (default: RUN/<encoder>.onnx or .pt2)")] = None,
) -> None:
    """Write an encoder as a file that takes uint8 images, and check it against the encoder on held-out images.

    An int8 encoder's ranges of activations are calibrated for ONNX on training images, without labels.
    """
    require_run_extra()
    import torch

    from fastcl.checkpoint import load_encoder
    from fastcl.export import export_onnx, export_torch
    from fastcl.run import FILES, LADDER_FOLDER, load_run

    _, images = load_run(run)
    files = {"int8": FILES["int8_encoder"], "float": FILES["encoder"], "compressed": FILES["compressed_encoder"]}
    source = run / files.get(encoder, f"{LADDER_FOLDER}/{encoder}.safetensors")
    if not source.exists():
        made = sorted(path.stem for path in (run / LADDER_FOLDER).glob("*.safetensors"))
        there = [name for name, file in files.items() if (run / file).exists()] + made
        raise RunError(f"--encoder {encoder}: {source} is not there; the run has {', '.join(there)}")
    model, kind = load_encoder(source)
    pixels = model.from_pixels()
    target = out or run / f"{encoder}.{'onnx' if format is Format.onnx else 'pt2'}"
    example = images.test_images[:_EXAMPLES]
    try:
        if format is Format.torch:
            done = export_torch(pixels, example, target)
        else:
            calibration = images.train_images[:_CALIBRATION].split(_BATCH) if kind == "int8" else None
            done = export_onnx(pixels, example, target, calibration=calibration)
    except OSError as error:
        raise RunError(f"{target}: expected a file that can be written: {error}") from error
    with torch.no_grad():
        cosine = torch.cosine_similarity(done.model(example), model.embed(example)).mean().item()
    reads = "onnxruntime" if format is Format.onnx else "the loaded program"
    typer.echo(
        f"{target}: {done.bytes / 1000:,.1f} kB, images uint8 [batch, {model.config.channels}, "
        f"{model.config.image_size}, {model.config.image_size}] → embeddings float32 [batch, {model.dim}]"
    )
    typer.echo(
        f"checked on {len(example)} held-out images: {reads} is within a relative {done.relative_error:.1e} of the "
        f"model that was exported; its embeddings' mean cosine with {source.name}'s is {cosine:.5f}"
    )
