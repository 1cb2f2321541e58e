"""What the augmentation of the main job may do to an image or a text, and the recipe that suits each data set."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fastcl import transforms
from fastcl.transforms import text

__all__ = ["PRESETS", "Recipe", "TextRecipe", "build_text_transform", "build_transform", "preset"]

Probability = Annotated[float, Field(ge=0, le=1)]


class Recipe(BaseModel):
    """Ranges that the parameters of each view are drawn from; 0 leaves a step out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop_scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Smallest share of the image's area that a crop keeps; 1 does not crop."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation either way, degrees."""
    translate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest shift either way, as a share of the image's size."""
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest change of size either way: 0.2 gives 0.8 to 1.2."""
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    """Largest shear either way, degrees."""
    flip: Probability = 0.0
    """Probability of a horizontal flip."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of the change of brightness and contrast, and of saturation and hue for colour images."""
    grayscale: Probability = 0.0
    """Probability of losing the colour."""
    blur: Annotated[float, Field(ge=0)] = 0.0
    """Largest sigma of a Gaussian blur, pixels."""

    @model_validator(mode="after")
    def _does_something(self) -> Recipe:
        if self.crop_scale == 1 and not any(value for name, value in self if name != "crop_scale"):
            raise ValueError("two views of an image must differ: every step of the recipe is left out")
        return self


class TextRecipe(BaseModel):
    """What may happen to each view of a text; 0 leaves a step out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    word_crop: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Smallest share of the words that a view keeps, in one piece; 1 does not crop."""
    word_delete: Probability = 0.1
    """Probability of leaving out a word."""
    word_order: Probability = 0.2
    """Probability of shuffling the words a little."""
    typo: Probability = 0.02
    """Probability of mistyping a character."""
    char_swap: Probability = 0.01
    """Probability that two neighbouring characters change places."""
    char_delete: Probability = 0.01
    """Probability of leaving out a character."""
    case: Probability = 0.2
    """Probability of a change of case: upper, lower or title case, a third each."""
    locale: str = ""
    """Language of the texts, where its letters have another case than Unicode's default: tr, az."""

    @model_validator(mode="after")
    def _does_something(self) -> TextRecipe:
        if self.word_crop == 1 and not any(value for name, value in self if name not in ("word_crop", "locale")):
            raise ValueError("two views of a text must differ: every step of the recipe is left out")
        return self


_DIGITS = Recipe(crop_scale=0.5, rotation=15, translate=0.1, shear=10)
_PHOTOS = Recipe(crop_scale=0.2, flip=0.5, jitter=0.4, grayscale=0.2, blur=1.0)

# A mirrored digit is another sign, a mirrored shoe is a shoe.
PRESETS = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "fashion-mnist": Recipe(crop_scale=0.3, rotation=10, flip=0.5, jitter=0.3),
}


def preset(data: str) -> Recipe | TextRecipe:
    """The recipe that suits a data set by name; for a folder, one for photographs."""
    if data.partition(":")[0] in ("text", "secure-text"):
        return TextRecipe()
    return PRESETS.get(data, _PHOTOS)


def build_transform(
    recipe: Recipe, image_size: int, mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> transforms.Compose:
    """The transform of uint8 batches [B, C, H, W] into normalised views, drawn by (seed, epoch, index, view)."""
    steps: list[transforms.Transform] = []
    if recipe.crop_scale < 1:
        steps.append(transforms.RandomResizedCrop(image_size, scale=(recipe.crop_scale, 1.0)))
    if recipe.rotation or recipe.translate or recipe.zoom or recipe.shear:
        steps.append(
            transforms.RandomAffine(
                degrees=recipe.rotation,
                translate=(recipe.translate, recipe.translate),
                scale=(1 - recipe.zoom, 1 + recipe.zoom),
                shear=recipe.shear,
                interpolation="bilinear",
            )
        )
    if recipe.flip:
        steps.append(transforms.RandomHorizontalFlip(recipe.flip))
    if recipe.jitter:
        strength, colour = recipe.jitter, len(mean) == 3
        steps.append(
            transforms.ColorJitter(
                strength, strength, strength if colour else 0.0, min(strength / 4, 0.5) if colour else 0.0
            )
        )
    if recipe.grayscale and len(mean) == 3:
        steps.append(transforms.RandomGrayscale(recipe.grayscale))
    if recipe.blur:
        kernel = 2 * max(1, round(2 * recipe.blur)) + 1
        steps.append(transforms.GaussianBlur(kernel, sigma=(0.1, max(recipe.blur, 0.1))))
    return transforms.Compose([*steps, transforms.Normalize(mean, std)], seed=seed)


def build_text_transform(recipe: TextRecipe, seed: int) -> text.Compose:
    """The transform of texts into views, drawn by (seed, epoch, index, view)."""
    locale = recipe.locale or None
    steps: list[text.TextTransform] = []
    if recipe.word_crop < 1:
        steps.append(text.RandomWordCrop((recipe.word_crop, 1.0)))
    for p, step in (
        (recipe.word_delete, text.RandomWordDelete),
        (recipe.word_order, text.RandomWordOrder),
        (recipe.char_swap, text.RandomCharSwap),
        (recipe.char_delete, text.RandomCharDelete),
    ):
        if p:
            steps.append(step(p))
    if recipe.typo:
        steps.append(text.RandomTypo(recipe.typo, locale=locale))
    if recipe.case:
        steps += [kind(recipe.case / 3, locale) for kind in (text.RandomUpper, text.RandomLower, text.RandomTitle)]
    return text.Compose(steps, seed=seed)
