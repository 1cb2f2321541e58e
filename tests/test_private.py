from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend", "opacus"):
    pytest.importorskip(package)

from run_helpers import TINY, tiny_flags

from fastcl import private
from fastcl.checkpoint import load_encoder
from fastcl.cli import main
from fastcl.compress.ladder import LadderConfig
from fastcl.config import RunConfig, make_config
from fastcl.data import load
from fastcl.errors import ConfigError, MissingExtraError, RunError
from fastcl.pretrain import Pretraining
from fastcl.private import PrivatePretraining, noise_multiplier
from fastcl.run import compress, run

PRIVATE = TINY | {"dp_epsilon": 8.0, "epochs": 1, "dp_group": 4, "dp_clip": 0.5}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load("digits", limit=200).train_images


def config(**changed: object) -> RunConfig:
    return make_config(PRIVATE | changed)


def public_coins(patch: pytest.MonkeyPatch, seed: int = 0) -> None:
    patch.setattr(private, "secret_generator", lambda: torch.Generator().manual_seed(seed))


def steps_of(
    training: PrivatePretraining, path: Path, patch: pytest.MonkeyPatch, look: Callable[[], Tensor]
) -> list[Tensor]:
    """What is seen after each step's gradient has its noise."""
    seen: list[Tensor] = []
    training._optimizer.attach_step_hook(lambda optimizer: seen.append(look()))
    training.run(path, {}, lambda now: None, lambda: False)
    return seen


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


# Accounting


@pytest.mark.parametrize(("epsilon", "delta", "steps"), [(1.0, 1e-5, 1), (8.0, 1e-5, 100), (3.0, 1e-7, 20)])
def test_noise_suffices_by_the_exact_formula_of_the_gaussian_mechanism(epsilon: float, delta: float, steps: int):
    """Every group in every step: two images' worlds are Gaussians whose means are at most two clipping norms apart."""
    noise = noise_multiplier(epsilon, delta, 1.0, steps)

    def exact_delta(noise: float) -> float:  # Balle and Wang 2018, theorem 5
        distance = 2 * math.sqrt(steps) / noise
        left, right = distance / 2 - epsilon / distance, -distance / 2 - epsilon / distance
        below = [0.5 * math.erfc(-x / math.sqrt(2)) for x in (left, right)]
        return below[0] - math.exp(epsilon) * below[1]

    assert exact_delta(noise) <= delta
    assert exact_delta(noise / 2) > delta  # not many times more than is needed


def test_rare_groups_need_less_noise_and_more_steps_more():
    rates = [noise_multiplier(4.0, 1e-5, rate, 50) for rate in (1.0, 0.1, 0.01)]
    assert rates == sorted(rates, reverse=True)
    steps = [noise_multiplier(4.0, 1e-5, 0.1, count) for count in (10, 100, 1000)]
    assert steps == sorted(steps)


def test_the_noise_is_that_of_the_run(images: Tensor):
    training = PrivatePretraining(images, config())
    # 160 images in groups of 4, ten of these in a step.
    assert (training.groups, training.rate, training.steps) == (40, 0.25, 4)
    assert training.noise == noise_multiplier(8.0, 1e-5, 0.25, 4)
    assert training._optimizer.noise_multiplier == training.noise
    assert training._optimizer.max_grad_norm == 0.5


# What one image can change


@pytest.mark.parametrize("clip", [0.01, 0.5])
def test_an_image_changes_a_sum_of_gradients_by_twice_the_clipping_norm_at_most(
    clip: float, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    public_coins(monkeypatch)
    changed = images.clone()
    changed[17] = 255 - changed[17]
    sums = []
    for seen in (images, changed):
        training = PrivatePretraining(seen, config(dp_clip=clip, batch_size=160))
        assert training.rate == 1

        def first(training: PrivatePretraining = training) -> Tensor:
            return flat([parameter.summed_grad for parameter in training._model.parameters()])

        sums.append(steps_of(training, tmp_path / "checkpoint", monkeypatch, first)[0])
    # Sums of 40 gradients whose norm is at most the clipping norm, each rounded to 24 bits.
    rounding = 40 * clip * 2**-22
    assert 0 < (sums[0] - sums[1]).norm() <= 2 * clip + rounding
    assert sums[0].norm() <= 40 * clip + rounding


def test_a_step_without_a_group_is_noise_alone_of_the_promised_size(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = PrivatePretraining(images, config(epochs=2, width=16))
    training._loader.rate = -1.0  # no coin is below it
    gradients = steps_of(
        training, tmp_path / "checkpoint", monkeypatch,
        lambda: flat([parameter.grad for parameter in training._model.parameters()]),
    )  # fmt: skip
    expected = training.noise * 0.5 / 10  # times the clipping norm, over the groups that are expected
    for gradient in gradients:
        deviation = 5 / math.sqrt(2 * gradient.numel())
        assert gradient.std() == pytest.approx(expected, rel=deviation)
        assert abs(gradient.mean()) <= 5 * expected / math.sqrt(gradient.numel())
    assert not torch.equal(gradients[0], gradients[1])


def test_coins_are_of_the_rate_and_nobody_can_repeat_them(images: Tensor):
    training = PrivatePretraining(images, config(epochs=200))
    counts = torch.tensor([len(first) / 4 for _ in range(50) for first, _ in training._loader])
    assert abs(counts.mean() - 10) <= 5 * math.sqrt(40 * 0.25 * 0.75 / len(counts))
    assert counts.var() == pytest.approx(40 * 0.25 * 0.75, rel=5 * math.sqrt(2 / len(counts)))
    again = PrivatePretraining(images, config(epochs=200))
    assert [len(first) for first, _ in again._loader] != [len(first) for first, _ in training._loader]


def test_views_follow_from_image_and_step_and_groups_from_the_count(images: Tensor):
    training = PrivatePretraining(images, config())
    groups = training._loader.groups
    assert torch.equal(groups, PrivatePretraining(255 - images, config())._loader.groups)
    assert len(groups.unique()) == 160
    training._loader.rate = 1.0
    first, second = next(iter(training._loader))
    index = groups.flatten()
    assert torch.equal(first, training.transform(images[index], index, 0))
    assert torch.equal(second, training.transform(images[index], index, 1))


def test_nothing_else_follows_from_the_images(images: Tensor):
    models = [PrivatePretraining(seen, config()) for seen in (images, 255 - images)]
    assert models[0].encoder.config == models[1].encoder.config
    states = [model._model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for module in models[0]._model.modules():
        assert not isinstance(module, nn.modules.batchnorm._BatchNorm)


def test_without_clipping_and_noise_it_is_the_plain_step(
    images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The mean over the groups of NT-Xent within each."""
    public_coins(monkeypatch)
    training = PrivatePretraining(images, config(dp_clip=1e6, batch_size=160, epochs=1))
    training._optimizer.noise_multiplier = 0.0
    before = {name: value.clone() for name, value in training._model.state_dict().items()}
    (gradient,) = steps_of(
        training, tmp_path / "checkpoint", monkeypatch,
        lambda: flat([parameter.grad for parameter in training._model.parameters()]),
    )  # fmt: skip
    plain = PrivatePretraining(images, config(dp_clip=1e6, batch_size=160, epochs=1))
    plain._model.load_state_dict(before)
    index = plain._loader.groups
    losses = []
    for group in index:
        views = [plain.transform(images[group], group, view) for view in (0, 1)]
        losses.append(plain._loss(*(plain._project(view) for view in views)))
    torch.stack(losses).mean().backward()
    expected = flat([parameter.grad for parameter in plain._model.parameters()])
    # Forty sums of float32 in another order.
    torch.testing.assert_close(gradient, expected, atol=40 * 2**-23 * expected.abs().max().item(), rtol=1e-4)


# The main job


def test_a_private_run(tmp_path: Path):
    metrics = run(config(), tmp_path)
    assert metrics["dp_epsilon"] == 8
    assert metrics["dp_delta"] == 1e-5
    assert metrics["dp_noise"] == noise_multiplier(8.0, 1e-5, 0.25, 4)
    for name in ("encoder", "encoder_int8"):
        encoder, _ = load_encoder(tmp_path / f"{name}.safetensors")
        assert (encoder.config.norm, encoder.config.mean) == ("group", (0.5,))
    assert any(isinstance(module, nn.GroupNorm) for module in encoder.modules())
    assert np.isfinite(metrics["final_loss"])
    with pytest.raises(RunError, match="smaller encoders would be learnt from its images without"):
        compress(tmp_path, LadderConfig())


def test_stopped_it_goes_on(images: Tensor, tmp_path: Path):
    path, settings = tmp_path / "checkpoint", config(epochs=2)
    first = PrivatePretraining(images, settings)
    assert not first.run(path, {}, lambda now: None, lambda: first.step == 3)
    second = PrivatePretraining(images, settings)
    second.restore(path)
    assert (second.step, second.losses, second.noise) == (3, first.losses, first.noise)
    state = [training._optimizer.state_dict()["state"] for training in (first, second)]
    assert all(torch.equal(state[0][row]["exp_avg"], state[1][row]["exp_avg"]) for row in state[0])
    assert second.run(path, {}, lambda now: None, lambda: False)
    assert second.step == second.steps == 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ladder": "student"}, "smaller encoders would be learnt from the images without protection"),
        ({"generate": 0.2}, "generated images"),
        ({"data": "text"}, "images alone are pretrained on with differential privacy"),
        ({"dp_group": 41}, "dp_group: expected at most a batch of 40 images, got 41"),
        ({"dp_epsilon": 1e-9}, "no noise gives"),
    ],
    ids=["ladder", "generate", "text", "group", "epsilon"],
)
def test_what_would_not_be_private_is_refused(settings: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        run(config(**settings), tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_other_devices_and_many_processes_are_refused(images: Tensor, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="in one process, on the CPU"):
        PrivatePretraining(images, config(device="cuda"))
    monkeypatch.setattr("fastcl.distributed.world", lambda: (0, 2))
    with pytest.raises(ConfigError, match="in one process, on the CPU"):
        PrivatePretraining(images, config())


def test_without_opacus(images: Tensor, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcl\[privacy\]'"):
        PrivatePretraining(images, config())
    Pretraining(images, make_config(TINY))  # needs none


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flags = tiny_flags(epochs=1, dp_epsilon=8, dp_delta=1e-4, dp_group=4, dp_clip=0.5)
    monkeypatch.setattr(sys, "argv", ["fastcl", "run", *flags, "--out", str(tmp_path)])
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code, output.getvalue()
    assert json.loads((tmp_path / "metrics.json").read_text())["dp_delta"] == 1e-4
