"""Int8Linear beside ``nn.Linear`` and beside other int8 layers, in turn: see ``in_turn`` in conftest.py."""

from __future__ import annotations

import copy
import functools
import io
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
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


def on_the_cpu_alone(name: str) -> None:
    if torch.get_default_device().type != "cpu":
        pytest.skip(f"{name} runs on the CPU alone")


def quantize_dynamic(engine: str) -> Callable[..., Callable[[Tensor], Tensor]]:
    def make(linear: nn.Linear, peer: Callable[[str], Any]) -> Callable[[Tensor], Tensor]:
        on_the_cpu_alone("quantize_dynamic")
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


def torchao(compiled: bool = False, frozen: bool = False) -> Callable[..., Callable[[Tensor], Tensor]]:
    def make(linear: nn.Linear, peer: Callable[[str], Any]) -> Callable[[Tensor], Tensor]:
        quantization = peer("torchao.quantization")
        model = nn.Sequential(copy.deepcopy(linear))
        quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
        if not compiled:
            return model
        torch._dynamo.config.recompile_limit = 100  # a graph for each shape
        settings = peer("torch._inductor.config")
        compiled_model = torch.compile(model, dynamic=False)

        def run(x: Tensor) -> Tensor:
            with settings.patch(freezing=frozen):  # read when the first call compiles
                return compiled_model(x)

        return run

    return make


def bitsandbytes(linear: nn.Linear, peer: Callable[[str], Any]) -> Callable[[Tensor], Tensor]:
    layer = peer("bitsandbytes").nn.Linear8bitLt(linear.in_features, linear.out_features, has_fp16_weights=False)
    layer.load_state_dict(linear.state_dict())
    return layer.to(linear.weight.device).eval()  # type: ignore[no-any-return]


def int_mm(linear: nn.Linear, peer: Callable[[str], Any]) -> Callable[[Tensor], Tensor]:
    """The bare product of torch: x is int8 already, the result int32."""
    weight = torch.randint(-127, 128, linear.weight.shape, dtype=torch.int8).T
    kept: dict[int, Tensor] = {}

    def run(x: Tensor) -> Tensor:
        if x.is_cuda and len(x) <= 16:
            pytest.skip("int_mm takes more than 16 rows on CUDA")
        rows = kept.setdefault(len(x), torch.randint(-127, 128, x.shape, dtype=torch.int8))
        return torch._int_mm(rows, weight)

    return run


def onnxruntime(int8: bool) -> Callable[..., Callable[[Tensor], Any]]:
    def make(linear: nn.Linear, peer: Callable[[str], Any]) -> Callable[[Tensor], Any]:
        on_the_cpu_alone("onnxruntime")
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
    "quantize_dynamic_fbgemm": quantize_dynamic("fbgemm"),
    "torchao_eager": torchao(),
    "torchao_compiled": torchao(compiled=True),
    "torchao_frozen": torchao(compiled=True, frozen=True),
    "bitsandbytes": bitsandbytes,
    "int_mm": int_mm,
    "onnxruntime_fp32": onnxruntime(int8=False),
    "onnxruntime_int8": onnxruntime(int8=True),
}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_linear(in_turn, peer, shape):
    m, k, n = shape
    torch.manual_seed(0)
    linear = nn.Linear(k, n)
    layer, x = Int8Linear.from_float(linear), torch.randn(m, k)
    half = x.bfloat16()
    exact = x.double() @ linear.weight.detach().double().T + linear.bias.detach().double()

    def make(name: str) -> Callable[[], Any]:
        theirs, rows = PEERS[name](linear, peer), half if name == "bf16_linear" else x
        return lambda: theirs(rows)

    peers = {name: functools.partial(make, name) for name in PEERS}
    in_turn(str(shape), lambda: layer(x), {"ours_bf16": lambda: lambda: layer(half), **peers}, exact)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def bench_share_of_the_vnni_ceiling(benchmark, shape, tmp_path):
    """extra_info: 10^9 operations per second of the whole layer, of vpdpbusd alone times the threads, their ratio."""
    on_the_cpu_alone("vpdpbusd")
    compiler, source = shutil.which("g++"), Path(__file__).with_name("vnni_peak.cpp")
    if compiler is None or "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs g++ and a processor with AVX-512 VNNI")
    program = tmp_path / "vnni_peak"
    subprocess.run([compiler, "-O2", "-mavx512f", "-mavx512vnni", source, "-o", program], check=True)
    m, k, n = shape
    layer, x = Int8Linear(k, n), torch.randn(m, k)
    with torch.inference_mode():
        benchmark.pedantic(lambda: layer(x), rounds=30, warmup_rounds=5)
    peak = float(subprocess.run([program], check=True, capture_output=True, text=True).stdout) * torch.get_num_threads()
    reached = 2e-9 * m * k * n / benchmark.stats.stats.median
    benchmark.extra_info.update(gops=round(reached, 1), peak=round(peak, 1), share=round(reached / peak, 3))
