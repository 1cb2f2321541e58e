from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from fastcl.quant import (
    InputScheme,
    Int8Conv2d,
    Int8Linear,
    QuantConfig,
    load_quantized_,
    prepare_qat_,
    quantize_,
)

MODES = ("dynamic", "asymmetric", "static", "int16")


def error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


def rows(count: int, k: int, outliers: bool) -> Tensor:
    """Gaussian, with 1 % of the inputs times 20 where wanted."""
    x = torch.randn(count, k)
    if outliers:
        x[:, torch.randperm(k, generator=torch.Generator().manual_seed(1))[: k // 100]] *= 20
    return x


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 30), nn.GELU(), nn.Linear(30, 7)
    ).eval()


# -- accuracy


@pytest.mark.parametrize("shape", [(768, 512), (2048, 256)], ids=str)
def test_one_percent_of_outlier_inputs(shape):
    """What the default configuration promises, on rows not calibrated on; without calibration it is over 3 %."""
    k, n = shape
    weight = torch.randn(n, k)
    calibration, test = rows(512, k, True), rows(256, k, True)
    exact = test.double() @ weight.double().T
    errors = {}
    for name, batches in (("plain", None), ("default", [calibration])):
        layer = nn.Linear(k, n, bias=False)
        layer.weight.data = weight.clone()
        report = quantize_(layer, calibration=batches)
        errors[name] = error(layer(test), exact)
    assert errors["plain"] > 0.03
    assert errors["default"] <= 0.006
    assert "outlier inputs in float" in report.rows[0].reason
    assert report.rows[0].error == pytest.approx(errors["default"], rel=0.2)


def test_smoothing_alone():
    weight = torch.randn(256, 768)
    layer = nn.Linear(768, 256, bias=False)
    layer.weight.data = weight.clone()
    test = rows(256, 768, True)
    report = quantize_(layer, QuantConfig(outlier_ratio=None), calibration=[rows(512, 768, True)])
    assert "smoothed" in report.rows[0].reason
    assert error(layer(test), test.double() @ weight.double().T) <= 0.016


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_static_ranges(observer):
    layer = nn.Linear(512, 128)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    quantize_(layer, QuantConfig(mode="static", observer=observer), calibration=[rows(512, 512, False)])
    test = rows(256, 512, False)
    assert layer.mode == "static"
    assert error(layer(test), test.double() @ weight.T + bias) <= 0.017


@pytest.mark.parametrize(("inputs", "taken"), [(4, False), (8, True)], ids=["little", "much"])
def test_static_convolutions_are_smoothed_only_where_that_gains_much(inputs, taken):
    torch.manual_seed(0)
    linear, conv = nn.Linear(64, 32), nn.Conv2d(64, 32, 1)
    conv.weight.data = linear.weight.data[:, :, None, None].clone()
    batch = torch.randn(512, 64) * torch.logspace(-0.9, 0, 64)
    batch[:, -inputs:] *= 20
    config, errors = QuantConfig(mode="static", outlier_ratio=None), []
    for layer, x in ((linear, batch), (conv, batch[:, :, None, None])):
        model = nn.Sequential(layer)
        errors.append(quantize_(model, config, calibration=[x]).rows[0].error)
        assert (model[0].x_multiplier is not None) == (taken or layer is linear)
    assert errors[1] <= errors[0] / 0.75


def test_the_mse_observer_cuts_off_a_lone_value():
    x = rows(512, 64, False)
    x[100, 3] = 60.0
    scales = {}
    for observer in ("minmax", "percentile", "mse"):
        layer = nn.Linear(64, 32)
        config = QuantConfig(mode="static", observer=observer, percentile=99.9, smoothing=None, outlier_ratio=None)
        quantize_(layer, config, calibration=[x])
        scales[observer] = layer.x_range[0].item()
    assert scales["minmax"] == pytest.approx((60 - x.min().item()) / 255, rel=1e-3)
    assert scales["percentile"] < scales["mse"] < scales["minmax"]


def test_bias_correction_takes_off_the_mean_error():
    """Cut-off values leave an error of one sign; the correction is the mean of it."""
    layer = nn.Linear(64, 32)
    with torch.no_grad():
        layer.weight.abs_()
    float_layer, x = copy.deepcopy(layer), rows(512, 64, False).exp()
    config = QuantConfig(mode="static", observer="percentile", percentile=98, smoothing=None, outlier_ratio=None)
    plain = copy.deepcopy(layer)
    quantize_(plain, QuantConfig(**{**config.__dict__, "bias_correction": False}), calibration=[x])
    report = quantize_(layer, config, calibration=[x])
    assert "bias corrected" in report.rows[0].reason
    test = rows(512, 64, False).exp()
    exact = float_layer(test)
    assert (layer(test) - exact).mean().abs() < 0.3 * (plain(test) - exact).mean().abs()


@pytest.mark.parametrize("mode", MODES)
def test_a_model_in_every_mode(backend, mode):
    model, x = small(), torch.randn(64, 3, 6, 6)
    with torch.no_grad():
        exact = model(x).double()
        report = quantize_(model, QuantConfig(mode=mode), calibration=[x[:32], x[32:]])
        assert error(model(x), exact) <= 0.03
    assert report.error == pytest.approx(error(model(x).detach(), exact), rel=0.05, abs=1e-4)
    assert [row.action for row in report.rows] == ["int8"] * 3
    assert all(row.error is not None and row.error < 0.1 for row in report.rows)
    assert "error of the output" in str(report)
    assert {type(model[1]), type(model[4])} == {nn.Identity}
    assert [model[i].activation for i in (0, 3, 5)] == ["relu", "gelu", "none"]


def test_calibration_leaves_no_trace():
    model = small().train()
    x = torch.randn(4, 3, 6, 6)
    report = quantize_(model, filter_fn=lambda module, name: False, calibration=[x])
    assert model.training
    assert report.error == 0
    assert not any(module._forward_pre_hooks or "forward" in module.__dict__ for module in model.modules())
    assert type(model[1]) is nn.ReLU


# -- what is left in float


def sensitive() -> tuple[nn.Module, Tensor]:
    """The first layer's output is a small difference of large products: int8 cannot compute it."""
    model = nn.Sequential(nn.Linear(64, 16, bias=False), nn.Linear(16, 8, bias=False))
    with torch.no_grad():
        model[0].weight[:, 1::2] = -model[0].weight[:, ::2] * (1 + 1e-3 * torch.randn(16, 32))
    return model, torch.randn(256, 32).repeat_interleave(2, dim=1)


def test_a_layer_with_too_large_an_error_stays_float():
    model, x = sensitive()
    report = quantize_(model, QuantConfig(max_error=0.1), calibration=[x])
    assert [row.action for row in report.rows] == ["left", "int8"]
    assert "config.max_error is 10.00%" in report.rows[0].reason
    assert type(model[0]) is nn.Linear


def test_layers_stay_float_until_the_output_is_close_enough():
    model, x = sensitive()
    with torch.no_grad():
        exact = model(x).double()
    report = quantize_(model, QuantConfig(max_output_error=0.02), calibration=[x])
    assert [row.action for row in report.rows] == ["left", "int8"]
    assert "config.max_output_error is 2.00%" in report.rows[0].reason
    assert report.error == pytest.approx(error(model(x), exact), rel=1e-3)
    assert report.error <= 0.02
    model, x = sensitive()
    assert quantize_(model, QuantConfig(max_output_error=1e-9), calibration=[x]).error == 0


def test_layers_that_calibration_does_not_reach():
    class Spare(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    for mode, action in (("dynamic", "int8"), ("static", "left")):
        model = Spare(nn.Linear(8, 4), nn.Linear(4, 2))
        report = quantize_(model, QuantConfig(mode=mode), calibration=[torch.randn(32, 8)])
        assert report.rows[1].action == action
        assert "not reached by the calibration batches" in report.rows[1].reason


@pytest.mark.parametrize(
    ("config", "batches", "message"),
    [
        ({"mode": "static"}, None, "config.mode 'static' needs calibration batches"),
        ({"max_error": 0.1}, None, "config.max_error needs calibration batches"),
        ({"max_output_error": 0.1}, None, "config.max_output_error needs calibration batches"),
        ({}, [], "calibration must hold at least one batch"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(config, batches, message):
    with pytest.raises(ValueError, match=message):
        quantize_(nn.Linear(3, 2), QuantConfig(**config), calibration=batches)


@pytest.mark.parametrize(
    "field",
    [
        {"mode": "w4"},
        {"observer": "max"},
        {"percentile": 20.0},
        {"smoothing": 2.0},
        {"max_outliers": -1.0},
        {"max_error": 0.0},
    ],
)
def test_configs_out_of_range_are_refused(field):
    (name,) = field
    with pytest.raises(ValueError, match=f"QuantConfig: {name} must be"):
        QuantConfig(**field)


# -- fused activations and groups


def test_only_an_activation_that_nothing_else_reads_is_fused():
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
            self.relu, self.tanh_gelu, self.shared = nn.ReLU(), nn.GELU("tanh"), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x + self.relu(x)
            return self.shared(self.c(self.shared(self.tanh_gelu(self.b(x)))))

    model, x = Reads(), torch.randn(9, 6)
    want = model(x)
    quantize_(model)
    assert [model.a.activation, model.b.activation, model.c.activation] == ["none"] * 3
    assert error(model(x).detach(), want.detach().double()) <= 0.03
    model = nn.Sequential(nn.Linear(6, 6), nn.SiLU())
    quantize_(model, QuantConfig(fuse_activations=False))
    assert type(model[1]) is nn.SiLU


@pytest.mark.parametrize("groups", [2, 6])
def test_grouped_convolutions_on_request(backend, groups):
    model = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1, groups=groups), nn.ReLU())
    x = torch.randn(2, 6, 7, 7)
    exact = model(x).detach().double()
    assert quantize_(copy.deepcopy(model)).rows[0].reason == f"has {groups} groups"
    report = quantize_(model, QuantConfig(grouped=True), calibration=[x])
    assert report.rows[0].action == "int8"
    assert model[0].groups == groups
    assert error(model(x).detach(), exact) <= 0.02
    x.requires_grad_()
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0


# -- state dicts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("container", ["torch", "safetensors"])
def test_a_calibrated_model_is_loaded_without_calibration(tmp_path, mode, container):
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(200, 40), nn.ReLU(), nn.Linear(40, 8), nn.Linear(8, 3))

    model, config = build(), QuantConfig(mode=mode)
    x = rows(256, 200, True)
    quantize_(model, config, filter_fn=lambda module, name: name != "3", calibration=[x])
    assert model[0].outlier_columns is not None or mode == "int16"
    path = tmp_path / "model"
    if container == "torch":
        torch.save(model.state_dict(), path)
        state = torch.load(path, weights_only=True)
    else:
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_file(model.state_dict(), path)
        state = safetensors.load_file(path)
    other = build()
    report = load_quantized_(other, state, config)
    assert [row.action for row in report.rows] == ["int8", "int8", "left"]
    assert torch.equal(other(x), model(x))
    for again in (copy.deepcopy(model), torch.load(saved(model), weights_only=False)):
        assert torch.equal(again(x), model(x))


def saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file


def test_the_state_dict_names_its_attention():
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    other, x = copy.deepcopy(model), torch.randn(2, 5, 16)
    quantize_(model)
    load_quantized_(other, model.state_dict())
    assert torch.equal(other(x), model(x))


CORRUPT = {
    "weight_dtype": (
        {"weight": torch.zeros(4, 6)},
        r"0.weight must be torch.int8 \[4, 6\], got torch.float32 \[4, 6\]",
    ),
    "weight_shape": ({"weight": torch.zeros(4, 5, dtype=torch.int8)}, "0.weight must be"),
    "scale_shape": ({"weight_scale": torch.ones(3)}, r"0.weight_scale must be torch.float32 \[4\]"),
    "scale_nan": ({"weight_scale": torch.full((4,), float("nan"))}, "0.weight_scale must be finite"),
    "scale_zero": ({"weight_scale": torch.zeros(4)}, "0.weight_scale must be positive"),
    "range": ({"x_range": torch.tensor([0.1, 0.5])}, "0.x_range must hold a scale"),
    "range_shape": ({"x_range": torch.ones(3)}, r"0.x_range must be torch.float32 \[2\]"),
    "no_range": ({"x_range": None}, "0.x_range is not stored, but the layer's mode is static"),
    "columns": (
        {"outlier_columns": torch.tensor([6]), "outlier_weight": torch.ones(1, 4)},
        "0.outlier_columns must be as many as rows of outlier_weight, each from 0 to 5",
    ),
    "columns_alone": ({"outlier_columns": torch.tensor([1])}, "stored together"),
    "multiplier": ({"x_multiplier": torch.ones(6, dtype=torch.float64)}, "0.x_multiplier must be torch.float32"),
}


@pytest.mark.parametrize(("change", "message"), CORRUPT.values(), ids=CORRUPT.keys())
def test_a_corrupt_state_dict_is_refused_and_changes_nothing(change, message):
    model, x = nn.Sequential(nn.Linear(6, 4)), torch.randn(64, 6)
    quantize_(model, QuantConfig(mode="static"), calibration=[x])
    want = model(x)
    state = {**model.state_dict(), **{f"0.{name}": value for name, value in change.items()}}
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict({name: value for name, value in state.items() if value is not None})
    assert torch.equal(model(x), want)


def test_a_range_for_a_layer_without_one_is_refused():
    layer = Int8Linear(6, 4)
    with pytest.raises(RuntimeError, match="x_range is stored, but the layer's mode is dynamic"):
        layer.load_state_dict({**layer.state_dict(), "x_range": torch.tensor([0.1, 3.0])})


@pytest.mark.parametrize("mode", MODES)
def test_compiles_without_graph_breaks(mode):
    torch._dynamo.reset()
    model, x = small(), torch.randn(16, 3, 6, 6)
    quantize_(model, QuantConfig(mode=mode), calibration=[x])
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


def test_half_changes_the_bias_alone():
    model = nn.Sequential(nn.Linear(200, 16))
    x = rows(128, 200, True)
    quantize_(model, QuantConfig(mode="static"), calibration=[x])
    kept = {name: tensor.clone() for name, tensor in model[0].named_buffers()}
    model.bfloat16()
    assert model[0].bias.dtype == torch.bfloat16
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model[0].named_buffers())
    assert model(x.bfloat16()).dtype == torch.bfloat16


def test_schemes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="x_range must be given in mode"):
        Int8Linear.from_float(nn.Linear(3, 2), scheme=InputScheme("static"))
    with pytest.raises(ValueError, match="mode must be one of"):
        Int8Linear.from_float(nn.Linear(3, 2), scheme=InputScheme("w4"))
    with pytest.raises(ValueError, match="with 2 groups the scheme must be dynamic"):
        Int8Conv2d.from_float(nn.Conv2d(4, 4, 1, groups=2), scheme=InputScheme("int16"))


# -- quantisation-aware training


@pytest.mark.parametrize("mode", ["dynamic", "asymmetric", "int16"])
def test_what_is_trained_is_what_int8_computes(backend, mode):
    model, x = small(), torch.randn(8, 3, 6, 6)
    config = QuantConfig(mode=mode)
    assert prepare_qat_(model, config) == ["0", "3", "5"]
    want = model(x).detach()
    quantize_(model, config)
    torch.testing.assert_close(model(x).detach(), want, rtol=1e-4, atol=1e-5)


def test_gradients_pass_the_rounding_to_weight_and_input():
    layer, x = nn.Linear(20, 6), torch.randn(9, 20, requires_grad=True)
    weight, parameters = layer.weight, list(layer.parameters())
    prepare_qat_(layer)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    grad = torch.randn(9, 6)
    layer(x).backward(grad)
    int8 = Int8Linear.from_float(layer)
    rounded_weight = int8.weight * int8.weight_scale[:, None]
    scale = x.detach().abs().amax(1, keepdim=True) / 127
    rounded_x = (x.detach() / scale).round() * scale
    torch.testing.assert_close(x.grad, grad @ rounded_weight)
    torch.testing.assert_close(weight.grad, grad.T @ rounded_x)
    assert (rounded_x - x).abs().max() > 1e-3


def test_qat_refuses_static_and_leaves_what_it_is_told():
    with pytest.raises(ValueError, match="mode must be dynamic, asymmetric or int16, got"):
        prepare_qat_(small(), QuantConfig(mode="static"))
    assert prepare_qat_(small(), QuantConfig(conv=False), lambda module, name: name != "5") == ["3"]
    assert prepare_qat_(small(), QuantConfig(min_depth=30)) == ["3", "5"]
