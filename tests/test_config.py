from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("pydantic")
from fastcl.config import RunConfig, changes, make_config, read_toml, to_toml
from fastcl.errors import ConfigError
from fastcl.recipe import PRESETS, build_transform, preset


def test_later_layers_win_and_the_recipe_starts_from_the_preset():
    config = make_config({"epochs": 3, "recipe": {"rotation": 1.0}}, {"epochs": 4, "recipe": {"shear": 2.0}})
    assert config.epochs == 4
    assert config.recipe == PRESETS["digits"].model_copy(update={"rotation": 1.0, "shear": 2.0})
    assert make_config({"data": "fashion-mnist"}).recipe == PRESETS["fashion-mnist"]


BAD = {
    "unknown": ({"epoch": 3}, "epoch: unknown setting; there are data, "),
    "unknown_in_recipe": ({"recipe": {"rotate": 3}}, "recipe.rotate: unknown setting; there are crop_scale, "),
    "out_of_range": ({"epochs": 0}, "epochs: input should be greater than or equal to 1, got 0"),
    "wrong_type": ({"lr": "fast"}, "lr: input should be a valid number.*got 'fast'"),
    "nan": ({"lr": float("nan")}, "lr: "),
    "no_table": ({"recipe": 3}, "recipe: expected a table"),
    "no_augmentation": (
        {"recipe": {"crop_scale": 1.0, "rotation": 0, "shear": 0, "translate": 0}},
        "two views of an image must differ",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_named(name: str):
    settings, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        make_config(settings)


def test_toml_comes_back(tmp_path: Path):
    config = make_config(
        {"data": 'a "quoted" \\ föld🦉er', "data_dir": "x", "limit": 9, "recipe": {"crop_scale": 0.31}}
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert make_config(read_toml(path)) == config
    assert changes(config, make_config(read_toml(path))) == []


def test_bad_toml(tmp_path: Path):
    path = tmp_path / "config.toml"
    with pytest.raises(ConfigError, match=r"config\.toml: expected a TOML file"):
        read_toml(path)
    path.write_bytes(b"epochs = \xff")
    with pytest.raises(ConfigError, match=r"config\.toml: expected a TOML file"):
        read_toml(path)


def test_changes_name_the_setting():
    before = make_config({})
    after = make_config({"lr": 0.5, "recipe": {"blur": 1.0}})
    assert changes(before, after) == [f"lr: {before.lr} before, 0.5 now", "recipe.blur: 0.0 before, 1.0 now"]


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
@pytest.mark.parametrize("name", [*PRESETS, "folder"])
def test_presets_give_two_different_views(name: str, channels: int):
    transform = build_transform(preset(name), 28, (0.5,) * channels, (0.25,) * channels, 0)
    images = torch.randint(256, (4, channels, 28, 28), dtype=torch.uint8)
    first, second = (transform(images, index=torch.arange(4), epoch=0, view=view) for view in (0, 1))
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert ((first - second).abs().mean(dim=(1, 2, 3)) > 0.05).all()


def test_every_setting_has_a_flag():
    import inspect

    from fastcl.cli.run import run
    from fastcl.recipe import Recipe, TextRecipe

    flags = set(inspect.signature(run).parameters) - {"context", "out", "config", "resume", "overwrite"}
    recipes = set(Recipe.model_fields) | set(TextRecipe.model_fields)
    assert flags == (set(RunConfig.model_fields) | recipes) - {"recipe"}
