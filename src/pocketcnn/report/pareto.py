"""The figure of a search: accuracy against bytes and milliseconds, and the nets on the front."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pocketcnn.report.figures import method_colour
from pocketcnn.support.plots import INK, MARKERS, log_axis, pyplot, svg

_AXES = (
    ("file_bytes", "max_bytes", "file size in bytes"),
    ("latency_ms", "max_ms", "latency in ms, one image, one thread"),
)
_PLAIN = "*"
_MARKERS = MARKERS.replace(_PLAIN, "")
_LINE, _BUDGET = {"color": "#888888", "linewidth": 1.2}, {"color": "#B00020", "linewidth": 1, "linestyle": "--"}
Trial = Mapping[str, Any]
Style = Mapping[str, str]


def pareto(trials: Sequence[Trial], front: Collection[int], budgets: Mapping[str, float | None], caption: str) -> str:
    """Draws validation accuracy against bytes and against latency, as SVG text: every trained net, the front in full colour.

    A net's colour is that of its first method; its marker tells the nets of one colour apart. In each panel a line joins
    the nets that no other net beats in this panel's two quantities. Nets of the front off this line are on the line of the
    other panel.

    Args:
        trials: records of a search; those that were not trained to the end are skipped.
        front: numbers of the trials on the front.
        budgets: the limits, by name; None for no limit.
        caption: the text below the panels.
    """
    plots = pyplot()
    figure, panels = plots.subplots(1, 2, figsize=(9.2, 4.6), layout="constrained", sharey=True)
    done = [trial for trial in trials if trial["outcome"] == "trained"]
    styles = _styles(done)
    for axes, (key, budget, title) in zip(panels, _AXES, strict=True):
        _panel(axes, done, front, key, styles)
        if budgets.get(budget) is not None:
            axes.axvline(budgets[budget], zorder=0, **_BUDGET)
        log_axis(axes, decade=False)
        axes.set_xlabel(title)
    _accuracy_axis(panels[0], [100 * trial["validation_accuracy"] for trial in done])
    limited = any(budgets.get(budget) is not None for _, budget, _ in _AXES)
    figure.legend(handles=_legend(styles, limited), loc="outside right upper", frameon=False, fontsize=8)
    figure.supxlabel(textwrap.fill(caption, 120), fontsize=8, color="#555555")
    return svg(figure)


def _styles(trials: Sequence[Trial]) -> dict[str, Style]:
    """Colour and marker of each kind of net, the plain one first."""
    kinds = sorted({_kind(trial) for trial in trials}, key=lambda kind: (kind != "plain", kind))
    heads = [kind.partition("+")[0] for kind in kinds]
    return {
        kind: {
            "color": method_colour(head),
            "marker": _PLAIN if head == "plain" else _MARKERS[heads[:number].count(head) % len(_MARKERS)],
        }
        for number, (kind, head) in enumerate(zip(kinds, heads, strict=True))
    }


def _panel(axes: Any, trials: Sequence[Trial], front: Collection[int], key: str, styles: Mapping[str, Style]) -> None:
    """Draws the nets, those of the front over the others, and the line of this panel."""
    line = _staircase([(trial[key], 100 * trial["validation_accuracy"]) for trial in trials])
    axes.plot(*zip(*line, strict=True), zorder=1, **_LINE)
    for trial in sorted(trials, key=lambda trial: trial["number"] in front):
        style, best = styles[_kind(trial)], trial["number"] in front
        axes.plot(
            trial[key], 100 * trial["validation_accuracy"], style["marker"], color=style["color"],
            markerfacecolor=style["color"] if best else "white", markersize=_size(style), markeredgewidth=1.2,
            alpha=1.0 if best or style["marker"] == _PLAIN else 0.55, zorder=3 if best else 2,
        )  # fmt: skip


def _size(style: Style, star: float = 12) -> float:
    return star if style["marker"] == _PLAIN else 7.5


def _accuracy_axis(axes: Any, accuracies: Sequence[float]) -> None:
    """Scales accuracy by the logarithm of the error: from 98 to 99 % is as far as from 80 to 90 %."""
    axes.set_yscale("function", functions=(_by_error, lambda height: 100.5 - 10.0**-height))
    heights = [_by_error(accuracy) for accuracy in accuracies] or [0.0]
    margin = 0.06 * (max(heights) - min(heights)) + 0.01
    axes.set_ylim(100.5 - 10 ** (margin - min(heights)), 100.5 - 10 ** (-margin - max(heights)))
    ticker = pyplot().matplotlib.ticker
    axes.yaxis.set_major_locator(ticker.FixedLocator([0, 20, 40, 60, 70, 80, 85, 90, 93, 95, 97, 98, 99, 100]))
    axes.set_ylabel("validation accuracy in %")


def _by_error(accuracy: Any) -> Any:
    return -np.log10(np.maximum(100.5 - accuracy, 0.1))  # the half keeps 100 % finite


def _legend(styles: Mapping[str, Style], limited: bool) -> list[Any]:
    """Lists what each marker and line stands for."""
    line = pyplot().Line2D
    handles = [
        line([], [], linestyle="none", label=kind, markersize=_size(style, 11), **style)
        for kind, style in styles.items()
    ]
    handles += [
        line([], [], linestyle="none", marker="o", color=INK, markerfacecolor="white", alpha=0.55, label="not on the front"),
        line([], [], label="front of the panel", **_LINE),
    ]  # fmt: skip
    return [*handles, line([], [], label="budget", **_BUDGET)] if limited else handles


def _kind(trial: Trial) -> str:
    """The methods of a net: `pde+ring`, or `plain`."""
    return "+".join(part["method"] for part in trial["parts"]) or "plain"


def _staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the line of a panel: each point below it is beaten by one that costs no more and is as accurate."""
    corners: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not corners:
            corners.append((cost, accuracy))
        elif accuracy > corners[-1][1]:
            corners += [(cost, corners[-1][1]), (cost, accuracy)]
    return corners
