"""The kernel that an involution layer makes for each pixel."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pocketcnn.explore.graphs import Tap
from pocketcnn.methods.involution import Involution2d
from pocketcnn.pictures import Images
from pocketcnn.pictures.panels import spread_over

_LAYERS = 4  # the most that are shown: their kernels are many times larger than the maps


def taps(net: nn.Module) -> Iterator[Tap]:
    """Yields a tap for each of up to four layers."""
    for name, _ in _shown(net):
        yield Tap(f"involution/{name}", name, _kernels)


def _kernels(layer: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The kernels of all pixels, [batch, groups, taps, height, width]."""
    return {"kernels": layer.dense_weight(x)}


def facts(net: nn.Module, images: Images | None) -> dict[str, Any]:
    """The extent of each layer's kernels and its stride, (height, width, down, along)."""
    return {name: [*layer.kernel_size, *layer.stride] for name, layer in _shown(net)}


def _shown(net: nn.Module) -> list[tuple[str, Involution2d]]:
    return spread_over(
        [(name, layer) for name, layer in net.named_modules() if isinstance(layer, Involution2d)], _LAYERS
    )
