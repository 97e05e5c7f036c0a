"""What a condensing method is to the rest of the package, and the walk over a net that its `sites` starts from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn


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
    match: Callable[[Mapping[str, Sequence[Any]], Mapping[str, nn.Module | None]], None] | None = None
    match_options: Mapping[str, Any] = field(default_factory=dict)  # what such a start needs
    # Given a step's options, tells whether rebuilding the step takes their seed, so that hiding the seed hides the net.
    needs_seed: Callable[[Mapping[str, Any]], bool] = lambda options: "seed" in options
    # What a search varies: option -> numbers or choices, of which the first finds most places to work.
    searched: Mapping[str, Range | tuple[Any, ...]] = field(default_factory=dict)
