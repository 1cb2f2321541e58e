"""The configuration of `fastcl run`: every setting with its default, read from a TOML file and from flags."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastcl.errors import ConfigError
from fastcl.recipe import Recipe, TextRecipe, preset

__all__ = ["RunConfig", "changes", "make_config", "read_toml", "to_toml"]


class RunConfig(BaseModel):
    """All that decides the result of a run; the output folder does not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = "digits"
    """digits, mnist, fashion-mnist, a folder of images, shards/{000000..000009}.tar, text, text:PATH, secure:PATH (of
    shards, too), or secure-text:PATH."""
    data_dir: str | None = None
    """The folder of the IDX files of mnist and fashion-mnist."""
    download: bool = False
    """Fetch missing files of mnist and fashion-mnist."""
    key_file: str | None = None
    """The file with the key of secure:PATH; where the key is does not change what comes out."""
    key_env: str | None = None
    """The environment variable with that key, instead."""
    limit: Annotated[int, Field(ge=4)] | None = None
    """Use about so many images."""
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Height and width of a folder's images, in pixels; 64 if not given."""
    text_length: Annotated[int, Field(ge=16, le=4096)] = 256
    """Bytes of a text that are read."""
    epochs: Annotated[int, Field(ge=1)] = 40
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images of a step, of all processes together."""
    negatives: Literal["gather", "ring", "local"] = "gather"
    """With many processes, what a view is compared with: the views of all, collected or passed around; or its own
    process's alone."""
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Learning rate of AdamW at its highest, after a warm-up and before a cosine decay to 0."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 2.0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    temperature: Annotated[float, Field(gt=0)] = 0.1
    width: Annotated[int, Field(ge=4, le=1024)] = 24
    """Channels of the encoder's first convolution; the later ones have 2, 4 and 8 times as many."""
    hidden: Annotated[int, Field(ge=1)] = 256
    """Width of the projection head's hidden layer."""
    projection: Annotated[int, Field(ge=2)] = 64
    """Dimensions in which views are compared."""
    neighbors: Annotated[int, Field(ge=1)] = 5
    """k of the k-NN evaluation."""
    probe_c: Annotated[float, Field(gt=0)] = 0.1
    """Inverse regularisation of the linear probe."""
    ladder: Literal["none", "student", "full"] = "student"
    """Smaller encoders made at the end: none, an int8 student of half the width, or the whole ladder."""
    distill_epochs: Annotated[int, Field(ge=1)] = 10
    """Epochs in which each of them learns from the encoder."""
    generate: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of generated images among those pretrained on; the generator learns from the training images first."""
    gan_steps: Annotated[int, Field(ge=1)] = 3000
    """Steps of the generator's training."""
    ablation_epochs: Annotated[int, Field(ge=0)] = 10
    """Epochs in which the report compares pretraining with and without generated images; 0 for no comparison."""
    dp_epsilon: Annotated[float, Field(gt=0, le=100)] | None = None
    """Pretrain with differential privacy: replacing an image changes no outcome's probability by more than a factor of
    exp(dp_epsilon), but for dp_delta."""
    dp_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    dp_group: Annotated[int, Field(ge=2)] = 8
    """Images that are contrasted with each other alone, and whose gradient is clipped as one."""
    dp_clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a group's gradient."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Literal["cpu", "cuda"] = "cpu"
    """Where pretraining runs; a GPU for each process. All else runs on the CPU."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of PyTorch and BLAS in each process; all cores if not given, with torchrun one."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that read and decode shards; how many does not change what comes out."""
    checkpoint_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimiser steps between checkpoints; an epoch if not given."""
    recipe: Recipe | TextRecipe = Field(default_factory=Recipe)
    """The augmentation; a TextRecipe for texts."""


def make_config(*layers: Mapping[str, Any]) -> RunConfig:
    """A configuration from layers of settings, of which the later ones win; the recipe starts from the data's preset.

    Raises:
        ConfigError: for an unknown key or a value out of range; names the key.
    """
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    for layer in layers:
        settings |= {key: value for key, value in layer.items() if key != "recipe"}
        given = layer.get("recipe", {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"recipe: expected a table of settings, got {given!r}")
        recipe |= given
    base = preset(str(settings.get("data", "digits")))
    try:
        chosen = type(base).model_validate(base.model_dump() | recipe)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(entry, type(base), "recipe.") for entry in error.errors())) from error
    try:
        return RunConfig.model_validate({**settings, "recipe": chosen})
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(entry, RunConfig) for entry in error.errors())) from error


def _explain(entry: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> str:
    key = (prefix + ".".join(map(str, entry["loc"]))).rstrip(".")
    if entry["type"] == "extra_forbidden":
        known = model.model_fields
        return f"{key}: unknown setting; there are {', '.join(known)}"
    message = entry["msg"][:1].lower() + entry["msg"][1:]
    return f"{key}: {message}" + ("" if isinstance(entry["input"], Mapping) else f", got {entry['input']!r}")


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, unchecked.

    Raises:
        ConfigError: for a file that is missing or no TOML.
    """
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        settings: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # no text and no TOML are ValueErrors
        raise ConfigError(f"{path}: expected a TOML file: {error}") from error
    return settings


def to_toml(config: RunConfig) -> str:
    """The configuration as a file for ``--config``."""
    settings = config.model_dump(exclude_none=True)
    recipe = settings.pop("recipe")
    # Strings, numbers, booleans and lists are written alike in JSON and TOML.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    return "\n".join([*lines, "", "[recipe]", *(f"{key} = {json.dumps(value)}" for key, value in recipe.items()), ""])


def changes(before: RunConfig, after: RunConfig) -> list[str]:
    """What differs, a line a setting: ``lr: 0.002 before, 0.001 now``."""

    def flat(config: RunConfig) -> dict[str, Any]:
        settings = config.model_dump()
        return settings | {f"recipe.{key}": value for key, value in settings.pop("recipe").items()}

    old, new = flat(before), flat(after)
    return [
        f"{key}: {old.get(key)!r} before, {new[key]!r} now"
        for key in new
        if old.get(key) != new[key] and not key.startswith("key_") and key != "workers"
    ]
