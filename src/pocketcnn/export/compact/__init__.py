"""Nets that make their kernels while they run, from the parameters that their model files store.

A net with an ordinary kernel for each layer serves best, and `materialize` gives one; but its file is as large as a plain
net's. Here the same net gets its kernels anew in each call, read off the shared parameters at places that the graph
computes. Runtimes evaluate what depends on no image when they load a file, so this costs time only then.

The file of a method's name in this folder says how its kernels are made. It offers `readings(name, layer, dense, entropy)`,
the kernels that a layer reads; `source(origin, slots)`, the module that makes them; and `tables(net)`, the tables of places
in the net that are stored in few bits. Layers of a method without a file are exported as `materialize` leaves them.
"""

import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pocketcnn.export.compact.readings import Reading
from pocketcnn.methods import METHODS
from pocketcnn.support.calls import ExampleSize
from pocketcnn.support.copying import copied
from pocketcnn.support.wings import part_of
from pocketcnn.surgery import materialize
from pocketcnn.surgery.folding import fold_norms_

_log = logging.getLogger(__name__)


class ReadingNet(nn.Module):
    """An ordinary net whose convolutions get their kernels anew in each call.

    Args:
        model: any net; it is left alone.
        entropy: as in `materialize`. Without it, stages whose depth depends on the image stay as they are.
        input_size: (channels, height, width) of an image; a tuple of sizes for a net of several inputs.
    """

    def __init__(self, model: nn.Module, entropy: float | None, input_size: ExampleSize) -> None:
        super().__init__()
        model = copied(model)
        self.net = materialize(model, entropy=entropy, partly=True, serving=True)
        found = _readings(model, self.net, entropy)
        slots: dict[Any, set[Any]] = {}
        for _, reading in found:
            slots.setdefault(reading.origin, set()).add(reading.slot)
        parts = {reading.origin: part for part, reading in found}
        self.sources = nn.ModuleList(part.source(origin, slots[origin]) for origin, part in parts.items())
        numbers = {origin: number for number, origin in enumerate(parts)}
        self.reads: list[tuple[int, Any, str, torch.Size]] = []  # number of the source, slot, convolution, shape
        for _, reading in found:
            weight = self._weight(reading.conv)
            self.reads.append((numbers[reading.origin], reading.slot, reading.conv, weight.shape))
            nn.init.constant_(weight, reading.scale)
        fold_norms_(self.net, input_size)
        for _, _, name, _ in self.reads:  # folding multiplied the scale by the norm's factor for each channel
            weight = self._weight(name).detach()
            factor = weight[(slice(None), *[slice(1)] * (weight.dim() - 1))].clone()
            self.net.get_submodule(name).weight = nn.Parameter(factor)

    def forward(self, *inputs: Tensor) -> Any:
        made = [source() for source in self.sources]
        kernels = {
            f"{name}.weight": made[number][slot].view(shape) * self._weight(name)
            for number, slot, name, shape in self.reads
        }
        return functional_call(self.net, kernels, inputs)

    def _weight(self, name: str) -> Any:
        return self.net.get_submodule(name).weight


class CompactNet(nn.Module):
    """A net in evaluation mode that makes its kernels in each call, and decodes the tables of places that they need.

    Args:
        model: as in `ReadingNet`.
        entropy: as in `ReadingNet`.
        input_size: as in `ReadingNet`.
    """

    def __init__(self, model: nn.Module, entropy: float | None, input_size: ExampleSize) -> None:
        super().__init__()
        for method in (name for name, part in _parts(model).items() if part is None):
            _log.info(
                f"no compact form of method {method!r}: pocketcnn/export/compact/{method}.py is missing; "
                "its layers are exported as in a dense file"
            )
        self.reading = ReadingNet(model, entropy, input_size).eval()
        known = [table for part in _parts(model).values() if part for table in part.tables(self.reading).items()]
        self.names = [name for name, _ in known]
        self.tables = nn.ModuleList(table for _, table in known)

    def forward(self, *inputs: Tensor) -> Any:
        given: dict[str, Tensor] = {}
        for name, table in zip(self.names, self.tables, strict=True):
            places, signs = table()
            given |= {f"{name}.indices": places.int(), f"{name}.signs": signs}
        return functional_call(self.reading, given, inputs)


def has_compact_form(model: nn.Module) -> bool:
    """Tells whether a layer of a net is stored in another form in a compact file than in a dense one."""
    return any(part is not None for part in _parts(model).values())


def _readings(model: nn.Module, dense: nn.Module, entropy: float | None) -> list[tuple[ModuleType, Reading]]:
    """The kernels that the layers of a net read, in order, each with the file of the layer's method."""
    parts = _parts(model)
    return [
        (part, reading)
        for name, layer in model.named_modules()
        if (part := parts.get(getattr(layer, "condensed_by", ""))) is not None
        for reading in part.readings(name, layer, dense.get_submodule(name), entropy)
    ]


def _parts(model: nn.Module) -> dict[str, ModuleType | None]:
    """The methods that condensed layers of a net, each with its file in this folder or None."""
    used = {getattr(module, "condensed_by", None) for module in model.modules()}
    return {name: part_of(__name__, name) for name in METHODS if name in used}
