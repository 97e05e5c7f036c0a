"""The byte ledger of a model file: what each tensor takes, and what the description takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from pocketcnn.checkpoint import packed
from pocketcnn.checkpoint.file import laid_out
from pocketcnn.checkpoint.header import FORMAT, file_in, parse_header
from pocketcnn.checkpoint.sealed import read_head, verify
from pocketcnn.checkpoint.storage import MASKS, SCALES, check_fit, weights_of
from pocketcnn.support.protocols import CodesNumbers
from pocketcnn.support.tables import columns

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
DESCRIPTION, CODES, SHARED = "names and description", "codes", "shared weights"
_SHARED = (CODES, SHARED)


@dataclass(frozen=True)
class Ledger:
    """Bytes by tensor, and `rest`, those of the description: in all the length of the file.

    In a packed file tensors share streams, and each has its share by its count of numbers. `kinds` says what each tensor is.
    """

    tensors: Mapping[str, int]
    rest: int
    kinds: Mapping[str, str]

    @property
    def total(self) -> int:
        """The length of the file."""
        return sum(self.tensors.values()) + self.rest

    def by_kind(self) -> dict[str, int]:
        """Bytes by kind of tensor, most first."""
        found = {DESCRIPTION: self.rest}
        for name, length in self.tensors.items():
            found[self.kinds[name]] = found.get(self.kinds[name], 0) + length
        return dict(sorted(found.items(), key=lambda part: -part[1]))

    def by_module(self) -> dict[str, int]:
        """Bytes by the module whose tensors they are; what several modules share, by its kind."""
        found: dict[str, int] = {}
        for name, length in self.tensors.items():
            owner = self.kinds[name] if self.kinds[name] in _SHARED else name.rpartition(".")[0] or name
            found[owner] = found.get(owner, 0) + length
        return {**found, DESCRIPTION: self.rest}

    def __str__(self) -> str:
        rows = [(kind, f"{length:,}", f"{100 * length / self.total:.1f} %") for kind, length in self.by_kind().items()]
        return columns([("part", "bytes", "share"), *rows, ("all", f"{self.total:,}", "100 %")], "lrr")


def ledger(path: str | Path, net: nn.Module) -> Ledger:
    """Reads what the parts of a file take.

    Args:
        path: of a model file, or its folder.
        net: what `load` makes of it.
    Raises:
        BrokenFile: the file is damaged, or describes another net.
    """
    path = file_in(Path(path))
    head = read_head(path)
    _, header = parse_header(head, path)
    verify(path, head)
    check_fit(path, laid_out(head, net, path), net, header.storage)
    if packed.is_packed(head.metadata[FORMAT]):
        tensors = packed.open_packed(path, head).ledger(net)
    else:
        tensors = {name: entry.nbytes for name, entry in head.tensors.items()}
    rest = path.stat().st_size - sum(tensors.values())
    return Ledger(tensors, rest, _kinds(net, tensors))


def _kinds(net: nn.Module, names: Mapping[str, Any]) -> dict[str, str]:
    """Says what each tensor is."""
    modules, weights = dict(net.named_modules()), weights_of(net)
    wide = [name for name, weight in weights.items() if weight.dim() > 1]
    ends = {**({wide[-1]: "last layer"} if wide else {}), **({wide[0]: "first layer"} if len(wide) > 1 else {})}

    def kind(name: str) -> str:
        path, _, own = name.rpartition(".")
        owner = modules.get(path)
        if name in (SCALES, MASKS):
            return {SCALES: "scales", MASKS: "masks of zeros"}[name]
        if isinstance(owner, _NORMS):
            return "norms"
        if isinstance(owner, CodesNumbers) and owner.limit_of(own) is not None:
            return CODES
        if name in weights and weights[name].dim() == 1:
            return SHARED
        return ends.get(name) or ("weights" if name in weights else "biases, factors, counters")

    return {name: kind(name) for name in names}
