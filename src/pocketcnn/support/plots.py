"""One look for every figure."""

import io
from typing import Any

from pocketcnn.support.optional import optional_import


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


# Okabe and Ito's colours, told apart by most colour-blind readers; black is the plain net's.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP*X"


def short(value: float) -> str:
    """A number on an axis: 0.5, 20, 200 k, 5 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def svg(plots: Any, figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plots.close(figure)
    return text.getvalue()


def log_axis(plots: Any, axes: Any, formatter: Any) -> None:
    """A logarithmic x axis with ticks at 1, 2 and 5, over a decade at least."""
    ticker = plots.matplotlib.ticker
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.margins(x=0.08)
    low, high = axes.get_xlim()
    if high / low < 10:
        middle = (low * high) ** 0.5
        axes.set_xlim(middle / 10**0.5, middle * 10**0.5)
