"""How a step would scale on hardware that is not here: an estimate from public figures."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from galvanax.trainer.compiled_text import Collective, Work

Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Hardware:
    """A GPU and how it is connected, by its data sheet.

    Attributes:
      name: of the GPU.
      links: how it is connected, in a node and beyond.
      float32: peak FLOP/s of its ordinary units.
      bfloat16: peak FLOP/s of its matrix units, without sparsity.
      memory: bandwidth of its memory, B/s.
      node: GPUs in a node.
      link: bandwidth of a GPU's links inside the node, B/s in each direction.
      network: bandwidth between nodes for each GPU, B/s in each direction.
      source: where the figures are from.
    """

    name: str
    links: str
    float32: float
    bfloat16: float
    memory: float
    node: int
    link: float
    network: float
    source: str


HARDWARE = (
    Hardware(
        "H100 SXM", "NVLink 4, InfiniBand NDR",
        float32=66.9e12, bfloat16=989e12, memory=3.35e12, node=8, link=450e9, network=50e9,
        source="NVIDIA H100 Tensor Core GPU data sheet; DGX H100: one 400 Gb/s adapter a GPU",
    ),
    Hardware(
        "A100 80GB SXM", "NVLink 3, InfiniBand HDR",
        float32=19.5e12, bfloat16=312e12, memory=2.039e12, node=8, link=300e9, network=25e9,
        source="NVIDIA A100 Tensor Core GPU data sheet; DGX A100: one 200 Gb/s adapter a GPU",
    ),
    Hardware(
        "RTX 4090", "PCIe 4.0 x16, 25 Gb/s Ethernet",
        float32=82.6e12, bfloat16=165.2e12, memory=1.008e12, node=8, link=32e9, network=3.125e9,
        source="NVIDIA Ada GPU Architecture white paper; PCIe 4.0 base specification; the Ethernet is an assumption",
    ),
)  # fmt: skip
# Seconds to start a kernel, and for a message's hop. Assumptions, for no data sheet says them.
LAUNCH, LATENCY = 2e-6, {"link": 3e-6, "network": 6e-6}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A step on so many GPUs, each with as many rows as in the compiled program.

    Attributes:
      hardware: its name.
      devices: GPUs.
      compute_s: seconds of arithmetic, of memory traffic or of starting kernels: whatever takes longest.
      limit: which of them that is.
      communication_s: seconds in messages, none of which is hidden behind arithmetic.
      efficiency: the share of the time that is not communication.
    """

    hardware: str
    devices: int
    compute_s: float
    limit: str
    communication_s: float
    efficiency: float


def estimate(
    hardware: Hardware, devices: int, work: Work, messages: Sequence[Collective], precision: Precision
) -> Estimate:
    """The time of a step, at peak rates: see `docs/devices.md` for the formula and what it leaves out."""
    limits = {
        "arithmetic": work.flops / getattr(hardware, precision),
        "memory": work.nbytes / hardware.memory,
        "kernel starts": work.kernels * LAUNCH,
    }
    limit = max(limits, key=lambda name: limits[name])
    talk = sum(one.times * _seconds(hardware, devices, one) for one in messages)
    return Estimate(hardware.name, devices, limits[limit], limit, talk, limits[limit] / (limits[limit] + talk))


def _seconds(hardware: Hardware, devices: int, message: Collective) -> float:
    if devices == 1:
        return 0.0
    inside = devices <= hardware.node
    bandwidth, hop = (hardware.link, LATENCY["link"]) if inside else (hardware.network, LATENCY["network"])
    rounds = 2 if message.kind == "all-reduce" else 1  # a reduce-scatter, then an all-gather
    sent = rounds * (devices - 1) / devices * message.nbytes
    return sent / bandwidth + rounds * math.ceil(math.log2(devices)) * hop
