from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

from run_helpers import TINY, lasting_metrics, tiny_flags

from fastcl.cli import main
from fastcl.config import RunConfig, make_config
from fastcl.data import load
from fastcl.encoder import Encoder, EncoderConfig
from fastcl.errors import CheckpointError, ConfigError, DataError, DivergedError, MissingExtraError
from fastcl.files import locked
from fastcl.generate import (
    Discriminator,
    GanConfig,
    GanTraining,
    GeneratedDataset,
    Generator,
    GeneratorConfig,
    apply_differentiably,
    drawn_clusters,
    frechet_distance,
    gan_transform,
    gaussian_distance,
    generated_count,
    inception_features,
    latents,
    load_generator,
    save_generator,
)
from fastcl.ops.augment import augment_apply
from fastcl.ops.augment_table import PARAM_NAMES
from fastcl.pretrain import Pretraining
from fastcl.run import Interrupted, run
from fastcl.transforms import (
    Compose,
    GaussianBlur,
    RandomAffine,
    RandomHorizontalFlip,
    RandomPerspective,
    RandomRotation,
)

GAN = GanConfig(steps=6, batch_size=8, features=4, latent=8, check_every=3, check_images=16, r1_every=2)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load("digits", limit=40).train_images


def encoder_of(images: Tensor) -> Encoder:
    channels, size = images.shape[1:3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder(EncoderConfig(channels, size, 4, (0.2,) * channels, (0.3,) * channels)).eval()


def train(images: Tensor, config: GanConfig, path: Path, stop_at: int = -1, resume: bool = False) -> GanTraining:
    training = GanTraining(images, config, encoder_of(images))
    if resume:
        training.restore(path)
    finished = training.run(path, {}, lambda now: None, lambda: training.step == stop_at)
    assert finished == (training.step == config.steps)
    return training


SIZES = {
    "digit": (1, 28, 28),
    "odd": (3, 33, 50),
    "tall": (1, 70, 9),
    "one_pixel": (1, 1, 1),
    "column": (3, 17, 1),
    "small": (1, 8, 8),
}


@pytest.mark.parametrize("name", SIZES)
def test_images_of_any_size(name: str):
    config = GeneratorConfig(*SIZES[name], latent=5, features=4, clusters=2)
    assert max(config.sizes[-1]) <= 8
    clusters = torch.tensor([1, 0, 1])
    made = Generator(config)(torch.randn(3, 5), clusters)
    assert made.shape == (3, *SIZES[name])
    assert 0 <= made.min() <= made.max() <= 1
    assert Discriminator(config)(made, clusters).shape == (3,)


def test_both_networks_know_the_cluster():
    torch.manual_seed(0)
    config = GeneratorConfig(1, 28, 28, latent=8, features=4, clusters=2)
    first, second = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    generator, discriminator, drawn = Generator(config), Discriminator(config), torch.randn(3, 8)
    made = generator(drawn, first)
    assert not torch.equal(generator(drawn, second), made)
    assert not torch.equal(discriminator(made, second), discriminator(made, first))


@pytest.mark.parametrize("bad", [(2, 28, 28), (1, 0, 28), (3, 28, 1025)])
def test_sizes_that_are_refused(bad: tuple[int, int, int]):
    with pytest.raises(ValueError, match="1 or 3 channels and sides of 1 to 1,024"):
        GeneratorConfig(*bad)


# Differentiable augmentation


def mild(images: Tensor) -> Tensor:
    """From 0.3 to 0.5, where no colour op reaches 0 or 1: the fused one cuts off there."""
    return 0.3 + 0.2 * images


TRANSFORMS = {
    "shift_and_cut": lambda: gan_transform(0.125, 0.5, 0.0, seed=3),
    "colour_and_cut": lambda: gan_transform(0.0, 0.5, 0.2, seed=3),
    "affine": lambda: Compose(
        [RandomHorizontalFlip(0.5), RandomAffine(25, (0.1, 0.2), (0.8, 1.3), (-9, 9, -5, 5), "bilinear")], seed=4
    ),
}


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 19)], ids=["grey", "colour"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_differentiable_augmentation_is_the_fused_one(name: str, shape: tuple[int, int, int]):
    torch.manual_seed(0)
    size, batch = shape[1:], mild(torch.rand(40, *shape))
    params = TRANSFORMS[name]().sample(40, size, epoch=5)
    assert len(params.unique(dim=0)) > 20
    fused = augment_apply(batch, params, size, interpolation="bilinear")
    # Both add up at most four products of numbers below 1 at positions of up to 28, in float32.
    torch.testing.assert_close(apply_differentiably(batch, params), fused, atol=28 * 8 * 2**-23, rtol=0)


def test_differentiable_augmentation_has_gradients():
    torch.manual_seed(0)
    images = mild(torch.rand(2, 3, 3, 4, dtype=torch.float64)).requires_grad_()
    params = gan_transform(0.3, 1.0, 0.3, seed=1).sample(2, (3, 4))
    assert torch.autograd.gradcheck(lambda value: apply_differentiably(value, params), images)


def test_saturated_pixels_keep_their_gradient():
    params = gan_transform(0.0, 0.0, 0.9, seed=1).sample(8, (4, 4))
    images = torch.ones(8, 1, 4, 4, requires_grad=True)
    apply_differentiably(images, params).sum().backward()
    assert (images.grad != 0).all()


OTHERS = {"blur_sigma": GaussianBlur(3), "perspective": RandomPerspective(0.5, 1.0)}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_applied_is_refused(name: str):
    params = Compose([OTHERS[name]], seed=0).sample(4, (8, 8))
    with pytest.raises(ValueError, match=f"params has .*{name}.*, which it does not apply"):
        apply_differentiably(torch.rand(4, 1, 8, 8), params)


def test_a_table_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"got \[4, 1, 8, 8\] and \[3, 44\]".replace("44", str(len(PARAM_NAMES)))):
        apply_differentiably(torch.rand(4, 1, 8, 8), Compose([RandomRotation(3)], seed=0).sample(3, (8, 8)))


# Fréchet distance


def test_distance_of_known_gaussians():
    eye = torch.eye(3, dtype=torch.float64)
    zero, shift = torch.zeros(3, dtype=torch.float64), torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    assert gaussian_distance(zero, eye, shift, eye) == pytest.approx(9)
    assert gaussian_distance(zero, 4 * eye, zero, 9 * eye) == pytest.approx(3 * (3 - 2) ** 2)
    singular = torch.diag(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert gaussian_distance(zero, singular, zero, eye) == pytest.approx(2)


def test_distance_is_that_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    torch.manual_seed(0)
    first, second = torch.randn(200, 6) @ torch.randn(6, 6), torch.randn(300, 6) @ torch.randn(6, 6) + 1
    a, b = (np.cov(rows.double().numpy(), rowvar=False) for rows in (first, second))
    root = np.real(linalg.sqrtm(a @ b))
    expected = ((first.double().mean(0) - second.double().mean(0)) ** 2).sum().item() + np.trace(a + b - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(first[:4], second) > 0  # fewer samples than dimensions


def test_distance_of_bad_features():
    for first, second in ((torch.rand(4, 3), torch.rand(4, 2)), (torch.rand(1, 3), torch.rand(4, 3))):
        with pytest.raises(ValueError, match="at least 2 rows"):
            frechet_distance(first, second)
    with pytest.raises(ValueError, match="must be finite"):
        frechet_distance(torch.full((4, 2), math.nan), torch.rand(4, 2))


def test_inception_features_are_of_torch_fidelity_with_weights_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images, weights = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8), tmp_path / "weights.pth"
    with pytest.raises(DataError, match="expected the Inception weights of torch-fidelity; they are not fetched"):
        inception_features(images, weights)
    weights.touch()
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcl\[fid\]'"):
        inception_features(images, weights)

    def network(name: str, features: list[str], path: str) -> Callable[[Tensor], tuple[Tensor]]:
        assert (features, path) == (["2048"], str(weights))
        return lambda part: (part.float().mean((2, 3)),)

    module = SimpleNamespace(FeatureExtractorInceptionV3=network)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    features = inception_features(images, weights, batch_size=2)
    assert torch.equal(features, images.float().mean((2, 3)).expand(5, 3))


# Generated images


@pytest.fixture(scope="module")
def generator() -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Generator(GeneratorConfig(1, 28, 28, latent=8, features=4, clusters=3))


def test_latents_are_normal_and_follow_from_their_number():
    drawn = latents(torch.arange(4000), 10, seed=5)
    assert drawn.mean().abs() < 5 / math.sqrt(drawn.numel())
    assert (drawn.var() - 1).abs() < 5 * math.sqrt(2 / drawn.numel())
    assert torch.equal(latents(torch.tensor([17, 3]), 10, seed=5), drawn[[17, 3]])
    assert torch.equal(latents(torch.tensor([17, 3]), 6, seed=5), drawn[[17, 3], :6])
    other = [latents(torch.arange(4000), 10, seed=6), latents(torch.arange(4000), 10, seed=5, stream=1)]
    for numbers in other:
        assert (numbers * drawn).mean().abs() < 5 / math.sqrt(drawn.numel())


def test_clusters_are_drawn_by_their_shares_and_follow_from_their_number():
    shares = torch.tensor([0.5, 0.0, 0.2, 0.3])
    drawn = drawn_clusters(torch.arange(4000), shares, seed=5)
    found = drawn.bincount(minlength=4) / 4000
    assert found[1] == 0
    assert ((found - shares).abs() <= 5 * (shares * (1 - shares) / 4000).sqrt()).all()
    assert torch.equal(drawn_clusters(torch.tensor([17, 3]), shares, seed=5), drawn[[17, 3]])
    assert not torch.equal(drawn_clusters(torch.arange(4000), shares, seed=6), drawn)


def test_an_image_follows_from_seed_and_number(generator: Generator, tmp_path: Path):
    dataset = GeneratedDataset(generator, 150, seed=3)
    images = dataset.images
    assert images.shape == (150, 1, 28, 28)
    assert images.dtype == torch.uint8
    for number in (149, 0, 70, -1):
        assert torch.equal(dataset[number], images[number])
    assert torch.equal(GeneratedDataset(generator, 70, seed=3).images, images[:70])
    assert not torch.equal(GeneratedDataset(generator, 70, seed=4).images, images[:70])
    assert len({image.numpy().tobytes() for image in images}) == 150
    save_generator(generator, tmp_path / "generator", {"data": "x"})
    assert torch.equal(GeneratedDataset(tmp_path / "generator", 150, seed=3).images, images)
    assert load_generator(tmp_path / "generator")[1] == {"data": "x"}
    for number in (150, -151):
        with pytest.raises(IndexError, match="from 0 to 149"):
            dataset[number]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.9])
def test_mixing_at_a_fraction(generator: Generator, images: Tensor, fraction: float):
    mixed = GeneratedDataset.mixed(images, generator, fraction, seed=2)
    count = len(mixed) - len(images)
    assert count == generated_count(len(images), fraction)
    assert abs(count - fraction * len(mixed)) <= 0.5
    assert torch.equal(mixed[: len(images)], images)
    assert torch.equal(mixed[len(images) :], GeneratedDataset(generator, count, seed=2).images)


def test_bad_mixtures(generator: Generator, images: Tensor):
    for fraction in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="fraction must be at least 0 and below 1"):
            GeneratedDataset.mixed(images, generator, fraction)
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 28, 28\] as the generator's, got \[30, 1, 14, 28\]"):
        GeneratedDataset.mixed(images[:30, :, ::2], generator, 0.5)
    with pytest.raises(ValueError, match="count must not be negative"):
        GeneratedDataset(generator, -1)


def test_damaged_generators(generator: Generator, tmp_path: Path):
    path = tmp_path / "generator"
    save_generator(generator, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="expected a fastcl-generator-2 file"):
        load_generator(path)


# Training


def test_stopped_anywhere_it_goes_on_to_the_same(images: Tensor, tmp_path: Path):
    whole = train(images, GAN, tmp_path / "whole")
    assert list(whole.distances) == [3, 6]
    for stop_at in (2, 3):
        path = tmp_path / str(stop_at)
        train(images, GAN, path, stop_at)
        rest = train(images, GAN, path, resume=True)
        assert (rest.losses, rest.distances, rest.best_step) == (whole.losses, whole.distances, whole.best_step)
        for network in ("generator", "best", "_discriminator"):
            ours, theirs = (getattr(training, network).state_dict() for training in (rest, whole))
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_seed_fixes_the_result(images: Tensor, tmp_path: Path):
    state = torch.get_rng_state()
    losses = [train(images, replace(GAN, seed=seed), tmp_path / "gan").losses for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_images_that_are_alike_are_one_cluster(tmp_path: Path):
    torch.manual_seed(0)
    bright = torch.randint(150, 256, (48, 1, 16, 16), dtype=torch.uint8)
    dark, kinds = bright - 150, torch.arange(96) % 2
    alike = torch.stack([bright, dark], dim=1).flatten(0, 1)
    training = GanTraining(alike, replace(GAN, clusters=2), encoder_of(alike))
    assert torch.equal(training._clusters, kinds) or torch.equal(training._clusters, 1 - kinds)
    assert training.generator.shares.tolist() == [0.5, 0.5]
    # Never so many that a cluster has too few to learn from.
    assert GanTraining(alike, replace(GAN, clusters=64), encoder_of(alike)).generator.config.clusters == 6
    equal = bright[:1].expand(64, -1, -1, -1).contiguous()
    assert train(equal, replace(GAN, steps=2, check_every=2), tmp_path / "gan").generator.shares.max() == 1


def test_the_best_average_is_kept(images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr("fastcl.generate.training.frechet_distance", lambda first, second: next(measured))
    training = GanTraining(images, replace(GAN, check_every=2), encoder_of(images))
    kept = {}
    training.run(
        tmp_path / "gan", {}, lambda now: kept.update({now.step: now.generator.first[0].weight.clone()}), lambda: False
    )
    assert training.best_step == 4
    assert torch.equal(training.best.first[0].weight, kept[4])
    assert not torch.equal(kept[6], kept[4])


def test_r1_keeps_the_gradient_small(images: Tensor, tmp_path: Path):
    sizes = []
    for r1 in (0.0, 10.0):
        training = train(images, replace(GAN, steps=30, check_every=30, r1=r1), tmp_path / "gan")
        real = (images.float() / 255).requires_grad_()
        (gradient,) = torch.autograd.grad(training._discriminator(real, training._clusters).sum(), real)
        sizes.append(gradient.square().sum((1, 2, 3)).mean().item())
    assert sizes[1] < sizes[0] / 2


def test_colour_images_and_few_of_them(tmp_path: Path):
    torch.manual_seed(0)
    few = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    assert train(few, replace(GAN, steps=2, check_every=2), tmp_path / "gan").generator.config.channels == 3


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_nan_is_a_clear_end_and_the_checkpoint_stands(network: str, images: Tensor, tmp_path: Path):
    path = tmp_path / "gan"
    training = GanTraining(images, GAN, encoder_of(images))

    def poison(now: GanTraining) -> None:
        if now.step == 4:
            model = now._models[network]
            next(model.parameters()).register_hook(lambda gradient: gradient * math.nan)

    with pytest.raises(DivergedError, match=rf"the {network}'s loss became .* at step 5 of 6: .*smaller learning rate"):
        training.run(path, {}, poison, lambda: False)
    assert all(weight.isfinite().all() for weight in training._models.state_dict().values())
    assert train(images, GAN, path, resume=True).losses == train(images, GAN, tmp_path / "whole").losses


def test_checkpoints_of_others_are_refused(images: Tensor, tmp_path: Path):
    path = tmp_path / "gan"
    train(images, GAN, path, stop_at=1)
    with pytest.raises(CheckpointError, match="of another configuration"):
        train(images, replace(GAN, lr=0.1), path, resume=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        train(images, GAN, path, resume=True)


def test_bad_settings_and_images(images: Tensor):
    with pytest.raises(ConfigError, match="GanConfig: steps, lr out of range"):
        replace(GAN, steps=0, lr=math.nan)
    for bad in (images.float(), images[:1], images[0]):
        with pytest.raises(ConfigError, match="images must be uint8"):
            GanTraining(bad, GAN, encoder_of(images))


# The main job

GENERATE = {"epochs": 1, "generate": 0.25, "gan_steps": 4, "ablation_epochs": 1}


def command(*arguments: str) -> tuple[int, str]:
    """Runs the command line in this process, with an encoder that hardly learns as the judge."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        patch.setattr("fastcl.generate.job._JUDGE_STEPS", 4)
        patch.setattr(sys, "argv", ["fastcl", *arguments])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stopped:
            main()
    return int(stopped.value.code or 0), output.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("run") / "out"
    code, output = command("run", *tiny_flags(**GENERATE), "--out", str(out))
    assert code == 0, output
    return out, output


def test_a_run_with_generated_images(finished: tuple[Path, str]):
    out, output = finished
    assert "generator of 160 images: 4 steps" in output
    assert "1 % of the data is 2 images: too few to compare" in output
    metrics = json.loads((out / "metrics.json").read_text())
    # 160 images and 53 generated ones in batches of 40.
    assert metrics["steps"] == 5
    assert metrics["train_images"] == 160
    assert metrics["generated_frechet_distance"] > metrics["held_out_frechet_distance"] > 0
    rows = json.loads((out / "generated" / "comparison.json").read_text())
    sizes = [tuple(row[key] for key in ("share", "images", "generated", "steps", "steps_with")) for row in rows]
    assert sizes == [(1.0, 160, 53, 4, 5), (0.1, 16, 5, 4, 4)]
    assert all(0 < row[key] <= 1 for row in rows for key in ("linear_probe", "linear_probe_with", "knn", "knn_with"))
    kept = {path.relative_to(out / "generated").as_posix() for path in (out / "generated").rglob("*")}
    files = ("generator.safetensors", "judge.safetensors")
    assert kept == {"comparison.json", "10-percent", *files, *(f"10-percent/{name}" for name in files)}


def test_the_report_shows_them(finished: tuple[Path, str]):
    text = (finished[0] / "report.html").read_text(encoding="utf-8")
    for name, rows_shown in (("generated", 10), ("copied", 2)):
        picture = re.search(rf'id="{name}" src="data:image/png;base64,([^"]*)"', text)
        assert picture
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture[1]))).convert("RGBA"))
        # The gaps between rows and columns are see-through throughout.
        for axis, count in ((0, 10), (1, rows_shown)):
            gaps = (pixels[..., 3] == 0).all(axis)
            assert (np.diff(gaps.astype(int)) == -1).sum() == count
    table = text[text.index('<table id="comparison">') :]
    table = table[: table.index("</table>")]
    rows = json.loads((finished[0] / "generated" / "comparison.json").read_text())
    assert table.count("<tr>") == 1 + len(rows)
    for row in rows:
        assert f"<td>{100 * row['linear_probe']:.1f} %</td><td>{100 * row['linear_probe_with']:.1f} %</td>" in table


def _run(config: RunConfig, out: Path, stage: type, stop_at: int = -1) -> None:
    """As :func:`command`; is asked to stop in a step of a stage."""
    original, calls = stage._train_step, 0

    def train_step(self: object, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcl.generate.job._JUDGE_STEPS", 4)
        patch.setattr(stage, "_train_step", train_step)
        run(config, out, resume=True)


def test_stopped_while_it_generates_or_compares_it_goes_on_to_the_same(finished: tuple[Path, str], tmp_path: Path):
    config = make_config(TINY | GENERATE)
    for step, stage in ((2, GanTraining), (3, Pretraining)):
        with pytest.raises(Interrupted):
            _run(config, tmp_path, stage, step)
        assert not (tmp_path / "metrics.json").exists()
    _run(config, tmp_path, Pretraining)
    assert lasting_metrics(tmp_path) == lasting_metrics(finished[0])
    for name in ("generated/comparison.json", "encoder.safetensors"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()
    first, second = (load_generator(out / "generated" / "generator.safetensors")[0] for out in (tmp_path, finished[0]))
    assert torch.equal(GeneratedDataset(first, 10).images, GeneratedDataset(second, 10).images)


def test_a_generator_that_diverges_ends_the_run_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastcl.generate.training.apply_differentiably", lambda images, params: images * math.nan)
    with pytest.raises(DivergedError, match="the discriminator's loss became nan"):
        run(make_config(TINY | GENERATE), tmp_path)
    assert json.loads((tmp_path / "failure.json").read_text())["state"] == "diverged"


def test_what_cannot_be_generated(tmp_path: Path):
    for settings in ({"data": "text", "generate": 0.1}, {"generate": 0.95}):
        with pytest.raises(ConfigError, match="generate"):
            run(make_config(settings), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_stops_between_steps_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    flags = ["--data", "digits", "--limit=40", "--steps=6", "--batch-size=8", "--threads=1", "--out"]
    original, calls = GanTraining._train_step, 0

    def train_step(self: GanTraining) -> tuple[float, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self)

    monkeypatch.setattr(GanTraining, "_train_step", train_step)
    code, output = command("generate", *flags, str(tmp_path / "stopped"))
    assert (code, calls) == (130, 2)
    assert "stopped; to go on: fastcl generate" in output
    with locked(tmp_path / "stopped"):
        code, output = command("generate", *flags, str(tmp_path / "stopped"))
    assert (code, calls) == (1, 2)
    assert "another process of fastcl is at work there" in output
    code, output = command("generate", *flags, str(tmp_path / "stopped"))
    assert (code, calls) == (0, 6)
    assert "resumed at step 2 of 6" in output
    assert command("generate", *flags, str(tmp_path / "whole"))[0] == 0
    first, second = (load_generator(tmp_path / name / "generator.safetensors")[0] for name in ("stopped", "whole"))
    assert torch.equal(GeneratedDataset(first, 10).images, GeneratedDataset(second, 10).images)


def test_the_command(tmp_path: Path):
    out = tmp_path / "gan"
    flags = ["--data", "digits", "--limit=40", "--steps=3", "--batch-size=8", "--threads=1", "--out", str(out)]
    code, output = command("generate", *flags)
    assert code == 0, output
    assert {path.name for path in out.iterdir()} == {"generator.safetensors", "judge.safetensors", "samples.png"}
    assert Image.open(out / "samples.png").size == (10 * 30, 10 * 30)
    before = (out / "generator.safetensors").read_bytes()
    code, output = command("generate", *flags)  # finished: nothing is trained again
    assert (code, (out / "generator.safetensors").read_bytes()) == (0, before)
    code, output = command("generate", *flags, "--seed=1")
    assert code == 1
    assert "is of another gan; choose another --out" in output
