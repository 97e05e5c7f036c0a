"""The kernels that involution layers make for each pixel."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from pocketcnn.methods.involution import Involution2d
from pocketcnn.pictures.images import Images
from pocketcnn.pictures.panels import (
    PANEL,
    SPEED,
    colour_bar,
    limits_of,
    show_image,
    show_plane,
    spread_over,
)
from pocketcnn.support.modules import at_inputs
from pocketcnn.support.plots import arranged, pyplot

_LAYERS, _GROUPS = 4, 4  # the most that are drawn


def draw(net: nn.Module, images: Images, title: str) -> Iterator[tuple[str, Any]]:
    """Yields the name and the figure of `draw_pixel_kernels` for the first image."""
    yield f"pixels-{title}", draw_pixel_kernels(net, images.pixels[0], images.x[:1], title=title)


def pixel_kernels(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The kernels of each involution layer, [batch, groups, taps, height, width], by the layer's name.

    Args:
        net: left as it was.
        x: a few normalised images; their kernels are many times larger.
    Raises:
        ValueError: the net has no involution layer.
    """
    layers = {name: layer.dense_weight for name, layer in net.named_modules() if isinstance(layer, Involution2d)}
    if not layers:
        raise ValueError(f"{type(net).__name__} has no involution layer")
    return {name: kernels.float() for name, kernels in at_inputs(net, x, layers).items()}


def draw_pixel_kernels(net: nn.Module, image: Tensor, x: Tensor, *, title: str = "") -> Any:
    """Draws the kernels of each pixel: a row for each of up to four layers, a column for each of up to four groups.

    A pixel shows the sum of its kernel's weights, as in the heat maps of the involution paper. Beside the image is the
    Euclidean norm of the kernels, as the mean over all groups.

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
    chosen = spread_over(list(kernels), _LAYERS)
    groups = {name: spread_over(range(kernels[name].shape[1]), _GROUPS) for name in chosen}
    columns = max(map(len, groups.values()))
    plots = pyplot()
    figure, axes = plots.subplots(
        len(chosen), columns + 2, figsize=(PANEL * (columns + 2) + 2.2, 0.97 * PANEL * len(chosen) + 0.6),
        squeeze=False, layout="constrained", gridspec_kw={"hspace": 0.02, "wspace": 0.02},
    )  # fmt: skip
    for row, name in zip(axes, chosen, strict=True):
        found = kernels[name][0]
        sums = found.sum(1)
        words = f"{name}\n{found.shape[0]} group{'s' * (found.shape[0] > 1)}\n{found.shape[1]} weights each"
        row[0].text(-0.08, 0.5, words, transform=row[0].transAxes, ha="right", va="center", fontsize=8)
        show_image(row[0], image)
        limit = float(sums[groups[name]].abs().max())
        norms = found.norm(dim=1).mean(0)
        colour_bar(figure, show_plane(row[1], norms, SPEED, limits_of([norms])), row[1], "left")
        for axis in row[2:]:
            axis.set_axis_off()
        for axis, group in zip(row[2:], groups[name], strict=False):
            drawn = show_plane(axis, sums[group], "RdBu_r", (-limit, limit))
            axis.set_title(f"group {group}", fontsize=8, pad=2)
        colour_bar(figure, drawn, row[2 : 2 + len(groups[name])], "left")
    axes[0, 0].set_title("image", fontsize=8, pad=2)
    axes[0, 1].set_title("norm", fontsize=8, pad=2)
    figure.suptitle(f"{title}{': ' if title else ''}norm and sum of each pixel's kernel", fontsize=10)
    return arranged(figure)
