"""From a data set to augmented batches: raw bytes from tensors or workers, views from one fused pass."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from fastcl.data.buffers import Buffers
from fastcl.data.dataset import RowImages
from fastcl.data.shards import ShardImages
from fastcl.errors import DataError, WorkerError
from fastcl.ragged import RaggedBatch, height_width_channels
from fastcl.transforms import Compose, MultiViewTransform, Transform
from fastcl.transforms.compose import crop_of_views, crops_first

__all__ = ["Loader", "collate"]


def collate(samples: Sequence[Any]) -> Any:
    """Batches images of different sizes: the ``collate_fn`` of a DataLoader.

    Args:
        samples: images, or tuples of an image and other things; an image is a uint8 Tensor [C, H, W], an array
            [H, W, C] or a PIL image.

    Returns:
        A :class:`RaggedBatch`; for tuples, a tuple of it and of what torch's ``default_collate`` makes of the rest.

    Raises:
        TypeError: for what is no image of bytes; names the image.
        ValueError: for no samples, an image of no pixels, or of other channels than the first's; names the image.
    """
    if not len(samples):
        raise ValueError("collate: samples must hold at least one image, got none")
    if not isinstance(samples[0], (tuple, list)):
        return RaggedBatch.of(samples)
    images, *rest = zip(*samples, strict=True)
    return (RaggedBatch.of(images), *(default_collate(list(part)) for part in rest))


class _Raw(NamedTuple):
    """A batch before its augmentation."""

    numbers: Tensor  # int64 [n], sample numbers
    images: Tensor | RaggedBatch | None  # None where every image was skipped
    rest: tuple[Any, ...] | None  # what a sample has beside its image; None: a sample is an image
    skipped: dict[int, str]  # sample numbers and what is wrong with them


class _Draw(NamedTuple):
    """A sample to be read, and what else its views follow from; it reaches workers that live for many epochs."""

    number: int
    epoch: int
    seeds: tuple[int, ...]  # of the transforms of its views


class _Read(NamedTuple):
    """A sample that was read, its image cut to what its views show; or what is wrong with it."""

    number: int
    sample: Any
    box: tuple[int, ...]  # as of RaggedBatch.boxes
    wrong: str | None = None


class _Samples(Dataset[Any]):
    """What the workers read, one by one."""

    def __init__(self, dataset: Any, transform: Any, skip: bool) -> None:
        self._dataset, self._skip = dataset, skip
        views = _views_of(transform)
        self._views = views if all(crops_first(compose) for compose, _ in views) else []

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, draw: _Draw) -> _Read:
        try:
            sample = self._dataset[draw.number]
            image, *rest = sample if isinstance(sample, (tuple, list)) else (sample,)
            pixels = height_width_channels(image, f"image {draw.number} of the data set")
        except (DataError, OSError, SyntaxError, ValueError) as error:  # what decoders raise
            if not self._skip:
                raise
            return _Read(draw.number, None, (), str(error))
        whole = (pixels.shape[0], pixels.shape[1])
        top, left = 0, 0
        if self._views:
            top, left, height, width = crop_of_views(self._views, draw.seeds, draw.number, whole, draw.epoch)
            if (height, width) != whole:
                pixels = pixels[top : top + height, left : left + width].clone()  # and the rest is let go of
        pixels = pixels.permute(2, 0, 1)
        sample = (pixels, *rest) if isinstance(sample, (tuple, list)) else pixels
        return _Read(draw.number, sample, (top, left, *whole))


def _collate_read(read: Sequence[_Read]) -> _Raw:
    skipped = {one.number: one.wrong for one in read if one.wrong is not None}
    kept = [one for one in read if one.wrong is None]
    index = torch.tensor([one.number for one in kept], dtype=torch.int64)
    if not kept:
        return _Raw(index, None, None, skipped)
    channels = [len(one.sample[0] if isinstance(one.sample, tuple) else one.sample) for one in kept]
    for one, count in zip(kept, channels, strict=True):
        if count != channels[0]:
            raise ValueError(
                f"Loader: image {one.number} of the data set must have as many channels as image {kept[0].number}, "
                f"{channels[0]}, got {count}"
            )
    batch = collate([one.sample for one in kept])
    images, rest = (batch[0], batch[1:]) if isinstance(batch, tuple) else (batch, None)
    boxes = torch.tensor([one.box for one in kept], dtype=torch.int32)
    if (boxes[:, 2:] != images.shapes[:, :2]).any():
        images = RaggedBatch(images.data, images.offsets, images.shapes, boxes)
    return _Raw(index, images, rest, skipped)


def _take(images: RowImages, index: Tensor, rest: tuple[Tensor, ...] | None, skip: bool) -> _Raw:
    """A batch of images that are read as they are asked for; those of shards that are damaged can be left out."""
    skipped: dict[int, str] = {}
    batch: Tensor | None = None
    try:
        batch = images[index]
    except DataError:
        if not skip or not isinstance(images, ShardImages):
            raise
        index, skipped = images.readable(index)
        if len(index):
            batch = images[index]
    return _Raw(index, batch, rest and tuple(part[index] for part in rest), skipped)


class _Rows(Dataset[Any]):
    """Shards for the workers, each of which reads a batch at once."""

    def __init__(self, images: Any, rest: tuple[Tensor, ...] | None, skip: bool) -> None:
        self._images, self._rest, self._skip = images, rest, skip

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, numbers: list[int]) -> _Raw:
        return _take(self._images, torch.tensor(numbers, dtype=torch.int64), self._rest, self._skip)


def _as_it_is(batch: _Raw) -> _Raw:
    return batch


class _Batches:
    """The batch sampler of the workers: the sample numbers of the batches that are left of an epoch.

    Attributes:
        left: those.
        stream: epoch and seeds, for workers that read sample by sample.
    """

    def __init__(self) -> None:
        self.left: list[list[int]] = []
        self.stream: tuple[int, tuple[int, ...]] | None = None

    def __iter__(self) -> Iterator[list[Any]]:
        if self.stream is None:
            return iter(self.left)
        left, stream = self.left, self.stream
        return ([_Draw(number, *stream) for number in batch] for batch in left)

    def __len__(self) -> int:
        return len(self.left)


class Loader:
    """Yields augmented batches; in place of ``DataLoader(dataset, ...)`` where ``dataset`` had the transform.

    The views of sample i in epoch e follow from the transform's seed, i and e alone: not from batch size, workers,
    order or device. They are made in this process or on the training device. On the CPU they stand in memory that is
    used again once nothing refers to it any more: after the first batches nothing is allocated, and what you keep is
    never overwritten. Where every view begins with a crop, of an image that a data set's item or a worker gives only
    the smallest box around its crops is kept, copied and sent.

    Args:
        dataset: uint8 images [N, C, H, W], or a :class:`RaggedBatch`, or a TensorDataset whose first tensor is the
            images, or :class:`fastcl.data.secure.SecureImages`: taken as they are, no worker needed. Or
            :class:`fastcl.data.shards.ShardImages`, read here or in workers. Or any data set
            whose items are an image (a uint8 Tensor [C, H, W], an array [H, W, C] or a PIL image, of any size) or a
            tuple of an image and other things, such as :class:`ImageFiles` and torchvision's data sets without a
            transform.
        transform: of this package; or a function of (images, index=, epoch=) that returns what is to be yielded.
        batch_size: images per batch.
        shuffle: a new order in every epoch, which follows from `seed` and the epoch.
        sampler: sample numbers in the order of an epoch, such as a DistributedSampler, whose ``set_epoch`` is called.
        num_workers: processes that read and decode; 0 does it in this process.
        drop_last: leaves out a last batch that is not full.
        device: where the views are made; raw bytes travel there. By default the CPU.
        seed: of the order; by default drawn from torch's global generator.
        prefetch: batches that are made ahead by a thread beside the training step. By default 1 where there is an
            accelerator, else 0: training on the CPU has use for every core itself.
        rank: which of the processes of a training this is. In each epoch all go through the same batches in the same
            order, and each yields its share of every batch.
        world_size: how many processes there are; ``batch_size`` is that of all together, a multiple of it. They always
            get equally many images: of a last batch that does not divide, the rest is left out.
        memory_format: of the views, ``torch.contiguous_format`` or ``torch.channels_last``.
        on_error: ``"raise"``, or ``"skip"`` for images that cannot be read; :attr:`skipped` then has them.
        **dataloader: further arguments of torch's DataLoader, such as ``multiprocessing_context``.

    Attributes:
        epoch: number of the epoch under way, or of the last one; -1 before the first. Every ``iter()`` begins another.
        images_per_second: images yielded per second since the epoch (or its resumed rest) began, training included.
        waited: seconds of that for which the training waited for a batch.
        skipped: sample numbers of images that could not be read, and why.

    Raises:
        TypeError: for images that are not bytes.
        ValueError: for arguments out of range.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        sampler: Iterable[int] | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
        device: torch.device | str | None = None,
        seed: int | None = None,
        prefetch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        memory_format: torch.memory_format = torch.contiguous_format,
        on_error: str = "raise",
        **dataloader: Any,
    ) -> None:
        if prefetch is None:
            prefetch = int(torch.accelerator.is_available())
        if batch_size < 1 or prefetch < 0 or num_workers < 0:
            raise ValueError(
                "Loader: batch_size must be at least 1, prefetch and num_workers at least 0, got "
                f"{batch_size}, {prefetch} and {num_workers}"
            )
        if not 0 <= rank < world_size or batch_size % world_size:
            raise ValueError(
                "Loader: rank must be in [0, world_size) and batch_size a multiple of world_size, got "
                f"rank {rank}, world_size {world_size} and batch_size {batch_size}"
            )
        if memory_format not in (torch.contiguous_format, torch.channels_last):
            raise ValueError(
                f"Loader: memory_format must be torch.contiguous_format or torch.channels_last, got {memory_format}"
            )
        if on_error not in ("raise", "skip"):
            raise ValueError(f"Loader: on_error must be raise or skip, got {on_error!r}")
        if sampler is not None and shuffle:
            raise ValueError("Loader: shuffle is the sampler's business where one is given, got both")
        self.dataset, self.batch_size, self.shuffle, self.sampler = dataset, batch_size, shuffle, sampler
        self.drop_last, self.prefetch, self.memory_format = drop_last, prefetch, memory_format
        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cpu" if device is None else device)
        self.seed = int(torch.randint(2**32, (), device="cpu").item()) if seed is None else int(seed)
        self.transform = Compose([transform]) if isinstance(transform, Transform) else transform
        self.epoch = -1
        self.images_per_second = self.waited = 0.0
        self.skipped: dict[int, str] = {}
        self._taken = 0  # batches of the epoch that were yielded
        self._resume_at: int | None = None
        self._buffers = Buffers()
        self._shapes: dict[Any, list[tuple[torch.Size, torch.dtype]]] = {}  # of views [C, H, W], by what goes in
        self._batches = _Batches()
        self._tensors = _tensors_of(dataset)
        self._skip = on_error == "skip"
        self._workers: DataLoader[Any] | None = None
        shards = self._tensors is not None and isinstance(self._tensors[0], ShardImages) and num_workers > 0
        if self._tensors is None or shards:
            collate_fn: Any = _collate_read if self._tensors is None else _as_it_is
            source: Dataset[Any] = (
                _Samples(dataset, self.transform, self._skip)
                if self._tensors is None
                else _Rows(*self._tensors, self._skip)
            )
            self._workers = DataLoader(
                source,
                batch_sampler=self._batches,
                collate_fn=collate_fn,
                num_workers=num_workers,
                **{
                    "persistent_workers": num_workers > 0,
                    "pin_memory": self.device.type == "cuda",
                    **dataloader,
                },
            )

    def __len__(self) -> int:
        n = len(self.dataset) if self.sampler is None else len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size + (n % self.batch_size >= self._least)

    @property
    def _least(self) -> int:
        """Images of a last batch for it to be yielded."""
        return self.batch_size if self.drop_last else self.world_size

    def __iter__(self) -> Iterator[Any]:
        """Begins the next epoch, or goes on in the one that :meth:`load_state_dict` was given."""
        if self._resume_at is None:
            self.epoch, first = self.epoch + 1, 0
        else:
            first, self._resume_at = self._resume_at, None
        return self._epoch(self.epoch, first)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batch that was yielded last; a few numbers."""
        return {
            "epoch": max(self.epoch, 0),
            "batch": self._taken,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "transform_seeds": [compose.seed for compose in _composes(self.transform)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next ``iter()`` goes on where `state` was taken: with the same batches and the same views.

        Raises:
            ValueError: for a state of another batch size or transform, of which no batch can be the next.
        """
        composes = _composes(self.transform)
        if state["batch_size"] != self.batch_size or len(state["transform_seeds"]) != len(composes):
            raise ValueError(
                f"Loader: the state is of batch_size {state['batch_size']} and {len(state['transform_seeds'])} "
                f"transforms, got {self.batch_size} and {len(composes)}"
            )
        for compose, seed in zip(composes, state["transform_seeds"], strict=True):
            compose.seed = seed
        self.seed, self.epoch, self._taken = state["seed"], state["epoch"], state["batch"]
        self._resume_at = self._taken
        if self._taken == len(self):
            self._resume_at = None  # the epoch was over

    def _order(self, epoch: int) -> list[int]:
        if self.sampler is not None:
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
            return [int(i) for i in self.sampler]
        n = len(self.dataset)
        if not self.shuffle:
            return list(range(n))
        # The legacy generator: its stream is frozen for all numpy versions.
        order: list[int] = np.random.RandomState([self.seed, epoch]).permutation(n).tolist()
        return order

    def _epoch(self, epoch: int, first: int) -> Iterator[Any]:
        order, size = self._order(epoch), self.batch_size
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        if batches and len(batches[-1]) < self._least:
            batches.pop()
        self._batches.left = [self._share(batch) for batch in batches[first:]]
        if self._tensors is None:
            self._batches.stream = epoch, tuple(compose.seed for compose, _ in _views_of(self.transform))
        self._taken, self.waited = first, 0.0
        raw = self._gather() if self._workers is None else iter(self._workers)
        began, images = time.perf_counter(), 0
        for number, (count, skipped, views) in enumerate(self._ahead(raw, epoch), first + 1):
            self.skipped |= skipped
            if views is None:
                continue
            self._taken, images = number, images + count
            self.images_per_second = images / (time.perf_counter() - began)
            yield views
            del views
        self._taken = len(batches)

    def _share(self, batch: list[int]) -> list[int]:
        each = len(batch) // self.world_size
        return batch[self.rank * each : (self.rank + 1) * each]

    def _ahead(self, raw: Iterator[_Raw], epoch: int) -> Iterator[tuple[int, dict[int, str], Any]]:
        """The batches of an epoch, made up to `prefetch` ahead of their use."""

        def make() -> tuple[int, dict[int, str], Any] | None:
            try:
                batch = next(raw, None)
            except Exception as error:
                if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
                    error = WorkerError(
                        f"Loader: a process that reads the data has died (out of memory?): {error}; use fewer "
                        "num_workers or a smaller batch_size; state_dict() still says where to go on"
                    )
                # The frames it came through hold it and the workers in a circle, of which the end takes them seconds.
                raise error.with_traceback(None) from None
            if batch is None:
                return None
            views = None if batch.images is None else self._augment(batch, epoch)
            return len(batch.numbers), batch.skipped, views

        thread = ThreadPoolExecutor(1, "fastcl.data.Loader") if self.prefetch else None
        ahead = deque(thread.submit(make) for _ in range(self.prefetch)) if thread else deque()
        try:
            while True:
                began = time.perf_counter()
                made = ahead.popleft().result() if thread else make()
                self.waited += time.perf_counter() - began
                if made is None:
                    return
                if thread:
                    ahead.append(thread.submit(make))
                yield made
                del made  # the consumer may have let go: then the memory is free
        finally:
            if thread:
                thread.shutdown(cancel_futures=True)

    def _gather(self) -> Iterator[_Raw]:
        """Batches of images that need no worker."""
        assert self._tensors is not None
        images, rest = self._tensors
        for numbers in self._batches.left:
            index = torch.tensor(numbers, dtype=torch.int64)
            if isinstance(images, RowImages):
                yield _take(images, index, rest, self._skip)
                continue
            if not isinstance(images, Tensor):
                batch: Tensor | RaggedBatch = images[index]
            elif images.device.type == "cpu":
                out = self._buffers.empty([len(index), *images.shape[1:]], images.dtype)
                batch = torch.index_select(images, 0, index, out=out)
            else:
                batch = images[index.to(images.device)]
            yield _Raw(index, batch, rest and tuple(part[index.to(part.device)] for part in rest), {})

    def _augment(self, batch: _Raw, epoch: int) -> Any:
        assert batch.images is not None
        images = batch.images.to(self.device, non_blocking=True)
        index = batch.numbers.to(self.device, non_blocking=True)
        views = self._views(images, index, epoch)
        return views if batch.rest is None else (views, *batch.rest)

    def _views(self, images: Tensor | RaggedBatch, index: Tensor, epoch: int) -> Any:
        contiguous = self.memory_format == torch.contiguous_format
        if not _composes(self.transform) or (contiguous and self.device.type != "cpu"):
            return self.transform(images, index=index, epoch=epoch)
        key = None if isinstance(images, RaggedBatch) else images.shape[1:]
        if key not in self._shapes:
            views = self.transform(images, index=index, epoch=epoch)
            each = views if isinstance(views, list) else [views]
            self._shapes[key] = [(view.shape[1:], view.dtype) for view in each]
            laid = [view.contiguous(memory_format=self.memory_format) for view in each]
            return laid if isinstance(views, list) else laid[0]
        out = [self._empty([len(index), *shape], dtype) for shape, dtype in self._shapes[key]]
        into: Any = out[0] if isinstance(self.transform, Compose) else out
        return self.transform(images, index=index, epoch=epoch, out=into)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for a view [B, C, H, W]."""
        if self.device.type != "cpu":  # whose own allocator gives memory again
            return torch.empty(shape, dtype=dtype, device=self.device, memory_format=self.memory_format)
        if self.memory_format == torch.contiguous_format:
            return self._buffers.empty(shape, dtype)
        n, channels, height, width = shape
        return self._buffers.empty([n, height, width, channels], dtype).permute(0, 3, 1, 2)


def _tensors_of(dataset: Any) -> tuple[Tensor | RaggedBatch | RowImages, tuple[Tensor, ...] | None] | None:
    """Images that are taken a batch at a time, and what stands beside them; None for another data set."""
    rest: tuple[Tensor, ...] | None = None
    if type(dataset) is TensorDataset:
        dataset, *others = dataset.tensors
        rest = tuple(others)
    if isinstance(dataset, (RaggedBatch, RowImages)):
        return dataset, rest
    if not isinstance(dataset, Tensor):
        return None
    if dataset.dtype != torch.uint8 or dataset.dim() != 4:
        raise TypeError(f"Loader: images must be uint8 [N, C, H, W], got {dataset.dtype} {list(dataset.shape)}")
    return dataset, rest


def _views_of(transform: Any) -> list[tuple[Compose, int]]:
    """The parts of a transform of this package view by view, and the views' numbers; none for another function."""
    if isinstance(transform, MultiViewTransform):
        return transform.numbered_views()
    return [(transform, 0)] if isinstance(transform, Compose) else []


def _composes(transform: Any) -> list[Compose]:
    """The parts of a transform of this package, each with a seed of its own; none for another function."""
    if isinstance(transform, MultiViewTransform):
        return [compose for compose, _ in transform.groups]
    return [transform] if isinstance(transform, Compose) else []
