"""The rings of a net: how often their places are read, which layers share places, and the values they hold."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pocketcnn.methods.ring import ParameterRing, RingConv2d
from pocketcnn.pictures.images import Images
from pocketcnn.pictures.panels import MAPS, colour_bar, name_ticks, spread_over
from pocketcnn.support.plots import BLUE, VERMILION, arranged, pyplot

_RINGS = 4  # the most that are drawn


def draw(net: nn.Module, images: Images, title: str) -> Iterator[tuple[str, Any]]:
    """Yields the name and the figure of `draw_ring`."""
    yield f"ring-{title}", draw_ring(net, title=title)


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
    """Parameters on the rings of a net, as a share of the weights that layers read off them; None without a ring."""
    found = [ring for ring, _ in rings(net)]
    return sum(len(ring.values) for ring in found) / sum(sum(ring.sizes) for ring in found) if found else None


def ring_usage(ring: ParameterRing) -> Tensor:
    """Counts how often each place of a ring is read, [length]."""
    return torch.bincount(torch.cat(_places(ring)), minlength=len(ring.values))


def _places(ring: ParameterRing) -> list[Tensor]:
    """The places of a ring that each layer reads."""
    return [ring.places(slot)[0].cpu() for slot in range(len(ring.sizes))]


def ring_overlap(ring: ParameterRing) -> Tensor:
    """Computes what two layers share: the places that both read, as a share of those of the layer that reads fewer.

    Returns:
        [layers, layers], symmetric, with 1 on the diagonal.
    Cost: layers * weights read.
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
    """Draws up to four rings: how often places are read, which places layers share, and the trained values.

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
    chosen = spread_over(range(len(found)), _RINGS)
    plots = pyplot()
    figure = plots.figure(figsize=(10.5, 3.6 * len(chosen) + 0.3), layout="constrained")
    for part, number in zip(figure.subfigures(len(chosen), 1, squeeze=False)[:, 0], chosen, strict=True):
        ring, names = found[number]
        left, middle, right = part.subplots(1, 3, width_ratios=(0.75, 1.15, 1))
        _draw_uses(left, ring)
        colour_bar(part, _draw_overlap(middle, ring, names), middle, "right", "% of places in common")
        _draw_values(right, ring)
        which = f"ring {number + 1} of {len(found)}: " if len(found) > 1 else ""
        layers = f"{len(names)} layer{'s' * (len(names) > 1)}"
        part.suptitle(
            f"{title if number == chosen[0] else ''}{': ' if title and number == chosen[0] else ''}{which}"
            f"{len(ring.values):,} parameters read {sum(ring.sizes):,} times by {layers}",
            fontsize=10,
        )
    return arranged(figure)


def _draw_uses(axis: Any, ring: ParameterRing) -> None:
    uses = ring_usage(ring).bincount().numpy()
    axis.bar(range(len(uses)), 100 * uses / uses.sum(), color=BLUE, width=0.8)
    axis.set_xlim(uses.nonzero()[0].min() - 1.5, len(uses) + 0.5)
    axis.xaxis.set_major_locator(pyplot().MaxNLocator(6, integer=True))
    axis.grid(axis="x", visible=False)
    axis.set_axisbelow(True)
    axis.set_xlabel("uses of a parameter")
    axis.set_ylabel("% of parameters")


def _draw_overlap(axis: Any, ring: ParameterRing, names: Sequence[str]) -> Any:
    drawn = axis.imshow(100 * ring_overlap(ring).numpy(), cmap=MAPS, vmin=0, vmax=100, interpolation="nearest")
    axis.grid(False)
    axis.tick_params(labelsize=6, length=2)
    name_ticks(axis.yaxis, names)
    axis.set_xticks([])
    axis.set_xlabel("the same layers")
    return drawn


def _draw_values(axis: Any, ring: ParameterRing) -> None:
    """A histogram of the values, over the normal distribution that they were drawn from."""
    values = ring.values.detach().double().cpu().numpy()
    reach = max(abs(values).max(), 4 * ring.std)
    heights, edges = np.histogram(values, 80, (-reach, reach), density=True)
    now, before = f"now, standard deviation {values.std():.3g}", f"at the start, {ring.std:.3g}"
    axis.stairs(heights, edges, fill=True, color=BLUE, alpha=0.8, label=now)
    normal = np.exp(-0.5 * (edges / ring.std) ** 2) / (ring.std * (2 * np.pi) ** 0.5)
    axis.plot(edges, normal, color=VERMILION, linewidth=1.2, label=before)
    axis.set_xlabel("value")
    axis.set_ylabel("density")
    axis.set_ylim(top=1.3 * axis.get_ylim()[1])
    axis.legend(fontsize=8, frameon=False, loc="upper right")
