"""Kernels that a compact net reads off a ring.

Places and signs of the scheme `affine` are arithmetic in the graph; those of the other schemes are a table in the file.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.export.compact.places import Places
from pocketcnn.export.compact.readings import Reading
from pocketcnn.methods.ring import ParameterRing, RingConv2d
from pocketcnn.numerics import ring_kernel
from pocketcnn.numerics.ring_index import CODED, affine_constants, affine_indices


def readings(name: str, layer: RingConv2d, dense: nn.Module, entropy: float | None) -> Iterator[Reading]:
    """Yields the one kernel that a layer reads; the convolution in its place has the layer's name."""
    yield Reading(name, layer.ring, layer.slot, layer.ring.scale_of(layer.slot))


def source(ring: ParameterRing, slots: set[Any]) -> "Ring":
    """Builds what reads a ring."""
    return Ring(ring)


def tables(net: nn.Module) -> dict[str, Places]:
    """Returns nothing: `Ring` holds its own table."""
    return {}


class Ring(nn.Module):
    """The kernels that all layers read off a ring, flat, by slot, not scaled."""

    def __init__(self, ring: ParameterRing) -> None:
        super().__init__()
        self.ring = ring
        if ring.scheme != "affine":
            places, signs = zip(*map(ring.places, range(len(ring.shapes))), strict=True)
            widths = (ring.span,) if ring.scheme in CODED else ()
            self.places = Places(torch.cat(places), torch.cat(signs), ring.shapes, len(ring.values), widths)

    def forward(self) -> dict[int, Tensor]:
        ring = self.ring
        if ring.scheme != "affine":
            places, signs = self.places()
            return dict(enumerate(ring_kernel(ring.values, places, signs, 1.0).split(ring.sizes)))
        read: dict[int, Tensor] = {}
        for subnet in dict.fromkeys(ring.subnets):
            slots = [slot for slot, number in enumerate(ring.subnets) if number == subnet]
            sizes = [ring.sizes[slot] for slot in slots]
            constants = affine_constants(len(ring.values), ring.seed_of(subnet))
            places, signs = affine_indices(torch.arange(sum(sizes)), constants)
            read.update(zip(slots, ring_kernel(ring.values, places, signs, 1.0).split(sizes), strict=True))
        return read
