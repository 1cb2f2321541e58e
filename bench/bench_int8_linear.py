"""Int8Linear beside ``nn.Linear`` and beside other int8 layers, in turn: see ``side_by_side`` in conftest.py."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcl.quant import Int8Linear

# rows, inputs, outputs
SHAPES = [
    (1, 768, 768),
    (1, 4096, 4096),
    (16, 1024, 4096),
    (128, 768, 3072),
    (512, 2048, 2048),
    (4096, 512, 512),
    (4096, 2048, 2048),
]


def quantize_dynamic(engine: str) -> Callable[..., Callable[[Tensor], Tensor]]:
    def make(linear: nn.Linear, peer: Callable[[str], Any]) -> Callable[[Tensor], Tensor]:
        quantization = peer("torch.ao.quantization")
        if engine not in torch.backends.quantized.supported_engines:
            pytest.skip(f"peer absent: this torch has no quantized engine {engine}")
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = engine
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                layer = quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, torch.qint8)
        finally:
            torch.backends.quantized.engine = before
        return layer

    return make


def torchao(linear: nn.Linear, peer: Callable[[str], Any]) -> Callable[[Tensor], Tensor]:
    quantization = peer("torchao.quantization")
    model = nn.Sequential(copy.deepcopy(linear))
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    return model


def onnxruntime(int8: bool) -> Callable[..., Callable[[Tensor], Any]]:
    def make(linear: nn.Linear, peer: Callable[[str], Any]) -> Callable[[Tensor], Any]:
        onnx, runtime = peer("onnx"), peer("onnxruntime")
        node = onnx.helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
        kinds = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
        tensors = [
            onnx.numpy_helper.from_array(value.detach().numpy(), name)
            for name, value in (("w", linear.weight), ("b", linear.bias))
        ]
        graph = onnx.helper.make_graph([node], "linear", kinds[:1], kinds[1:], tensors)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        if int8:
            file = io.BytesIO()
            quantize = peer("onnxruntime.quantization").quantize_dynamic
            quantize(model, file, per_channel=True, weight_type=peer("onnxruntime.quantization").QuantType.QInt8)
            content = file.getvalue()
        else:
            content = model.SerializeToString()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"x": x.numpy()})[0]

    return make


PEERS = {
    "fp32_linear": lambda linear, peer: linear,
    "bf16_linear": lambda linear, peer: copy.deepcopy(linear).bfloat16(),
    "quantize_dynamic_onednn": quantize_dynamic("onednn"),
    "quantize_dynamic_x86": quantize_dynamic("x86"),
    "torchao_eager": torchao,
    "onnxruntime_fp32": onnxruntime(int8=False),
    "onnxruntime_int8": onnxruntime(int8=True),
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("name", PEERS)
def bench_linear(side_by_side, peer, name, shape):
    m, k, n = shape
    torch.manual_seed(0)
    linear = nn.Linear(k, n)
    layer, x = Int8Linear.from_float(linear), torch.randn(m, k)
    theirs = PEERS[name](linear, peer)
    exact = x.double() @ linear.weight.detach().double().T + linear.bias.detach().double()
    if name == "bf16_linear":
        x = x.bfloat16()
    side_by_side(lambda: layer(x), lambda: theirs(x), exact)
