from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fastcl
from fastcl.ops import int8_linear
from fastcl.quant import (
    Int8Conv2d,
    Int8Linear,
    QuantConfig,
    fold_batchnorm_,
    quantize_,
    quantize_weight,
    stored_bytes,
)


class Encoder(nn.Module):
    """A residual convolutional encoder with all that :func:`quantize_` has to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.conv2 = nn.Conv2d(8, 12, 3, dilation=2)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = functional.relu(x + self.bn1(self.conv1(x)))
        x = self.conv2(self.depthwise(x)).mean(dim=(2, 3))
        return self.head(self.norm(x))


def encoder() -> nn.Module:
    model = Encoder()
    for module in model.modules():  # statistics and scales that folding must not get wrong
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


def quantized(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = encoder()
    fold_batchnorm_(model)
    quantize_(model)
    return model


# -- weights


def test_weights_are_rounded_to_half_a_step():
    weight = torch.randn(7, 3, 5) * torch.logspace(-20, 20, 7)[:, None, None]
    q, scale = quantize_weight(weight)
    assert q.dtype == torch.int8
    assert q.abs().amax(dim=(1, 2)).eq(127).all()
    error = (q * scale[:, None, None] - weight).abs()
    assert (error <= 0.5001 * scale[:, None, None]).all()


def test_a_channel_of_zeros_stays_zero():
    q, scale = quantize_weight(torch.tensor([[0.0, 0.0], [1.0, -2.0]]))
    assert q.tolist() == [[0, 0], [64, -127]]
    assert scale[0] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    linear = nn.Linear(3, 2)
    linear.weight.data[1, 1] = bad
    with pytest.raises(ValueError, match=r"weight \[2, 3\] must be finite"):
        Int8Linear.from_float(linear)


# -- Int8Linear


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "silu"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_near_the_float_layer(backend, bias, activation):
    linear = nn.Linear(800, 60, bias=bias)
    layer = Int8Linear.from_float(linear, activation)
    x = torch.randn(40, 800)
    exact = linear(x)
    exact = exact if activation == "none" else getattr(functional, activation)(exact)
    assert (layer(x) - exact).norm() <= 0.02 * exact.norm()


def test_linear_is_the_op_on_its_tensors(backend):
    layer = Int8Linear(30, 20, activation="relu")
    x = torch.randn(2, 7, 30)
    want = int8_linear(x, layer.weight, layer.weight_scale, layer.bias, activation="relu")
    assert torch.equal(layer(x), want)
    assert torch.equal(layer(x), want)  # from the packed weight
    with torch.no_grad():
        assert torch.equal(layer(x), want)  # without what gradients need
        assert layer(x.double()).dtype == torch.float64
        layer.activation = "none"  # and what it was packed with is not kept
        assert torch.equal(layer(x), int8_linear(x, layer.weight, layer.weight_scale, layer.bias))
        layer.bias += 1  # nor is the bias
        assert torch.equal(layer(x), int8_linear(x, layer.weight, layer.weight_scale, layer.bias))


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.ones(2, 5), ValueError, r"x must be \[..., 4\], got \[2, 5\]"),
        (torch.ones(2, 4).int(), TypeError, "x must be float32, .* got torch.int32"),
        (torch.tensor(1.0), ValueError, "x must be"),
        (torch.ones(2, 4, device="meta"), ValueError, "on x's device meta, got cpu"),
    ],
    ids=["width", "dtype", "scalar", "device"],
)
def test_linear_refuses_inputs_that_do_not_fit(backend, x, kind, message):
    layer = Int8Linear(4, 3)
    with pytest.raises(kind, match=f"int8_linear: .*{message}"):
        layer(x)
    with torch.inference_mode():
        layer(torch.ones(2, 4))
        with pytest.raises(kind, match=f"int8_linear: .*{message}"):
            layer(x)


def test_linear_has_linears_constructor():
    layer = Int8Linear(4, 3, False, "cpu", torch.bfloat16)
    assert layer.bias is None
    assert Int8Linear(4, 3, True, "cpu", torch.bfloat16).bias.dtype == torch.bfloat16
    assert repr(layer) == "Int8Linear(in_features=4, out_features=3, bias=False, activation=none)"
    torch.manual_seed(1)
    ours = Int8Linear(4, 3)
    torch.manual_seed(1)
    assert torch.equal(ours.weight, Int8Linear.from_float(nn.Linear(4, 3)).weight)


def test_gradients_flow_to_the_input_and_the_bias(backend):
    layer = Int8Linear(30, 20, activation="gelu")
    x = torch.randn(5, 30, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert layer.bias.grad.abs().sum() > 0
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_half_keeps_the_scale_and_follows_the_input():
    layer = Int8Linear(30, 20)
    scale = layer.weight_scale.clone()
    x = torch.randn(4, 30)
    want = layer(x)
    layer.half()
    assert layer.bias.dtype == torch.float16
    assert torch.equal(layer.weight_scale, scale)
    assert layer(x.half()).dtype == torch.float16
    torch.testing.assert_close(layer(x), want, rtol=1e-3, atol=1e-3)  # the bias is rounded


@pytest.mark.parametrize(
    "make", [lambda: Int8Linear(3, 2, activation="tanh"), lambda: Int8Conv2d(3, 2, 1, activation="")]
)
def test_unknown_activations_are_refused(make):
    with pytest.raises(ValueError, match="activation must be one of none, relu, gelu, silu, got"):
        make()


def test_other_modules_are_refused():
    with pytest.raises(TypeError, match=r"Int8Linear.from_float: linear must be an nn.Linear, got Conv2d"):
        Int8Linear.from_float(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match=r"Int8Conv2d.from_float: conv must be an nn.Conv2d, got Linear"):
        Int8Conv2d.from_float(nn.Linear(1, 1))


# -- Int8Conv2d

CONVS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "strided_1x1": {"kernel_size": 1, "stride": 2},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "uneven": {"kernel_size": (2, 5), "stride": (1, 3), "padding": (0, 2), "dilation": (3, 1)},
    "same": {"kernel_size": (5, 3), "padding": "same"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    "no_bias": {"kernel_size": 3, "bias": False},
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS.keys())
def test_conv_is_within_its_rounding_of_the_float_layer(backend, options, layout):
    """Each weight is off by at most half its channel's step, each input by at most half its patch's, so each product by
    |x| sw/2 + |w| sx/2 + sx sw/4; sx is at most the image's largest magnitude / 127. 1e-5 is for float32 sums."""
    conv = nn.Conv2d(5, 7, **options)
    x = torch.randn(3, 5, 11, 13).to(memory_format=layout)
    got, exact = Int8Conv2d.from_float(conv)(x), conv(x)
    weight_step = conv.weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    x_step = x.abs().max() / 127
    magnitude = copy.deepcopy(conv)
    magnitude.bias = None
    magnitude.weight.data.fill_(1)
    bound = magnitude(x.abs()) * weight_step.view(1, -1, 1, 1) / 2
    bound += (x_step / 2 * (conv.weight.abs() + weight_step / 2).sum(dim=(1, 2, 3))).view(1, -1, 1, 1)
    assert got.shape == exact.shape
    assert ((got - exact).abs() <= bound + 1e-5).all()
    assert (got - exact).norm() <= 0.02 * exact.norm()


@pytest.mark.parametrize("options", [CONVS["3x3"], CONVS["uneven"]], ids=["3x3", "uneven"])
def test_conv_is_the_op_on_patches(backend, options):
    """The same bits as int8_linear on torch's unfold, whose order of the inputs is another."""
    layer = Int8Conv2d(5, 7, **options, activation="relu")
    x = torch.randn(2, 5, 9, 14)
    names = ("kernel_size", "dilation", "padding", "stride")
    patches = functional.unfold(x, *(getattr(layer, name) for name in names)).transpose(1, 2)
    weight = layer.weight.permute(0, 3, 1, 2).flatten(1)
    want = int8_linear(patches, weight, layer.weight_scale, layer.bias, activation="relu")
    got = layer(x)
    assert torch.equal(got.flatten(2).transpose(1, 2), want)
    assert got.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():  # from the packed weight, of images in either memory format
        for images in (x, x.to(memory_format=torch.channels_last), x.double(), x[0]):
            again = layer(images)
            assert again.dtype == images.dtype
            torch.testing.assert_close(again.to(got.dtype), got if images.dim() == 4 else got[0], rtol=0, atol=1e-5)
    assert torch.equal(layer(x[0]), got[0])


def test_conv_gradient_is_the_float_layers_with_the_rounded_weight(backend):
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    layer = Int8Conv2d.from_float(conv)
    conv.weight.data = (layer.weight * layer.weight_scale[:, None, None, None]).permute(0, 3, 1, 2)
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    grad = torch.randn(2, 6, 4, 4)
    for got, want in zip(
        torch.autograd.grad(layer(x), [x, layer.bias], grad),
        torch.autograd.grad(conv(x), [x, conv.bias], grad),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_conv_refuses_images_that_do_not_fit():
    with pytest.raises(ValueError, match=r"Int8Conv2d: x must be \[B, 3, H, W\], got \[2, 4, 5, 5\]"):
        Int8Conv2d(3, 2, 1)(torch.ones(2, 4, 5, 5))
    with pytest.raises(ValueError, match="int8_conv2d: x and its padding must be at least 3 wide, got 2"):
        Int8Conv2d(3, 2, 3)(torch.ones(2, 3, 5, 2))
    with torch.inference_mode():
        layer = Int8Conv2d(3, 2, 3)
        for _ in range(2):  # the second one from the packed weight
            assert layer(torch.ones(0, 3, 5, 5)).shape == (0, 2, 3, 3)
        with pytest.raises(ValueError, match="int8_conv2d: x and its padding must be at least 3 wide, got 2"):
            layer(torch.ones(2, 3, 5, 2).to(memory_format=torch.channels_last))
        with pytest.raises(ValueError, match=r"Int8Conv2d: x must be \[B, 3, H, W\], got \[2, 4, 5, 5\]"):
            layer(torch.ones(2, 4, 5, 5).to(memory_format=torch.channels_last))


# -- fold_batchnorm_


def test_folding_keeps_the_function():
    model = encoder()
    x = torch.randn(4, 3, 12, 12)
    want = model(x)
    assert fold_batchnorm_(model) == ["stem.1", "bn1"]
    assert isinstance(model.bn1, nn.Identity)
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    assert fold_batchnorm_(model) == []


def test_folding_within_a_sequential_of_a_model_that_cannot_be_traced():
    class Branching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    model = Branching(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3)).eval()
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    x = torch.randn(6, 4)
    want = model(x)
    assert fold_batchnorm_(model) == ["1"]
    torch.testing.assert_close(model(x), want)


def test_a_layer_whose_result_is_read_elsewhere_is_not_folded():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x + self.bn(x)

    assert fold_batchnorm_(Shared().eval()) == []
    with pytest.raises(ValueError, match="evaluation mode"):
        fold_batchnorm_(Shared())


# -- quantize_


def test_the_report_names_every_layer_and_why(backend):
    model = encoder()
    fold_batchnorm_(model)
    x = torch.randn(4, 3, 12, 12)
    exact, before = model(x), stored_bytes(model)
    report = quantize_(model)
    assert report.model is model
    assert [(row.name, row.action, row.reason) for row in report.rows] == [
        ("stem.0", "int8", "now Int8Conv2d, with the relu of stem.2"),
        ("conv1", "int8", "now Int8Conv2d"),
        ("depthwise", "left", "has 8 groups"),
        ("conv2", "int8", "now Int8Conv2d"),
        ("norm", "left", "not a linear or convolution layer"),
        ("head", "int8", "now Int8Linear"),
    ]
    assert report.bytes_before == before
    assert report.bytes_after == stored_bytes(model)
    head = report.rows[-1]
    assert (head.bytes_before, head.bytes_after) == (4 * (12 * 5 + 5), 12 * 5 + 4 * 5 + 4 * 5)
    for text in ("depthwise", "has 8 groups", "4 of 6 layers in int8"):
        assert text in str(report)
    assert (model(x) - exact).norm() <= 0.05 * exact.norm()


def test_the_root_itself_is_swapped_in_place():
    model = nn.Linear(6, 4)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(3, 6)
    exact = model(x)
    report = quantize_(model)
    assert report.model is model
    assert type(model) is Int8Linear
    assert [row.name for row in report.rows] == [""]
    assert (model(x) - exact).norm() <= 0.02 * exact.norm()
    assert len(calls) == 2


def test_what_is_left_on_request():
    def actions(**options: object) -> dict[str, str]:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2))
        return {row.name: f"{row.action}: {row.reason}" for row in quantize_(model, **options).rows}

    assert actions(config=QuantConfig(conv=False))["0"] == "left: left by config"
    assert actions(config=QuantConfig(linear=False))["2"] == "left: left by config"
    assert actions(config=QuantConfig(min_depth=10))["0"] == "left: sums over 9 inputs, config.min_depth is 10"
    assert actions(config=QuantConfig(min_depth=9))["0"] == "int8: now Int8Conv2d"
    named = actions(filter_fn=lambda module, name: name != "3")
    assert named == {"0": "int8: now Int8Conv2d", "2": "int8: now Int8Linear", "3": "left: left by filter_fn"}


def test_layers_that_would_break_are_left_with_a_reason():
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "block": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            "subclass": Scaled(3, 3),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        }
    ).eval()
    x = torch.randn(2, 5, 8)
    want = model["block"](x)
    report = quantize_(model, QuantConfig(attention=False))
    reasons = {row.name: row.reason for row in report.rows if row.action == "left"}
    assert reasons["attention"] == "left by config"
    assert reasons["attention.out_proj"] == "MultiheadAttention reads its weight as a float tensor"
    assert reasons["block.linear1"].startswith("TransformerEncoderLayer reads its weight as a float tensor")
    assert reasons["subclass"] == "a subclass of Linear may compute something else"
    assert reasons["normed"] == "its weight is computed by a parametrization"
    with torch.no_grad():
        assert torch.allclose(model["block"](x), want, atol=1e-5)
        model["attention"](x, x, x)


def test_a_layer_in_two_places_is_swapped_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = quantize_(model)
    assert model[0] is model[2]
    assert [(row.name, row.action) for row in report.rows] == [("0", "int8"), ("2", "shared")]
    assert report.bytes_after == stored_bytes(model)
    assert stored_bytes(model) == 16 + 16 + 16


def test_quantising_twice_changes_nothing():
    model = quantized()
    x = torch.randn(2, 3, 12, 12)
    want = model(x)
    assert {row.reason for row in quantize_(model).rows if "Int8" in row.type} == {"is int8 already"}
    assert torch.equal(model(x), want)


# -- saving and copying


@pytest.mark.parametrize("how", ["torch", "safetensors"])
@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts_are_plain_and_load_into_a_rebuilt_model(backend, how, assign, tmp_path):
    model, other = quantized(0), quantized(1)
    x = torch.randn(2, 3, 12, 12)
    want = model(x)
    assert not torch.equal(other(x), want)  # other has packed its own weights by now
    if how == "torch":
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    else:
        from safetensors.torch import load_file, save_file

        save_file(model.state_dict(), tmp_path / "model.safetensors")
        state = load_file(tmp_path / "model.safetensors")
    assert {name: value.dtype for name, value in state.items() if name.startswith("head")} == {
        "head.weight": torch.int8,
        "head.weight_scale": torch.float32,
        "head.bias": torch.float32,
    }
    other.load_state_dict(state, assign=assign)
    assert torch.equal(other(x), want)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_hold_no_packed_weight(copied):
    model = quantized()
    x = torch.randn(2, 3, 12, 12)
    want = model(x)
    other = copied(model)
    assert other.head._packed is None
    assert torch.equal(other(x), want)


def test_the_first_call_may_be_in_inference_mode(backend):
    model = quantized()
    with torch.inference_mode():
        want = model(torch.ones(1, 3, 12, 12))
    x = torch.ones(1, 3, 12, 12, requires_grad=True)
    got = model(x)
    got.sum().backward()
    assert torch.equal(got, want)
    assert x.grad is not None


def test_compiles_without_graph_breaks(backend):
    torch._dynamo.reset()
    model, other = quantized(), quantized()
    x = torch.randn(2, 3, 12, 12)
    want = model(x)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the first call packs
        torch.testing.assert_close(compiled(x), want, rtol=1e-5, atol=1e-6)


def test_moving_between_backends():
    model = quantized()
    x = torch.randn(2, 3, 12, 12)
    with fastcl.use_backend("reference"):
        want = model(x)
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-6)
    with fastcl.use_backend("reference"):
        torch.testing.assert_close(model(x), want, rtol=0, atol=0)
