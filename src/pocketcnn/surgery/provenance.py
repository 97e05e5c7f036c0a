"""How a net was made: its base and the steps since, so that a file can rebuild it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Step:
    """One condensing: a method, its options, and the dotted names of the layers it replaced."""

    method: str
    options: Mapping[str, Any]
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """How a net was made. `base` is the name and the options given to `create_model`, None for a foreign net."""

    base: Mapping[str, Any] | None
    steps: tuple[Step, ...]
    folded: bool = False  # batch norms were folded since, which no file describes


def provenance(model: nn.Module) -> Provenance:
    """How a net was made; of a foreign net, that its base is unknown."""
    return getattr(model, "provenance", Provenance(base=None, steps=()))


def remember(model: nn.Module, made: Provenance) -> nn.Module:
    """Writes into a net how it was made; deepcopy and `save` take it along."""
    vars(model)["provenance"] = made
    return model
