"""One look for every figure."""

from typing import Any

from pocketcnn._optional import optional_import


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
