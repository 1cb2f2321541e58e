"""Computes the time and memory of a training step on 1 to 1,024 GPUs, prints the tables of docs/scaling.md and draws.

Nothing here is measured on a GPU. What the encoder does (parameters, operations, bytes kept for backward) is counted on
the CPU; what the loss sends is the formula that tests/test_run_distributed.py holds against the processes; the rest is
vendors' datasheets and assumptions, all of them in ``INPUTS``.

    python tools/scaling.py [--plot docs/scaling.svg]
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import Any

GPUS = [2**power for power in range(11)]

# value, unit, where it is from
INPUTS: dict[str, tuple[float, str, str]] = {
    "images": (256, "a GPU", "chosen"),
    "dim": (128, "elements of a projection", "chosen (SimCLR)"),
    "gpus_per_node": (8, "", "datasheet (DGX H100)"),
    "peak": (989e12, "flop/s, bfloat16", "datasheet (H100 SXM)"),
    "memory_bandwidth": (3.35e12, "B/s", "datasheet (H100 SXM)"),
    "within_node": (450e9, "B/s each way", "datasheet (NVLink 4)"),
    "between_nodes": (50e9, "B/s each way for each GPU", "datasheet (400 Gb/s InfiniBand)"),
    "loss_rate": (555e12, "flop/s of the loss's tiles, D = 128", "computed (cuda-kernels.md)"),
    "loss_launches": (22e-6, "s, what is around the tiles of a loss", "computed (cuda-kernels.md)"),
    "traffic": (5, "times that what is kept for backward goes through memory", "assumed"),
    "encoder_efficiency": (0.4, "of the encoder's floor", "assumed"),
    "loss_efficiency": (0.8, "of the tiles' rate", "assumed"),
    "link_efficiency": (0.8, "of the links' rate", "assumed"),
    "latency": (10e-6, "s of a collective in a node", "assumed"),
    "latency_of_doubling": (5e-6, "s more for each doubling of the nodes", "assumed"),
    "hop": (10e-6, "s of a message to the neighbour, launches included", "assumed"),
    "bucket": (25 * 2**20, "B of gradients sent after the last of backward", "DDP's default"),
}


@dataclass(frozen=True)
class Encoder:
    """What a ResNet-50 does for one view of 224 × 224, forward and backward."""

    parameters: int
    norms: int  # layers of batch normalisation
    flop: float  # of one view
    kept: float  # bytes of one view kept for backward, in bfloat16


def count_encoder() -> Encoder:
    """Counts on the CPU; shapes alone decide, so a GPU's counts are the same."""
    import torch
    import torchvision
    from torch.utils.flop_counter import FlopCounterMode

    model = torchvision.models.resnet50().to(torch.bfloat16, memory_format=torch.channels_last)
    views = torch.zeros(2, 3, 224, 224, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Any] = {}  # held, so that no memory is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(views).sum().backward()
    storages = [tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own]
    return Encoder(
        sum(parameter.numel() for parameter in model.parameters()),
        sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules()),
        counter.get_total_flops() / len(views),
        sum(storages) / len(views),
    )


def gather_bytes(rows: int, dim: int, world: int, element: int) -> tuple[int, int]:
    """What a process receives: in forward the others' rows, in backward (by NCCL) float32 gradients of its own."""
    return (world - 1) * rows * dim * element, (world - 1) * rows * dim * 4


def ring_bytes(rows: int, dim: int, world: int, element: int) -> tuple[int, int]:
    """What a process receives in forward and in backward: keys travel half the way around."""
    hops, shared = world // 2, (world - 1) // 2
    forward = hops * rows * dim * element + shared * rows * 4
    backward = 2 * hops * rows * dim * element + shared * 2 * rows * 4
    return forward, backward


@dataclass(frozen=True)
class Step:
    """Seconds and bytes of one step on one of the GPUs; what is not hidden behind something else adds up."""

    encoder: float
    norms: float
    gradients: float
    loss: dict[str, float]
    messages: dict[str, float]
    memory: float  # without the loss
    loss_memory: dict[str, float]

    def seconds(self, negatives: str) -> float:
        """The whole step."""
        return self.encoder + self.norms + self.gradients + self.loss[negatives] + self.messages[negatives]


def step(encoder: Encoder, world: int) -> Step:
    """The model; see docs/scaling.md."""
    get = {name: value for name, (value, _, _) in INPUTS.items()}
    rows, dim, element = int(2 * get["images"]), int(get["dim"]), 2
    nodes = math.ceil(world / get["gpus_per_node"])
    link = get["link_efficiency"] * (get["within_node"] if nodes == 1 else get["between_nodes"])
    latency = get["latency"] + get["latency_of_doubling"] * math.log2(nodes) if world > 1 else 0.0
    floor = max(encoder.flop / get["peak"], get["traffic"] * encoder.kept / get["memory_bandwidth"])
    bucket = 2 * (world - 1) / world * get["bucket"] / link + latency

    # Multiply-adds count twice. Alone and in the ring each pair of rows is formed once, gathered by both its owners.
    tiles = get["loss_efficiency"] * get["loss_rate"]
    hops = world // 2
    loss = {
        "gather": (10 if world > 1 else 5) * rows**2 * world * dim / tiles + get["loss_launches"],
        "ring": 5 * rows**2 * world * dim / tiles + (hops + 1) * get["loss_launches"],
        "local": 5 * rows**2 * dim / tiles + get["loss_launches"],
    }
    gathered, ringed = sum(gather_bytes(rows, dim, world, element)), sum(ring_bytes(rows, dim, world, element))
    messages = {
        "gather": gathered / link + 2 * latency if world > 1 else 0.0,
        "ring": max(ringed / link, 2 * hops * get["hop"]),
        "local": 0.0,
    }
    own = rows * dim * (2 * element + 4)  # rows, gradients and their sums
    return Step(
        encoder=rows * floor / get["encoder_efficiency"],
        norms=2 * encoder.norms * latency,
        gradients=bucket if world > 1 else 0.0,
        loss=loss,
        messages=messages,
        memory=16.0 * encoder.parameters + rows * encoder.kept,  # weights, gradients, two moments of AdamW: float32
        loss_memory={
            "gather": own + rows * world * dim * (element + 4.0),
            "ring": 4.0 * own,
            "local": own,
            "all pairs": 2.0 * rows * rows * world * 4,
        },
    )


def _shown(value: float) -> str:
    """A number and the prefix of its unit."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("", 1e-3)):
        if value >= scale:
            return f"{value / (scale if prefix else 1):.4g} {prefix}"
    return f"{1e6 * value:.4g} µ"


def print_tables(encoder: Encoder) -> None:
    """Markdown."""
    print("| input | value | from |\n|---|---|---|")
    for name, (value, unit, source) in INPUTS.items():
        print(f"| {name.replace('_', ' ')} | {_shown(value)}{unit} | {source} |")
    print(f"| ResNet-50, parameters | {encoder.parameters:,} | counted |")
    print(f"| layers of batch normalisation | {encoder.norms} | counted |")
    print(f"| operations of a view, forward and backward | {encoder.flop / 1e9:.1f} Gflop | counted on the CPU |")
    print(f"| kept of a view for backward, bfloat16 | {encoder.kept / 1e6:.0f} MB | counted on the CPU |")
    print("\nMilliseconds of a step:\n")
    print("| GPUs | N | encoder | norms | gradients | loss, gather | its messages | loss, ring | its messages", end="")
    print(" | step, gather | step, ring | images/s | of linear |")
    print("|" + "---|" * 13)
    alone = step(encoder, 1).seconds("gather")
    for world in GPUS:
        now = step(encoder, world)
        parts = [now.encoder, now.norms, now.gradients]
        for negatives in ("gather", "ring"):
            parts += [now.loss[negatives], now.messages[negatives]]
        parts += [now.seconds("gather"), now.seconds("ring")]
        images = int(INPUTS["images"][0]) * world
        best = min(parts[-2:])
        cells = [f"{world:,}", f"{images:,}", *(f"{1e3 * part:.3g}" for part in parts)]
        print("| " + " | ".join([*cells, f"{images / best:,.0f}", f"{100 * alone / best:.0f}%"]) + " |")
    print("\nMemory of a GPU; the three on the right are the loss's:\n")
    print("| GPUs | weights, gradients, moments, activations | gather | ring | the matrix of all pairs |")
    print("|" + "---|" * 5)
    for world in GPUS:
        now = step(encoder, world)
        cells = [f"{now.loss_memory[kind] / 1e6:,.0f} MB" for kind in ("gather", "ring", "all pairs")]
        print(f"| {world:,} | {now.memory / 1e9:.1f} GB | " + " | ".join(cells) + " |")


def draw(encoder: Encoder, path: str) -> None:
    """The parts of a step's time, and the loss's memory, over the number of GPUs."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "fastcl", "svg.fonttype": "none"})
    from matplotlib import pyplot

    steps = [step(encoder, world) for world in GPUS]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for label, values in {
        "encoder": [now.encoder for now in steps],
        "synchronised normalisation": [now.norms for now in steps],
        "gradients, last bucket": [now.gradients for now in steps],
        "gather: loss and messages": [now.loss["gather"] + now.messages["gather"] for now in steps],
        "ring: loss and messages": [now.loss["ring"] + now.messages["ring"] for now in steps],
    }.items():
        left.plot(GPUS, [1e3 * value or math.nan for value in values], marker=".", label=label)
    for kind in ("gather", "ring", "all pairs"):
        right.plot(GPUS, [now.loss_memory[kind] / 1e6 for now in steps], marker=".", label=kind)
    for axes, title in ((left, "milliseconds of a step, computed"), (right, "MB that the loss takes, computed")):
        axes.set(xscale="log", yscale="log", xlabel="GPUs, 256 images each", title=title, xticks=GPUS[::2])
        axes.set_xticks(GPUS[::2], [f"{world:,}" for world in GPUS[::2]], minor=False)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Prints, and draws where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", help="SVG to write")
    arguments = parser.parse_args()
    encoder = count_encoder()
    print_tables(encoder)
    if arguments.plot:
        draw(encoder, arguments.plot)


if __name__ == "__main__":
    main()
