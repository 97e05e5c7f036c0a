"""Nets as ONNX graphs for a page: one graph that classifies, and an addition to it that shows what happens inside.

A serialised ONNX model is a protobuf message, and two of them one after the other are one message whose lists are joined.
So the addition holds only the nodes and outputs that classifying does not need, and every weight is stored once.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pocketcnn.export import export
from pocketcnn.export.compact import has_compact_form
from pocketcnn.export.onnx import OUTPUT, package
from pocketcnn.support.modules import hooked

Look = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Tap:
    """A place in a net where a page looks inside.

    `module` is the dotted name of a module. `look(module, x, y)` makes tensors from the module, its first input and its
    output; each becomes an output of the graph, named `{name}/{key}`.
    """

    name: str
    module: str
    look: Look


@dataclass(frozen=True)
class Graph:
    """A net as ONNX: `base` classifies, `base + inside` also gives the outputs named in `outputs`.

    `largest_difference` is the largest over the images that the graph was checked with, of all outputs.
    """

    base: bytes
    inside: bytes
    outputs: tuple[str, ...]
    largest_difference: float


class TappedNet(nn.Module):
    """A net that also returns what its taps see.

    Args:
        net: from images to logits.
        taps: whose names differ.
    """

    def __init__(self, net: nn.Module, taps: Sequence[Tap]) -> None:
        super().__init__()
        self.net, self.taps = net, tuple(taps)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def look(tap: Tap, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            seen.update({f"{tap.name}/{key}": value for key, value in tap.look(module, args[0], y).items()})

        handles = (self.net.get_submodule(tap.module).register_forward_hook(partial(look, tap)) for tap in self.taps)
        with hooked(handles):
            logits = self.net(images)
        return {OUTPUT: logits, **seen}


def graph_of(net: nn.Module, taps: Sequence[Tap], *, notes: Mapping[str, Any]) -> Graph:
    """Exports a net with its taps, checks it against the net, and splits off what classifying does not need.

    Args:
        net: a trained net; it is left alone.
        taps: where the page looks inside.
        notes: of the model file.
    Raises:
        CannotExport: as `pocketcnn.export.export`.
        Disagreement: likewise.
        MissingExtra: likewise.
    """
    onnx = package("onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        tapped = TappedNet(net, taps).eval()
        format = "onnx_compact" if has_compact_form(net) else "onnx"
        written = export(tapped, path, format=format, notes=notes, timed=False, strange=False)
        model = onnx.load(path)
    base, inside = split(model, OUTPUT)
    outputs = tuple(value.name for value in model.graph.output if value.name != OUTPUT)
    return Graph(base.SerializeToString(), inside.SerializeToString(), outputs, written.max_difference)


def split(model: Any, output: str) -> tuple[Any, Any]:
    """Splits a model in two: what one output needs, and the rest. The bytes of both, joined, are the model again.

    Args:
        model: an ONNX model without graphs inside its nodes.
        output: the name of the output.
    """
    base, rest = type(model)(), type(model)()
    base.CopyFrom(model)
    graph = base.graph
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    kept = {id(node) for node in nodes}
    _part(rest.graph.node, graph.node, lambda node: id(node) in kept)
    _part(rest.graph.initializer, graph.initializer, lambda tensor: tensor.name in needed)
    _part(rest.graph.output, graph.output, lambda value: value.name == output)
    return base, rest


def _part(rest: Any, items: Any, stays: Callable[[Any], bool]) -> None:
    """Moves the items that do not stay from one list of a message to another."""
    everything: Iterable[Any] = list(items)
    copies = [(stays(item), type(item).FromString(item.SerializeToString())) for item in everything]
    del items[:]
    items.extend(item for keeps, item in copies if keeps)
    rest.extend(item for keeps, item in copies if not keeps)
