"""The weights that the routers give to the experts, for an image and for the mean image of each class."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pocketcnn.explore.graphs import Tap
from pocketcnn.methods.condconv import CondConv2d
from pocketcnn.pictures import Images, routing

_MANY = 500  # images


def taps(net: nn.Module) -> Iterator[Tap]:
    """Yields a tap for each router, at the first layer that it routes."""
    seen: set[nn.Module] = set()
    for name, layer in net.named_modules():
        if isinstance(layer, CondConv2d) and layer.router not in seen:
            seen.add(layer.router)
            yield Tap(f"condconv/{name}", name, _weights)


def _weights(layer: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The experts' weights for each image, [batch, experts]."""
    return {"weights": layer.routing_weights(x)}


def facts(net: nn.Module, images: Images | None) -> dict[str, Any]:
    """For each router the mean weights of each class's images, [classes, experts]; empty without images."""
    if images is None:
        return {}
    _, x, labels, classes = images.labelled(_MANY)
    found = routing(net, x)
    return {name: [_mean(weights[labels == k]) for k in range(len(classes))] for name, weights in found.items()}


def _mean(weights: Tensor) -> list[float]:
    """The mean of some images' weights, to four places; empty without images."""
    return [round(float(w), 4) for w in weights.mean(0)] if len(weights) else []
