"""Figures of the page of results, as SVG text."""

from collections.abc import Mapping, Sequence

from pocketcnn.support.plots import INK, PALETTE, log_axis, marker, pyplot, svg

_COLOURS = (INK, *PALETTE)  # the plain net comes first
Points = Mapping[str, tuple[float, float]]  # by name


def scatter(kinds: Mapping[str, Points], names: Sequence[str], title: str) -> str:
    """Draws accuracy in per cent against a cost: a colour for each name, a marker for each kind, published ones hollow."""
    plots = pyplot()
    figure, axes = plots.subplots(figsize=(7.6, 4.6), layout="constrained")
    names = [name for name in names if any(name in points for points in kinds.values())]
    for number, (kind, points) in enumerate(kinds.items()):
        sign, hollow = marker(number), kind.startswith("published")
        for name, (x, accuracy) in points.items():
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            axes.plot(
                x,
                accuracy,
                sign,
                color=colour,
                markerfacecolor="white" if hollow else colour,
                markersize=7,
                alpha=0.9,
            )
        axes.plot([], [], sign, color=INK, markerfacecolor="white" if hollow else INK, label=kind)
    for number, name in enumerate(names):
        axes.plot([], [], "-", color=_COLOURS[number % len(_COLOURS)], linewidth=5, label=name)
    log_axis(axes, decade=False)
    axes.set_xlabel(title)
    axes.set_ylabel("test accuracy in %")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return svg(figure)


def learning(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> str:
    """Draws validation accuracy in per cent after each epoch: a panel for each table, a line for each seed of a net."""
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
                    marker=marker(number), markersize=3.5, label=None if place else name,
                )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    for axes in grid[:, 0]:
        axes.set_ylabel("validation accuracy in %")
    return svg(figure)
