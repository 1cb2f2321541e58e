from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

from run_helpers import TINY, fastcl_command, tiny_flags

import fastcl
from fastcl.checkpoint import load_encoder
from fastcl.cli import main
from fastcl.config import make_config
from fastcl.data import load
from fastcl.run import run

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process; gives its exit code and output."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fastcl", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    run(make_config(TINY | {"epochs": 1}), out)
    return out


def test_run_with_a_file_and_flags(tmp_path: Path):
    config = tmp_path / "config.toml"
    config.write_text("epochs = 50\nseed = 7\n[recipe]\nshear = 3.0\n")
    flags = [flag for flag in tiny_flags(epochs=1) if not flag.startswith("--seed")]
    out = tmp_path / "out"
    code, output = fastcl_command("run", "--config", str(config), *flags, "--rotation=4", "--out", str(out))
    assert code == 0, output
    assert "epoch   1/1" in output
    assert "pretrained, int8" in output
    stored = (out / "config.toml").read_text()
    for line in ("epochs = 1", "seed = 7", "shear = 3.0", "rotation = 4.0"):
        assert f"{line}\n" in stored
    assert json.loads((out / "metrics.json").read_text())["seed"] == 7
    assert f"--config {config}" in (out / "report.html").read_text()


def test_run_resume_needs_no_other_flag_and_refuses_others(command: Command, finished: Path):
    code, output = command("run", "--resume", "--out", str(finished))
    assert (code, "holds this run, finished" in output) == (0, True), output
    code, output = command("run", "--resume", "--out", str(finished), "--lr=0.5")
    assert code == 1
    assert "lr: 0.003 before, 0.5 now" in output


ERRORS = {
    "config_key": (["run", "--config", "{config}"], 2, "epoch: unknown setting"),
    "config_value": (["run", "--epochs=0"], 2, "epochs: input should be greater"),
    "data": (["run", "--data", "nowhere"], 1, "nowhere: expected digits, mnist, fashion-mnist or a folder"),
    "flag": (["run", "--no-such-flag"], 2, "No such option"),
    "encoder": (
        ["embed", "missing.safetensors", ".", "--out", "x.npy"],
        1,
        "missing.safetensors: expected a fastcl-encoder-1 file",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_a_line(command: Command, name: str, tmp_path: Path):
    (tmp_path / "bad.toml").write_text("epoch = 3\n")
    arguments, code, message = ERRORS[name]
    out = [] if arguments[0] == "embed" else ["--out", str(tmp_path / "out")]
    got, output = command(*(part.format(config=tmp_path / "bad.toml") for part in arguments), *out)
    assert got == code
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize("kind", ["encoder", "encoder_int8"])
def test_embed(command: Command, kind: str, finished: Path, tmp_path: Path):
    images = load("digits").images[:5]
    (tmp_path / "digits").mkdir()
    for row, image in enumerate(images[:, 0].numpy()):
        Image.fromarray(image).save(tmp_path / "digits" / f"{row}.png")
    (tmp_path / "digits" / "2_damaged.png").write_text("no image")
    out = tmp_path / "embeddings.npy"
    single = str(tmp_path / "digits" / "3.png")
    code, output = command(
        "embed", str(finished / f"{kind}.safetensors"), str(tmp_path / "digits"), single, "--out", str(out),
        "--batch-size=2",
    )  # fmt: skip
    assert code == 0, output
    embeddings = np.load(out)
    encoder, _ = load_encoder(finished / f"{kind}.safetensors")
    expected = encoder.embed(images[[0, 1, 2, 3, 4, 3]]).numpy()
    # Batches of another size may be summed in another order.
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    rows = [Path(line).stem for line in (tmp_path / "embeddings.npy.txt").read_text().splitlines()]
    assert rows == ["0", "1", "2", "3", "4", "3"]
    assert "2_damaged.png: cannot identify image file" in output


def test_embed_refuses_what_is_no_image(command: Command, finished: Path, tmp_path: Path):
    (tmp_path / "a.png").write_text("no image")
    encoder = str(finished / "encoder.safetensors")
    code, output = command("embed", encoder, str(tmp_path / "a.png"), "--out", str(tmp_path / "x.npy"))
    assert code == 1
    assert "a.png: cannot identify image file" in output
    assert "none of the 1 images can be read" in output
    assert not (tmp_path / "x.npy").exists()


def test_preview(command: Command, tmp_path: Path):
    out = tmp_path / "preview.png"
    code, output = command("preview", "--images=3", "--views=4", "--out", str(out))
    assert code == 0, output
    pixels = np.asarray(Image.open(out).convert("L"))
    assert pixels.shape[1] > pixels.shape[0] > 3 * 80
    assert pixels.std() > 20


def test_info(command: Command):
    code, output = command("info")
    assert code == 0, output
    for word in (fastcl.__version__, "torch", "ntxent", "native library", "missing"):
        assert word in output


WITHOUT_EXTRA = """
import sys
for name in ("sklearn", "safetensors", "jinja2", "matplotlib", "mlxtend", "PIL"):
    sys.modules[name] = None
sys.argv[0] = "fastcl"
from fastcl.cli import main
main()
"""


@pytest.mark.parametrize(
    "arguments", [["run", "--epochs", "3"], ["embed", "a", "b", "--out", "c"], ["preview"]], ids=lambda value: value[0]
)
def test_without_the_extra_commands_say_how_to_get_it(arguments: list[str]):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'fastcl[run]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_info_works_without_the_extra():
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA, "info"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "native library" in done.stdout
