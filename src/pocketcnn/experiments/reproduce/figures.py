"""Figures of the page of results, as SVG text."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from pocketcnn.support.plots import pyplot

_COLOURS = (
    "#222222",
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#999999",
    "#882255",
)  # as in reports
_MARKERS = "osD^vP*X"
Points = Mapping[str, tuple[float, float]]  # by name


def scatter(kinds: Mapping[str, Points], names: Sequence[str], title: str) -> str:
    """Accuracy in per cent against a number: a colour for each name, a marker for each kind, published ones hollow."""
    plots = pyplot()
    figure, axes = plots.subplots(figsize=(7.6, 4.6), layout="constrained")
    names = [name for name in names if any(name in points for points in kinds.values())]
    for number, (kind, points) in enumerate(kinds.items()):
        marker, hollow = _MARKERS[number % len(_MARKERS)], kind.startswith("published")
        for name, (x, accuracy) in points.items():
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            axes.plot(
                x,
                accuracy,
                marker,
                color=colour,
                markerfacecolor="white" if hollow else colour,
                markersize=7,
                alpha=0.9,
            )
        axes.plot([], [], marker, color="#222222", markerfacecolor="white" if hollow else "#222222", label=kind)
    for number, name in enumerate(names):
        axes.plot([], [], "-", color=_COLOURS[number % len(_COLOURS)], linewidth=5, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(plots.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(plots.matplotlib.ticker.EngFormatter(sep=" "))
    axes.xaxis.set_minor_formatter(plots.matplotlib.ticker.NullFormatter())
    axes.set_xlabel(title)
    axes.set_ylabel("test accuracy in %")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return svg(plots, figure)


def learning(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    """Validation accuracy in per cent after each epoch, a panel for each table, a line for each seed of a net."""
    plots = pyplot()
    rows = (len(panels) + 1) // 2
    figure, grid = plots.subplots(
        rows, min(2, len(panels)), figsize=(4.4 * min(2, len(panels)), 3.6 * rows), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, nets) in zip(grid.flat, panels.items(), strict=False):
        for number, (name, curves) in enumerate(nets.items()):
            for place, curve in enumerate(curves):
                axes.plot(
                    range(1, len(curve) + 1), curve, color=_COLOURS[number % len(_COLOURS)], linewidth=1.2,
                    marker=_MARKERS[number % len(_MARKERS)], markersize=3.5, label=None if place else name,
                )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    for axes in grid[:, 0]:
        axes.set_ylabel("validation accuracy in %")
    return svg(plots, figure)


def svg(plots: Any, figure: Any) -> str:
    """The same text for the same figure, always; closes it."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plots.close(figure)
    return text.getvalue()
