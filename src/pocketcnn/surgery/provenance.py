"""The provenance of a net: its base and the steps since, so that a file can rebuild it.

Each module that was made by name or condensed carries its own record. A net's provenance is collected from all of its
modules, so a condensed net keeps it as a part of a larger one. Names leave out the wrappers of `torch.compile`.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from torch import nn

from pocketcnn.errors import CannotWrite
from pocketcnn.methods import METHODS
from pocketcnn.methods._shared import AbstractShared
from pocketcnn.methods.puppet.gauge import Calls
from pocketcnn.support.modules import bare_name, unwrapped
from pocketcnn.support.protocols import is_condensed


@dataclass(frozen=True)
class Step:
    """A condensing step: the method, its options, and the dotted names of the layers it replaced.

    `part` is the dotted name of the part of the net that was condensed; empty for the whole net. Patterns among the options
    hold inside the part; `sites` are names in the whole net.
    """

    method: str
    options: Mapping[str, Any]
    sites: tuple[str, ...]
    part: str = ""
    taken: int = field(default=0, compare=False, repr=False)  # time in ns, which orders the steps of several parts

    @classmethod
    def now(cls, method: str, options: Mapping[str, Any], sites: Iterable[str]) -> "Step":
        """A step on a whole net that is being taken."""
        return cls(method, options, tuple(map(bare_name, sites)), taken=time.time_ns())

    def inside(self, part: str) -> "Step":
        """The same step in a net that has the condensed one as a part."""
        sites = tuple(join(part, site) for site in self.sites)
        return dataclasses.replace(self, sites=sites, part=join(part, self.part))

    def as_dict(self) -> dict[str, Any]:
        """The step as a model file holds it."""
        return {"method": self.method, "options": dict(self.options), "sites": list(self.sites), "part": self.part}


@dataclass(frozen=True)
class Provenance:
    """The making of a net. `base` is the name and the options given to `create_model`; None for a foreign net."""

    base: Mapping[str, Any] | None
    steps: tuple[Step, ...]
    folded: bool = False  # True if batch norms were folded since, which no file describes


_NOTHING = Provenance(base=None, steps=())


def record_of(module: nn.Module) -> Provenance:
    """Returns a module's own record, without those of its parts; a foreign module has no base and no steps."""
    found = vars(unwrapped(module)).get("provenance")
    return found if isinstance(found, Provenance) else _NOTHING


def remember(model: nn.Module, made: Provenance) -> nn.Module:
    """Records in a net how it was made, and what its layers share; deepcopy and `save` keep the record."""
    held = vars(unwrapped(model))
    held["provenance"] = made
    if not _untied(held.get("ties", {}), found := _ties(model)):
        held["ties"] = found
    return model


def forget_steps_(model: nn.Module, *, keep_base: bool) -> nn.Module:
    """Removes the steps from the records of a net and its parts, because ordinary layers took their place."""
    for module in model.modules():
        if (made := record_of(module)) != _NOTHING:
            remember(module, dataclasses.replace(made, base=made.base if keep_base else None, steps=()))
    return model


def provenance(model: nn.Module) -> Provenance:
    """Collects how a net and its parts were made: the net's own base, and all steps in the order they were taken.

    Names leave out the wrappers of `torch.compile` and of activation checkpointing.
    """
    records = {id(made): (bare_name(name), made) for name, made in _records(model)}.values()
    steps = [step.inside(part) for part, made in records for step in made.steps]
    folded = any(made.folded for _, made in records)
    return Provenance(record_of(model).base, tuple(sorted(steps, key=lambda step: step.taken)), folded)


def _records(model: nn.Module) -> list[tuple[str, Provenance]]:
    """The records of a net and its parts, by their names."""
    found = ((name, vars(module).get("provenance")) for name, module in model.named_modules())
    return [(name, made) for name, made in found if isinstance(made, Provenance)]


def mark_made_(layers: Iterable[nn.Module | None]) -> None:
    """Marks layers as made by a step, so that they are recognised where the record of the step is missing."""
    for layer in layers:
        if layer is not None:
            vars(layer)["made_by_step"] = True


def undescribed(model: nn.Module) -> list[Step]:
    """Describes the condensed layers that no step of a net's provenance made: the classes of the net make them.

    Returns:
        A step for each layer, with those of the method's options that the layer holds, a seed among them.
    """
    return [
        Step(layer.condensed_by, _options_of(layer, layer.condensed_by), (places[0],))
        for layer, places in _condensed_without(model, provenance(model).steps)
    ]


def check_describable(model: nn.Module) -> None:
    """Checks that a net's provenance tells how each of its condensed layers was made, or that its classes make them.

    Raises:
        CannotWrite: a step made a layer, but its record is missing; or something else is now in the place of a layer of a
            step; or layers of a step no longer share what it made for them. No file could describe the net.
    """
    steps = provenance(model).steps
    _check_tied(model)
    for layer, places in _condensed_without(model, steps):
        if "made_by_step" in vars(layer):
            raise CannotWrite(
                f"{places[0] or type(layer).__name__}: this {layer.condensed_by} layer was taken out of the net that was "
                "condensed, where the record of its options and its seed stayed, so no file can describe it here; save that "
                f"net, or condense this {type(unwrapped(model)).__name__} itself"
            )
    methods: dict[str, set[str]] = {}
    for step in steps:
        for site in step.sites:
            methods.setdefault(site, set()).add(step.method)
    for module, places in _places(model).items():
        for site in methods.keys() & set(places):
            if getattr(module, "condensed_by", None) not in methods[site]:
                raise CannotWrite(
                    f"{site}: {' and '.join(sorted(methods[site]))} put a layer here, but now there is a "
                    f"{type(module).__name__}, which no file can describe; condense the net without this layer "
                    "(exclude=...), then replace it"
                )


def _check_tied(model: nn.Module) -> None:
    """Checks that layers share a ring, a router, a gauge or the like where steps made one for several, and nowhere else."""
    for name, module in model.named_modules():
        if two := _untied(vars(module).get("ties", {}), _ties(module) if "ties" in vars(module) else {}):
            one, other = (bare_name(join(name, place)) or type(module).__name__ for place in two)
            raise CannotWrite(
                f"{one} and {other} no longer share what the method made for them, or share what it did not, which no file can "
                "describe; copy, exchange or condense the net as a whole"
            )


def _ties(model: nn.Module) -> dict[tuple[str, str], int]:
    """Numbers the objects that condensed layers and the hooks of nets share, by place and name, in the order of the modules."""
    numbers: dict[int, int] = {}
    found = {}
    for module, places in _places(model).items():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        owners = {hook.__name__: hook.__self__ for hook in hooks if isinstance(hook, MethodType)}
        held = {**owners, **vars(module), **module._modules}
        for name, value in held.items():
            if isinstance(value, AbstractShared | Calls):
                number = numbers.setdefault(id(value), len(numbers))
                found.update({(place, name): number for place in places})
    return found


def _untied(before: Mapping[tuple[str, str], int], now: Mapping[tuple[str, str], int]) -> tuple[str, str] | None:
    """Finds two places of which exactly one record says that they share an object; None if the records agree."""
    partners: tuple[dict[int, tuple[int, str]], ...] = ({}, {})
    for key in sorted(before.keys() & now.keys()):
        pair = before[key], now[key]
        for known, one, other in zip(partners, pair, reversed(pair), strict=True):
            expected, place = known.setdefault(one, (other, key[0]))
            if expected != other:
                return key[0], place
    return None


def _condensed_without(model: nn.Module, steps: Iterable[Step]) -> list[tuple[Any, list[str]]]:
    """The outermost condensed layers of a net that no step made, with their names."""
    made = {site for step in steps for site in step.sites}
    inside = [f"{site}." if site else "" for site in made]
    found: list[tuple[Any, list[str]]] = []
    for module, places in _places(model).items():
        if is_condensed(module) and not any(place in made or place.startswith(tuple(inside)) for place in places):
            found.append((module, places))
            inside.append(f"{places[0]}." if places[0] else "")
    return found


def _places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """All names of each module in a net, bare of wrappers."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(unwrapped(module), []).append(bare_name(name))
    return found


def _options_of(layer: nn.Module, method: str) -> dict[str, Any]:
    """The options of a method that a layer and the modules in it hold, as far as JSON has words for them."""
    record = METHODS.get(method)
    known = {option.name for option in dataclasses.fields(record.options)} if record is not None else {"seed"}
    found: dict[str, Any] = {}
    for module in layer.modules():
        held = vars(module)
        if record is not None and isinstance(held.get("options"), record.options):
            held = {**held, **dataclasses.asdict(held["options"])}
        for name in known & held.keys():
            if isinstance(held[name], bool | int | float | str | None):
                found.setdefault(name, held[name])
    return {name: found[name] for name in sorted(found)}


def join(*names: str) -> str:
    """Joins dotted names, some of which may be empty."""
    return ".".join(filter(None, names))
