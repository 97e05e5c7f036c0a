"""The rings of a net: which places each layer reads, with which signs, and the first kernels that it reads there."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.explore.graphs import Tap
from pocketcnn.methods.ring import ParameterRing
from pocketcnn.pictures import Images, rings

_BINS = 360  # parts of the circle
_SIDE = 5  # output and input channels of the kernels that are drawn


def taps(net: nn.Module) -> Iterator[Tap]:
    """Yields nothing: kernels on a ring do not depend on the image."""
    yield from ()


def facts(net: nn.Module, images: Images | None) -> list[dict[str, Any]]:
    """For each ring its values as whole numbers from -127 to 127 times a scale, and what each layer reads."""
    return [_facts(ring, names) for ring, names in rings(net)]


def _facts(ring: ParameterRing, names: list[str]) -> dict[str, Any]:
    values = ring.values.detach().float().cpu()
    scale = float(values.abs().max()) / 127 or 1.0
    bins = min(_BINS, len(values))
    return {
        "length": len(values),
        "read": sum(ring.sizes),
        "scheme": ring.scheme,
        "bins": bins,
        "scale": scale,
        "values": (values / scale).round().int().tolist(),
        "layers": [_layer(ring, slot, name, bins) for slot, name in enumerate(names)],
    }


def _layer(ring: ParameterRing, slot: int, name: str, bins: int) -> dict[str, Any]:
    """How often a layer reads each part of the circle with either sign, and places and signs of its first kernels."""
    places, signs = (part.cpu() for part in ring.places(slot))
    parts = places.long() * bins // len(ring.values)
    shape = tuple(ring.shapes[slot])
    corner = [min(_SIDE, side) for side in shape[:2]]
    return {
        "name": name,
        "weights": len(places),
        "plus": torch.bincount(parts[signs > 0], minlength=bins).tolist(),
        "minus": torch.bincount(parts[signs < 0], minlength=bins).tolist(),
        "corner": [*corner, *shape[2:]],
        "places": _first(places, shape, corner).tolist(),
        "signs": _first(signs, shape, corner).tolist(),
        "scale": float(ring.scale_of(slot)),
    }


def _first(flat: Tensor, shape: tuple[int, ...], corner: list[int]) -> Tensor:
    return flat.view(shape)[: corner[0], : corner[1]].flatten().int()
