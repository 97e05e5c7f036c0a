"""How deep which image goes in a net whose depth depends on the image, and the kernels that an ODE makes on the way."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn.methods.puppet import Puppeteer, PuppetStage, gauge_of, puppeteers_of
from pocketcnn.pictures.images import Images
from pocketcnn.pictures.panels import show_image, spread_over
from pocketcnn.support.modules import evaluating
from pocketcnn.support.plots import BLUE, VERMILION, pyplot

_MANY = 10_000  # images
_EXAMPLES = 8
_UNITS = {"entropy": "entropy, bits", "variance": "variance, share of the largest", "edges": "share of pixels on edges"}


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
    """Images by complexity: its histogram in each class, how many pass how many blocks, and the extremes.

    Args:
        images: [n, channels, height, width] as uint8, what the reader knows.
        x: the same images, normalised for the net.
        labels: the class of each, [n].
        classes: their names.
        net: with a gauge that measures images.
        title: above everything.
    Returns:
        A matplotlib figure.
    Raises:
        ValueError: the net's depth does not depend on its images, or on features that only it sees.
    """
    gauge = gauge_of(net)
    if gauge is None or gauge.measure not in _UNITS:
        raise ValueError(f"the depth of this {type(net).__name__} does not depend on what can be seen in its images")
    with evaluating(net):
        values = torch.cat([gauge.value(batch) for batch in x.split(500)]).float()
        levels = torch.cat([gauge.levels_of(batch) for batch in x.split(500)])
    plots = pyplot()
    figure = plots.figure(figsize=(10.5, 6.4), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1))
    left, right = above.subplots(1, 2, width_ratios=(1.5, 1))

    low, high = values.quantile(torch.tensor([0.002, 0.998])).tolist()
    grid = torch.linspace(low, high, 61)
    for place, name in enumerate(classes):
        heights = torch.histogram(values[labels == place], bins=grid)[0]
        shares = heights / heights.sum().clamp(min=1)
        smooth = F.avg_pool1d(shares[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
        left.plot(
            (grid[1:] + grid[:-1]) / 2,
            100 * smooth,
            label=name,
            linewidth=1.4,
            color=plots.get_cmap("tab10")(place % 10),
        )
    for level in range(1, gauge.levels):
        border = values[levels == level]
        if len(border):
            left.axvline(border.min().item(), color="0.5", linewidth=0.8, linestyle=":")
    left.set_xlabel(f"{_UNITS[gauge.measure]} (dotted: where the next level begins)")
    left.set_ylabel("% of the class's images")
    left.legend(fontsize=8, ncols=2 if len(classes) > 5 else 1, frameon=False)
    left.set_ylim(bottom=0)

    stages = [module for module in net.modules() if isinstance(module, PuppetStage)]
    depths = Counter(sum(stage.depth_of(level) for stage in stages) for level in levels.tolist())
    shown = sorted({sum(stage.depth_of(level) for stage in stages) for level in range(gauge.levels)})
    bars = right.bar([str(d) for d in shown], [100 * depths[d] / len(levels) for d in shown], color=BLUE, width=0.6)
    right.bar_label(bars, fmt="%.1f", fontsize=8)
    right.set_xlabel(f"blocks passed, of {sum(len(stage.blocks) for stage in stages)}")
    right.set_ylabel("% of the images")
    right.grid(axis="x", visible=False)
    right.set_axisbelow(True)

    order = values.argsort()
    axes = below.subplots(2, _EXAMPLES, squeeze=False)
    for row, (words, chosen) in enumerate(
        (("simplest", order[:_EXAMPLES]), ("most complex", order[-_EXAMPLES:].flip(0)))
    ):
        for axis, index in zip(axes[row], chosen.tolist(), strict=False):
            show_image(axis, images[index])
            axis.set_title(f"{values[index]:.2f}", fontsize=8, pad=2)
        axes[row, 0].text(-0.15, 0.5, words, transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_kernels(puppeteer: Puppeteer, *, title: str = "", channels: int = 6) -> Any:
    """The state of a puppeteer along its path, and how alike it and the kernels are from layer to layer.

    Args:
        puppeteer: of a net.
        title: above everything.
        channels: how many rows and columns of the state are shown, as kernels.
    Returns:
        A matplotlib figure.
    """
    with torch.no_grad():
        states = torch.stack([state.float() for state in puppeteer.trajectory(puppeteer.options.levels - 1)])
        kernels = list(puppeteer.kernels(puppeteer.options.levels - 1).values())
    count = len(states)
    chosen = spread_over(range(count), 8)
    plots = pyplot()
    figure = plots.figure(figsize=(10.5, 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.25))
    rows, columns = min(channels, puppeteer.rows), min(channels, puppeteer.columns)
    limit = float(states.abs().quantile(0.995)) if states.numel() < 2**24 else float(states.abs().max())
    for axis, place in zip(above.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        state = states[place].view(puppeteer.state_shape)[:rows, :columns]
        tiles = F.pad(state, (0, 1, 0, 1), value=float("nan"))  # a gap between neighbours
        image = tiles.permute(0, 2, 1, 3).reshape(rows * tiles.shape[2], -1)[:-1, :-1]
        drawn = axis.imshow(image.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"kernel {place + 1}", fontsize=9)
        axis.set_axis_off()
    bar = above.colorbar(drawn, ax=above.axes, location="right", shrink=0.8, aspect=14, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.ax.grid(False)
    above.suptitle(f"{title}{': ' if title else ''}a corner of the state, where kernels are read", fontsize=10)

    left, right = below.subplots(1, 2)
    flat = states.flatten(1)
    left.plot(range(1, count), F.cosine_similarity(flat[1:], flat[:-1]), label="state", color=BLUE)
    pairs = [
        (i + 1, F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item())
        for i, (a, b) in enumerate(pairwise(kernels))
        if a.shape == b.shape
    ]
    left.plot(
        [i for i, _ in pairs], [alike for _, alike in pairs], ".", label="kernels of equal shape", color=VERMILION
    )
    left.set_ylim(-0.3, 1.05)
    left.xaxis.set_major_locator(plots.MaxNLocator(integer=True))
    left.set_xlabel("from this kernel to the next")
    left.set_ylabel("cosine similarity")
    left.legend(fontsize=8, frameon=False)
    drawn = right.imshow(
        F.cosine_similarity(flat[:, None], flat[None], dim=2).numpy(),
        cmap="viridis",
        vmax=1,
        extent=(0.5, count + 0.5, count + 0.5, 0.5),
    )
    right.grid(False)
    right.set_xlabel("kernel")
    right.set_ylabel("kernel")
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(plots.MaxNLocator(integer=True))
    right.set_title("cosine similarity of the state", fontsize=9)
    below.colorbar(drawn, ax=right, shrink=0.85)
    return figure
