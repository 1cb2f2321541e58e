"""Whole encoders in int8 beside the same in fp32 and bf16 eager, and in onnxruntime, in turn: see ``in_turn``.

onnxruntime's int8 is its own quantiser's: static QDQ, per channel, calibrated on the same images. So is ours_static;
neither is smoothed or has outlier inputs. Random weights.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcl.encoder import Encoder, EncoderConfig
from fastcl.export import export_onnx
from fastcl.quant import QuantConfig, fold_batchnorm_, quantize_


def digits() -> tuple[nn.Module, Tensor]:
    config = EncoderConfig(channels=1, image_size=28, width=32, mean=(0.5,), std=(0.5,))
    return Encoder(config), torch.randn(64, 1, 28, 28)


def resnet18(batch: int) -> tuple[nn.Module, Tensor]:
    return pytest.importorskip("torchvision").models.resnet18(), torch.randn(batch, 3, 224, 224)


def vit_s16(batch: int) -> tuple[nn.Module, Tensor]:
    model = pytest.importorskip("torchvision").models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    )
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model, torch.randn(batch, 3, 224, 224)


ENCODERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "digits_64": digits,
    "resnet18_1": lambda: resnet18(1),
    "resnet18_8": lambda: resnet18(8),
    "vit_s16_1": lambda: vit_s16(1),
    "vit_s16_8": lambda: vit_s16(8),
}


def onnxruntime(model: nn.Module, x: Tensor, peer: Callable[[str], Any], int8: bool) -> Callable[[], Any]:
    runtime, onnx = peer("onnxruntime"), peer("onnx")
    peer("onnxscript")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        export_onnx(model, torch.cat([x, x])[: max(2, len(x))], path)
        if int8:
            quantization = peer("onnxruntime.quantization")
            onnx.save(onnx.shape_inference.infer_shapes(onnx.load(path)), path)
            name = onnx.load(path).graph.input[0].name

            class Batches(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
                def __init__(self) -> None:
                    self.left = [{name: x.numpy()}]

                def get_next(self) -> Any:
                    return self.left.pop() if self.left else None

            quantization.quantize_static(path, path, Batches(), per_channel=True)
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)[0]


def eager(dtype: torch.dtype, channels_last: bool) -> Callable[..., Callable[[], Tensor]]:
    def make(model: nn.Module, x: Tensor, peer: Callable[[str], Any]) -> Callable[[], Tensor]:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        theirs = copy.deepcopy(model).to(dtype).to(memory_format=layout)
        images = x.to(dtype).to(memory_format=layout)
        return lambda: theirs(images)

    return make


PEERS: dict[str, Callable[..., Callable[[], Any]]] = {
    "fp32": eager(torch.float32, False),
    "fp32_channels_last": eager(torch.float32, True),
    "bf16": eager(torch.bfloat16, False),
    "bf16_channels_last": eager(torch.bfloat16, True),
    "onnxruntime_fp32": lambda model, x, peer: onnxruntime(model, x, peer, int8=False),
    "onnxruntime_int8": lambda model, x, peer: onnxruntime(model, x, peer, int8=True),
}


@pytest.mark.parametrize("encoder", ENCODERS)
def bench_encoder(in_turn, peer, encoder):
    torch.manual_seed(0)
    model, x = ENCODERS[encoder]()
    model.eval()
    with torch.inference_mode():
        exact = model(x).double()
    fold_batchnorm_(model)
    images = x.to(memory_format=torch.channels_last)

    def ours(mode: str) -> Callable[[], Tensor]:
        int8 = copy.deepcopy(model)
        config = QuantConfig(mode=mode, smoothing=None, outlier_ratio=None)
        quantize_(int8, config, calibration=[x] if mode == "static" else None)
        return lambda: int8(images)

    peers = {name: functools.partial(PEERS[name], model, x, peer) for name in PEERS}
    in_turn(encoder, ours("dynamic"), {"ours_static": lambda: ours("static"), **peers}, exact)
