"""The look that all figures share: fonts, colours, markers, logarithmic axes, and the text of SVG files."""

import io
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from pocketcnn.support.optional import optional_import

# The first six are Okabe and Ito's, which most colour-blind readers can tell apart.
BLUE, VERMILION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, "#999999", "#882255")
MARKERS = "osD^vP*X"
INK = "#222222"  # the plain net, and whatever belongs to no series


def pyplot() -> Any:
    """matplotlib's pyplot, with the fonts, lines and ids that all figures share; it draws into files, or into a notebook."""
    matplotlib = optional_import("matplotlib", extra="train", purpose="figures")
    if "MPLBACKEND" not in os.environ and "matplotlib.pyplot" not in sys.modules:
        matplotlib.use("Agg")
    plots = optional_import("matplotlib.pyplot", extra="train", purpose="figures")
    optional_import("matplotlib.ticker", extra="train", purpose="figures")
    optional_import("matplotlib.text", extra="train", purpose="figures")
    plots.rcParams.update(
        {
            "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
            "grid.alpha": 0.25, "svg.fonttype": "path", "svg.hashsalt": "pocketcnn", "figure.dpi": 100,
        }
    )  # fmt: skip
    return plots


def colour(place: int) -> str:
    """Colour of the series at a place; they repeat after eight."""
    return PALETTE[place % len(PALETTE)]


def marker(place: int) -> str:
    """Marker of the series at a place; they repeat after eight."""
    return MARKERS[place % len(MARKERS)]


def short(value: float, position: int | None = None) -> str:
    """A number on an axis: 0.5, 20, 200 k, 5 M. matplotlib also passes the tick's position, which is not used."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def log_axis(axes: Any, words: Callable[[float, int | None], str] = short, *, decade: bool = True) -> None:
    """Makes the x axis logarithmic, with ticks at 1, 2 and 5.

    Args:
        axes: with everything drawn.
        words: the label of a tick.
        decade: widens an axis that spans less than a decade, so that it has ticks to read. Without it, an axis of a
            factor of 5 or less has evenly spaced ticks instead.
    """
    ticker = pyplot().matplotlib.ticker
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    narrow = high <= 5 * low and not decade
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6) if narrow else ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(words)
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    if decade and high / low < 10:
        middle = (low * high) ** 0.5
        axes.set_xlim(middle / 10**0.5, middle * 10**0.5)


_LONGEST = 34  # letters of a name beside an axis or in a legend


def shortened(name: str, most: int = _LONGEST) -> str:
    """A name without its middle, if it is too long to stand beside a picture: lists name the nets in full."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[len(name) - most // 2 + 1 :]}"


def arranged(figure: Any) -> Any:
    """Arranges a finished figure so that no text is cut: titles are wrapped, and the figure grows where that is not enough.

    The arrangement is then fixed.

    Args:
        figure: of matplotlib, with everything drawn.
    Returns:
        The same figure.
    """
    if figure.get_layout_engine() is None:
        return figure
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # until there is room
        written = {id(text): text.get_text() for text in texts_of(figure)}
        _wrap(figure, written)
        for attempt in range(8):
            figure.draw_without_rendering()
            wrapped = attempt < 2 and _wrap(figure, written)
            if not _grow(figure) and not wrapped:
                break
    figure.set_layout_engine("none")  # arranging again would take most of the time of saving
    return figure


def texts_of(figure: Any) -> list[Any]:
    """All texts of a figure that are drawn: none that is hidden, and no label of a tick beyond the end of its axis."""
    hidden: set[int] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not axes.axison or not axis.get_visible() or not low <= tick.get_loc() <= high:
                    hidden |= {id(tick.label1), id(tick.label2)}
            if not axes.axison:
                hidden |= {id(axis.label), id(axis.get_offset_text())}
    found = figure.findobj(match=pyplot().matplotlib.text.Text)
    return [text for text in found if text.get_visible() and text.get_text().strip() and id(text) not in hidden]


def _wrap(figure: Any, written: Mapping[int, str]) -> bool:
    """Wraps the texts that are longer than their places; True if there were any.

    Args:
        figure: of matplotlib.
        written: the texts as they were, by the `id` of their artists.
    """
    whole = 0.97 * figure.bbox.width
    room = {id(text): whole for text in texts_of(figure)}
    for axes in figure.axes:
        box = axes.get_window_extent()
        beside = [
            abs((other.x0 + other.x1) / 2 - (box.x0 + box.x1) / 2)
            for other in (each.get_window_extent() for each in figure.axes if each is not axes)
            if other.y0 < box.y1 and box.y0 < other.y1 and other.width > 0.5 * box.width
        ]
        across, along = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        own = 1.9 * min(across, figure.bbox.width - across)  # up to the nearer edge of the figure
        room[id(axes.title)] = min([own, *(0.96 * distance for distance in beside if distance > 1)])
        room[id(axes.xaxis.label)] = room[id(axes.title)]
        room[id(axes.yaxis.label)] = 1.9 * min(along, figure.bbox.height - along)
    changed = False
    for text in texts_of(figure):
        extent, words = text.get_window_extent(), text.get_text()
        length = extent.height if text.get_rotation() == 90 else extent.width
        longest = max(map(len, words.splitlines()))
        letters = max(4, int(longest * room[id(text)] / max(length, 1)))
        if length > room[id(text)] and letters < longest:
            parts = written.get(id(text), words).splitlines()
            text.set_text("\n".join(line for part in parts for line in _lines(part, letters)))
            changed = True
    return changed


def _lines(text: str, letters: int) -> list[str]:
    """Breaks a line at spaces, else after a mark between the parts of a name, else anywhere."""
    lines = [""]
    for part in re.findall(r"[^\s./_,:+-]*[\s./_,:+-]?", text):
        if lines[-1] and len((lines[-1] + part).rstrip()) > letters:
            lines.append("")
        lines[-1] += part
    return [piece.strip() for line in lines for piece in textwrap.wrap(line, letters) or [""] if piece.strip()]


def _grow(figure: Any) -> bool:
    """Widens and heightens a figure whose texts lie outside of it; True if it had to."""
    whole = figure.bbox
    boxes = [text.get_window_extent() for text in texts_of(figure)]
    if not boxes:
        return False
    across = max(max(whole.x0 - box.x0, box.x1 - whole.x1) for box in boxes)
    along = max(max(whole.y0 - box.y0, box.y1 - whole.y1) for box in boxes)
    if max(across, along) <= 0.5:
        return False
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + 2 * max(across, 0) / figure.dpi, height + 2 * max(along, 0) / figure.dpi)
    return True


def svg(figure: Any, *, dpi: float | str = "figure") -> str:
    """The text of a figure as an SVG file, always the same for the same figure; closes the figure.

    Args:
        figure: of matplotlib.
        dpi: pixels an inch of the images inside.
    """
    text = io.StringIO()
    arranged(figure)
    figure.savefig(text, format="svg", metadata={"Date": None}, dpi=dpi)
    pyplot().close(figure)
    return text.getvalue()
