"""Int8 convolutions that give integers to one another: the same results as without."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import fastcl
from fastcl.export import export_onnx, export_torch, make_static
from fastcl.quant import (
    Int8Conv2d,
    MaxPool2d,
    QuantConfig,
    QuantReport,
    chain_,
    fold_batchnorm_,
    load_quantized_,
    quantize_,
)

PLAIN = {"smoothing": None, "outlier_ratio": None}
STATIC = QuantConfig(mode="static", **PLAIN)


def network() -> nn.Module:
    """Channels and sizes that fill no vector, all activations, pools between, before and after."""
    layers = [
        *(nn.Conv2d(1, 10, 5, 2, 2), nn.BatchNorm2d(10), nn.ReLU()),
        *(nn.Conv2d(10, 37, 3, padding=1), nn.BatchNorm2d(37), nn.GELU(), nn.MaxPool2d(2, ceil_mode=True)),
        *(nn.Conv2d(37, 16, (1, 3), padding=(0, 1)), nn.SiLU()),
        *(nn.Conv2d(16, 24, 3, dilation=2, padding=2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d((1, 2))),
        *(nn.Conv2d(24, 6, 1), nn.AdaptiveMaxPool2d(2), nn.Flatten()),
    ]
    return nn.Sequential(*layers).eval()


def batch(count: int = 5, size: int = 19) -> Tensor:
    return torch.randn(count, 1, size, size)


def pair(model: nn.Module, config: QuantConfig = STATIC, x: Tensor | None = None) -> tuple[nn.Module, nn.Module]:
    """Quantised with and without a chain."""
    fold_batchnorm_(model)
    other = copy.deepcopy(model)
    x = batch() if x is None else x
    quantize_(model, config, calibration=[x])
    quantize_(other, QuantConfig(**{**config.__dict__, "chain": False}), calibration=[x])
    return model, other


def given(model: nn.Module, x: Tensor) -> dict[str, torch.dtype]:
    """What each convolution gives, looked at from inside the next module."""
    found: dict[str, torch.dtype] = {}
    restore = []
    for name, module in model.named_modules():
        if isinstance(module, Int8Conv2d):
            forward = module.forward

            def watched(x: Tensor, forward=forward, name=name) -> Tensor:
                y = forward(x)
                found[name] = y.dtype
                return y

            module.forward = watched
            restore.append(module)
    model(x)
    for module in restore:
        del module.forward
    return found


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 19, 28])
def test_the_same_bits_as_without(backend, size):
    model, other = pair(network())
    for x in (batch(5, size), batch(1, size), batch(5, size).transpose(2, 3), batch(0, size), 100 * batch(2, size)):
        for _ in range(2):  # the first call packs
            assert torch.equal(model(x), other(x))


@torch.no_grad()
def test_integers_pass_between_static_convolutions():
    if fastcl.backends()["int8_conv2d_packed"]["cpu"] != "native":
        pytest.skip("native kernels were not built: no C++ compiler at install time")
    model, other = pair(network())
    x = batch()
    model(x)
    assert list(given(model, x).values()) == [torch.uint8] * 4 + [torch.float32]
    assert set(given(other, x).values()) == {torch.float32}
    with fastcl.use_backend("reference"):
        assert set(given(model, x).values()) == {torch.float32}
    with torch.enable_grad():
        assert set(given(model, x).values()) == {torch.float32}
    seen = []
    handle = model[0].register_forward_hook(lambda layer, args, y: seen.append(y.dtype))
    assert given(model, x)["0"] == torch.float32
    assert seen == [torch.float32]
    handle.remove()
    handle = model[3].register_forward_pre_hook(lambda layer, args: seen.append(args[0].dtype))
    assert torch.equal(model(x), other(x))
    assert seen == [torch.float32] * 2
    handle.remove()
    assert given(model, x)["0"] == torch.uint8
    assert set(given(model, x.bfloat16()).values()) == {torch.bfloat16}
    assert torch.equal(model(x.bfloat16()), other(x.bfloat16()))


@torch.no_grad()
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_comes_out_as_without_a_chain(backend, bad):
    model, other = pair(network())
    x = batch()
    model(x)
    x[1, 0, 3, 4] = bad
    got = model(x)
    assert got[1].isnan().any()
    torch.testing.assert_close(got, other(x), equal_nan=True, rtol=0, atol=0)


@torch.no_grad()
def test_results_that_overflow_are_floats(backend):
    model, other = pair(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)).eval())
    for layers in (model, other):
        layers[0].bias.data[1] = 3e38
        layers[0].weight_scale = layers[0].weight_scale * 1e38
    x = batch(2, 8)
    for _ in range(2):
        torch.testing.assert_close(model(x), other(x), equal_nan=True, rtol=0, atol=0)


def test_gradients_pass_through_a_chain(backend):
    model, other = pair(network())
    x = batch().requires_grad_()
    with torch.no_grad():
        model(x)
    got, want = (torch.autograd.grad(net(x).square().sum(), x)[0] for net in (model, other))
    assert got.abs().sum() > 0
    assert torch.equal(got, want)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["dynamic", "asymmetric", "int16"])
def test_other_modes_pool_the_floats(backend, mode):
    model, other = pair(network(), QuantConfig(mode=mode, **PLAIN))
    assert sum(isinstance(module, MaxPool2d) for module in model.modules()) == 4
    assert not any(isinstance(module, MaxPool2d) for module in other.modules())
    x = batch()
    for _ in range(2):
        assert torch.equal(model(x), other(x))


@torch.no_grad()
def test_smoothed_layers_and_layers_with_outliers_take_floats(backend):
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    model[2].weight.data[:, 3] *= 0.01
    model[0].weight.data[3] *= 100
    model, other = pair(model, QuantConfig(mode="static"))
    middle = model[2]
    assert middle.x_multiplier is not None or middle.outlier_columns is not None
    x = batch()
    for _ in range(2):
        assert torch.equal(model(x), other(x))


class Branches(nn.Module):
    """Nothing here may be chained but `first` to `second`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.read_twice, self.twice = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.pool, self.last = nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        y = self.read_twice(x + 1)
        y = self.twice(self.twice(self.pool(y))) + self.pool(y)
        return self.last(y * 2)


@torch.no_grad()
def test_only_a_sole_reader_gets_integers(backend):
    model, other = pair(Branches().eval())
    assert chain_(copy.deepcopy(other)) == {"first": "second"}
    assert type(model.pool) is nn.MaxPool2d
    x = batch()
    for _ in range(2):
        assert torch.equal(model(x), other(x))


@torch.no_grad()
def test_a_layer_that_stands_in_two_places_is_not_chained(backend):
    conv = nn.Conv2d(4, 4, 3)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), conv, nn.ReLU(), conv, nn.Conv2d(4, 4, 3)).eval()
    quantize_(model, STATIC, calibration=[batch()])
    assert chain_(model) == {}
    model(batch())


def row_reasons(report: QuantReport) -> list[str]:
    return [row.reason for row in report.rows if row.action == "int8"]


def test_the_report_tells(backend):
    model = network()
    fold_batchnorm_(model)
    reasons = row_reasons(quantize_(model, STATIC, calibration=[batch()]))
    assert ["gives integers to" in reason for reason in reasons] == [True] * 4 + [False]
    assert reasons[1].endswith("gives integers to 7")


@torch.no_grad()
def test_state_dicts_have_no_trace_of_it(backend):
    model, other = pair(network())
    x = batch()
    want = model(x)
    assert list(model.state_dict()) == list(other.state_dict())
    loaded = network()
    fold_batchnorm_(loaded)
    report = load_quantized_(loaded, model.state_dict(), STATIC)
    assert "gives integers to 3" in row_reasons(report)[0]
    for _ in range(2):
        assert torch.equal(loaded(x), want)
    state = model.state_dict()
    state["3.x_range"] = torch.tensor([0.02, 7.0])  # the reader's range changes: its giver follows
    for net in (model, other):
        net.load_state_dict(state)
    for _ in range(2):
        assert torch.equal(model(x), other(x))


@torch.no_grad()
def test_copies_and_pickles_are_chained_in_themselves(backend):
    model, _ = pair(network())
    x = batch()
    want = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert twin[0]._readers[0] is twin[3]
        for _ in range(2):
            assert torch.equal(twin(x), want)
    twin.double()
    assert torch.allclose(twin(x.double()).float(), want, rtol=0.05, atol=0.05)


def test_pixels_are_not_taken_for_integers_of_a_chain(backend):
    model, _ = pair(network())
    with torch.no_grad():
        model(batch())
        with pytest.raises(TypeError, match=r"x must be float32, .* got torch.uint8"):
            model(torch.zeros(1, 1, 19, 19, dtype=torch.uint8))
        # a layer that has a giver takes them in any case, here without the native path's conditions
        x = torch.randint(0, 256, (2, 24, 5, 5), dtype=torch.uint8)
        scale, zero = model[12].x_range
        want = model[12]((x.float() - zero) * scale)
        assert torch.equal(model[12](x), want)
        assert torch.equal(model[12](x.to(memory_format=torch.channels_last)), want)


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    model, _ = pair(network())
    x = batch()
    with torch.no_grad():
        want = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), want, rtol=1e-5, atol=1e-6)


def test_exports(tmp_path):
    model, _ = pair(network())
    x = batch()
    with torch.no_grad():
        model(x)  # packed
    exported = export_torch(model, x, tmp_path / "chain.pt2")
    assert exported.relative_error <= 1e-6
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    assert export_onnx(model, x, tmp_path / "chain.onnx").relative_error <= 0.02


@torch.no_grad()
def test_a_dynamic_model_made_static_is_chained(backend):
    model = network()
    fold_batchnorm_(model)
    quantize_(model, QuantConfig(**PLAIN))
    x = batch()
    model(x)
    make_static(model, [x])
    with fastcl.use_backend("reference"):
        want = model(x)
    for _ in range(2):
        torch.testing.assert_close(model(x), want, rtol=0, atol=0.05 * want.abs().max().item())
    if fastcl.backends()["int8_conv2d_packed"]["cpu"] == "native" and fastcl.ops.registry.runs_native(
        "max_pool2d", "cpu"
    ):
        assert given(model, x)["0"] == torch.uint8
