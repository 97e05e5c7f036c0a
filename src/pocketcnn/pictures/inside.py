"""What layers that make or share their kernels have learned: who routes where, which pixels get which kernels, and how a
ring is read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pocketcnn.methods.condconv import CondConv2d
from pocketcnn.methods.involution import Involution2d
from pocketcnn.methods.ring import ParameterRing, RingConv2d
from pocketcnn.pictures.maps import _MAPS, _PANEL, _SPEED, _bar, _limits, _show, _show_image, _spread
from pocketcnn.support.modules import at_inputs
from pocketcnn.support.plots import pyplot

_ROUTERS, _LAYERS, _GROUPS, _RINGS, _NAMES = 6, 4, 4, 4, 24  # at most so many are shown
_BATCH = 250
_BLUE, _ORANGE = "#0072B2", "#D55E00"


def routing(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The routing weights of each image in each CondConv layer, [batch, experts], by the layer's name.

    Of layers that share a router, the first stands for all.

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
    batches = [at_inputs(net, batch, routers) for batch in x.split(_BATCH)]
    return {name: torch.cat([batch[name] for batch in batches]).float() for name in routers}


def class_share(values: Tensor, labels: Tensor) -> float:
    """How much of the variance of values is between the means of classes: 0 for none, 1 for all of it (eta squared).

    Classes that mean nothing would get (classes - 1) / (n - 1) by chance.

    Args:
        values: [n, ...]; variances add up over what follows.
        labels: the class of each, [n].
    Returns:
        0 where nothing varies.
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
    """Mean routing weights of each class's images, for up to six layers; and how well layers tell classes apart.

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
    chosen = _spread(list(weights), _ROUTERS)
    shares = [class_share(found, labels) for found in weights.values()]
    plots = pyplot()
    rows = min(len(classes), _NAMES)
    figure = plots.figure(figsize=(max(7.0, _PANEL * len(chosen) + 1.2), 0.19 * rows + 4.1), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(0.19 * rows + 1.4, 2.4))
    axes = above.subplots(1, len(chosen), squeeze=False)[0]
    for axis, name in zip(axes, chosen, strict=True):
        means = torch.stack([weights[name][labels == k].mean(0) for k in range(len(classes))])
        drawn = axis.imshow(means.numpy(), cmap=_MAPS, aspect="auto", interpolation="nearest")
        axis.grid(False)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("expert", fontsize=8)
        axis.xaxis.set_major_locator(plots.MaxNLocator(6, integer=True))
        axis.tick_params(labelsize=7, length=2, labelleft=axis is axes[0])
        _name_ticks(axis.yaxis, classes)
        _bar(above, drawn, axis, "bottom")
    above.suptitle(f"{title}{': ' if title else ''}mean routing weight of each class's images", fontsize=10)

    axis = below.subplots()
    axis.plot(range(1, len(shares) + 1), [100 * share for share in shares], "o-", color=_BLUE, markersize=4)
    chance = 100 * (len(labels.unique()) - 1) / max(len(labels) - 1, 1)
    axis.axhline(chance, color="0.5", linewidth=0.8, linestyle=":", label="by chance")
    axis.set_ylim(bottom=0)
    axis.set_xlim(0.5, len(shares) + 0.5)
    axis.xaxis.set_major_locator(plots.MaxNLocator(integer=True))
    axis.set_xlabel("router, from the first to the last")
    axis.set_ylabel("% of variance\nbetween classes")
    axis.legend(fontsize=8, frameon=False)
    return figure


def pixel_kernels(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The kernels of each involution layer, [batch, groups, taps, height, width], by the layer's name.

    Args:
        net: left as it was.
        x: normalised images; a few, as kernels are many times larger.
    Raises:
        ValueError: the net has no involution layer.
    """
    layers = {name: layer.dense_weight for name, layer in net.named_modules() if isinstance(layer, Involution2d)}
    if not layers:
        raise ValueError(f"{type(net).__name__} has no involution layer")
    return {name: kernels.float() for name, kernels in at_inputs(net, x, layers).items()}


def draw_pixel_kernels(net: nn.Module, image: Tensor, x: Tensor, *, title: str = "") -> Any:
    """Where an image gets which kernel: up to four layers a row, up to four groups of channels a column.

    A pixel shows the sum of its kernel's numbers, as in the heat maps of the involution paper; beside the image is the
    kernels' Euclidean norm, the mean over all groups.

    Args:
        net: with involution layers.
        image: [channels, height, width] as uint8.
        x: the same image, normalised, [1, channels, height, width].
        title: above everything.
    Returns:
        A matplotlib figure.
    Raises:
        ValueError: the net has no involution layer.
    """
    kernels = pixel_kernels(net, x[:1])
    chosen = _spread(list(kernels), _LAYERS)
    groups = {name: _spread(range(kernels[name].shape[1]), _GROUPS) for name in chosen}
    columns = max(map(len, groups.values()))
    plots = pyplot()
    figure, axes = plots.subplots(
        len(chosen), columns + 2, figsize=(_PANEL * (columns + 2) + 2.2, 0.97 * _PANEL * len(chosen) + 0.6),
        squeeze=False, layout="constrained", gridspec_kw={"hspace": 0.02, "wspace": 0.02},
    )  # fmt: skip
    for row, name in zip(axes, chosen, strict=True):
        found = kernels[name][0]
        sums = found.sum(1)
        words = f"{name}\n{found.shape[0]} group{'s' * (found.shape[0] > 1)}\n{found.shape[1]} numbers each"
        row[0].text(-0.08, 0.5, words, transform=row[0].transAxes, ha="right", va="center", fontsize=8)
        _show_image(row[0], image)
        limit = float(sums[groups[name]].abs().max())
        norms = found.norm(dim=1).mean(0)
        _bar(figure, _show(row[1], norms, _SPEED, _limits([norms])), row[1], "left")
        for axis in row[2:]:
            axis.set_axis_off()
        for axis, group in zip(row[2:], groups[name], strict=False):
            drawn = _show(axis, sums[group], "RdBu_r", (-limit, limit))
            axis.set_title(f"group {group}", fontsize=8, pad=2)
        _bar(figure, drawn, row[2 : 2 + len(groups[name])], "left")
    axes[0, 0].set_title("image", fontsize=8, pad=2)
    axes[0, 1].set_title("norm", fontsize=8, pad=2)
    figure.suptitle(f"{title}{': ' if title else ''}norm and sum of each pixel's kernel", fontsize=10)
    return figure


def rings(net: nn.Module) -> list[tuple[ParameterRing, list[str]]]:
    """The rings of a net, each with the names of the layers that read it, in the order of its slots."""
    readers: dict[ParameterRing, dict[int, str]] = {}
    for name, layer in net.named_modules():
        if isinstance(layer, RingConv2d):
            readers.setdefault(layer.ring, {})[layer.slot] = name
    return [
        (ring, [names.get(slot, f"slot {slot}") for slot in range(len(ring.sizes))]) for ring, names in readers.items()
    ]


def ring_fraction(net: nn.Module) -> float | None:
    """How many numbers the rings of a net store, as a share of those that layers read off them; None without a ring."""
    found = [ring for ring, _ in rings(net)]
    return sum(len(ring.values) for ring in found) / sum(sum(ring.sizes) for ring in found) if found else None


def ring_usage(ring: ParameterRing) -> Tensor:
    """How often each stored number is read, one integer a place."""
    return torch.bincount(torch.cat(_places(ring)), minlength=len(ring.values))


def _places(ring: ParameterRing) -> list[Tensor]:
    """Where on the ring each layer reads its numbers."""
    return [ring.places(slot)[0].cpu() for slot in range(len(ring.sizes))]


def ring_overlap(ring: ParameterRing) -> Tensor:
    """What two layers have in common: the places that both read, as a share of those of the one that reads fewer.

    Returns:
        [layers, layers], symmetric, with 1 on the diagonal.
    Cost: layers * numbers read.
    """
    places = [part.long().unique() for part in _places(ring)]
    overlap = torch.empty(len(places), len(places))
    for row, mine in enumerate(places):
        held = torch.zeros(len(ring.values), dtype=torch.bool)
        held[mine] = True
        for column, others in enumerate(places):
            overlap[row, column] = held[others].sum() / min(len(mine), len(others))
    return overlap


def draw_ring(net: nn.Module, *, title: str = "") -> Any:
    """How rings are read and what they hold, up to four of them: uses of a number, layers in common, trained values.

    Args:
        net: with layers that read rings.
        title: above everything.
    Returns:
        A matplotlib figure.
    Raises:
        ValueError: the net has no ring.
    """
    found = rings(net)
    if not found:
        raise ValueError(f"{type(net).__name__} has no ring")
    chosen = _spread(range(len(found)), _RINGS)
    plots = pyplot()
    figure = plots.figure(figsize=(10.5, 3.6 * len(chosen) + 0.3), layout="constrained")
    for part, number in zip(figure.subfigures(len(chosen), 1, squeeze=False)[:, 0], chosen, strict=True):
        ring, names = found[number]
        left, middle, right = part.subplots(1, 3, width_ratios=(0.75, 1.15, 1))
        uses = ring_usage(ring).bincount().numpy()
        left.bar(range(len(uses)), 100 * uses / uses.sum(), color=_BLUE, width=0.8)
        left.set_xlim(uses.nonzero()[0].min() - 1.5, len(uses) + 0.5)
        left.xaxis.set_major_locator(plots.MaxNLocator(6, integer=True))
        left.grid(axis="x", visible=False)
        left.set_axisbelow(True)
        left.set_xlabel("uses of a stored number")
        left.set_ylabel("% of stored numbers")

        drawn = middle.imshow(100 * ring_overlap(ring).numpy(), cmap=_MAPS, vmin=0, vmax=100, interpolation="nearest")
        middle.grid(False)
        middle.tick_params(labelsize=6, length=2)
        _name_ticks(middle.yaxis, names)
        middle.set_xticks([])
        middle.set_xlabel("the same layers")
        _bar(part, drawn, middle, "right", "% of places in common")

        values = ring.values.detach().double().cpu().numpy()
        reach = max(abs(values).max(), 4 * ring.std)
        heights, edges = np.histogram(values, 80, (-reach, reach), density=True)
        now, before = f"now, standard deviation {values.std():.3g}", f"at the start, {ring.std:.3g}"
        right.stairs(heights, edges, fill=True, color=_BLUE, alpha=0.8, label=now)
        normal = np.exp(-0.5 * (edges / ring.std) ** 2) / (ring.std * (2 * np.pi) ** 0.5)
        right.plot(edges, normal, color=_ORANGE, linewidth=1.2, label=before)
        right.set_xlabel("stored number")
        right.set_ylabel("density")
        right.set_ylim(top=1.3 * right.get_ylim()[1])
        right.legend(fontsize=8, frameon=False, loc="upper right")
        which = f"ring {number + 1} of {len(found)}: " if len(found) > 1 else ""
        layers = f"{len(names)} layer{'s' * (len(names) > 1)}"
        part.suptitle(
            f"{title if number == chosen[0] else ''}{': ' if title and number == chosen[0] else ''}{which}"
            f"{len(values):,} numbers read {sum(ring.sizes):,} times by {layers}",
            fontsize=10,
        )
    return figure


def _name_ticks(axis: Any, names: Sequence[str]) -> None:
    """Names along an axis of an image; of many, every second or third, ..."""
    places = range(0, len(names), -(-len(names) // _NAMES))
    axis.set_ticks(places, [names[place] for place in places])
