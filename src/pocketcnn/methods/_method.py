"""The record that the rest of the package knows a condensing method by, and the places where one could work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Site:
    """A place in a net where a method could work: a module, or a run of modules.

    `reason` is empty if the method works there by default; else it says why not, and `possible` tells whether naming the
    place in `include` condenses it all the same.
    """

    names: tuple[str, ...]  # all dotted paths that lead to the module; the first one names the site
    module: Any
    reason: str = ""
    possible: bool = True
    rest: tuple[tuple[str, Any], ...] = ()  # of a run: names and modules after the first one
    says: str = ""  # the place in a few words; if empty, plans describe the module
    detail: Any = None  # notes of the method's `sites` for its own `build`
    optional: bool = (
        False  # condensed, and shown in plans, only if a pattern of `include` matches nothing but such places
    )

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def modules(self) -> list[Any]:
        """All modules that the new layer replaces."""
        return [self.module, *(module for _, module in self.rest)]


@dataclass(frozen=True)
class Range:
    """Values that a search tries for an option, evenly over their logarithms; whole numbers if `low` is one."""

    low: int | float
    high: int | float


@dataclass(frozen=True)
class Method:
    """A condensing method, with everything that surgery, the command line, plans and reports need to know of it."""

    name: str
    summary: str  # one line, for lists
    source: str  # the publication
    options: type[Any]  # a frozen dataclass with a default and a one-line docstring for every field
    sites: Callable[[nn.Module, Any], list[Site]]
    # Site name -> the module that takes its place; None removes the place from its nn.Sequential.
    build: Callable[[Sequence[Site], Any], Mapping[str, nn.Module | None]]
    places: tuple[str, str] = ("convolution", "convolutions")  # the places it replaces, for messages: one, several
    # Finishes the net once the new modules are in their places.
    finish: Callable[[nn.Module, Mapping[str, nn.Module | None]], None] = lambda model, built: None
    # Brings the new modules near to the trained ones that they replaced, by the weights alone; None if that takes images.
    match: Callable[[Mapping[str, Sequence[Any]], Mapping[str, nn.Module | None]], None] | None = None
    match_options: Mapping[str, Any] = field(default_factory=dict)  # options that `match` needs
    # Tells whether a step with these options needs their seed to be rebuilt, so that hiding the seed hides the net.
    needs_seed: Callable[[Mapping[str, Any]], bool] = lambda options: "seed" in options
    # Options that a search varies, with their values or choices; the first choice finds most places to work.
    searched: Mapping[str, Range | tuple[Any, ...]] = field(default_factory=dict)
