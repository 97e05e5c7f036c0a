"""Panels of a picture: maps, images, colour bars; and the writer of picture files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pocketcnn.support.files import make_folder, write_atomically
from pocketcnn.support.plots import arranged, pyplot, shortened, svg

PANEL = 1.55  # inches
_DPI = 200
MAPS, GREY, SPEED, SPREAD = "viridis", "gray", "magma", "cividis"
Item = TypeVar("Item")


def write_figure(figure: Any, folder: str | Path, name: str) -> list[Path]:
    """Writes a figure as PNG and as SVG, closes it, and returns both paths.

    Raises:
        CannotWrite: the folder is not writable.
    """
    folder = make_folder(Path(folder))
    png = io.BytesIO()
    arranged(figure).savefig(png, format="png", dpi=_DPI)
    files: dict[Path, bytes | str] = {
        folder / f"{name}.png": png.getvalue(),
        folder / f"{name}.svg": svg(figure, dpi=_DPI),
    }
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)


def spread_over(items: Sequence[Item], most: int) -> list[Item]:
    """Returns all items, or `most` of them, evenly spaced from the first to the last."""
    count = min(len(items), most)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def plane_of(maps: Tensor, channel: int | None, name: str) -> Tensor:
    """One channel of a batch of maps, [batch, height, width], or the mean over all.

    Raises:
        ValueError: there is no such channel.
    """
    if channel is None:
        return maps.mean(1)
    if not 0 <= channel < maps.shape[1]:
        raise ValueError(f"{name}: channel must lie in [0, {maps.shape[1]}), got {channel}")
    return maps[:, channel]


def limits_of(planes: Sequence[Tensor]) -> tuple[float, float]:
    """The smallest and the largest value."""
    return min(float(plane.min()) for plane in planes), max(float(plane.max()) for plane in planes)


def most_of(planes: Sequence[Tensor]) -> tuple[float, float]:
    """Limits without the most extreme hundredth of the values, so that a few pixels do not darken all others."""
    low, high = torch.stack(list(planes)).flatten().quantile(torch.tensor([0.005, 0.995])).tolist()
    return low, high


def show_plane(axis: Any, plane: Tensor, colours: str, limits: tuple[float, float]) -> Any:
    """Draws a plane [height, width] in a colour map between two limits."""
    axis.grid(False)
    axis.set_axis_off()
    low, high = limits
    low, high = (low, high) if high > low else (low - 1, high + 1)
    return axis.imshow(plane.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def show_image(axis: Any, image: Tensor) -> Any:
    """Draws an image [channels, height, width] of uint8, grey where it has one channel."""
    axis.grid(False)
    axis.set_axis_off()
    pixels = image.permute(1, 2, 0).numpy()
    grey = {"cmap": GREY, "vmin": 0, "vmax": 255} if pixels.shape[2] == 1 else {}
    return axis.imshow(pixels[..., 0] if grey else pixels, interpolation="nearest", **grey)


def colour_bar(
    figure: Any, drawn: Any, axes: Any, where: str, label: str = "", *, hidden: bool = False, extend: str = "neither"
) -> None:
    """Adds a colour bar. A hidden one only takes up its place, so that panels stay in line."""
    bar = figure.colorbar(
        drawn, ax=axes, location=where, shrink=0.85, aspect=14 if where == "bottom" else 22, pad=0.03, extend=extend
    )
    bar.ax.tick_params(labelsize=7, length=2)
    bar.ax.grid(False)
    bar.outline.set_visible(False)
    if hidden:
        bar.ax.clear()
        bar.ax.set_axis_off()
        return
    bar.locator = pyplot().MaxNLocator(3, steps=[1, 2, 5, 10])
    bar.update_ticks()
    if label:
        bar.set_label(label, fontsize=8)


NAMES = 24  # the most that are written along an axis
BATCH = 250  # images of a pass


def name_ticks(axis: Any, names: Sequence[str]) -> None:
    """Writes names along an axis of an image; of many names, every second or third only."""
    places = range(0, len(names), -(-len(names) // NAMES))
    axis.set_ticks(places, [shortened(names[place]) for place in places])
