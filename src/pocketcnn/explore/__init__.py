"""One HTML page that contains small nets and runs them in the browser: try images, read costs, look inside.

The page needs no server. ONNX Runtime Web runs the nets on graphs that were checked against them. `docs/explore.md` says what
the page shows, and what it cannot.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.checkpoint.storage import dequantize, quantize, weights_of
from pocketcnn.cost import measure
from pocketcnn.errors import BadUsage, CannotWrite
from pocketcnn.explore import runtime as runtimes
from pocketcnn.explore.graphs import Graph, graph_of
from pocketcnn.explore.inside import facts_of, taps_of
from pocketcnn.explore.page import html
from pocketcnn.explore.published import published
from pocketcnn.methods import METHODS
from pocketcnn.pictures import Images
from pocketcnn.support.copying import copied
from pocketcnn.support.files import write_atomically

__all__ = ["Page", "PageNet", "as_int8", "published", "write_page"]


@dataclass(frozen=True)
class PageNet:
    """A trained net for a page.

    `notes` are those of its model file, with classes, input_size, mean and std. `file` is its model file, None for a net
    without one. `accuracy` is on test images, in [0, 1]; None if nobody has recorded it.
    """

    name: str
    net: nn.Module
    notes: Mapping[str, Any]
    file: Path | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Page:
    """The page that was written. `own_bytes` is its length without the runtime that it carries.

    `differences` holds for each net the largest difference of its graph's outputs from the net's, over the images of the
    check.
    """

    path: Path
    size_bytes: int
    own_bytes: int
    differences: Mapping[str, float]


def write_page(
    path: str | Path,
    nets: Sequence[PageNet],
    *,
    strip: tuple[Tensor, Sequence[int]] | None = None,
    images: Images | None = None,
    records: Sequence[Mapping[str, Any]] = (),
    runtime: str = "cdn",
    exact: bool = False,
    command: str = "pocketcnn explore",
) -> Page:
    """Writes a page with some nets in it.

    Args:
        path: of the HTML file.
        nets: of one data set, by names that differ; the first plain one is shown beside the first small one.
        strip: test images [number, channels, height, width] as uint8 to choose from, and their labels.
        images: for what the page says about many images, such as the mean routing of each class; None leaves that out.
        records: other nets in the chart of accuracy and cost: `name`, `method`, `accuracy` in [0, 1], `bytes`, `macs`.
        runtime: where ONNX Runtime Web comes from: `"cdn"`, `"inline"` or a folder, see `pocketcnn.explore.runtime`.
        exact: keeps weights as they are; by default the page's nets have their weights rounded to int8, a quarter of the bytes.
        command: that makes this page, shown on it.
    Raises:
        BadUsage: no nets, two of one name, nets of different images or classes, one that returns no logits, an accuracy
            outside of [0, 1], or a runtime that cannot be had.
        CannotExport: a net cannot be traced; or another error of `pocketcnn.export.export`.
        CannotWrite: the page cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise CannotWrite(f"{path}: there is no folder {path.parent}; make it first")
    notes = _common(nets)
    for name, accuracy in [(one.name, one.accuracy) for one in nets] + [
        (row["name"], row["accuracy"]) for row in records
    ]:
        if accuracy is not None and not 0 <= accuracy <= 1:
            raise BadUsage(f"{name}: its accuracy is {accuracy}, not between 0 and 1")
    carried = runtimes.contents(runtime)  # first, because it may fail
    graphs, blocks, described = {}, {}, []
    for place, one in enumerate(nets):
        shown = one.net if exact else as_int8(one.net)
        graph = graphs[one.name] = graph_of(shown, taps_of(shown), notes=one.notes)
        blocks[f"base-{place}"], blocks[f"inside-{place}"] = _deflated(graph.base), _deflated(graph.inside)
        blocks[f"facts-{place}"] = _deflated(json.dumps(facts_of(shown, images)).encode())
        described.append(_described(one, shown, graph))
    pixels, labels = strip if strip is not None else (torch.empty(0, *notes.input_size, dtype=torch.uint8), [])
    if len(pixels):
        steps = pixels - nn.functional.pad(pixels, (1, 0))[..., :-1]  # to the pixel on the left; they deflate better
        blocks["images"] = _deflated(steps.contiguous().numpy().tobytes())
    facts = {
        "classes": list(notes.classes),
        "inputSize": list(notes.input_size),
        "mean": list(notes.mean),
        "std": list(notes.std),
        "images": {"count": len(pixels), "labels": [int(label) for label in labels]},
        "nets": described,
        "records": list(records),
        "published": published(notes.data),
        "runtime": runtimes.described(runtime),
        "command": command,
    }
    parts = {f"runtime-{part}": _deflated(content) for part, content in carried.items()}
    title = f"Small nets on {Path(notes.data).name or 'your images'}, in your browser"
    text = html(title, facts, {**blocks, **parts}, "they are" if exact else "int8").encode()
    write_atomically(path, text)
    return Page(
        path, len(text), len(text) - sum(map(len, parts.values())),
        {name: graph.largest_difference for name, graph in graphs.items()},
    )  # fmt: skip


def as_int8(net: nn.Module) -> nn.Module:
    """Copies a net and rounds its weights to int8, as a model file stores them."""
    net = copied(net).cpu().float().eval()
    with torch.no_grad():
        for weight in weights_of(net).values():
            weight.copy_(dequantize(*quantize(weight)))
    return net


def _common(nets: Sequence[PageNet]) -> ImageNotes:
    """Checks that nets fit on one page, and returns what they know of their images."""
    if not nets:
        raise BadUsage("a page needs at least one net")
    names = [one.name for one in nets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadUsage(f"{twice}: two nets of this name; give each its own")
    known = {one.name: ImageNotes.from_notes(one.notes) for one in nets}
    for name, notes in known.items():
        if lacking := notes.lacks("classes", "input_size", "mean", "std"):
            raise BadUsage(f"{name}: it is not known what its images and classes are ({', '.join(lacking)})")
    first, notes = next(iter(known.items()))
    for name, other in known.items():
        if (other.input_size, other.mean, other.std) != (notes.input_size, notes.mean, notes.std):
            raise BadUsage(f"{name} was trained on other images than {first}; make a page for each")
        if other.classes != notes.classes:
            raise BadUsage(f"{name} knows other classes than {first}; make a page for each")
    for one in nets:
        with torch.no_grad():
            y = one.net.eval()(torch.zeros(2, *notes.input_size))
        if not isinstance(y, Tensor) or y.shape != (2, len(notes.classes)):
            found = str(list(y.shape)) if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise BadUsage(
                f"{one.name}: returns {found} for two images, the page needs one output for each of {len(notes.classes)} classes"
            )
    return notes


def _described(one: PageNet, shown: nn.Module, graph: Graph) -> dict[str, Any]:
    """What the page is told about a net at once."""
    cost = measure(one.net, tuple(ImageNotes.from_notes(one.notes).input_size))
    used = {getattr(module, "condensed_by", None) for module in one.net.modules()}
    return {
        "name": one.name,
        "method": next((name for name in METHODS if name in used), "plain"),
        "accuracy": one.accuracy,
        "fileBytes": one.file.stat().st_size if one.file else cost.size_bytes,
        "ledger": list(checkpoint.ledger(one.file, one.net).by_kind().items()) if one.file else [["weights", cost.size_bytes]],
        "graphBytes": len(_deflated(graph.base)),
        "params": cost.trainable_params,
        "macs": cost.macs,
        "depth": cost.depth,
        "outputs": list(graph.outputs),
        "difference": graph.largest_difference,
    }  # fmt: skip


def _deflated(content: bytes) -> str:
    """Content as the page carries it: raw deflate, in base 85 with a comma for the digit `<`, which HTML would take for a tag."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b85encode(packer.compress(content) + packer.flush()).decode().replace("<", ",")
