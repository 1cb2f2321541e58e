"""Draws docs/gallery.webp: every transform on a photograph, four draws each. Run: python tools/gallery.py

The photographs are scikit-learn's samples: a Chinese temple, and a flower.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastcl import transforms as T

OUT = Path(__file__).parents[1] / "docs" / "gallery.webp"
DRAWS, COLUMNS, GAP, LABEL = 4, 3, 2, 16  # draws of a transform, columns of transforms; pixels

# Arguments that show what a transform does; what is random at all happens in every draw.
TEMPLE = (
    T.RandomResizedCrop(96, scale=(0.1, 0.6)),
    T.Resize(24),
    T.CenterCrop(64),
    T.RandomHorizontalFlip(),
    T.RandomVerticalFlip(),
    T.RandomRot90(),
    T.RandomRotation(45, interpolation="bilinear"),
    T.RandomAffine(20, (0.2, 0.2), (0.7, 1.2), 20, interpolation="bilinear"),
    T.RandomPerspective(0.6, p=1.0),
    T.RandomCube(50, p=1.0),
    T.RandomSpherize(1.0, "bulge", p=1.0),
    T.RandomSpherize((0.5, 1.0), "fisheye", p=1.0),
    T.ElasticTransform(60.0, 4.0),
    T.RandomAutocontrast(),
    T.RandomErasing(1.0, value=(220, 40, 120)),
    T.RandAugment(2, 15, interpolation="bilinear"),
    T.TrivialAugmentWide(interpolation="bilinear"),
    T.RandomApply([T.RandomRotation((90, 90)), T.RandomInvert(1.0)]),
    T.RandomChoice([T.RandomHorizontalFlip(1.0), T.RandomInvert(1.0), T.RandomCube(40, p=1.0)]),
    T.RandomOrder([T.RandomInvert(1.0), T.RandomPosterize(2, 1.0)]),
)
FLOWER = (
    T.ColorJitter(0.5, 0.5, 0.5, 0.2),
    T.RandomGrayscale(0.5),
    T.GaussianBlur(9, (0.1, 3.0)),
    T.RandomAdjustSharpness(6, p=1.0),
    T.RandomInvert(),
    T.RandomPosterize(2),
    T.RandomSolarize(128),
    T.RandomEqualize(),
    T.MixUp(alpha=2.0),
    T.CutMix(),
    T.SimCLRTransform(96, seed=1),
    T.MoCoV1Transform(96, seed=1),
    T.MoCoV2Transform(96, seed=1),
    T.BYOLTransform(T.BYOLView1Transform(96, seed=1), T.BYOLView2Transform(96, seed=2)),
    T.BYOLView1Transform(96, seed=1),
    T.BYOLView2Transform(96, seed=1),
    T.DINOTransform(96, local_crop_size=48, seed=1),
)
EXAMPLES: tuple[tuple[Any, int], ...] = (*((example, 0) for example in TEMPLE), *((example, 1) for example in FLOWER))


def photographs(side: int) -> Tensor:
    """The two, uint8 [2, 3, side, side]."""
    from sklearn.datasets import load_sample_image

    china = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[:, :340, 80:420]
    flower = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[:, 20:400, 150:530]
    return torch.stack([T.Resize((side, side))(picture) for picture in (china, flower)])


def draws(transform: Any, pictures: Tensor, which: int) -> list[Tensor]:
    """Four views of one of the pictures, uint8 [3, height, width] each."""
    if isinstance(transform, T.MultiViewTransform):  # of every kind of view
        kinds = [compose for compose, _ in transform.groups]
        composes = [kinds[draw * len(kinds) // DRAWS] for draw in range(DRAWS)]
    else:
        composes = [transform if isinstance(transform, T.Compose) else T.Compose([transform], seed=4)] * DRAWS
    views = []
    for draw, compose in enumerate(composes):
        params = compose.sample(len(pictures), (pictures.shape[2], pictures.shape[3]), view=draw)
        views.append(compose.apply(pictures, params, pictures=True)[which])
    return views


def gallery(side: int) -> Image.Image:
    """All of them, in columns."""
    pictures = photographs(side)
    rows = -(-len(EXAMPLES) // COLUMNS)
    width, height = (DRAWS + 1) * (side + GAP) + 5 * GAP, LABEL + side + 3 * GAP
    sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LABEL - 3)
    for number, (transform, which) in enumerate(EXAMPLES):
        left, top = number // rows * width, number % rows * height
        kind = f", {transform.kind}" if isinstance(transform, T.RandomSpherize) else ""
        pen.text((left + GAP, top), type(transform).__name__ + kind, fill="black", font=font)
        for place, view in enumerate([pictures[which], *draws(transform, pictures, which)]):
            tile = Image.fromarray(view.permute(1, 2, 0).numpy())
            tile.thumbnail((side, side))
            sheet.paste(tile, (left + GAP + place * (side + GAP) + GAP * (place > 0), top + LABEL))
    return sheet


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--side", type=int, default=96, help="pixels of a picture")
    arguments = parser.parse_args()
    gallery(arguments.side).save(arguments.out, quality=70, method=6)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB")
