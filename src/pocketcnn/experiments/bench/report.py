"""The records of a benchmark as tables in Markdown, goals first, and as a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pocketcnn.experiments.bench.goals import Goal
from pocketcnn.experiments.bench.layers import LayerRecord
from pocketcnn.experiments.bench.limits import Machine
from pocketcnn.experiments.bench.nets import NetRecord
from pocketcnn.experiments.bench.settings import Settings
from pocketcnn.support.plots import BLUE, INK, ORANGE, SKY, VERMILION, pyplot, svg
from pocketcnn.support.tables import markdown_table


@dataclass(frozen=True)
class Results:
    """All measurements of a benchmark, and the machine that it ran on."""

    environment: Mapping[str, Any]
    settings: Settings
    machine: Machine
    goals: tuple[Goal, ...]
    nets: tuple[NetRecord, ...]
    layers: tuple[LayerRecord, ...]


def markdown(results: Results) -> str:
    """Writes the machine, and the goals, nets and layers that were measured, as Markdown."""
    found, machine = results.environment, results.machine
    rates = ", ".join(f"{rate / 1e9:,.0f} G {dtype}" for dtype, rate in machine.products_per_second.items())
    largest = machine.bytes_per_second[max(machine.bytes_per_second)]
    parts = [
        f"{found['processor']}, {found['threads']} threads, torch {found['packages']['torch']}.",
        f"Limits: copies of {largest / 1e9:.1f} GB/s in memory; multiply-adds a second: {rates} in matrix products, "
        f"{machine.elementwise_per_second / 1e9:,.0f} G number by number. Times and ratios are medians over rounds in turns.",
    ]
    if results.goals:
        parts += ["## Goals", _goals(results.goals)]
    if results.nets:
        parts += ["## Nets", _nets(results.nets)]
    if results.layers:
        parts += ["## Layers, milliseconds", _layers(results.layers)]
    return "\n\n".join(parts) + "\n"


def _goals(goals: Sequence[Goal]) -> str:
    rows = []
    for goal in goals:
        bounds = [f"{word} {bound:g} {goal.unit}" for word, bound in (("≥", goal.least), ("≤", goal.most)) if bound]
        outcome = {True: "met", False: "**missed**", None: ""}[goal.met]
        rows.append((goal.what, f"{goal.measured:.3g} {goal.unit}", *(bounds or [""]), outcome, goal.note))
    return markdown_table(("what", "measured", "goal", "", "how"), rows, "lrrll")


def _nets(records: Sequence[NetRecord]) -> str:
    rows = []
    for r in records:
        speed = f"{r.images_per_second.median:,.0f}"
        failures = "; ".join(f"{t.configuration}: {t.failure}" for t in r.trials if t.failure)
        memory = f"{r.peak_bytes / 1e6:,.1f}"
        rows.append(
            (r.name, r.mode, str(r.batch), speed, f"{r.speed.median:.2f}x", memory, str(r.configuration), failures)
        )
    header = ("net", "", "batch", "images/s", "of the plain net's", "peak MB", "best configuration", "failed")
    return markdown_table(header, rows, "llrrrrll")


def _layers(records: Sequence[LayerRecord]) -> str:
    header = ("layer", "dtype", "pass", "obvious", "compiled", "ours", "conv", "limit", "ours / obvious", "/ compiled",
              "/ conv", "/ limit")  # fmt: skip
    rows = []
    for r in records:
        times = [r.sides[name].median if name in r.sides else None for name in ("obvious", "compiled", r.ours, r.conv)]
        ratios = [
            r.ratios[name].median if name in r.ratios else None for name in ("obvious", "compiled", r.conv, "limit")
        ]
        where = f"{r.method} {'x'.join(map(str, r.shape))}"
        cells = [*map(_number, (*times, r.limit.ms)), *map(_number, ratios)]
        rows.append((where, r.dtype, r.passes, *cells))
    return markdown_table(header, rows, "lll" + "r" * 9)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


_MARKS = {"obvious": ("o", VERMILION), "compiled": ("s", ORANGE), "conv": ("D", INK)}


def figure(records: Sequence[LayerRecord]) -> str:
    """Draws a bar for each layer, in float32 and for batches: our time, with marks for the limit and for the other sides."""
    plots = pyplot()
    passes = list(dict.fromkeys(r.passes for r in records))
    shown = [r for r in records if r.dtype == "float32" and r.shape[0] > 1]
    names = list(dict.fromkeys((r.method, r.shape) for r in shown))
    drawn, axes = plots.subplots(
        1, max(1, len(passes)), figsize=(10, 1.6 + 0.28 * len(names)), layout="constrained", sharey=True, squeeze=False
    )
    for axis, title in zip(axes[0], passes, strict=False):
        for r in (r for r in shown if r.passes == title):
            place = names.index((r.method, r.shape))
            axis.barh(place, r.sides[r.ours].median, color=SKY, height=0.7)
            axis.plot([r.limit.ms] * 2, [place - 0.35, place + 0.35], color=BLUE, linewidth=2.5)
            for name, (marker, colour) in _MARKS.items():
                side = r.conv if name == "conv" else name
                if side in r.sides:
                    axis.plot(r.sides[side].median, place, marker, color=colour, markersize=4)
        axis.set(title=title, xlabel="milliseconds", xscale="log")
        axis.set_yticks(range(len(names)), [f"{method}, {'x'.join(map(str, shape))}" for method, shape in names])
    axes[0][0].invert_yaxis()
    handles = [plots.Rectangle((0, 0), 1, 1, color=SKY), plots.Line2D([], [], color=BLUE, linewidth=2.5)]
    handles += [plots.Line2D([], [], marker=m, color=c, linestyle="none", markersize=4) for m, c in _MARKS.values()]
    labels = ["ours", "limit of the machine", "obvious", "compiled", "3x3 convolution (of puppet: the plain stage)"]
    drawn.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return svg(drawn)
