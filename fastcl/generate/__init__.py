"""Generated images to train with: a generator learnt from unlabelled images, its samples, and how good they are."""

from fastcl.generate.augment import apply_differentiably, gan_transform
from fastcl.generate.dataset import GeneratedDataset, drawn_clusters, generated_count, latents
from fastcl.generate.frechet import frechet_distance, gaussian_distance, inception_features
from fastcl.generate.networks import Discriminator, Generator, GeneratorConfig, load_generator, save_generator
from fastcl.generate.training import GanConfig, GanTraining

__all__ = [
    "Discriminator",
    "GanConfig",
    "GanTraining",
    "GeneratedDataset",
    "Generator",
    "GeneratorConfig",
    "apply_differentiably",
    "drawn_clusters",
    "frechet_distance",
    "gan_transform",
    "gaussian_distance",
    "generated_count",
    "inception_features",
    "latents",
    "load_generator",
    "save_generator",
]
