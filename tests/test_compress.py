from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fastcl import transforms
from fastcl.compress import DistillConfig, SimilarityDistillationLoss, distill, prune_, to_int8
from fastcl.errors import DivergedError, MissingExtraError
from fastcl.quant import Int8Conv2d, quantize_


def encoder(width: int, dim: int | None = None, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, *([nn.Linear(4 * width, dim)] if dim else []))


def blobs(count: int = 64) -> Tensor:
    """Images that differ in what an encoder of few channels sees."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 1, 3, 3, generator=generator)
    return (functional.interpolate(coarse, 12, mode="bilinear") * 255).to(torch.uint8)


def plain_similarity_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The formula, with the matrices."""
    logs = []
    for rows in (teacher, student):
        units = functional.normalize(rows, dim=1)
        itself = torch.eye(len(units), dtype=torch.bool)
        logs.append(
            (units @ units.T / temperature).masked_fill(itself, -torch.inf).log_softmax(1).masked_fill(itself, 0)
        )
    p = logs[0].exp() * ~torch.eye(len(student), dtype=torch.bool)
    return (p * (logs[0] - logs[1])).sum(dim=1).mean()


class TestSimilarityDistillationLoss:
    @pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
    def test_it_is_the_divergence_of_the_similarities(self, temperature: float, backend: str):
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
            student = torch.randn(17, 6, dtype=torch.float64).requires_grad_()
            teacher = torch.randn(17, 9, dtype=torch.float64)
            wanted = plain_similarity_loss(student, teacher, temperature)
            (wanted_grad,) = torch.autograd.grad(wanted, student)
            given = student.detach().to(dtype).requires_grad_()
            got = SimilarityDistillationLoss(temperature)(given, teacher.to(dtype))
            (grad,) = torch.autograd.grad(got, given)
            # Sums of similarities / temperature, of 20 at most, that cancel.
            assert abs(got.item() - wanted.item()) <= tolerance / temperature
            assert (grad - wanted_grad).abs().max() <= tolerance / temperature**2

    def test_the_same_similarities_cost_nothing(self):
        teacher = torch.randn(12, 5, dtype=torch.float64)
        turned = teacher @ torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
        student = torch.cat([3 * turned, torch.zeros(12, 2)], 1).requires_grad_()
        loss = SimilarityDistillationLoss()(student, teacher)
        assert abs(loss.item()) < 1e-12
        assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-12

    def test_no_gradient_reaches_the_teacher(self):
        teacher = torch.randn(4, 3, requires_grad=True)
        SimilarityDistillationLoss()(torch.randn(4, 2, requires_grad=True), teacher).backward()
        assert teacher.grad is None

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
            SimilarityDistillationLoss(0)
        loss = SimilarityDistillationLoss()
        for rows in ((3, 4), (1, 1)):
            with pytest.raises(ValueError, match="as many rows as each other, at least 2"):
                loss(torch.randn(rows[0], 2), torch.randn(rows[1], 2))
        with pytest.raises(TypeError, match="student"):
            loss(torch.ones(3, 2, dtype=torch.int64), torch.randn(3, 2))


class TestDistill:
    config = DistillConfig(epochs=12, batch_size=16, lr=0.02)
    transform = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.Normalize([0.5], [0.25])], seed=3)

    @pytest.mark.parametrize(
        "weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)], ids=["both", "embeddings", "similarities"]
    )
    def test_a_narrower_student_comes_nearer_to_the_teacher(self, weights: tuple[float, float]):
        teacher, student, images = encoder(12, 10), encoder(6, seed=1), blobs()
        before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        config = DistillConfig(30, 16, 0.02, embedding_weight=weights[0], similarity_weight=weights[1])
        losses = distill(teacher, student, images, self.transform, config)
        assert len(losses) == 120
        assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
        assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
        assert teacher.training
        assert student.training

    def test_a_seed_fixes_the_result(self):
        results = []
        for _ in range(2):
            student = encoder(6, seed=1)
            results.append(distill(encoder(12, 10), student, blobs(), self.transform, self.config))
        assert results[0] == results[1]

    def test_loaders_and_functions(self):
        images = blobs(20).float() / 255
        data = torch.utils.data.TensorDataset(images, torch.full((20,), -1))
        loader = torch.utils.data.DataLoader(data, batch_size=10, shuffle=True)
        steps: list[tuple[int, int, float]] = []
        losses = distill(
            encoder(8), encoder(4), loader, lambda batch: [batch, batch.flip(3)], DistillConfig(epochs=3),
            lambda *step: steps.append(step),
        )  # fmt: skip
        assert steps == [(number + 1, 6, loss) for number, loss in enumerate(losses)]
        assert len(distill(encoder(8), encoder(8, seed=1), [images], None, DistillConfig(epochs=1))) == 1

    def test_wrong_arguments(self):
        teacher, student, images = encoder(8), encoder(4), blobs(20)
        floats = images.float()
        config = DistillConfig(epochs=1)
        with pytest.raises(TypeError, match=r"what the encoders see must be floating, got torch\.uint8"):
            distill(teacher, student, images, config=config)
        with pytest.raises(TypeError, match="gone through once an epoch, got list_iterator"):
            distill(teacher, student, iter([floats]), config=config)
        with pytest.raises(TypeError, match=r"number of its batches by len\(\)"):
            distill(teacher, student, type("Stream", (), {"__iter__": lambda self: iter([])})(), config=config)
        with pytest.raises(ValueError, match="at least one batch, got none"):
            distill(teacher, student, [], config=config)
        with pytest.raises(ValueError, match="at least 2 images, got 1: let the loader drop_last"):
            distill(teacher, student, [floats[:1]], config=config)
        with pytest.raises(TypeError, match="a batch must be a Tensor, or a tuple"):
            distill(teacher, student, [{"image": floats}], config=config)
        with pytest.raises(ValueError, match=r"images must be \[N, C, H, W\] with at least 2"):
            distill(teacher, student, floats[0], config=config)
        with pytest.raises(ValueError, match=r"student must give embeddings \[20, D\] for 20 images, got \[20, 1, 12"):
            distill(teacher, nn.Conv2d(1, 1, 1), floats, config=config)
        with pytest.raises(TypeError, match="teacher must give a floating Tensor, got tuple"):
            distill(nn.LSTM(12, 4), student, [floats[:, 0]], config=config)
        assert teacher.training
        for wrong in ({"epochs": 0}, {"lr": 0.0}, {"temperature": -1.0}, {"batch_size": 1}, {"embedding_weight": -1.0}):
            with pytest.raises(ValueError, match=f"DistillConfig: {next(iter(wrong))}"):
                DistillConfig(**wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="not both 0"):
            DistillConfig(embedding_weight=0, similarity_weight=0)

    def test_a_loss_that_is_not_finite(self):
        with pytest.raises(DivergedError, match="the loss became nan at step 1 of 1"):
            distill(encoder(8), encoder(4), torch.full((4, 1, 12, 12), torch.nan), config=DistillConfig(epochs=1))


class TestPrune:
    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("torch_pruning")

    def test_channels_leave_with_those_who_read_them(self):
        model = encoder(10, 8)
        report = prune_(model, torch.zeros(2, 1, 12, 12), 0.5, keep=[model[-1]])
        assert report.channels == {"0": (10, 5), "5": (8, 8)}
        assert model[0].weight.shape == (5, 1, 3, 3)
        assert model[1].running_mean.shape == (5,)
        assert model[5].weight.shape == (8, 20)
        assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
        assert "0: 10 → 5 channels" in str(report)
        assert model(torch.randn(3, 1, 12, 12)).shape == (3, 8)
        assert model.training

    def test_the_weakest_channels_leave(self):
        model = encoder(4).eval()
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([1.0, 0.01, 2.0, 0.02])[:, None, None, None].expand(4, 1, 3, 3))
            model[0].bias.zero_()
        images = torch.rand(3, 1, 12, 12)
        before = model(images).view(3, 4, -1)
        prune_(model, images, 0.5)
        torch.testing.assert_close(model(images).view(3, 2, -1), before[:, [0, 2]])

    def test_the_pruned_model_learns_again(self):
        teacher, images = encoder(12).eval(), blobs()
        pruned = encoder(12)
        prune_(pruned, torch.zeros(2, 1, 12, 12), 0.5)
        losses = distill(teacher, pruned, images, TestDistill.transform, TestDistill.config)
        assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
        int8 = to_int8(pruned)
        assert isinstance(int8[0], Int8Conv2d)
        assert isinstance(pruned[0], nn.Conv2d)

    def test_wrong_arguments(self):
        example = torch.zeros(2, 1, 12, 12)
        for ratio in (0.0, 1.0, -0.5):
            with pytest.raises(ValueError, match=f"ratio must be above 0 and below 1, got {ratio}"):
                prune_(encoder(4), example, ratio)
        with pytest.raises(ValueError, match="round_to must be at least 1, got 0"):
            prune_(encoder(4), example, 0.5, round_to=0)
        with pytest.raises(ValueError, match="linear or convolution layers, got none"):
            prune_(nn.ReLU(), example, 0.5)
        int8 = encoder(4)
        quantize_(int8)
        with pytest.raises(ValueError, match=r"int8 layers \(0\): prune first"):
            prune_(int8, example, 0.5)


def test_without_torch_pruning_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtraError, match=r"torch_pruning: pip install 'fastcl\[compress\]'"):
        prune_(encoder(4), torch.zeros(2, 1, 12, 12), 0.5)


class TestLadder:
    """``fastcl compress`` on a small run."""

    @pytest.fixture(scope="class")
    @classmethod
    def run_folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        for package in (
            "pydantic",
            "safetensors",
            "sklearn",
            "matplotlib",
            "jinja2",
            "mlxtend",
            "PIL",
            "torch_pruning",
        ):
            pytest.importorskip(package)
        from run_helpers import TINY

        from fastcl.config import make_config
        from fastcl.run import run

        out = tmp_path_factory.mktemp("run") / "out"
        run(make_config(TINY | {"width": 8}), out)
        return out

    @pytest.fixture
    def out(self, run_folder: Path, tmp_path: Path) -> Path:
        """A copy of the run."""
        import shutil

        return Path(shutil.copytree(run_folder, tmp_path / "out"))

    def test_the_frontier_is_in_the_report_and_beside_it(self, out: Path):
        from fastcl.checkpoint import load_encoder
        from fastcl.compress.ladder import LadderConfig
        from fastcl.run import compress

        before = (out / "metrics.json").read_bytes(), (out / "encoder.safetensors").read_bytes()
        ladder = compress(out, LadderConfig(prune=(0.5,), epochs=2))
        names = ["float32", "int8", "pruned-50-int8", "student-4-int8", "student-3-int8", "student-2-int8"]
        assert [rung.name for rung in ladder.rungs] == sorted(names, key=lambda name: -ladder[name].bytes)
        assert ladder["float32"].agreement == 1
        assert ladder["int8"].agreement > 0.9
        for rung in ladder.rungs:
            assert (out / str(rung.file)).stat().st_size == rung.bytes
            assert load_encoder(out / str(rung.file))[1] == ("float" if rung.name == "float32" else "int8")
            assert 0.2 < rung.knn <= 1  # guessing gives 0.1
            assert min(rung.latency_ms.values()) > 0
            dominated = [
                other for other in ladder.rungs
                if other.bytes < rung.bytes and other.latency_ms[1] < rung.latency_ms[1]
                and other.agreement > rung.agreement
            ]  # fmt: skip
            assert not (dominated and rung.on_frontier)
        assert ladder["float32"].on_frontier
        assert ladder.chosen is None
        stored = json.loads((out / "compression.json").read_text())
        assert [rung["name"] for rung in stored["rungs"]] == [rung.name for rung in ladder.rungs]
        page = (out / "report.html").read_text()
        assert page.count('id="frontier"') == 1
        assert all(f"<td>{name}</td>" in page for name in names)
        assert before == ((out / "metrics.json").read_bytes(), (out / "encoder.safetensors").read_bytes())
        assert not list(out.rglob(".tmp*"))

    def test_a_target_chooses_and_trains_only_what_meets_it(self, out: Path):
        from fastcl.checkpoint import load_encoder
        from fastcl.compress.ladder import LadderConfig
        from fastcl.run import compress

        full = compress(out, LadderConfig(prune=(), widths=(7, 4), epochs=1))
        target = full["student-4-int8"].bytes + 100
        ladder = compress(out, LadderConfig(prune=(0.1,), widths=(4,), epochs=1, target_bytes=target))
        assert ladder["float32"].meets_target is False
        assert ladder["pruned-10-int8"].file is None
        best = max((rung for rung in ladder.rungs if rung.meets_target), key=lambda rung: rung.agreement)
        assert ladder.chosen == best.name == "student-4-int8"
        assert (out / "encoder_compressed.safetensors").read_bytes() == (out / str(best.file)).read_bytes()
        assert load_encoder(out / "encoder_compressed.safetensors")[0].config.width == 4
        assert (out / "report.html").read_text().count("Chosen for the target: <b>student-4-int8</b>") == 1

    def test_a_student_is_made_as_wide_as_the_target_allows(self, out: Path):
        from fastcl.compress.ladder import LadderConfig
        from fastcl.run import compress

        sizes = {rung.name: rung.bytes for rung in compress(out, LadderConfig((), (5, 6), epochs=1)).rungs}
        target = (sizes["student-5-int8"] + sizes["student-6-int8"]) // 2
        ladder = compress(out, LadderConfig(prune=(), widths=(2,), epochs=1, target_bytes=target))
        assert {rung.name for rung in ladder.rungs if rung.meets_target} == {"student-2-int8", "student-5-int8"}

    def test_an_unreachable_target_says_what_is_smallest_and_changes_nothing(self, out: Path):
        from fastcl.compress.ladder import LadderConfig
        from fastcl.errors import RunError
        from fastcl.run import compress

        before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
        with pytest.raises(RunError, match=r"keeps to 100 bytes: the smallest is student-2-int8 with [\d,]+ bytes"):
            compress(out, LadderConfig(epochs=1, target_bytes=100))
        with pytest.raises(RunError, match=r"keeps to 1e-05 ms for 256 images: .*the fastest is .*nothing was trained"):
            compress(out, LadderConfig(epochs=1, target_latency_ms=1e-5, latency_batch=256))
        assert before == {path: path.read_bytes() for path in out.iterdir() if path.is_file()}

    def test_killed_it_leaves_the_run_and_the_same_command_goes_on(self, out: Path):
        from run_helpers import fastcl_command, fastcl_process

        from fastcl.checkpoint import load_encoder

        arguments = ("compress", str(out), "--epochs=1", "--prune=0.5", "--student=4", "--student=3")
        finished = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        process = fastcl_process(*arguments)
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None and not list(out.glob("compressed/*.safetensors")):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert finished == {path.name: path.read_bytes() for path in out.iterdir() if path.name in finished}
        for path in [out / "encoder.safetensors", *out.glob("compressed/*.safetensors")]:
            load_encoder(path)
        (out / "compressed" / ".tmp-fastcl-left").write_bytes(b"half a file")
        first = next(out.glob("compressed/*.safetensors"))
        kept = first.read_bytes()
        code, output = fastcl_command(*arguments)
        assert code == 0, output
        assert f"{first.stem}: kept from before" in output
        assert first.read_bytes() == kept
        assert not list(out.rglob(".tmp*"))
        assert re.search(r"student-4-int8 +\d", output)
        # A damaged file, or one of other settings, is made anew.
        first.write_bytes(kept[:-10])
        code, output = fastcl_command(*arguments)
        assert (code, first.read_bytes() == kept, "kept from before" in output) == (0, True, True)

    def test_ctrl_c_says_how_to_go_on(self, out: Path):
        from run_helpers import fastcl_process

        # Started from a shell's background, a process ignores Ctrl-C, and so would its children.
        process = fastcl_process(
            "compress", str(out), "--epochs=5000", "--prune=0.5", "--student=4",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        assert process.stdout is not None
        shown = ""
        while "distill" not in shown and (line := process.stdout.readline()):
            shown += line
        process.send_signal(signal.SIGINT)
        shown += process.communicate(timeout=100)[0]
        assert process.returncode == 130, shown
        assert "stopped; to go on: fastcl compress" in shown
        assert "Traceback" not in shown
        assert not list(out.rglob(".tmp*"))

    def test_wrong_arguments(self, out: Path, tmp_path: Path):
        from run_helpers import fastcl_command

        from fastcl.compress.ladder import LadderConfig
        from fastcl.errors import RunError
        from fastcl.run import compress

        for wrong, name in (
            ({"prune": (1.0,)}, "prune"), ({"widths": (1,)}, "widths"), ({"epochs": 0}, "epochs"),
            ({"target_bytes": 0}, "target_bytes"), ({"target_latency_ms": -1.0}, "target_latency_ms"),
            ({"latency_batch": 3}, "latency_batch"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=f"^{name}: expected"):
                LadderConfig(**wrong)  # type: ignore[arg-type]
        with pytest.raises(RunError, match="expected the folder of a finished run, found no run of fastcl"):
            compress(tmp_path / "nowhere", LadderConfig())
        (out / "metrics.json").unlink()
        with pytest.raises(RunError, match="found an unfinished run; fastcl run --resume"):
            compress(out, LadderConfig())
        code, output = fastcl_command("compress", str(out), "--epochs=0")
        assert (code, "epochs: expected at least 1, got 0" in output) == (2, True), output

    def test_export_of_a_rung(self, out: Path):
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)
        from run_helpers import fastcl_command

        for arguments, name in (([], "int8.onnx"), (["--format=torch", "--encoder=float"], "float.pt2")):
            code, output = fastcl_command("export", str(out), *arguments)
            assert code == 0, output
            assert f"{out / name}: " in output
            assert "checked on 40 held-out images" in output
            assert (out / name).exists()
        code, output = fastcl_command("export", str(out), "--encoder=student-9-int8")
        assert code == 1
        assert "student-9-int8.safetensors is not there; the run has int8, float" in output


@pytest.mark.parametrize("labelled", [True, False])
def test_the_figure_of_the_frontier(labelled: bool):
    pytest.importorskip("matplotlib")
    Image = pytest.importorskip("PIL.Image")
    import base64
    import io

    from fastcl.compress.ladder import Ladder, LadderConfig, Rung
    from fastcl.report.figures import frontier

    def rung(name: str, size: int, accuracy: float, trained: bool = True) -> Rung:
        share = accuracy if labelled else None
        return Rung(
            name, name, size, {1: size / 1e5, 256: size / 1e3}, True, accuracy if trained else None, share, share
        )

    rungs = (rung("float32", 90_000, 0.98), rung("int8", 30_000, 0.97), rung("student-2-int8", 900, 0.7, trained=False))
    source = frontier(Ladder(LadderConfig(target_bytes=40_000), rungs, "int8", 1.0))
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert min(picture.size) > 300
    assert picture.getextrema()[3] == (0, 255)


def test_neighbor_agreement():
    from fastcl.evaluate import neighbor_agreement

    embeddings = torch.randn(50, 8)
    assert neighbor_agreement(embeddings, embeddings * 3) == 1
    other = neighbor_agreement(embeddings, torch.randn(50, 3), k=10)
    assert 0.05 < other < 0.45  # 10 of the 49 others by chance
    assert neighbor_agreement(embeddings[:3], embeddings[:3], k=10) == 1
