"""Int8Linear and Int8Conv2d beside what they stand in for, and beside other int8 layers.

The two sides of a pair are timed in turn, call by call, in one run; extra_info has both medians in µs, their ratio
(peer / ours: above 1 we are faster) and both relative errors against float64. FASTCL_BENCH_SECONDS is the time for a
pair.
"""

from __future__ import annotations

import copy
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcl.quant import Int8Conv2d, Int8Linear

SECONDS = float(os.environ.get("FASTCL_BENCH_SECONDS", "1"))
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
# batch, channels in, height and width, channels out
CONVS = [(64, 32, 28, 64), (64, 64, 14, 128), (64, 128, 7, 256), (8, 64, 56, 64)]


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[float, float]:
    """Medians in µs."""
    times: tuple[list[float], list[float]] = ([], [])
    for call in (ours, theirs) * 3:
        call()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[0]) < 5:
        for call, record in zip((ours, theirs), times, strict=True):
            begin = time.perf_counter()
            call()
            record.append(1e6 * (time.perf_counter() - begin))
    return statistics.median(times[0]), statistics.median(times[1])


def error(got: Tensor, exact: Tensor) -> float:
    return ((got.double() - exact).norm() / exact.norm()).item()


def compare(benchmark: Any, ours: Callable[[], Tensor], theirs: Callable[[], Any], exact: Tensor) -> None:
    with torch.inference_mode():
        ours_us, theirs_us = in_turn(ours, theirs)
        benchmark.extra_info.update(
            ours_us=round(ours_us, 1),
            theirs_us=round(theirs_us, 1),
            ratio=round(theirs_us / ours_us, 2),
            ours_error=round(error(ours(), exact), 5),
            theirs_error=round(error(torch.as_tensor(theirs()), exact), 5),
            threads=torch.get_num_threads(),
        )
        benchmark.pedantic(ours, rounds=10, warmup_rounds=1)


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
def test_linear(benchmark, peer, name, shape):
    m, k, n = shape
    torch.manual_seed(0)
    linear = nn.Linear(k, n)
    layer, x = Int8Linear.from_float(linear), torch.randn(m, k)
    theirs = PEERS[name](linear, peer)
    exact = x.double() @ linear.weight.detach().double().T + linear.bias.detach().double()
    if name == "bf16_linear":
        x = x.bfloat16()
    compare(benchmark, lambda: layer(x), lambda: theirs(x), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", CONVS, ids=lambda s: "x".join(map(str, s)))
def test_conv(benchmark, shape, dtype):
    batch, inputs, size, outputs = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    layer = Int8Conv2d.from_float(conv)
    x = torch.randn(batch, inputs, size, size).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        exact = copy.deepcopy(conv).double()(x.double())
    theirs = copy.deepcopy(conv).to(dtype).to(memory_format=torch.channels_last)
    x = x.to(dtype)
    compare(benchmark, lambda: layer(x), lambda: theirs(x), exact)
