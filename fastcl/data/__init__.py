"""Images to learn from: MNIST digits that come along, MNIST and Fashion-MNIST files, and folders of images."""

from fastcl.data.dataset import Dataset
from fastcl.data.files import ImageFiles, decode
from fastcl.data.load import NAMES, load
from fastcl.data.loader import Loader, collate
from fastcl.data.shards import ShardImages, ShardSampler
from fastcl.errors import DataError
from fastcl.ragged import RaggedBatch

__all__ = [
    "NAMES",
    "DataError",
    "Dataset",
    "ImageFiles",
    "Loader",
    "RaggedBatch",
    "ShardImages",
    "ShardSampler",
    "collate",
    "decode",
    "load",
]
