"""The look that all figures share: fonts, colours, markers, logarithmic axes, and the text of SVG files."""

import io
from collections.abc import Callable
from typing import Any

from pocketcnn.support.optional import optional_import

# The first six are Okabe and Ito's, which most colour-blind readers can tell apart.
BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, "#999999", "#882255")
MARKERS = "osD^vP*X"
INK = "#222222"  # the plain net, and whatever belongs to no series


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into files, with the fonts, lines and ids that all figures share."""
    matplotlib = optional_import("matplotlib", extra="train", purpose="figures")
    matplotlib.use("Agg")
    plots = optional_import("matplotlib.pyplot", extra="train", purpose="figures")
    optional_import("matplotlib.ticker", extra="train", purpose="figures")
    plots.rcParams.update(
        {
            "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
            "grid.alpha": 0.25, "svg.fonttype": "path", "svg.hashsalt": "pocketcnn", "figure.dpi": 100,
        }
    )  # fmt: skip
    return plots


def colour(place: int) -> str:
    """Colour of the series at a place; they repeat after eight."""
    return PALETTE[place % len(PALETTE)]


def marker(place: int) -> str:
    """Marker of the series at a place; they repeat after eight."""
    return MARKERS[place % len(MARKERS)]


def short(value: float, position: int | None = None) -> str:
    """A number on an axis: 0.5, 20, 200 k, 5 M. matplotlib also passes the tick's position, which is not used."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def log_axis(axes: Any, words: Callable[[float, int | None], str] = short, *, decade: bool = True) -> None:
    """Makes the x axis logarithmic, with ticks at 1, 2 and 5.

    Args:
        axes: with everything drawn.
        words: the label of a tick.
        decade: widens an axis that spans less than a decade, so that it has ticks to read. Without it, an axis of a
            factor of 5 or less has evenly spaced ticks instead.
    """
    ticker = pyplot().matplotlib.ticker
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    narrow = high <= 5 * low and not decade
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6) if narrow else ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(words)
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    if decade and high / low < 10:
        middle = (low * high) ** 0.5
        axes.set_xlim(middle / 10**0.5, middle * 10**0.5)


def svg(figure: Any, *, dpi: float | str = "figure") -> str:
    """The text of a figure as an SVG file, always the same for the same figure; closes the figure.

    Args:
        figure: of matplotlib.
        dpi: pixels an inch of the images inside.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, dpi=dpi)
    pyplot().close(figure)
    return text.getvalue()
