"""Kernels that a compact net generates with a puppeteer: its differential equation is in the graph."""

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from pocketcnn.export.compact.places import Places
from pocketcnn.export.compact.readings import Reading
from pocketcnn.methods.puppet import GeneratedConv2d, Puppeteer, PuppetStage


def readings(name: str, layer: PuppetStage, dense: nn.Module, entropy: float | None) -> Iterator[Reading]:
    """Yields the kernels of a stage at one level; none where they are stored, or where the stage depends on the image."""
    if layer.puppeteer is None or isinstance(dense, PuppetStage):
        return
    level = layer.level_of(entropy)
    for inner, conv in layer.blocks[: layer.depth_of(level)].named_modules():
        if isinstance(conv, GeneratedConv2d):
            yield Reading(f"{name}.{inner}", (layer.puppeteer, level), conv.slot)


def source(origin: tuple[Puppeteer, int], slots: set[Any]) -> "Puppet":
    """Builds what generates the kernels of a puppeteer at a level; the table keeps only those that are read.

    The weights of all other kernels are read at place 0, which takes no room.
    """
    puppeteer, level = origin
    start = 0
    for slot, size in puppeteer.sizes.items():
        if slot not in slots:
            puppeteer.indices[start : start + size] = 0
            puppeteer.signs[start : start + size] = 1
        start += size
    return Puppet(puppeteer, level)


def tables(net: nn.Module) -> dict[str, Places]:
    """Returns the places and signs of each puppeteer in a net, by the puppeteer's dotted name."""
    return {
        name: Places(part.indices, part.signs, list(part.slots.values()), math.prod(part.state_shape))
        for name, part in net.named_modules()
        if isinstance(part, Puppeteer)
    }


class Puppet(nn.Module):
    """The kernels of one level of a puppeteer, by slot."""

    def __init__(self, puppeteer: Puppeteer, level: int) -> None:
        super().__init__()
        self.puppeteer, self.level = puppeteer, level

    def forward(self) -> Any:
        return self.puppeteer.kernels(self.level)
