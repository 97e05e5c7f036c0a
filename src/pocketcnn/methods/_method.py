"""What a condensing method is to the rest of the package, and the walk over a net that its `sites` starts from."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True)
class Site:
    """A place in a net where a method could work, or why it does not.

    `reason` is empty where the method works by default. Where it is not, `possible` tells a place left alone by
    default (naming it in `include` condenses it all the same) from one that the method cannot stand for.
    """

    names: tuple[str, ...]  # every dotted path that leads to the module; the first one names the site
    module: Any
    reason: str = ""
    possible: bool = True
    rest: tuple[tuple[str, Any], ...] = ()  # names and modules that go with it, where the place is a run of modules
    says: str = ""  # the place in a few words, where those for its module would not do
    detail: Any = None  # what the method's own `build` wants to know

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def modules(self) -> list[Any]:
        """Everything that what takes the place stands for."""
        return [self.module, *(module for _, module in self.rest)]


@dataclass(frozen=True)
class Range:
    """Numbers that a search tries for an option, evenly over their logarithms; whole ones where `low` is whole."""

    low: int | float
    high: int | float


@dataclass(frozen=True)
class Method:
    """One condensing method: everything that surgery, the command line, plans and reports need to know of it."""

    name: str
    summary: str  # one line, for lists
    source: str  # the publication
    options: type[Any]  # a frozen dataclass with a default and a one-line docstring for every field
    sites: Callable[[nn.Module, Any], list[Site]]
    # Site name -> the module that takes its place; None takes the place out of its nn.Sequential.
    build: Callable[[Sequence[Site], Any], Mapping[str, nn.Module | None]]
    places: tuple[str, str] = ("convolution", "convolutions")  # what it replaces, for messages: one, several
    # What is left to do to the whole net once what was built is in its place.
    finish: Callable[[nn.Module, Mapping[str, nn.Module | None]], None] = lambda model, built: None
    # Brings what was built near to the trained modules that each of its places had, from the weights alone; None where
    # only images can tell how near the outputs are.
    fit: Callable[[Mapping[str, Sequence[Any]], Mapping[str, nn.Module | None]], None] | None = None
    fit_options: Mapping[str, Any] = field(default_factory=dict)  # what such a start needs
    # What a search varies: option -> numbers or choices, of which the first finds most places to work.
    searched: Mapping[str, Range | tuple[Any, ...]] = field(default_factory=dict)


def conv_sites(model: nn.Module, obstacle: Callable[[nn.Conv2d], str]) -> list[Site]:
    """Every convolution of a net in the order of definition, for methods that stand for one convolution each.

    The first convolution (the stem) and the last layer with weights (the classifier) are left alone by default. Layers
    inside an already condensed layer are part of it and are not listed.

    Args:
        model: any net.
        obstacle: why the method cannot stand for a convolution, or an empty string.
    """
    paths: dict[nn.Module, list[str]] = {}
    inside: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not any(name.startswith(prefix) for prefix in inside):
            paths.setdefault(module, []).append(name)
        if is_condensed(module):
            inside.append(f"{name}.")
    layers = [m for m in paths if isinstance(m, _ConvNd | nn.Linear) or is_condensed(m)]
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    sites = []
    for module in layers:
        if isinstance(module, nn.Linear):
            continue
        reason, possible = "", False
        if is_condensed(module):
            reason = f"already condensed by {module.condensed_by!r}"
        elif type(module) is not nn.Conv2d:
            reason = f"a {type(module).__name__}, not a plain nn.Conv2d"
        elif owners[id(module.weight)] > len(paths[module]):
            reason = "its weight is shared with another module"
        elif module._forward_hooks or module._forward_pre_hooks:
            reason = "it has forward hooks, which would be lost"
        elif not (reason := obstacle(module)):
            possible = True
            if module is layers[0]:
                reason = "the stem: the first layer is left alone by default"
            elif module is layers[-1]:
                reason = "the classifier: the last layer is left alone by default"
        sites.append(Site(tuple(paths[module]), module, reason, possible))
    return sites


def matches(site: Site, pattern: str) -> bool:
    """Whether a dotted-name pattern matches a site by one of its names, or a module that holds it."""
    return any(fnmatch.fnmatchcase(name, p) for name in site.names for p in (pattern, f"{pattern}.*"))


def sites_by_pattern(sites: Sequence[Site], patterns: Iterable[str], option: str) -> dict[str, str]:
    """The pattern that matches each site, by the site's name; those that no pattern matches are left out.

    Raises:
        ValueError: a pattern matches no place that the method could take, or a place matches two.
    """
    found: dict[str, str] = {}
    could = [site for site in sites if site.possible]
    for pattern in patterns:
        hits = [site.name for site in could if matches(site, pattern)]
        if not hits:
            names = ", ".join(site.name for site in could[:4]) or "none"
            raise ValueError(
                f"{option}: pattern {pattern!r} matches nothing that could be replaced; there are {names}, ..."
            )
        if twice := next((name for name in hits if name in found), None):
            raise ValueError(
                f"{option}: {twice} matches both {found[twice]!r} and {pattern!r}; make them exclude each other"
            )
        found.update(dict.fromkeys(hits, pattern))
    return found


def is_condensed(module: nn.Module) -> bool:
    """Whether the module is one that a method put in; such a module says by which in `condensed_by`."""
    return getattr(module, "condensed_by", None) is not None
