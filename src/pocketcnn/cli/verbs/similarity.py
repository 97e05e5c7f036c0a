"""Comparison of trained nets: how alike they see the same images, and how alike the filters of their layers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketcnn.cli.arguments import AnswerOptions, ForeignArguments, TableOptions
from pocketcnn.cli.images import common_notes, some_test_images
from pocketcnn.cli.nets import GivenNet, open_nets
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import answer
from pocketcnn.errors import BadUsage
from pocketcnn.support.ranges import Count, OpenFraction
from pocketcnn.support.tables import columns


def similarity(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Similarity(AnswerOptions, ForeignArguments, TableOptions):
        models: Positional[tuple[str, ...]]
        """Model files, folders of runs, trained nets of the package, or a net by name with --weights; the others are compared
        with the first."""
        data: str | None = None
        """Data set whose test images the nets see; by default that of the first net's training."""
        images: Count = 512
        """How many images, spread over the test split; the whole split if it has fewer."""
        threshold: OpenFraction = 0.3
        """Filters of a layer count as correlated from this |r| on; filters so short that chance could explain it are left out."""
        titles: tuple[str, ...] = ()
        """Names of the nets; by default the parts of their paths that tell them apart."""
        output: Path = Path("runs/similarity")
        """Folder for the PNG and SVG files."""

    given = parse(Similarity, words, "similarity")
    if given.images < 2:
        raise BadUsage(f"similarity needs at least 2 images, got {given.images}")
    from pocketcnn.pictures import (
        draw_correlated,
        draw_law,
        draw_similarity,
        filter_similarity,
        ring_fraction,
        station_grams,
        write_figure,
    )  # fmt: skip

    opened = open_nets(given.models, given.titles, given)
    nets = {title: one.net for title, one in opened.items()}
    notes = common_notes(opened, given.data)
    filters = {title: filter_similarity(net, given.threshold) for title, net in nets.items()}
    x = some_test_images(given.data, notes, given.images, next(iter(opened)), given)[1]
    grams = {title: station_grams(net, x) for title, net in nets.items()}
    line = f"linear CKA of {len(x):,} test images: mean over the same places, and over each net's pairs of other layers"
    rows = _rows(grams, filters)
    table = _table(rows, next(iter(nets)), given.threshold)
    answer(f"{line}\n{table}", rows, images=len(x), threshold=given.threshold, output=given.output)
    written = write_figure(draw_similarity(grams), given.output, "cka")
    sizes = {title: ring_fraction(net) for title, net in nets.items()}
    points = [(size, found[0]) for title, found in filters.items() if found and (size := sizes[title])]
    if points:
        reference = next(iter(nets))
        plain = filters[reference] if sizes[reference] is None else None
        shown = draw_correlated({"ring": points}, plain=plain and plain[0], threshold=given.threshold)
        written += write_figure(shown, given.output, "correlated")
    law = _accuracies(opened, sizes)
    if len(law.get("ring", [])) > 2:
        written += write_figure(draw_law(law, fitted=["ring"]), given.output, "law")
    for path in written:
        print(path)


def _rows(grams: dict[str, Any], filters: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each net: how alike it is to the first net, its own layers to each other, and their filters."""
    from pocketcnn.pictures import alignments, same_stations

    reference = next(iter(grams))
    rows = []
    for title, found in filters.items():
        shared = list(same_stations(grams[reference], grams[title]).values())
        own = alignments(grams[title], grams[title])
        others = own.numel() - len(own)
        rows.append({
            "net": title,
            "cka_to_first": sum(shared) / len(shared) if shared else None,
            "cka_of_own_layers": float(own.sum() - own.trace()) / others if others else None,
            "correlated_filters": found[0] if found else None,
            "mean_correlation": found[1] if found else None,
        })  # fmt: skip
    return rows


def _table(rows: list[dict[str, Any]], reference: str, threshold: float) -> str:
    """The rows as columns, titles first."""
    cells = [("net", f"as {reference}", "own layers", f"filters |r|>={threshold:g}", "mean |r|")]
    for title, *numbers in (row.values() for row in rows):
        forms = ("{:.3f}", "{:.3f}", "{:.1%}", "{:.3f}")
        cells.append((title, *("-" if n is None else form.format(n) for form, n in zip(forms, numbers, strict=True))))
    return columns(cells)


def _accuracies(nets: dict[str, GivenNet], rings: dict[str, float | None]) -> dict[str, Any]:
    """Parameters and test accuracies of nets whose run has left its record beside them; nets with rings are a series apart."""
    from pocketcnn.cost import count_params
    from pocketcnn.support.runs import RESULT, read_result

    found: dict[str, Any] = {}
    for title, opened in nets.items():
        if opened.path is None or not opened.path.with_name(RESULT).is_file():
            continue
        if (accuracy := read_result(opened.path.parent).get("test_accuracy")) is not None:
            point = count_params(opened.net)[1], accuracy
            found.setdefault("ring" if rings[title] else "others", []).append(point)
    return found
