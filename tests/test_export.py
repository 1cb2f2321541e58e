from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastcl.export import ExportError, export_onnx, export_torch, make_static
from fastcl.quant import Attention, Int8Conv2d, Int8Linear, QuantConfig, fold_batchnorm_, quantize_


class Net(nn.Module):
    """A bit of everything that encoders are made of."""

    def __init__(self, size: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, padding=(1, 2), dilation=(1, 2))
        self.pool = nn.AdaptiveMaxPool2d(size)
        self.third = nn.Linear(12 * size[0] * size[1], 20)
        self.last = nn.Linear(20, 6, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(images)))
        x = self.pool(nn.functional.gelu(self.second(x)))
        return self.last(nn.functional.silu(self.third(x.flatten(1))))


def images(count: int = 12) -> Tensor:
    return torch.randn(count, 3, 15, 14)


def int8_net(**config: object) -> nn.Module:
    net = Net().eval()
    fold_batchnorm_(net)
    quantize_(net, QuantConfig(**config), calibration=[images()] if config else None)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize("strict", [False, True], ids=["not_strict", "strict"])
@pytest.mark.parametrize("called_before", [False, True], ids=["fresh", "called"])
def test_torch_export_round_trip(strict: bool, called_before: bool, tmp_path: Path):
    net, batch = int8_net(), images()
    wanted = net(batch)
    if not called_before:
        net = copy.deepcopy(net)  # without what the call packed
    done = export_torch(net, batch, tmp_path / "net.pt2", strict=strict)
    assert done.relative_error <= 1e-6
    assert done.bytes == (tmp_path / "net.pt2").stat().st_size
    program = torch.export.load(tmp_path / "net.pt2")
    assert not [name for name in program.constants if "packed" in name], "the layout of this machine is not stored"
    assert torch.equal(program.module()(batch[:5]), net(batch[:5]))
    assert torch.equal(net(batch), wanted)


def test_the_exported_program_runs_in_another_process(tmp_path: Path):
    net, batch = int8_net(), images()
    export_torch(net, batch, tmp_path / "net.pt2")
    torch.save((batch, net(batch)), tmp_path / "tensors.pt")
    code = (
        "import torch, fastcl; batch, wanted = torch.load('tensors.pt');"
        "torch.testing.assert_close(torch.export.load('net.pt2').module()(batch), wanted)"
    )
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class TestOnnx:
    @pytest.fixture(autouse=True)
    def _packages(self) -> None:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)

    def test_float(self, tmp_path: Path):
        net = Net().eval()
        done = export_onnx(net, images(), tmp_path / "net.onnx")
        assert done.relative_error <= 1e-5
        assert done.bytes == (tmp_path / "net.onnx").stat().st_size

    # The integers of these are onnxruntime's own, up to those on the border of two: a few in 10^5, a step each.
    @pytest.mark.parametrize("mode", ["dynamic", "asymmetric", "int16"])
    def test_ranges_of_each_row(self, mode: str, tmp_path: Path):
        net = int8_net(mode=mode, smoothing=None, outlier_ratio=None)
        assert {layer.mode for layer in net.modules() if isinstance(layer, Int8Linear | Int8Conv2d)} == {mode}
        done = export_onnx(net, images(), tmp_path / "net.onnx")
        assert done.relative_error <= 2e-3

    def test_smoothing_and_outlier_columns(self, tmp_path: Path):
        net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
        batch = torch.randn(64, 64)
        batch[:, 5] *= 100
        batch[:, 9] *= 3
        quantize_(net, QuantConfig(max_outliers=0.05), calibration=[batch])
        assert net[0].outlier_columns is not None
        net[0].x_multiplier[9] = 0.5
        net[0]._packed = None
        done = export_onnx(net, batch, tmp_path / "net.onnx")
        assert done.relative_error <= 2e-3

    def test_static_is_qdq_that_onnxruntime_fuses(self, tmp_path: Path):
        import onnx
        import onnxruntime

        net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(144, 10),
        ).eval()  # fmt: skip
        batch = torch.randn(8, 3, 15, 14)
        quantize_(net, QuantConfig(mode="static", smoothing=None, outlier_ratio=None), calibration=[batch])
        done = export_onnx(net, batch, tmp_path / "net.onnx")
        # Two layers follow one whose result may be a step of 1/255 away.
        assert done.relative_error <= 0.01
        model = onnx.load(tmp_path / "net.onnx")
        onnx.checker.check_model(model, full_check=True)
        kinds = [node.op_type for node in model.graph.node]
        assert kinds.count("QuantizeLinear") == 3
        assert kinds.count("DequantizeLinear") == 6
        assert {node.domain for node in model.graph.node} == {""}
        types = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) in (2, 4)}
        assert types == {onnx.TensorProto.INT8}
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "fused.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
        assert "QLinearConv" in {node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node}

    def test_calibration_makes_static_layers_of_dynamic_ones(self, tmp_path: Path):
        net, batch = int8_net(), images()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        done = export_onnx(net, batch, tmp_path / "net.onnx", calibration=[batch[:6], batch[6:]])
        assert {layer.mode for layer in net.modules() if isinstance(layer, Int8Linear | Int8Conv2d)} == {"dynamic"}
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert {layer.mode for layer in done.model.modules() if isinstance(layer, Int8Linear | Int8Conv2d)} == {
            "static"
        }
        # Ranges of 8 bits for a tensor instead of a row.
        assert (done.model(batch) - net(batch)).norm() <= 0.05 * net(batch).norm()

    @pytest.mark.parametrize("size", [(3, 3), (2, 3), (1, 1)], ids=str)
    def test_pools_to_a_grid(self, size: tuple[int, int], tmp_path: Path):
        assert export_onnx(Net(size).eval(), images(), tmp_path / "net.onnx").relative_error <= 1e-5

    def test_attention(self, tmp_path: Path):
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0).eval()
        quantize_(layer)
        assert isinstance(layer.self_attn, Attention)
        assert export_onnx(layer, torch.randn(3, 5, 16), tmp_path / "net.onnx").relative_error <= 2e-3

    def test_a_row_of_zeros_and_other_types(self, tmp_path: Path):
        net = nn.Sequential(nn.Linear(7, 5)).eval()
        quantize_(net)
        batch = torch.randn(4, 7)
        batch[1] = 0
        assert export_onnx(net, batch, tmp_path / "net.onnx").relative_error <= 1e-5

    def test_another_result_is_refused_and_nothing_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("fastcl.export.FLOAT_TOLERANCE", -1.0)
        with pytest.raises(ExportError, match="gives another result than the model: relative error"):
            export_onnx(Net().eval(), images(), tmp_path / "net.onnx")
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_exported(self, tmp_path: Path):
        class Branches(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if x.sum() > 0 else -x

        with pytest.raises(ExportError, match=r"torch\.export cannot follow the model"):
            export_onnx(Branches(), images(), tmp_path / "net.onnx")
        grouped = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)).eval()
        quantize_(grouped, QuantConfig(grouped=True))
        with pytest.raises(ExportError, match="tensors must be stored"):
            export_onnx(grouped, torch.randn(2, 4, 8, 8), tmp_path / "net.onnx")
        with pytest.raises(ValueError, match=r"batch of at least 2, got \[1, 3, 15, 14\]"):
            export_onnx(Net(), images(1), tmp_path / "net.onnx")


def test_without_the_packages_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fastcl.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fastcl\[export\]'"):
        export_onnx(Net(), images(), tmp_path / "net.onnx")


def test_make_static_says_what_is_wrong():
    net = int8_net()
    with pytest.raises(ValueError, match="no calibration batch"):
        make_static(net, [])
    net.unused = nn.Sequential(nn.Linear(3, 3))
    quantize_(net.unused)
    with pytest.raises(ValueError, match=r"no batch reaches 'unused\.0'"):
        make_static(net, [images()])
