"""Drop-ins for torchvision.transforms.v2 and lightly that draw per image and run a whole batch in one fused pass.

Every transform takes uint8 [B, C, H, W] or [C, H, W] tensors (or float32 from 0 to 1), or one PIL image. What a
transform draws for an image depends on (seed, epoch, sample number, view) alone: not on batch size, order, workers or
device.
"""

from fastcl.ops.augment_table import PARAM_NAMES, RECIPE_NAMES
from fastcl.transforms.auto import RandAugment, TrivialAugmentWide
from fastcl.transforms.compose import Compose, Transform
from fastcl.transforms.containers import RandomApply, RandomChoice, RandomOrder
from fastcl.transforms.effects import (
    RandomAdjustSharpness,
    RandomAutocontrast,
    RandomEqualize,
    RandomErasing,
    RandomInvert,
    RandomPosterize,
)
from fastcl.transforms.geometry import ElasticTransform, RandomCube, RandomSpherize
from fastcl.transforms.mix import CutMix, MixUp
from fastcl.transforms.multiview import (
    IMAGENET_NORMALIZE,
    BYOLTransform,
    BYOLView1Transform,
    BYOLView2Transform,
    DINOTransform,
    MoCoV1Transform,
    MoCoV2Transform,
    MultiViewTransform,
    SimCLRTransform,
)
from fastcl.transforms.preview import preview_grid
from fastcl.transforms.single import (
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    Normalize,
    RandomAffine,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomPerspective,
    RandomResizedCrop,
    RandomRot90,
    RandomRotation,
    RandomSolarize,
    RandomVerticalFlip,
    Resize,
    ToDtype,
)

__all__ = [
    "IMAGENET_NORMALIZE",
    "PARAM_NAMES",
    "RECIPE_NAMES",
    "BYOLTransform",
    "BYOLView1Transform",
    "BYOLView2Transform",
    "CenterCrop",
    "ColorJitter",
    "Compose",
    "CutMix",
    "DINOTransform",
    "ElasticTransform",
    "GaussianBlur",
    "MixUp",
    "MoCoV1Transform",
    "MoCoV2Transform",
    "MultiViewTransform",
    "Normalize",
    "RandAugment",
    "RandomAdjustSharpness",
    "RandomAffine",
    "RandomApply",
    "RandomAutocontrast",
    "RandomChoice",
    "RandomCube",
    "RandomEqualize",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomInvert",
    "RandomOrder",
    "RandomPerspective",
    "RandomPosterize",
    "RandomResizedCrop",
    "RandomRot90",
    "RandomRotation",
    "RandomSolarize",
    "RandomSpherize",
    "RandomVerticalFlip",
    "Resize",
    "SimCLRTransform",
    "ToDtype",
    "Transform",
    "TrivialAugmentWide",
    "preview_grid",
]
