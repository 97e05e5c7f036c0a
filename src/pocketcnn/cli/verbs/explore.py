"""`pocketcnn explore`: one HTML page with trained nets inside it, which run in the browser."""

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketcnn.cli.arguments import AnswerOptions, ForeignArguments, TableOptions
from pocketcnn.cli.images import common_notes, some_test_images
from pocketcnn.cli.nets import GivenNet, open_nets
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import answer, complain
from pocketcnn.errors import PocketError
from pocketcnn.support.ranges import Number
from pocketcnn.support.tables import columns

if TYPE_CHECKING:
    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.pictures import Images
    from pocketcnn.zoo import Card

_LARGE = 1_000_000  # bytes of int8 weights; the packaged nets above are left out unless they are named


def explore(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Explore(AnswerOptions, ForeignArguments, TableOptions):
        nets: Positional[tuple[str, ...]] = ()
        """Model files, folders of runs or trained nets of the package; by default those of the package for one data set."""
        data: str | None = None
        """Data set whose test images the page offers; by default that of the nets' training, if it is here."""
        images: Number = 50
        """Number of test images on the page."""
        titles: tuple[str, ...] = ()
        """Names of the nets on the page; by default the parts of their paths that tell them apart."""
        records: tuple[Path, ...] = ()
        """Folders of runs whose accuracies and costs the chart shows too; runs on other data are left out."""
        runtime: str = "cdn"
        """ONNX Runtime Web: cdn, loaded when the page opens; inline, fetched once by npm and put into the page, which then needs no
        network; or the folder of the npm package, put into the page too."""
        exact: bool = False
        """Keep weights as they are; by default the page has them in int8."""
        output: Path = Path("explore.html")
        """The page to write."""

    given = parse(Explore, words, "explore")
    from pocketcnn.explore import PageNet, write_page

    named = given.nets or packaged(given.data)
    opened = open_nets(named, given.titles, given)
    notes = common_notes(opened, given.data)
    strip, images = _test_images(given, notes, next(iter(opened)))
    nets = [PageNet(t, one.net, one.header, one.path, _accuracy(one)) for t, one in opened.items()]
    page = write_page(
        given.output, nets, strip=strip, images=images, runtime=given.runtime, exact=given.exact,
        records=[*_others(opened, notes), *(row for folder in given.records for row in _recorded(folder, notes))],
        command=shlex.join(["pocketcnn", "explore", *words]),
    )  # fmt: skip
    rows = [(name, f"{difference:.1e}") for name, difference in page.differences.items()]
    answer(
        columns([("net", "largest difference from PyTorch"), *rows]),
        [{"net": name, "largest_difference": difference} for name, difference in page.differences.items()],
        page=page.path, page_bytes=page.size_bytes, page_bytes_without_runtime=page.own_bytes,
    )  # fmt: skip
    carried = f", {page.own_bytes:,} without the runtime" if page.own_bytes != page.size_bytes else ""
    print(f"{page.path}: {page.size_bytes:,} bytes{carried}; open it in a browser")


def packaged(data: str | None) -> tuple[str, ...]:
    """The trained nets of the package for a data set, the large ones left out, which is said."""
    from pocketcnn import zoo

    known = {card.data for card in zoo.cards()}
    name = Path(data).name if data and Path(data).name in known else "cifar10"
    cards = zoo.cards(data=name)
    if large := [card.title for card in cards if _int8_bytes(card) > _LARGE]:
        complain(f"left out, because they would make the page large: {', '.join(large)}; name the nets to choose")
    return tuple(card.title for card in cards if card.title not in large)


def _int8_bytes(card: "Card") -> float:
    return card.size_bytes / {"float32": 4, "float16": 2}.get(card.storage, 1)


def _accuracy(one: GivenNet) -> float | None:
    """The recorded accuracy of a net: on its card in the package, or beside its file."""
    from pocketcnn import zoo
    from pocketcnn.support.runs import RESULT, read_result

    if one.path is None:
        return None
    if card := next((card for card in zoo.cards() if zoo.FOLDER / card.file == one.path), None):
        return card.test_accuracy
    return read_result(one.path.parent).get("test_accuracy") if one.path.with_name(RESULT).is_file() else None


def _test_images(given: Any, notes: "ImageNotes", title: str) -> tuple[Any, "Images | None"]:
    """Test images for the page, and more for facts about many; none if nobody named data and the net's are not here."""
    from pocketcnn.pictures import Images

    if given.data is None and notes.lacks("data"):
        complain(
            f"{title}: does not say which data it was trained on: no test images on the page; name some with --data"
        )
        return None, None
    labelled = functools.cache(functools.partial(some_test_images, given.data, notes, title=title, tables=given))
    try:
        pixels, x, labels, _ = labelled(given.images)
    except PocketError as error:
        if given.data is not None:
            raise
        complain(f"{error}\nno test images on the page; name a data set with --data")
        return None, None
    return (pixels, labels.tolist()), Images(pixels, x, None, labelled)


def _others(opened: dict[str, GivenNet], notes: "ImageNotes") -> list[dict[str, Any]]:
    """Nets of the package for the same data that are not on the page."""
    from pocketcnn import zoo

    shown = {one.path for one in opened.values()}
    cards = [card for card in zoo.cards(data=notes.data) if zoo.FOLDER / card.file not in shown]
    return [
        {"name": c.title, "method": "", "bytes": c.size_bytes, "macs": None, "accuracy": c.test_accuracy} for c in cards
    ]


def _recorded(folder: Path, notes: "ImageNotes") -> list[dict[str, Any]]:
    """Nets in a folder of runs on the page's data, each as the mean over its seeds."""
    from pocketcnn.report import read_results, summarize

    found = read_results(folder)
    same = [run for run in found if not notes.data or Path(run["data"]).name == Path(notes.data).name]
    if len(same) < len(found):
        complain(
            f"{folder}: {len(found) - len(same)} of {len(found)} runs are on other data, and left out of the chart"
        )
    return [
        {"name": s.label, "method": s.method, "bytes": round(s.values["file_bytes"]), "macs": round(s.values["macs"]), "accuracy": s.accuracy}
        for s in summarize(same)
    ]  # fmt: skip
