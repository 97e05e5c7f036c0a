"""The depth of each image in a net whose depth depends on the image, and the kernels that an ODE makes on the way."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn.methods.puppet import Puppeteer, PuppetStage, gauge_of, puppeteers_of
from pocketcnn.pictures.images import Images
from pocketcnn.pictures.panels import MAPS, show_image, spread_over
from pocketcnn.support.modules import evaluating
from pocketcnn.support.plots import BLUE, VERMILION, arranged, pyplot, shortened

_MANY = 10_000  # images
_EXAMPLES = 8
_UNITS = {
    "entropy": "entropy, bits",
    "variance": "variance, share of the largest",
    "edges": "share of pixels on edges",
    "random": "hash of the pixels",
}


def draw(net: nn.Module, images: Images, title: str) -> Iterator[tuple[str, Any]]:
    """Yields names and figures: of the levels, where they depend on what can be seen, and of each puppeteer's kernels."""
    gauge = gauge_of(net)
    if gauge is not None and gauge.measure in _UNITS:
        yield f"levels-{title}", draw_levels(*images.labelled(_MANY), net, title=title)
    for number, puppeteer in enumerate(puppeteers_of(net)):
        yield f"kernels-{title}-{number}", draw_kernels(puppeteer, title=title)


def draw_levels(
    images: Tensor, x: Tensor, labels: Tensor, classes: Sequence[str], net: nn.Module, *, title: str = ""
) -> Any:
    """Draws images by complexity: its histogram in each class, how many images pass how many blocks, and the extremes.

    Args:
        images: [n, channels, height, width] as uint8, as a reader knows them.
        x: the same images, normalised for the net.
        labels: the class of each, [n].
        classes: their names.
        net: with a gauge that measures images.
        title: above everything.
    Returns:
        A matplotlib figure.
    Raises:
        ValueError: the net's depth does not depend on its images, or depends on features that only the net sees.
    """
    gauge = gauge_of(net)
    if gauge is None or gauge.measure not in _UNITS:
        raise ValueError(f"the depth of this {type(net).__name__} does not depend on what can be seen in its images")
    with evaluating(net):
        values = torch.cat([gauge.value(batch) for batch in x.split(500)]).float()
        levels = torch.cat([gauge.levels_of(batch) for batch in x.split(500)])
    figure = pyplot().figure(figsize=(10.5, 6.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1))
    left, right = above.subplots(1, 2, width_ratios=(1.5, 1))
    _draw_histograms(left, values, labels, classes)
    for level in range(1, gauge.levels):
        border = values[levels == level]
        if len(border):
            left.axvline(border.min().item(), color="0.5", linewidth=0.8, linestyle=":")
    left.set_xlabel(f"{_UNITS[gauge.measure]} (dotted: where the next level begins)")
    _draw_depths(right, net, levels, gauge.levels)
    _draw_extremes(below, images, values)
    figure.suptitle(title, fontsize=10)
    return arranged(figure)


def _draw_histograms(axis: Any, values: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """A smoothed histogram of the values in each class."""
    low, high = values.quantile(torch.tensor([0.002, 0.998])).tolist()
    grid = torch.linspace(low, high, 61)
    colours = pyplot().get_cmap("tab10")  # ten classes are common, more than the palette tells apart
    for place, name in enumerate(classes):
        heights = torch.histogram(values[labels == place], bins=grid)[0]
        shares = heights / heights.sum().clamp(min=1)
        smooth = F.avg_pool1d(shares[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
        axis.plot(
            (grid[1:] + grid[:-1]) / 2, 100 * smooth, label=shortened(name), linewidth=1.4, color=colours(place % 10)
        )
    axis.set_ylabel("% of the class's images")
    axis.legend(fontsize=8, ncols=2 if len(classes) > 5 else 1, frameon=False)
    axis.set_ylim(bottom=0)


def _draw_depths(axis: Any, net: nn.Module, levels: Tensor, num_levels: int) -> None:
    """A bar for each number of blocks: the share of images that pass so many."""
    stages = [module for module in net.modules() if isinstance(module, PuppetStage)]
    depths = [sum(stage.depth_of(level) for stage in stages) for level in range(num_levels)]
    counts = Counter(depths[level] for level in levels.tolist())
    shown = sorted(set(depths))
    bars = axis.bar([str(d) for d in shown], [100 * counts[d] / len(levels) for d in shown], color=BLUE, width=0.6)
    axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.set_xlabel(f"blocks passed, of {sum(len(stage.blocks) for stage in stages)}")
    axis.set_ylabel("% of the images")
    axis.grid(axis="x", visible=False)
    axis.set_axisbelow(True)


def _draw_extremes(figure: Any, images: Tensor, values: Tensor) -> None:
    """A row of the simplest images, and one of the most complex."""
    order = values.argsort()
    axes = figure.subplots(2, _EXAMPLES, squeeze=False)
    rows = (("simplest", order[:_EXAMPLES]), ("most complex", order[-_EXAMPLES:].flip(0)))
    for row, (words, chosen) in zip(axes, rows, strict=True):
        for axis, index in zip(row, chosen.tolist(), strict=False):
            show_image(axis, images[index])
            axis.set_title(f"{values[index]:.2f}", fontsize=8, pad=2)
        row[0].text(-0.15, 0.5, words, transform=row[0].transAxes, ha="right", va="center", fontsize=9)


def draw_kernels(puppeteer: Puppeteer, *, title: str = "", channels: int = 6) -> Any:
    """Draws the state of a puppeteer along its path, and how alike states and kernels are from layer to layer.

    Args:
        puppeteer: of a net.
        title: above everything.
        channels: rows and columns of the state that are shown, as kernels.
    Returns:
        A matplotlib figure.
    """
    with torch.no_grad():
        states = torch.stack([state.float() for state in puppeteer.trajectory(puppeteer.options.levels - 1)])
        kernels = list(puppeteer.kernels(puppeteer.options.levels - 1).values())
    figure = pyplot().figure(figsize=(10.5, 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    rows, columns = min(channels, puppeteer.rows), min(channels, puppeteer.columns)
    _draw_states(above, states.view(len(states), *puppeteer.state_shape)[:, :rows, :columns], _limit(states))
    above.suptitle(f"{title}{': ' if title else ''}a corner of the state, where kernels are read", fontsize=10)
    left, right = below.subplots(1, 2)
    _draw_steps(left, states.flatten(1), kernels)
    below.colorbar(_draw_alikeness(right, states.flatten(1)), ax=right, shrink=0.85)
    return arranged(figure)


def _limit(states: Tensor) -> float:
    """The end of the colour scale; quantiles of more than 2**24 numbers are not supported by torch."""
    return float(states.abs().quantile(0.995)) if states.numel() < 2**24 else float(states.abs().max())


def _draw_states(figure: Any, states: Tensor, limit: float) -> None:
    """Up to eight states [count, rows, columns, height, width] as tables of kernels."""
    chosen = spread_over(range(len(states)), 8)
    for axis, place in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        tiles = F.pad(states[place], (0, 1, 0, 1), value=float("nan"))  # a gap between neighbours
        image = tiles.permute(0, 2, 1, 3).reshape(tiles.shape[0] * tiles.shape[2], -1)[:-1, :-1]
        drawn = axis.imshow(image.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"kernel {place + 1}", fontsize=9)
        axis.set_axis_off()
    bar = figure.colorbar(drawn, ax=figure.axes, location="right", shrink=0.8, aspect=14, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.ax.grid(False)


def _draw_steps(axis: Any, states: Tensor, kernels: Sequence[Tensor]) -> None:
    """Cosine similarity of each state [count, n] and each kernel with the next one."""
    axis.plot(range(1, len(states)), F.cosine_similarity(states[1:], states[:-1]), label="state", color=BLUE)
    pairs = [
        (number, F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item())
        for number, (a, b) in enumerate(pairwise(kernels), start=1)
        if a.shape == b.shape
    ]
    places, alike = [place for place, _ in pairs], [value for _, value in pairs]
    axis.plot(places, alike, ".", label="kernels of equal shape", color=VERMILION)
    axis.set_ylim(-0.3, 1.05)
    axis.xaxis.set_major_locator(pyplot().MaxNLocator(integer=True))
    axis.set_xlabel("from this kernel to the next")
    axis.set_ylabel("cosine similarity")
    axis.legend(fontsize=8, frameon=False)


def _draw_alikeness(axis: Any, states: Tensor) -> Any:
    """The cosine similarity of all pairs of states [count, n]."""
    alike, end = F.cosine_similarity(states[:, None], states[None], dim=2).numpy(), len(states) + 0.5
    drawn = axis.imshow(alike, cmap=MAPS, vmax=1, extent=(0.5, end, end, 0.5))
    axis.grid(False)
    axis.set_xlabel("kernel")
    axis.set_ylabel("kernel")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(pyplot().MaxNLocator(integer=True))
    axis.set_title("cosine similarity of the state", fontsize=9)
    return drawn
