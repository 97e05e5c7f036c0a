"""Figures of a comparison, as SVG text: accuracy against cost, and accuracy against epochs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pocketcnn.methods import METHODS
from pocketcnn.report.tables import Summary
from pocketcnn.support.plots import INK, colour, log_axis, marker, pyplot, svg

_LINE = 84  # characters of a legend's line across a figure
_AXES = (
    ("file_bytes", "file size in bytes"),
    ("macs", "multiply-adds per image"),
    ("latency_ms", "latency in ms, one image"),
)


def method_colour(method: str) -> str:
    """The colour of a method, by its place in the registry, so that a method added at its end changes no other's; grey for others."""
    if method in METHODS:
        return colour(list(METHODS).index(method))
    return INK if method == "plain" else "#999999"


def _styles(summaries: Sequence[Summary]) -> dict[str, dict[str, Any]]:
    """Colour by method, marker by place among the nets of one colour; rivals are hollow, in the colour of their small net."""
    styles: dict[str, dict[str, Any]] = {}
    used: dict[str, int] = {}
    for summary in summaries:
        if summary.rival_of:
            base = styles.get(summary.rival_of, {"color": INK, "marker": marker(0)})
            styles[summary.label] = {**base, "hollow": True}
        else:
            number = used.setdefault(summary.method, 0)
            used[summary.method] += 1
            styles[summary.label] = {
                "color": method_colour(summary.method),
                "marker": marker(number),
                "hollow": False,
            }
    return styles


def tradeoffs(summaries: Sequence[Summary]) -> list[str]:
    """Draws accuracy against bytes, multiply-adds and latency: three SVG texts, small enough to be read on a phone.

    A line joins each small net to the plain net of its size. Bars are one standard deviation over the seeds.
    """
    plots, styles = pyplot(), _styles(summaries)
    by_label = {summary.label: summary for summary in summaries}
    figures = []
    for key, title in _AXES:
        figure, axes = plots.subplots(figsize=(5.2, 4.4), layout="constrained")
        for summary in summaries:
            style = styles[summary.label]
            axes.errorbar(
                summary.values[key], 100 * summary.accuracy, 100 * summary.spread, color=style["color"],
                marker=style["marker"], markersize=8, capsize=2, linewidth=1, linestyle="none",
                markerfacecolor="white" if style["hollow"] else style["color"], label=_legend(summary),
            )  # fmt: skip
            small = by_label.get(summary.rival_of)
            if small is not None:
                axes.plot(
                    [small.values[key], summary.values[key]], [100 * small.accuracy, 100 * summary.accuracy],
                    color=style["color"], linewidth=0.8, linestyle=":",
                )  # fmt: skip
        log_axis(axes)
        axes.set_xlabel(title)
        axes.set_ylabel("test accuracy in %")
        _legend_below(figure, summaries)
        figures.append(svg(figure))
    return figures


def learning_curves(summaries: Sequence[Summary], curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draws the validation accuracy after each epoch: the mean over the seeds, with their range shaded.

    Args:
        summaries: the nets, in order.
        curves: for each label, a curve of accuracies in [0, 1] per seed.
    """
    plots, styles = pyplot(), _styles(summaries)
    figure, axes = plots.subplots(figsize=(5.2, 4.6), layout="constrained")
    for summary in summaries:
        runs = curves.get(summary.label, [])
        if not runs:
            continue
        length = min(map(len, runs))
        accuracy = 100 * np.array([run[:length] for run in runs])
        epochs, style = np.arange(1, length + 1), styles[summary.label]
        dashes = "--" if style["hollow"] else "-"
        axes.plot(
            epochs, accuracy.mean(0), dashes, color=style["color"], marker=style["marker"], markersize=4,
            markerfacecolor="white" if style["hollow"] else style["color"], linewidth=1.3, label=_legend(summary),
        )  # fmt: skip
        if len(runs) > 1 and not style["hollow"]:
            axes.fill_between(epochs, accuracy.min(0), accuracy.max(0), color=style["color"], alpha=0.12, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy in %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend_below(figure, summaries)
    return svg(figure)


def _legend_below(figure: Any, summaries: Sequence[Summary]) -> None:
    """Adds a legend of two columns, or of one if the names are too long."""
    longest = max(len(line) for summary in summaries for line in _legend(summary).splitlines())
    figure.legend(loc="outside lower center", ncols=2 if longest <= _LINE / 2 else 1, frameon=False, fontsize=8)


def _legend(summary: Summary) -> str:
    """The name of a net in the legend; a long list of options is broken at its commas."""
    label = f"plain, size of {summary.rival_of.split(' ', 1)[-1]}" if summary.rival_of else summary.label
    lines = [""]
    for part in re.split("(?<=,)", label):
        if lines[-1] and len(lines[-1]) + len(part) > _LINE:
            lines.append(part)
        else:
            lines[-1] += part
    return "\n".join(lines)
