"""The similarity of the maps of nets, and of the filters in their layers; and accuracy against the number of parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pocketcnn.numerics import centred_gram, correlated_filters, filter_correlations, kernel_alignment, log_linear_fit
from pocketcnn.pictures.panels import BATCH, MAPS, colour_bar, name_ticks
from pocketcnn.pictures.stations import feature_maps
from pocketcnn.support.modules import evaluating
from pocketcnn.support.plots import INK, arranged, colour, log_axis, marker, pyplot, shortened
from pocketcnn.support.protocols import MakesKernel

_FEW = 14  # the most points that have their values beside them
_CHANCE = 4  # standard deviations of r between random filters


def station_grams(net: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Centred Gram matrices of the features at the stations of a net, [n, n] in float64, by the stations' names.

    The features of an image are all values of its map, channels * height * width, as in Kornblith et al.

    Args:
        net: left as it was.
        x: n normalised images, at least 2; their maps are held all at once.
        names: of modules that give maps; None for those of `stations`.
    Raises:
        ValueError: fewer than 2 images, or as in `feature_maps`.
    Cost: n² multiply-adds for each value of an image's maps.
    """
    maps = [feature_maps(net, batch, names) for batch in x.split(BATCH)]
    return {name: centred_gram(torch.cat([batch[name].flatten(1) for batch in maps])) for name in maps[0]}


def similarity(
    net_a: nn.Module,
    net_b: nn.Module,
    x: Tensor,
    names_a: Sequence[str] | None = None,
    names_b: Sequence[str] | None = None,
) -> Tensor:
    """Computes the linear CKA of the maps of two nets: a row for each station of the first, a column for each of the second.

    Args:
        net_a: left as it was; so is `net_b`.
        net_b: may be the same net.
        x: normalised images; a few hundred are enough.
        names_a: of modules of the first net that give maps; None for those of `stations`.
        names_b: of the second.
    Raises:
        ValueError: as in `station_grams`.
    """
    return alignments(station_grams(net_a, x, names_a), station_grams(net_b, x, names_b))


def alignments(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """Computes the matrix of `similarity` from two results of `station_grams`, each of which can serve several comparisons."""
    return torch.tensor([[kernel_alignment(mine, other) for other in b.values()] for mine in a.values()])


def same_stations(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """Computes the linear CKA at the stations that both nets have, by name, in the order of the first net."""
    return {name: kernel_alignment(a[name], b[name]) for name in a if name in b}


def draw_similarity(grams: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """Draws the CKA of each net with itself above; below, of each other net with the first, and at the stations they share.

    Args:
        grams: by the net's title, the results of `station_grams` for the same images; the first net is the reference.
    Returns:
        A matplotlib figure.
    """
    titles = list(grams)
    reference, *others = titles
    most = max(map(len, grams.values()))
    plots = pyplot()
    side = min(max(0.17 * most, 2.2), 4.2)
    figure, axes = plots.subplots(
        2 if others else 1, len(titles), squeeze=False, layout="constrained",
        figsize=((side + 0.75) * len(titles) + 0.8, (side + 0.95) * (2 if others else 1)),
    )  # fmt: skip
    for axis, title in zip(axes[0], titles, strict=True):
        drawn = _matrix(axis, grams[title], grams[title])
        axis.set_title(f"{shortened(title)} with itself", fontsize=9)
    if others:
        lines = axes[1, 0]
        stations = list(grams[reference])
        for place, title in enumerate(others):
            shared = same_stations(grams[reference], grams[title])
            lines.plot(
                [stations.index(name) for name in shared], list(shared.values()), f"{marker(place)}-",
                color=colour(place), markersize=4, linewidth=1.2, label=shortened(title),
            )  # fmt: skip
        name_ticks(lines.xaxis, stations)
        lines.tick_params(axis="x", labelrotation=90, labelsize=7)
        lines.tick_params(axis="y", labelsize=7)
        lines.set_xlim(-0.5, len(stations) - 0.5)
        lines.set_ylim(top=1.01)
        lines.set_box_aspect(1)
        lines.set_title(f"the same place as in {shortened(reference)}", fontsize=9)
        lines.legend(fontsize=7, frameon=False, loc="best")
    for axis, title in zip(axes[-1, 1:], others, strict=True):
        _matrix(axis, grams[reference], grams[title])
        axis.set_title(f"{shortened(title)} with {shortened(reference)}", fontsize=9)
        axis.set_ylabel(shortened(reference), fontsize=8)
        axis.set_xlabel(shortened(title), fontsize=8)
    colour_bar(figure, drawn, axes, "right", "linear CKA")
    return arranged(figure)


def _matrix(axis: Any, rows: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> Any:
    drawn = axis.imshow(alignments(rows, columns).numpy(), cmap=MAPS, vmin=0, vmax=1, interpolation="nearest")
    axis.grid(False)
    axis.tick_params(labelsize=7, length=2)
    axis.tick_params(axis="x", labelrotation=90)
    name_ticks(axis.yaxis, list(rows))
    name_ticks(axis.xaxis, list(columns))
    return drawn


def layer_kernels(net: nn.Module) -> dict[str, Tensor]:
    """Kernels [out_channels, ...] that are the same for all images, by the layers' names: stored or generated.

    Layers whose kernel depends on the image are left out, and so are convolutions that make the kernel of another layer.
    Where kernels depend on a level, they are those of the highest level.
    """
    makers = {name: layer for name, layer in net.named_modules() if isinstance(layer, MakesKernel)}
    kernels = {}
    with evaluating(net):
        for name, layer in net.named_modules():
            if name in makers and not getattr(layer, "why_not_dense", ""):
                kernels[name] = makers[name].dense_weight()
            elif isinstance(layer, nn.Conv2d) and not any(name.startswith(f"{maker}.") for maker in makers):
                kernels[name] = layer.weight.detach()
    return kernels


def filter_similarity(net: nn.Module, threshold: float) -> tuple[float, float] | None:
    """Measures how alike the filters within the layers of a net are.

    The r of two random filters of n weights has a standard deviation of 1 / sqrt(n). Layers of `layer_kernels` whose
    threshold is below four such deviations are left out: their filters could be alike by chance.

    Args:
        net: left as it was.
        threshold: the least |r| at which a filter counts as correlated with another one of its layer, in (0, 1).
    Returns:
        The share of filters that are correlated with another one, and the mean |r| of all pairs in one layer; None for
        a net without such layers.
    Raises:
        ValueError: a threshold out of range.
    """
    counted = [(kernel, correlated_filters(kernel, threshold)) for kernel in layer_kernels(net).values()]
    counted = [(k, n) for k, n in counted if len(k) > 1 and k[0].numel() * threshold**2 >= _CHANCE**2]
    if not counted:
        return None
    strength = sum(float(filter_correlations(kernel).abs().triu(1).sum()) for kernel, _ in counted)
    pairs = sum(len(kernel) * (len(kernel) - 1) // 2 for kernel, _ in counted)
    return sum(count for _, count in counted) / sum(len(kernel) for kernel, _ in counted), strength / pairs


def draw_correlated(
    series: Mapping[str, Sequence[tuple[float, float]]], *, plain: float | None = None, threshold: float
) -> Any:
    """Draws the share of correlated filters against the size of the ring.

    Args:
        series: by title, pairs of a ring's size, as a fraction of the weights read, and a share in [0, 1].
        plain: the plain net's share, drawn as a horizontal line.
        threshold: the least |r| of correlated filters, for the label.
    Returns:
        A matplotlib figure.
    """
    plots = pyplot()
    figure, axes = plots.subplots(figsize=(5.2, 4.0), layout="constrained")
    for place, (title, points) in enumerate(series.items()):
        sizes, shares = zip(*sorted(points), strict=True)
        axes.plot(sizes, [100 * share for share in shares], f"{marker(place)}-", color=colour(place), label=title)
    if plain is not None:
        axes.axhline(100 * plain, color=INK, linewidth=1, linestyle="--", label="plain")
    axes.margins(x=0.08)
    log_axis(axes, lambda value, _: f"{100 * value:.3g}%")
    top = max(axes.get_ylim()[1], 1.0)
    axes.set_ylim(-0.03 * top, top)  # shows the whole marker of a share of 0
    axes.set_xlabel("size of the ring, as a share of the weights read off it")
    axes.set_ylabel(f"% of filters with |r| ≥ {threshold:g}\nto another one of the layer")
    axes.legend(fontsize=8, frameon=False)
    return arranged(figure)


def draw_law(
    series: Mapping[str, Sequence[tuple[float, float]]], *, fitted: Sequence[str] = (), unit: str = "stored parameters"
) -> Any:
    """Draws accuracy against the number of stored parameters, and the log-linear law that some series follow.

    Args:
        series: by title, pairs of a number of stored parameters and an accuracy in [0, 1]. If the points are few, each
            accuracy is written beside its point.
        fitted: titles of the series whose law is fitted and drawn, each of at least 3 points; the points of the other
            series are joined.
        unit: the label of the x axis.
    Returns:
        A matplotlib figure.
    Raises:
        ValueError: a title in `fitted` names no series, or as in `log_linear_fit`.
    """
    if unknown := [title for title in fitted if title not in series]:
        raise ValueError(f"no series {unknown[0]!r} to fit; there are {', '.join(series)}")
    plots = pyplot()
    figure, axes = plots.subplots(figsize=(6.2, 4.6), layout="constrained")
    few = sum(map(len, series.values())) <= _FEW
    for place, (title, points) in enumerate(series.items()):
        own = colour(place)
        counts, accuracies = zip(*sorted(points), strict=True)
        label = title
        if title in fitted:
            law = log_linear_fit(counts, [100 * accuracy for accuracy in accuracies])
            label = f"{title}: {law.slope:+.1f} points a decade, R² {law.r_squared:.3f}"
            ends = np.array([counts[0], counts[-1]], dtype=float)
            axes.plot(ends, law.intercept + law.slope * np.log10(ends), color=own, linewidth=1.2)
        axes.plot(
            counts, [100 * accuracy for accuracy in accuracies], marker(place), color=own, label=label,
            markerfacecolor=own if title in fitted else "white",
            linestyle="none" if title in fitted else ":", linewidth=0.8,
        )  # fmt: skip
        for count, accuracy in zip(counts, accuracies, strict=True) if few else ():
            axes.annotate(
                f"{100 * accuracy:.1f}", (count, 100 * accuracy), (0, 6 if place % 2 == 0 else -13),
                textcoords="offset points", ha="center", fontsize=7, color=own,
            )  # fmt: skip
    axes.margins(x=0.08, y=0.1)
    log_axis(axes)
    axes.set_xlabel(unit)
    axes.set_ylabel("test accuracy in %")
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    return arranged(figure)
