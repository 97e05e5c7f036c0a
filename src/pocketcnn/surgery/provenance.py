"""The provenance of a net: its base and the steps since, so that a file can rebuild it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Step:
    """A condensing step: the method, its options, and the dotted names of the layers it replaced."""

    method: str
    options: Mapping[str, Any]
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """The making of a net. `base` is the name and the options given to `create_model`; None for a foreign net."""

    base: Mapping[str, Any] | None
    steps: tuple[Step, ...]
    folded: bool = False  # True if batch norms were folded since, which no file describes


def provenance(model: nn.Module) -> Provenance:
    """Returns the record of how a net was made; a foreign net has no base and no steps."""
    return getattr(model, "provenance", Provenance(base=None, steps=()))


def remember(model: nn.Module, made: Provenance) -> nn.Module:
    """Records in a net how it was made; deepcopy and `save` keep the record."""
    vars(model)["provenance"] = made
    return model
