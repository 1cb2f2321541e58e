"""fastcl in Lightning: a module that learns from views, and a callback that judges the encoder and its int8 form.

``pip install 'fastcl[lightning]'``. Under Lightning's DDP, give the loss ``distributed="gather"`` or ``"ring"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastcl.compress import to_int8
from fastcl.errors import extra
from fastcl.evaluate import LinearProbe, accuracy, knn_predict
from fastcl.losses.distributed import world
from fastcl.ragged import RaggedBatch
from fastcl.transforms import MultiViewTransform

with extra("lightning"):
    import lightning

__all__ = ["ContrastiveModule", "EncoderEvaluation"]

_MOST_IMAGES = 2**24  # of a batch of one process


class ContrastiveModule(lightning.LightningModule):  # type: ignore[misc]
    """Trains an encoder so that the views of an image lie close to each other (SimCLR, Chen et al. 2020).

    A batch is uint8 images [B, C, H, W] or a :class:`fastcl.data.RaggedBatch`, or a tuple that begins with them, of
    which the rest (labels) is not looked at. The views are drawn where the batch is, in one pass for all images; the
    draws follow from the transform's seed, the epoch, the number of the batch and the process.

    Args:
        encoder: from views [B, C, H, W] to embeddings [B, dim].
        head: from embeddings to where views are compared, thrown away after training.
        loss: of :mod:`fastcl.losses`; takes the projections of each view, and logs as ``"loss"``.
        transform: draws the views, such as :class:`fastcl.transforms.SimCLRTransform`.
        optimizer: takes the parameters and returns what ``configure_optimizers`` may.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        loss: nn.Module,
        transform: MultiViewTransform,
        optimizer: Callable[[Iterator[nn.Parameter]], Any],
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.loss = encoder, head, loss
        self.transform, self._optimizer = transform, optimizer

    def forward(self, images: Tensor) -> Tensor:
        """Embeds normalised images [B, C, H, W] as [B, dim]."""
        embeddings: Tensor = self.encoder(images)
        return embeddings

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images: Tensor | RaggedBatch = batch[0] if isinstance(batch, (tuple, list)) else batch
        rank, size = world()
        first = (batch_idx * size + rank) * _MOST_IMAGES
        index = first + torch.arange(len(images), device=images.device)
        views = self.transform(images, index=index, epoch=self.current_epoch)
        projections = self.head(self.encoder(torch.cat(views)))
        loss: Tensor = self.loss(*projections.chunk(len(views)))
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> Any:
        """What the argument ``optimizer`` makes."""
        return self._optimizer(self.parameters())


class EncoderEvaluation(lightning.Callback):  # type: ignore[misc]
    """Judges the module's ``encoder`` after some epochs: k-NN and linear probe, in float32 and in int8.

    Logs ``knn_accuracy``, ``linear_probe_accuracy``, the same with ``int8_`` before them, and ``int8_error``: one minus
    the mean cosine between the embeddings of held-out images by the two. The first process does it, the int8 encoder
    runs on the CPU. Needs the extra ``run``.

    Args:
        train: images to learn the probe from, as the encoder takes them [N, C, H, W].
        train_labels: int64 [N].
        test: held-out images [M, C, H, W].
        test_labels: int64 [M].
        every_n_epochs: epochs between two judgements.
        neighbors: k of the k-NN.
        probe_c: inverse regularisation of the probe.
        batch_size: images embedded at a time.

    Raises:
        ValueError: for ``every_n_epochs`` below 1.
    """

    def __init__(
        self,
        train: Tensor,
        train_labels: Tensor,
        test: Tensor,
        test_labels: Tensor,
        *,
        every_n_epochs: int = 1,
        neighbors: int = 5,
        probe_c: float = 0.1,
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        if every_n_epochs < 1:
            raise ValueError(f"EncoderEvaluation: every_n_epochs must be at least 1, got {every_n_epochs}")
        self._images, self._labels = (train, test), (train_labels, test_labels)
        self._every_n_epochs, self._batch_size = every_n_epochs, batch_size
        self._neighbors, self._probe_c = neighbors, probe_c

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Judges, and logs."""
        if (trainer.current_epoch + 1) % self._every_n_epochs == 0 and trainer.is_global_zero:
            metrics = self.judge(pl_module.encoder, pl_module.device)
            pl_module.log_dict(metrics, rank_zero_only=True, batch_size=1)

    def judge(self, encoder: nn.Module, device: torch.device | str = "cpu") -> dict[str, float]:
        """The metrics of an encoder that is on ``device``; it is left as it is."""
        train_labels, test_labels = self._labels
        train, test = self._embed(encoder, device)
        probe = LinearProbe(train, train_labels, self._probe_c)
        int8_train, int8_test = self._embed(to_int8(encoder).cpu(), "cpu")
        metrics = {"int8_error": 1 - torch.cosine_similarity(test, int8_test).mean().item()}
        for prefix, reference, held_out in (("", train, test), ("int8_", int8_train, int8_test)):
            found = knn_predict(reference, train_labels, held_out, self._neighbors)
            metrics[f"{prefix}knn_accuracy"] = accuracy(found, test_labels)
            metrics[f"{prefix}linear_probe_accuracy"] = accuracy(probe.predict(held_out), test_labels)
        return metrics

    @torch.no_grad()
    def _embed(self, encoder: nn.Module, device: torch.device | str) -> list[Tensor]:
        training = encoder.training
        encoder.eval()
        try:
            return [
                torch.cat([encoder(part.to(device)).float().cpu() for part in images.split(self._batch_size)])
                for images in self._images
            ]
        finally:
            encoder.train(training)
