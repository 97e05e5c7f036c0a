"""The figure of a search: what accuracy costs in bytes and in milliseconds, and which nets are on the front."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pocketcnn.report.figures import _colour
from pocketcnn.support.plots import pyplot, short, svg

_AXES = (
    ("file_bytes", "max_bytes", "file size in bytes"),
    ("latency_ms", "max_ms", "latency in ms, one image, one thread"),
)
_MARKERS = "osD^vP"


def pareto(
    trials: Sequence[Mapping[str, Any]], front: Collection[int], budgets: Mapping[str, float | None], caption: str
) -> str:
    """Validation accuracy against bytes and against latency, as SVG text: every net that was trained, the front in full
    colour.

    A net's colour is that of the first of its methods, its marker says what follows. In each panel a line joins the nets
    that no other beats in this panel's two; the others of the front are beaten here, and not in the other panel.

    Args:
        trials: records of a search; those that were not trained to the end are passed over.
        front: numbers of the trials on the front.
        budgets: the limits, by name; None for none.
        caption: what is said below.
    """
    plots = pyplot()
    figure, panels = plots.subplots(1, 2, figsize=(9.2, 4.6), layout="constrained", sharey=True)
    done = [trial for trial in trials if trial["outcome"] == "trained"]
    kinds = sorted({_kind(trial) for trial in done}, key=lambda kind: (kind != "plain", kind))
    heads = [kind.partition("+")[0] for kind in kinds]
    styles = {
        kind: {"color": _colour(head), "marker": "*" if head == "plain" else _MARKERS[heads[:number].count(head)]}
        for number, (kind, head) in enumerate(zip(kinds, heads, strict=True))
    }
    for axes, (key, budget, title) in zip(panels, _AXES, strict=True):
        line = _staircase([(trial[key], 100 * trial["validation_accuracy"]) for trial in done])
        axes.plot(*zip(*line, strict=True), color="#888888", linewidth=1.2, zorder=1)
        for trial in sorted(done, key=lambda trial: trial["number"] in front):
            style, best = styles[_kind(trial)], trial["number"] in front
            axes.plot(
                trial[key], 100 * trial["validation_accuracy"], style["marker"], color=style["color"],
                markerfacecolor=style["color"] if best else "white", alpha=1.0 if best or style["marker"] == "*" else 0.55,
                markersize=12 if style["marker"] == "*" else 7.5, markeredgewidth=1.2, zorder=3 if best else 2,
            )  # fmt: skip
        if budgets.get(budget) is not None:
            axes.axvline(budgets[budget], color="#B00020", linewidth=1, linestyle="--", zorder=0)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticker = plots.matplotlib.ticker
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)) if high > 5 * low else ticker.MaxNLocator(6))
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlabel(title)
    # By the logarithm of the error: from 98 to 99 % is as far as from 80 to 90 %. The half keeps 100 % finite.
    panels[0].set_yscale("function", functions=(_by_error, lambda height: 100.5 - 10.0**-height))
    heights = [_by_error(100 * trial["validation_accuracy"]) for trial in done] or [0.0]
    margin = 0.06 * (max(heights) - min(heights)) + 0.01
    panels[0].set_ylim(100.5 - 10 ** (margin - min(heights)), 100.5 - 10 ** (-margin - max(heights)))
    panels[0].yaxis.set_major_locator(ticker.FixedLocator([0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 100]))
    panels[0].set_ylabel("validation accuracy in %")
    handles = [
        plots.Line2D([], [], linestyle="none", label=kind, markersize=11 if style["marker"] == "*" else 7.5, **style)
        for kind, style in styles.items()
    ]
    handles.append(
        plots.Line2D([], [], linestyle="none", marker="o", color="#222222", markerfacecolor="white", alpha=0.55,
                     label="not on the front")
    )  # fmt: skip
    handles.append(plots.Line2D([], [], color="#888888", linewidth=1.2, label="front of the panel"))
    if any(budgets.get(budget) is not None for _, budget, _ in _AXES):
        handles.append(plots.Line2D([], [], color="#B00020", linewidth=1, linestyle="--", label="budget"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    figure.supxlabel(textwrap.fill(caption, 120), fontsize=8, color="#555555")
    return svg(plots, figure)


def _kind(trial: Mapping[str, Any]) -> str:
    """`pde+ring`, or `plain`."""
    return "+".join(part["method"] for part in trial["parts"]) or "plain"


def _by_error(accuracy: Any) -> Any:
    return -np.log10(np.maximum(100.5 - accuracy, 0.1))


def _staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the line below which everything is beaten by a point that costs no more and is as accurate."""
    corners: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not corners:
            corners.append((cost, accuracy))
        elif accuracy > corners[-1][1]:
            corners += [(cost, corners[-1][1]), (cost, accuracy)]
    return corners
