"""Sensitivity: what it costs a trained net to condense each place alone, and what it saves."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pocketcnn.cost import distinct_tensors
from pocketcnn.methods import METHODS
from pocketcnn.models.spec import spell
from pocketcnn.support.calls import Inputs, as_inputs, distance
from pocketcnn.support.copying import copied
from pocketcnn.support.plots import BLUE, pyplot, shortened, svg
from pocketcnn.support.tables import columns
from pocketcnn.surgery import condense, plan
from pocketcnn.surgery.fitting import recalibrate_
from pocketcnn.surgery.plan import describe
from pocketcnn.surgery.selection import Patterns
from pocketcnn.train.agreement import outputs_of

_LEAST = 1e-6  # error that is drawn
_SMALLEST, _LARGEST = 8, 160  # area of a dot that saves nothing, and what the one that saves most has more
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteEffect:
    """The effect of condensing one place of a net, fitted to its weights, and nothing else.

    `error` is the mean squared distance of the net's outputs from those before, as a share of their variance. `agreement` is
    the share of examples for which the likeliest class stays; None for a net without classes. `bytes_saved` counts stored
    tensors in their own types.
    """

    name: str
    layer: str
    error: float
    agreement: float | None
    bytes_saved: int


@dataclass(frozen=True)
class Sensitivity:
    """The effects of condensing each place alone, in the order of the net; `str` is a table, the most sensitive place first."""

    method: str
    examples: int
    rows: tuple[SiteEffect, ...]

    def worst_first(self) -> list[SiteEffect]:
        """The places by their error for each byte saved, the highest first."""
        return sorted(self.rows, key=lambda row: -row.error / max(1, row.bytes_saved))

    def __str__(self) -> str:
        cells = [("place", "is", "error of outputs", "same class", "bytes saved", "error per kB")]
        for row in self.worst_first():
            same = "-" if row.agreement is None else f"{100 * row.agreement:.1f} %"
            each = f"{1000 * row.error / max(1, row.bytes_saved):.2g}"
            cells.append((row.name, row.layer, f"{row.error:.3g}", same, f"{row.bytes_saved:,}", each))
        return f"{self.method}, each place alone, {self.examples:,} examples\n" + columns(cells, "llrrrr")

    def figure(self) -> str:
        """Draws the errors as dots, in the order of the net, with areas as the bytes saved; the text of an SVG file."""
        plots = pyplot()
        height = 0.8 + 0.24 * len(self.rows)
        figure, axes = plots.subplots(figsize=(6.4, height), layout="constrained")
        places = range(len(self.rows))
        most = max(1, *(row.bytes_saved for row in self.rows))
        areas = [_SMALLEST + _LARGEST * max(0, row.bytes_saved) / most for row in self.rows]
        axes.scatter([max(_LEAST, row.error) for row in self.rows], places, areas, color=BLUE, linewidths=0)
        axes.set_xscale("log")
        axes.set_yticks(places, [shortened(row.name) for row in self.rows])
        axes.set_ylim(len(self.rows) - 0.4, -0.6)
        axes.set_xlabel(
            f"error of the net's outputs, as a share of their variance (area: bytes saved, at most {most:,})"
        )
        axes.set_title(f"{self.method}: each place condensed alone")
        return svg(figure)


def sensitivity(
    net: nn.Module,
    method: str,
    images: Inputs,
    *,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    **options: Any,
) -> Sensitivity:
    """Condenses each place of a trained net alone, and compares the outputs with those of the net.

    The method is fitted to the trained weights. Batch norms take their statistics from the images, before and after. Use the result to leave the most sensitive places as they are: `exclude=`.

    Args:
        net: a trained net; it is left alone.
        method: a name in `METHODS`.
        images: as the net is given them, normalised, [count, channels, height, width], some hundreds; no labels. A tuple of
            tensors for a net of several inputs, with a method that is fitted to weights.
        include: as in `condense`.
        exclude: as in `condense`.
        **options: the method's options. A share, such as the `size` of a ring, is one of each place.
    Raises:
        NothingToCondense: the method finds no place.
        ValueError: images or options that cannot be used.
    Cost: a fit and a pass over the images for each place.
    Example:
        >>> import torch, pocketcnn as pc
        >>> net = pc.create_model("resnet20", width=0.25)
        >>> found = pc.sensitivity(net, "ring", torch.randn(16, 3, 32, 32), size=0.5, include="layer1.0.*")
        >>> [row.name for row in found.rows]
        ['layer1.0.conv1', 'layer1.0.conv2']
    """
    inputs = as_inputs(images)
    names = plan(net, method, include=include, exclude=exclude, **options).replaced
    if not names:
        condense(net, method, include=include, exclude=exclude, **options)  # raises an error that says why
    shown = inputs[0] if METHODS[method].match is None and len(inputs) == 1 else None  # a fit to weights needs none
    # New statistics of batch norms alone move the outputs, so the trained net takes them too.
    trained = copied(net)
    recalibrate_(trained, inputs)
    wanted, before = outputs_of(trained, inputs), stored_bytes(net)
    rows = []
    for number, name in enumerate(names):
        small = condense(net, method, include=name, initialize="fit", images=shown, **options)
        recalibrate_(small, inputs)
        found = outputs_of(small, inputs)
        rows.append(
            SiteEffect(
                name=name,
                layer=describe(net.get_submodule(name)),
                error=float(distance(found, wanted)),
                agreement=agreement(found, wanted),
                bytes_saved=before - stored_bytes(small),
            )
        )
        _log.debug("%d of %d places: %s, error %.3g", number + 1, len(names), name, rows[-1].error)
    return Sensitivity(spell(method, options), len(inputs[0]), tuple(rows))


def agreement(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float | None:
    """The share of examples whose likeliest class is the same; None if the first output is no row of scores for each."""
    if wanted[0].dim() != 2 or wanted[0].shape[1] < 2:
        return None
    return float((found[0].argmax(1) == wanted[0].argmax(1)).float().mean())


def stored_bytes(net: nn.Module) -> int:
    """Bytes of a net's stored tensors, in their own types."""
    return sum(tensor.nbytes for tensor in distinct_tensors(net).values())
