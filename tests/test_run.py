from __future__ import annotations

import json
import random
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend", "PIL"):
    pytest.importorskip(package)

from run_helpers import TINY, fastcl_process, lasting_metrics, tiny_flags

from fastcl.checkpoint import load_encoder
from fastcl.config import make_config, to_toml
from fastcl.data import load
from fastcl.errors import ConfigError, DivergedError, RunError
from fastcl.pretrain import Pretraining, image_statistics
from fastcl.run import FILES, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("run") / "out"
    run(make_config(TINY), out)
    return out


def test_metrics(finished: Path):
    metrics = json.loads((finished / "metrics.json").read_text())
    for name in ("", "int8_", "random_encoder_", "raw_pixels_"):
        for kind in ("knn", "linear_probe"):
            assert 0.3 < metrics[f"{name}{kind}_accuracy"] <= 1  # guessing gives 0.1
    assert abs(metrics["int8_linear_probe_accuracy"] - metrics["linear_probe_accuracy"]) <= 0.05
    assert 0.99 < metrics["int8_cosine_similarity"] <= 1
    assert metrics["int8_encoder_bytes"] == (finished / "encoder_int8.safetensors").stat().st_size
    assert metrics["encoder_bytes"] == (finished / "encoder.safetensors").stat().st_size
    assert metrics["int8_encoder_bytes"] < metrics["encoder_bytes"]
    assert metrics["steps"] == 20
    assert metrics["train_seconds"] > 0
    assert metrics["images_per_second"] == pytest.approx(20 * 40 / metrics["train_seconds"])
    assert metrics["latency_ms_batch_256"] > 0


def test_folder(finished: Path):
    assert {path.name for path in finished.iterdir()} == {
        "config.toml", "encoder.safetensors", "encoder_int8.safetensors", "metrics.json", "report.html",
    }  # fmt: skip


def test_a_student_at_the_end(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped after the student is made, the run goes on to the same result, and keeps it."""
    config = make_config(TINY | {"ladder": "student", "distill_epochs": 2})
    run(config, tmp_path / "undisturbed")
    metrics = lasting_metrics(tmp_path / "undisturbed")
    assert 0.2 < metrics["student_knn_accuracy"] <= 1
    student = Path("compressed") / "student-2-int8.safetensors"
    assert metrics["student_encoder_bytes"] == (tmp_path / "undisturbed" / student).stat().st_size
    assert metrics["student_encoder_bytes"] < metrics["int8_encoder_bytes"]
    assert {key: metrics[key] for key in lasting_metrics(finished)} == lasting_metrics(finished)
    assert 'id="frontier"' in (tmp_path / "undisturbed" / "report.html").read_text()
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr("fastcl.run.write_report", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config, stopped)
    made = (stopped / student).stat().st_mtime_ns
    run(config, stopped, resume=True)
    assert (stopped / student).stat().st_mtime_ns == made
    assert lasting_metrics(stopped) == metrics
    run(make_config(TINY), stopped, overwrite=True)
    assert not (stopped / "compressed").exists()
    assert not (stopped / "compression.json").exists()


def test_it_learns(tmp_path: Path):
    """The loss goes down, below what guessing costs."""
    images = load("digits", limit=200).train_images
    training = Pretraining(images, make_config(TINY | {"lr": 0.01}))
    training.run(tmp_path / "checkpoint", {}, lambda _: None, lambda: False)
    assert sum(training.losses[-4:]) < sum(training.losses[:4]) - 1


def test_the_embeddings_of_the_stored_encoders(finished: Path):
    images = load("digits", limit=200).test_images
    encoder, kind = load_encoder(finished / "encoder.safetensors")
    int8, int8_kind = load_encoder(finished / "encoder_int8.safetensors")
    assert (kind, int8_kind) == ("float", "int8")
    similarity = torch.cosine_similarity(encoder.embed(images), int8.embed(images)).mean().item()
    assert similarity == pytest.approx(lasting_metrics(finished)["int8_cosine_similarity"], abs=1e-6)


def test_pretraining_is_given_images_alone():
    """Other labels and other held-out images do not change what is learnt."""
    data = load("digits", limit=200)
    config = make_config(TINY)
    first, second = Pretraining(data.train_images, config), Pretraining(data.images[data.train].clone(), config)
    losses = [[now._train_step(views) for views in islice(now._loader, 2)] for now in (first, second)]
    assert losses[0] == losses[1]
    mean, std = image_statistics(data.train_images)
    pixels = data.train_images.double() / 255
    assert mean == pytest.approx((pixels.mean().item(),))
    assert std == pytest.approx((pixels.std(correction=0).item(),))


def test_a_seed_fixes_the_result_and_another_changes_it(finished: Path, tmp_path: Path):
    run(make_config(TINY), tmp_path / "again")
    assert lasting_metrics(tmp_path / "again") == lasting_metrics(finished)
    for name in ("encoder", "int8_encoder"):
        assert (tmp_path / "again" / FILES[name]).read_bytes() == (finished / FILES[name]).read_bytes()
    run(make_config(TINY | {"seed": 1}), tmp_path / "other")
    assert lasting_metrics(tmp_path / "other")["final_loss"] != lasting_metrics(finished)["final_loss"]


def _wait_for_step(out: Path, step: int, process: Any) -> None:
    """Waits until the checkpoint in `out` has come so far."""
    from fastcl.checkpoint import load_checkpoint

    deadline = time.monotonic() + 100
    path = out / FILES["checkpoint"]
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and load_checkpoint(path)[1]["step"] >= step:
            return
        time.sleep(0.005)


def test_killed_at_random_moments_it_resumes_to_the_same_metrics(finished: Path, tmp_path: Path):
    out, moments = tmp_path / "out", random.Random()
    steps = sorted(moments.randrange(1, 19) for _ in range(3))
    for kill, step in enumerate(steps):
        process = fastcl_process("run", *tiny_flags(), "--out", str(out), *(["--resume"] if kill else []))
        _wait_for_step(out, step, process)
        time.sleep(moments.random() * 0.02)
        process.kill()
        process.communicate()
    run(make_config(TINY), out, resume=True)
    assert lasting_metrics(out) == lasting_metrics(finished), f"killed at steps {steps}"
    assert (out / FILES["encoder"]).read_bytes() == (finished / FILES["encoder"]).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_ctrl_c_leaves_a_run_that_can_be_resumed(number: signal.Signals, finished: Path, tmp_path: Path):
    out = tmp_path / "out"
    process = fastcl_process("run", *tiny_flags(epochs=2000), "--out", str(out))
    _wait_for_step(out, 2, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + number, output
    assert f"to go on: fastcl run --resume --out {out}" in output
    assert "Traceback" not in output
    training = Pretraining(load("digits", limit=200).train_images, make_config(TINY | {"epochs": 2000}))
    training.restore(out / FILES["checkpoint"])
    assert training.step == len(training.losses) >= 2


def test_resuming_from_any_step_is_the_undisturbed_run(tmp_path: Path):
    images, config = load("digits", limit=200).train_images, make_config(TINY | {"epochs": 2})
    path = tmp_path / "checkpoint"
    whole = Pretraining(images, config)
    assert whole.run(path, {}, lambda now: None, lambda: False)
    for stop_at in (1, 4, 7):
        part = Pretraining(images, config)
        assert not part.run(path, {}, lambda now: None, lambda part=part, at=stop_at: part.step == at)
        rest = Pretraining(images, config)
        rest.restore(path)
        assert rest.step == stop_at
        assert rest.run(path, {}, lambda now: None, lambda: False)
        assert rest.losses == whole.losses
        for name, tensor in whole.encoder.state_dict().items():
            assert torch.equal(rest.encoder.state_dict()[name], tensor)


def test_a_finished_run_is_not_overwritten(finished: Path):
    with pytest.raises(RunError, match="holds a finished run; --overwrite"):
        run(make_config(TINY), finished)
    before = (finished / "metrics.json").read_bytes()
    assert run(make_config(TINY), finished, resume=True) == json.loads(before)
    assert (finished / "metrics.json").read_bytes() == before


def test_a_changed_configuration_is_not_resumed(finished: Path):
    changed = make_config(TINY | {"lr": 0.5, "recipe": {"shear": 1.0}})
    with pytest.raises(RunError, match=r"other settings, not resumed: lr: 0.003 before, 0.5 now; recipe.shear: 10.0"):
        run(changed, finished, resume=True)


def test_an_unfinished_run_is_not_overwritten(tmp_path: Path):
    (tmp_path / "config.toml").write_text("epochs = 3\n")
    with pytest.raises(RunError, match="holds an unfinished run; --resume goes on, --overwrite"):
        run(make_config(TINY), tmp_path)


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(RunError, match="is not empty and holds no run"):
            run(make_config(TINY), tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_starts_anew_and_keeps_other_files(finished: Path, tmp_path: Path):
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(b"")
    (tmp_path / "config.toml").write_text("epochs = 3\n")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint.safetensors").write_bytes(b"damaged")
    run(make_config(TINY), tmp_path, overwrite=True)
    assert lasting_metrics(tmp_path) == lasting_metrics(finished)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_other_data_is_not_resumed(tmp_path: Path):
    from fastcl.checkpoint import save_checkpoint

    config = make_config(TINY)
    (tmp_path / "config.toml").write_text(to_toml(config))
    save_checkpoint(tmp_path / FILES["checkpoint"], {}, {"data": "other", "step": 1, "seconds": 1.0})
    with pytest.raises(RunError, match="the data has changed"):
        run(config, tmp_path, resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path):
    config = make_config(TINY | {"lr": 1e38})
    for resume in (False, True):
        with pytest.raises(DivergedError, match=r"the loss became nan at step \d+ of 20 .*smaller --lr"):
            run(config, tmp_path, resume=resume)
        failure = json.loads((tmp_path / "failure.json").read_text())
        assert failure["state"] == "diverged"
        assert not (tmp_path / "metrics.json").exists()
    with pytest.raises(RunError, match="holds a run that diverged"):
        run(config, tmp_path)


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="batch_size: expected at most the 160 images"):
        run(make_config(TINY | {"batch_size": 161}), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_out_folder_that_is_a_file(tmp_path: Path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(RunError, match="expected a folder that can be written to"):
        run(make_config(TINY), tmp_path / "out")


def test_images_without_labels(tmp_path: Path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    pixels = load("digits").images[:60, 0].numpy()
    for row, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{row}.png")
    config = make_config(
        TINY | {"data": str(tmp_path / "images"), "limit": None, "image_size": 32, "epochs": 1, "batch_size": 16}
    )
    metrics = run(config, tmp_path / "out")
    assert metrics["knn_accuracy"] is None
    assert metrics["int8_cosine_similarity"] > 0.99
    assert "confusion" not in (tmp_path / "out" / "report.html").read_text()
