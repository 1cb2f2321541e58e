"""The Lightning module and callback, with the real package: what a loop by hand gives."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

lightning = pytest.importorskip("lightning", reason="peer absent: lightning")
for package in ("sklearn", "mlxtend"):
    pytest.importorskip(package)

from fastcl.data import load
from fastcl.encoder import Encoder, EncoderConfig
from fastcl.evaluate import evaluate
from fastcl.lightning import ContrastiveModule, EncoderEvaluation
from fastcl.losses import NTXentLoss
from fastcl.pretrain import projection_head
from fastcl.transforms import SimCLRTransform

NORMALIZE = {"mean": [0.13], "std": [0.31]}


@pytest.fixture(scope="module")
def digits() -> Any:
    return load("digits", limit=200)


def module() -> ContrastiveModule:
    torch.manual_seed(1)
    encoder = Encoder(EncoderConfig(1, 28, 4, (0.13,), (0.31,)))
    return ContrastiveModule(
        encoder,
        projection_head(encoder.dim, 16, 8),
        NTXentLoss(0.2),
        SimCLRTransform(28, random_gray_scale=0, cj_prob=0, normalize=NORMALIZE, seed=3),
        partial(torch.optim.AdamW, lr=3e-3),
    )


def callback(digits: Any, **options: Any) -> EncoderEvaluation:
    normalize = module().encoder.normalize
    train, test = normalize(digits.train_images), normalize(digits.test_images)
    return EncoderEvaluation(train, digits.train_labels, test, digits.test_labels, **options)


class Logged(lightning.Callback):
    """What was logged by the end of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fit(model: ContrastiveModule, batches: list[Any], epochs: int, *callbacks: Any) -> list[dict[str, float]]:
    logged = Logged()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers and of the number of batches
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[*callbacks, logged],
        )  # fmt: skip
        trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
    return logged.epochs


def batches_of(digits: Any) -> list[Tensor]:
    return list(digits.train_images[:160].split(40))


def test_training_is_the_loop_by_hand(digits):
    model = module()
    logged = fit(model, [(batch, "labels, not looked at") for batch in batches_of(digits)], 3)
    by_hand = module()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=3e-3)
    losses = []
    for epoch in range(3):
        for number, batch in enumerate(batches_of(digits)):
            index = number * 2**24 + torch.arange(len(batch))
            views = torch.cat(by_hand.transform(batch, index=index, epoch=epoch))
            loss = by_hand.loss(*by_hand.head(by_hand.encoder(views)).chunk(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert [epoch["loss"] for epoch in logged] == losses[3::4]
    assert losses[-1] < losses[0]
    for name, value in by_hand.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_callback_judges_as_the_main_job_does(digits):
    model = module()
    logged = fit(model, batches_of(digits), 2, callback(digits, every_n_epochs=2))
    assert set(logged[0]) == {"loss"}
    assert model.training
    encoder = model.encoder
    before = copy.deepcopy(encoder.state_dict())
    want = evaluate(digits, encoder, 5, 0.1)
    metrics = callback(digits).judge(encoder)
    assert metrics["knn_accuracy"] == want.knn
    assert metrics["linear_probe_accuracy"] == want.linear_probe
    assert {name: pytest.approx(value) for name, value in metrics.items()} == {
        k: v for k, v in logged[1].items() if k != "loss"
    }
    assert 0 < metrics["int8_error"] < 0.01
    assert abs(metrics["int8_knn_accuracy"] - metrics["knn_accuracy"]) <= 0.1
    assert all(torch.equal(encoder.state_dict()[name], value) for name, value in before.items())
    assert not any("Int8" in type(layer).__name__ for layer in encoder.modules())


def test_a_wrong_interval_is_refused(digits):
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        callback(digits, every_n_epochs=0)


def test_any_encoder_can_be_judged(digits):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16))
    assert callback(digits).judge(encoder)["int8_error"] < 0.01
