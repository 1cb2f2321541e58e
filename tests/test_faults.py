"""What may go wrong outside the program, injected: nothing that was committed is lost, the message says what to do."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

for package in ("pydantic", "safetensors", "sklearn", "matplotlib", "jinja2", "mlxtend", "PIL"):
    pytest.importorskip(package)

from PIL import Image, ImageOps
from rich.console import Console
from run_helpers import TINY, fastcl_process, lasting_metrics, tiny_flags
from typer.testing import CliRunner

from fastcl.checkpoint import load_checkpoint, previous_of
from fastcl.cli.main import app
from fastcl.config import make_config, read_toml
from fastcl.data import DataError, ImageFiles, Loader, load
from fastcl.errors import CheckpointError, ConfigError, DivergedError, RunError, WorkerError
from fastcl.pretrain import Pretraining
from fastcl.progress import Reporter
from fastcl.run import FILES, run
from fastcl.transforms import SimCLRTransform

CONFIG = make_config(TINY)
CHECKPOINT = FILES["checkpoint"]


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """What takes long and is no part of the faults: latencies, the report's pictures, reading the digits."""
    import fastcl.run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastcl.run, "latency_ms", lambda *arguments: 1.0)
        patch.setattr(fastcl.run, "write_report", lambda path, _: fastcl.run.write_atomically(path, "report"))
        patch.setattr(fastcl.run.data, "load", functools.cache(load))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(CONFIG, out)
    return out


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Root reads and writes everything: somebody else for a while, who may not be allowed to import modules."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


# --------------------------------------------------------------------------------------------------- images of a folder


def write_images(folder: Path, count: int = 10) -> list[Path]:
    """Digits as JPEGs in two classes."""
    paths = []
    for row, image in enumerate(load("digits").images[:count, 0].numpy()):
        paths.append(folder / "ab"[row % 2] / f"{row}.jpg")
        paths[-1].parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(image).save(paths[-1])
    return paths


def check_skipped(folder: Path, bad: Path, why: str) -> None:
    """The bad image, and it alone, is left out and listed."""
    data = load(folder, image_size=16)
    assert list(data.skipped) == [str(bad)]
    assert re.search(why, data.skipped[str(bad)]), data.skipped
    assert len(data.images) == len(data.train) + len(data.test) == 9
    assert data.labels is not None
    assert data.labels.tolist() == [0] * 5 + [1] * 4  # labels stay beside their images
    bad.unlink(missing_ok=True)
    assert torch.equal(load(folder, image_size=16).images, data.images)


def test_a_corrupt_image_is_skipped(tmp_path: Path):
    bad = write_images(tmp_path)[3]
    bad.write_bytes(b"no image" * 100)
    check_skipped(tmp_path, bad, "cannot identify image file")


def test_a_truncated_jpeg_is_skipped(tmp_path: Path):
    bad = write_images(tmp_path)[3]
    bad.write_bytes(bad.read_bytes()[:-200])
    check_skipped(tmp_path, bad, "truncated")


def test_an_empty_file_is_skipped(tmp_path: Path):
    bad = write_images(tmp_path)[3]
    bad.write_bytes(b"")
    check_skipped(tmp_path, bad, "cannot identify image file")


def test_damaged_exif_data_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow then raises what is neither an OSError nor a ValueError; a fuzz of JPEGs found it."""
    bad = write_images(tmp_path)[3]
    real = ImageOps.exif_transpose

    def damaged(image: Any, **options: Any) -> Any:
        if getattr(image, "filename", "") == str(bad):
            raise struct.error("required argument is not an integer")
        return real(image, **options)

    monkeypatch.setattr(ImageOps, "exif_transpose", damaged)
    check_skipped(tmp_path, bad, "required argument is not an integer")


def test_an_image_deleted_after_it_was_listed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fastcl.data import folder

    bad, found = write_images(tmp_path)[3], folder.find_images(tmp_path)
    bad.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(folder, "find_images", lambda _: list(found))
        data = load(tmp_path, image_size=16)
    assert list(data.skipped) == [str(bad)]
    assert "No such file" in data.skipped[str(bad)]
    assert len(data.images) == 9


def test_a_link_to_nowhere_is_skipped(tmp_path: Path):
    bad = write_images(tmp_path)[3]
    bad.unlink()
    bad.symlink_to(tmp_path / "gone.jpg")
    check_skipped(tmp_path, bad, "No such file")


def test_an_image_without_permission_is_skipped(open_folder: Path):
    bad = write_images(open_folder)[3]
    bad.chmod(0)
    with nobody():
        data = load(open_folder, image_size=16)
    assert "Permission denied" in data.skipped[str(bad)]
    assert len(data.images) == 9


def test_a_subfolder_without_permission_is_refused(open_folder: Path):
    """A whole class that is silently missing would be another data set."""
    folder = write_images(open_folder)[3].parent
    folder.chmod(0)
    with nobody(), pytest.raises(DataError, match=rf"{folder}: expected a folder that can be read: Permission denied"):
        load(open_folder)
    folder.chmod(0o755)


def test_a_folder_without_images_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"expected image files \(.*\.png.*\), found none"):
        load(tmp_path)
    for path in write_images(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of its 10 image files can be read; the first: "):
        load(tmp_path)


def test_skipped_images_are_counted_and_listed_by_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fastcl.report import write_report

    monkeypatch.setattr("fastcl.run.write_report", write_report)
    paths = write_images(tmp_path / "images", 60)
    paths[5].write_bytes(b"")
    paths[6].write_bytes(paths[6].read_bytes()[:-100])
    settings = {"data": str(tmp_path / "images"), "limit": None, "image_size": 16, "epochs": 1, "batch_size": 16}
    output = io.StringIO()
    run(make_config(TINY | settings), tmp_path / "out", reporter=Reporter(Console(file=output, width=80)))
    assert "skipped 2 that cannot be read" in output.getvalue()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["skipped_images"], metrics["train_images"] + metrics["test_images"]) == (2, 58)
    report = (tmp_path / "out" / "report.html").read_text()
    listed = report[report.index('id="skipped"') :]
    assert all(str(path) in output.getvalue() and str(path) in listed for path in paths[5:7])


# ----------------------------------------------------------------------------------------------- disks and interruption


def fill_disk_at(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    """The disk is full from the moment when a file of that name is to be written."""
    import fastcl.checkpoint
    import fastcl.files
    import fastcl.report.report
    import fastcl.run

    real = fastcl.files.write_atomically
    full = []

    def write(path: Path, *arguments: Any) -> None:
        full.extend([True] * (path.name == wanted))
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, *arguments)

    for module in (fastcl.checkpoint, fastcl.report.report, fastcl.run):
        monkeypatch.setattr(module, "write_atomically", write)


@pytest.mark.parametrize("name", ["config", "checkpoint", "encoder", "report", "metrics"])
def test_a_full_disk(name: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        fill_disk_at(patch, FILES[name])
        with pytest.raises(RunError, match="No space left on device") as raised:
            run(CONFIG, tmp_path)
    assert name == "config" or "make room on the disk, then --resume goes on" in str(raised.value)
    run(CONFIG, tmp_path, resume=True)
    assert lasting_metrics(tmp_path) == lasting_metrics(undisturbed)


def test_a_really_full_disk(undisturbed: Path, tmp_path: Path):
    """A file system that holds the first checkpoint, but not a second beside it."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "none", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system can only be mounted by root")
    try:
        with pytest.raises(RunError, match=r"No space left on device.*make room on the disk, then --resume"):
            run(CONFIG, tmp_path)
        kept = {path.name for path in tmp_path.iterdir()}
        assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] >= 1
        assert kept == {FILES["config"], CHECKPOINT}
        shutil.copytree(tmp_path, roomy := undisturbed.parent / "roomy")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    run(CONFIG, roomy, resume=True)
    assert lasting_metrics(roomy) == lasting_metrics(undisturbed)


def test_a_file_size_limit(tmp_path: Path):
    """The system cuts the write itself off in the middle of the checkpoint."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunError, match=r"File too large; raise the limit on the size of files \(ulimit -f\), then"):
            run(CONFIG, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [FILES["config"]]


def test_a_read_only_folder(undisturbed: Path, open_folder: Path):
    open_folder.chmod(0o555)
    with nobody(), pytest.raises(RunError, match=r"expected a folder that can be written to.*; choose another --out"):
        run(CONFIG, open_folder)
    with nobody(), pytest.raises(RunError, match=r"expected a folder that can be written to.*; choose another --out"):
        run(CONFIG, open_folder / "new")
    assert not list(open_folder.iterdir())


def test_a_folder_that_becomes_read_only(open_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The checkpoint that was written stands."""
    real = Pretraining._train_step

    def protect(self: Pretraining, views: Any) -> float:
        if self.step == 5:
            open_folder.chmod(0o555)
            stack.enter_context(nobody())
        return real(self, views)

    monkeypatch.setattr(Pretraining, "_train_step", protect)
    told = r"Permission denied.*make the folder writable for you, then --resume"
    with contextlib.ExitStack() as stack, pytest.raises(RunError, match=told):
        run(CONFIG, open_folder)
    assert load_checkpoint(open_folder / CHECKPOINT)[1]["step"] == 5


KILLED_WHILE_WRITING = """
import os, signal, sys
real = os.fsync
calls = 0

def kill(descriptor):
    global calls
    calls += 1
    if calls == {call}:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)

os.fsync = kill
sys.argv = ["fastcl", {arguments}]
from fastcl.cli import main
main()
"""


def test_killed_while_a_checkpoint_is_written(undisturbed: Path, tmp_path: Path):
    """Half of the new checkpoint is on disk: the last whole one counts, and nothing of the half stays behind."""
    arguments = ", ".join(map(repr, ["run", *tiny_flags(), "--out", str(tmp_path)]))
    script = KILLED_WHILE_WRITING.format(call=2 + 2 * 7 + 1, arguments=arguments)  # a file and its folder: two calls
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.glob(".tmp*"))) == 1
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 7
    run(CONFIG, tmp_path, resume=True)
    assert lasting_metrics(tmp_path) == lasting_metrics(undisturbed)
    assert not list(tmp_path.glob(".tmp*"))


class _Stop(Exception):
    pass


def stopped_run(out: Path, monkeypatch: pytest.MonkeyPatch, step: int = 7) -> None:
    """A run that ended abruptly after a step, as by a power cut."""
    real = Pretraining._train_step

    def stop(self: Pretraining, views: Any) -> float:
        if self.step == step:
            raise _Stop
        return real(self, views)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "_train_step", stop)
        with pytest.raises(_Stop):
            run(CONFIG, out)


DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-1000],
    "a_changed_bit": lambda content: content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_corrupt_checkpoint(name: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The one before is gone on from, to the same result."""
    stopped_run(tmp_path, monkeypatch)
    path = tmp_path / CHECKPOINT
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    assert load_checkpoint(previous_of(path))[1]["step"] == 6
    run(CONFIG, tmp_path, resume=True)
    assert lasting_metrics(tmp_path) == lasting_metrics(undisturbed)


def test_a_checkpoint_is_missing(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As where a run was killed while a checkpoint was put in its place, on a file system without hard links."""
    monkeypatch.setattr(Path, "hardlink_to", lambda *arguments: os.link("/missing/old", "/missing/new"))
    stopped_run(tmp_path, monkeypatch)
    assert load_checkpoint(previous_of(tmp_path / CHECKPOINT))[1]["step"] == 6
    (tmp_path / CHECKPOINT).unlink()
    run(CONFIG, tmp_path, resume=True)
    assert lasting_metrics(tmp_path) == lasting_metrics(undisturbed)


def test_both_checkpoints_are_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stopped_run(tmp_path, monkeypatch)
    for path in (tmp_path / CHECKPOINT, previous_of(tmp_path / CHECKPOINT)):
        path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"no earlier checkpoint to go on from; start anew with --overwrite"):
        run(CONFIG, tmp_path, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == b"damaged"  # whoever wants to have a look at it can


def test_damaged_settings_and_metrics_of_a_run(undisturbed: Path, tmp_path: Path):
    shutil.copytree(undisturbed, tmp_path / "out")
    (tmp_path / "out" / "metrics.json").write_bytes(b'{"knn')
    with pytest.raises(RunError, match=r"metrics\.json: expected the metrics of a finished run.*--overwrite"):
        run(CONFIG, tmp_path / "out", resume=True)
    (tmp_path / "out" / "config.toml").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match=r"config\.toml: expected a TOML file"):
        run(CONFIG, tmp_path / "out", resume=True)


# --------------------------------------------------------------------------------------------------------- the training


def test_a_loss_that_becomes_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A clear end: the last good checkpoint stands, the message says where, at which learning rate and what to try."""
    real = Pretraining._train_step
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "_train_step", lambda self, v: real(self, v) if self.step < 9 else float("nan"))
        with pytest.raises(DivergedError) as raised:
            run(CONFIG, tmp_path)
    message = str(raised.value)
    for part in (
        r"the loss became nan at step 10 of 20 \(epoch 3, learning rate 0\.00\d+\)", "the checkpoint of step 9 stands",
        r"smaller --lr \(now 0\.003, try 0\.001\)", r"larger --temperature \(now 0\.1\)", "--overwrite",
    ):  # fmt: skip
        assert re.search(part, message), message
    failure = json.loads((tmp_path / FILES["failure"]).read_text())
    assert failure == {"state": "diverged", "step": 10, "message": message}
    tensors, description = load_checkpoint(tmp_path / CHECKPOINT)
    assert description["step"] == 9
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_weights_that_become_nan_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The loss of a step is that before its update: what the update broke must not replace the last good checkpoint."""
    real = Pretraining._train_step

    def break_weights(self: Pretraining, views: Any) -> float:
        loss = real(self, views)
        if self.step == 9:
            with torch.no_grad():
                next(self.encoder.parameters()).view(-1)[0] = float("inf")
        return loss

    monkeypatch.setattr(Pretraining, "_train_step", break_weights)
    with pytest.raises(
        DivergedError, match=r"a weight became NaN or infinite at step 10 .*checkpoint of step 9 stands"
    ):
        run(CONFIG, tmp_path)
    tensors, description = load_checkpoint(tmp_path / CHECKPOINT)
    assert description["step"] == 9
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def test_a_signal_while_the_data_is_read(tmp_path: Path):
    """No settings are written yet, so --resume would be wrong: the same command is the way."""
    fifo, out = tmp_path / "images" / "slow.png", tmp_path / "out"
    fifo.parent.mkdir()
    os.mkfifo(fifo)  # reading it waits for ever
    arguments = ["run", "--data", str(fifo.parent), "--out", str(out)]
    process = fastcl_process(*arguments)
    wait_for(out, process)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"stopped; to go on: fastcl {' '.join(arguments)}" in output
    assert "Traceback" not in output
    assert not list(out.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_signal_after_the_training(
    number: signal.Signals, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Evaluation, compression and report have no step to wait for; the trained encoder's checkpoint stands."""
    monkeypatch.setattr("fastcl.cli.run.require_run_extra", lambda: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
    try:
        with monkeypatch.context() as patch:
            patch.setattr("fastcl.run.evaluate", lambda *arguments: os.kill(os.getpid(), number))
            result = CliRunner().invoke(app, ["run", *tiny_flags(), "--out", str(tmp_path)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 128 + number, result.output
    assert f"stopped; to go on: fastcl run --resume --out {tmp_path}" in result.output
    assert load_checkpoint(tmp_path / CHECKPOINT)[1]["step"] == 20
    run(CONFIG, tmp_path, resume=True)
    assert lasting_metrics(tmp_path) == lasting_metrics(undisturbed)


def test_two_processes_in_one_folder(tmp_path: Path):
    """The second is refused before it touches anything; when the first is killed, the folder is free at once."""
    out = tmp_path / "out"
    first = fastcl_process("run", *tiny_flags(epochs=2000), "--out", str(out))
    try:
        wait_for(out / CHECKPOINT, first)
        for how in ("resume", "overwrite"):
            with pytest.raises(RunError, match=r"another process of fastcl is at work there.*another --out"):
                run(make_config(TINY | {"epochs": 2000}), out, **{how: True})
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    with pytest.raises(RunError, match="holds an unfinished run"):
        run(CONFIG, out)


def test_a_system_without_locks(tmp_path: Path):
    """As Windows is; in a process of its own, where fastcl is imported anew."""
    code = (
        "import os, sys, torch; sys.modules['fcntl'] = None; del os.register_at_fork\n"
        "from pathlib import Path; from fastcl.files import locked\n"
        "with locked(Path(sys.argv[1])), locked(Path(sys.argv[1])): print('both')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.stdout == "both\n", done.stderr


def test_a_worker_that_outlives_its_parent_does_not_hold_the_folder(tmp_path: Path):
    from fastcl.files import locked

    hold, release = os.pipe()
    ready, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        with locked(tmp_path):
            if os.fork() == 0:
                os.close(release)
                os.write(tell, b"x")
                os.read(hold, 1)  # until the test is over
                os._exit(0)
            os.read(ready, 1)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    with locked(tmp_path):
        pass
    os.close(release)


class DiesAt(Dataset[Any]):
    """Images, of which reading one kills the worker."""

    def __init__(self, fatal: int | None) -> None:
        self.fatal = fatal

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((3, 16, 16), index, dtype=torch.uint8)


def test_a_killed_dataloader_worker():
    """An error that says what to do, not a loop that waits for ever; the stream goes on where it was."""

    def loader(fatal: int | None) -> Loader:
        return Loader(DiesAt(fatal), SimCLRTransform(16, seed=0), 4, num_workers=1, seed=0, prefetch_factor=1)

    whole = [views[0] for views in loader(None)]
    broken, got = loader(13), []
    with pytest.raises(WorkerError, match=r"has died.*fewer num_workers.*state_dict\(\) still says where to go on"):
        got.extend(views[0] for views in broken)
    again = loader(None)
    again.load_state_dict(broken.state_dict())
    got += [views[0] for views in again]
    assert len(got) == len(whole)
    assert all(torch.equal(one, other) for one, other in zip(got, whole, strict=True))


def test_an_image_lost_during_training_is_skipped_by_the_loader(tmp_path: Path):
    paths = write_images(tmp_path)
    files = ImageFiles.from_folder(tmp_path)
    paths[4].unlink()
    loader = Loader(files, SimCLRTransform(16, seed=0), 5, seed=0, on_error="skip")
    assert sum(len(labels) for _, labels in loader) == 9
    lost = files.paths.index(paths[4])
    assert list(loader.skipped) == [lost]
    assert str(paths[4]) in loader.skipped[lost]


def test_other_settings_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stopped_run(tmp_path, monkeypatch)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = CliRunner().invoke(app, ["run", "--resume", "--lr=0.5", "--out", str(tmp_path)])
    assert isinstance(result.exception, RunError)
    told = "other settings, not resumed: lr: 0.003 before, 0.5 now; to go on, leave those flags out"
    assert told in str(result.exception)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert read_toml(tmp_path / "config.toml")["lr"] == 0.003


# --------------------------------------------------------------------------------------------------------------- a soak


def test_soak(capsys: pytest.CaptureFixture[str]):
    """Seconds of what `make soak` does for an hour, and which hours it lets pass."""
    path = Path(__file__).parents[1] / "tools" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    assert spec is not None
    assert spec.loader is not None
    soak = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(soak)
    hour = [float(minute) for minute in range(60)]
    for name, mib, passed in (
        ("flat", [700.0] * 60, True),
        ("caches fill at first", [600.0 + min(minute, 10) * 10 for minute in hour], True),
        ("one jump", [700.0 + 30 * (minute > 40) for minute in hour], True),
        ("a leak of 12 MiB an hour", [700.0 + 0.2 * minute + minute % 3 for minute in hour], False),
    ):
        assert soak.judge(hour, mib)[0] == passed, name
    assert soak.resident_mib() > 100
    assert soak.main(["--minutes=0.03", "--interval=0.1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ok  ")
