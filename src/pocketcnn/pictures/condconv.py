"""The experts that the images of each class are routed to."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.methods.condconv import CondConv2d
from pocketcnn.pictures.images import Images
from pocketcnn.pictures.panels import BATCH, MAPS, NAMES, PANEL, colour_bar, name_ticks, spread_over
from pocketcnn.support.modules import at_inputs
from pocketcnn.support.plots import BLUE, arranged, pyplot

_ROUTERS = 6  # the most that are drawn
_MANY = 1000  # images


def draw(net: nn.Module, images: Images, title: str) -> Iterator[tuple[str, Any]]:
    """Yields the name and the figure of `draw_routing`."""
    _, x, labels, classes = images.labelled(_MANY)
    yield f"routing-{title}", draw_routing(net, x, labels, classes, title=title)


def routing(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The routing weights of each image in each CondConv layer, [batch, experts], by the layer's name.

    Layers that share a router are represented by the first of them.

    Args:
        net: left as it was.
        x: normalised images.
    Raises:
        ValueError: the net has no CondConv layer.
    """
    routers: dict[str, Any] = {}
    seen: set[nn.Module] = set()
    for name, layer in net.named_modules():
        if isinstance(layer, CondConv2d) and layer.router not in seen:
            seen.add(layer.router)
            routers[name] = layer.routing_weights
    if not routers:
        raise ValueError(f"{type(net).__name__} has no CondConv layer")
    batches = [at_inputs(net, batch, routers) for batch in x.split(BATCH)]
    return {name: torch.cat([batch[name] for batch in batches]).float() for name in routers}


def class_share(values: Tensor, labels: Tensor) -> float:
    """Computes the share of the variance that lies between the means of classes, in [0, 1] (eta squared).

    Classes drawn at random have a share of (classes - 1) / (n - 1) on average.

    Args:
        values: [n, ...]; variances add up over all axes but the first.
        labels: the class of each, [n].
    Returns:
        The share; 0 if all values are equal.
    """
    values = values.double().flatten(1)
    values = values - values[:1]
    values = values - values.mean(0)
    between = sum(
        len(members) * members.mean(0).square().sum() for members in (values[labels == k] for k in labels.unique())
    )
    total = values.square().sum()
    return float(between / total) if total > 0 else 0.0


def draw_routing(net: nn.Module, x: Tensor, labels: Tensor, classes: Sequence[str], *, title: str = "") -> Any:
    """Draws the mean routing weights of each class's images in up to six layers, and how well layers tell classes apart.

    Args:
        net: with CondConv layers.
        x: normalised images.
        labels: the class of each, [n].
        classes: their names.
        title: above everything.
    Returns:
        A matplotlib figure.
    Raises:
        ValueError: the net has no CondConv layer.
    """
    weights = routing(net, x)
    chosen = spread_over(list(weights), _ROUTERS)
    shares = [class_share(found, labels) for found in weights.values()]
    plots = pyplot()
    rows = min(len(classes), NAMES)
    figure = plots.figure(figsize=(max(7.0, PANEL * len(chosen) + 1.2), 0.19 * rows + 4.1), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(0.19 * rows + 1.4, 2.4))
    axes = above.subplots(1, len(chosen), squeeze=False)[0]
    for axis, name in zip(axes, chosen, strict=True):
        means = torch.stack([weights[name][labels == k].mean(0) for k in range(len(classes))])
        drawn = axis.imshow(means.numpy(), cmap=MAPS, aspect="auto", interpolation="nearest")
        axis.grid(False)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("expert", fontsize=8)
        axis.xaxis.set_major_locator(plots.MaxNLocator(6, integer=True))
        axis.tick_params(labelsize=7, length=2, labelleft=axis is axes[0])
        name_ticks(axis.yaxis, classes)
        colour_bar(above, drawn, axis, "bottom")
    above.suptitle(f"{title}{': ' if title else ''}mean routing weight of each class's images", fontsize=10)

    axis = below.subplots()
    axis.plot(range(1, len(shares) + 1), [100 * share for share in shares], "o-", color=BLUE, markersize=4)
    chance = 100 * (len(labels.unique()) - 1) / max(len(labels) - 1, 1)
    axis.axhline(chance, color="0.5", linewidth=0.8, linestyle=":", label="by chance")
    axis.set_ylim(bottom=0)
    axis.set_xlim(0.5, len(shares) + 0.5)
    axis.xaxis.set_major_locator(plots.MaxNLocator(integer=True))
    axis.set_xlabel("router, from the first to the last")
    axis.set_ylabel("% of variance\nbetween classes")
    axis.legend(fontsize=8, frameon=False)
    return arranged(figure)
