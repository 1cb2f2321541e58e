from __future__ import annotations

import pytest
import torch
from torch import nn

from fastcl.quant import Attention, Int8Linear, QuantConfig, quantize_

MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False] * 7, [False] * 4 + [True] * 3])},
    "boolean": {"attn_mask": torch.ones(5, 7).triu(2).bool()},
    "additive": {"attn_mask": torch.linspace(-3, 3, 35).view(5, 7)},
    "per_head": {"attn_mask": torch.linspace(-3, 3, 2 * 4 * 35).view(8, 5, 7)},
    "both": {
        "attn_mask": torch.linspace(-3, 3, 35).view(5, 7),
        "key_padding_mask": torch.tensor([[False] * 7, [False] * 4 + [True] * 3]),
    },
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize(
    ("batch_first", "need_weights", "average"),
    [(True, True, True), (True, False, True), (False, True, False), (False, False, True)],
)
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_multihead_attention_does(mask, batch_first, need_weights, average, bias):
    theirs = nn.MultiheadAttention(16, 4, bias=bias, batch_first=batch_first).eval()
    ours = Attention(theirs)
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    options = {**mask, "need_weights": need_weights, "average_attn_weights": average}
    for got, want in zip(ours(query, key, value, **options), theirs(query, key, value, **options), strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
def test_one_sequence_and_itself(batch_first):
    theirs = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    x, causal = torch.randn(6, 16), torch.ones(6, 6).triu(1).bool()
    for options in ({}, {"attn_mask": causal, "is_causal": True, "need_weights": False}):
        for got, want in zip(Attention(theirs)(x, x, x, **options), theirs(x, x, x, **options), strict=True):
            if want is not None:
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_transformer_encoder_is_quantised_whole(backend):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(3, 9, 32)
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[1, 5:] = True
    with torch.no_grad():
        want = model(x)[~padding]
        want_padded = model(x, src_key_padding_mask=padding)[~padding]
        report = quantize_(model)
        left = {row.type for row in report.rows if row.action == "left"}
        assert left == {"LayerNorm"}
        assert sum(type(module) is Int8Linear for module in model.modules()) == 8
        assert (model(x)[~padding] - want).norm() <= 0.05 * want.norm()
        got = model(x, src_key_padding_mask=padding)[~padding]
        assert (got - want_padded).norm() <= 0.05 * want_padded.norm()


def test_a_vision_transformer_is_quantised_whole():
    models = pytest.importorskip("torchvision").models
    model = models.VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10).eval()
    nn.init.normal_(model.heads.head.weight)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        report = quantize_(model, calibration=[x])
        assert (model(x) - want).norm() <= 0.05 * want.norm()
    assert {row.type for row in report.rows if row.action == "left"} == {"VisionTransformer", "Encoder", "LayerNorm"}
    assert report.error is not None
    assert report.error <= 0.05
    named = {row.name: row.reason for row in report.rows}
    assert "with the gelu of" in named["encoder.layers.encoder_layer_0.mlp.0"]


def test_what_cannot_be_rebuilt_is_left_with_a_reason():
    model = nn.ModuleDict(
        {
            "widths": nn.MultiheadAttention(8, 2, kdim=4),
            "adds": nn.MultiheadAttention(8, 2, add_zero_attn=True),
            "filtered": nn.MultiheadAttention(8, 2),
        }
    )
    reasons = {
        row.name: row.reason for row in quantize_(model, filter_fn=lambda module, name: "filtered" not in name).rows
    }
    assert reasons["widths"] == "its keys or values have another width than its queries"
    assert reasons["adds"] == "it adds keys of its own"
    assert reasons["filtered"] == "left by filter_fn"
    assert reasons["filtered.out_proj"] == "MultiheadAttention reads its weight as a float tensor"
    root = nn.MultiheadAttention(8, 2)
    assert quantize_(root).rows[0].reason == "is the model itself"
    assert quantize_(nn.Sequential(nn.MultiheadAttention(8, 2)), QuantConfig(attention=False)).rows[0].action == "left"
