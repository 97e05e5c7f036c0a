"""The space that a search proposes candidates from, and the budgets that a candidate must meet."""

import dataclasses
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.storage import Storage
from pocketcnn.errors import NothingToCondense
from pocketcnn.methods import METHODS, Range, get_method
from pocketcnn.models.recipes import RECIPES, create_model
from pocketcnn.models.spec import PLAIN_METHOD, parse_method
from pocketcnn.surgery import condense, plan
from pocketcnn.train.rounding import Bits

_log = logging.getLogger(__name__)
_PAIRS = ("pde+ring", "involution+ring")  # the second method works on the layers that the first one leaves
WIDTHS = (2, 16)  # narrowest and widest, in sixteenths of the net's channels
Record = dict[str, Any]
STORED: dict[str, tuple[Storage, Bits]] = {
    "float32": ("float32", "off"), "float16": ("float16", "off"), "int8": ("int8", "off"), "int4": ("int8", "4"),
    "int2": ("int8", "2"), "ternary": ("int8", "ternary"),
}  # fmt: skip
"""How a candidate's weights are stored, and the bits that it is trained for; packed files hold few bits in few bytes."""


@dataclass(frozen=True)
class Budgets:
    """The most that a candidate may cost; None for no limit.

    `max_ms` is for one image of the net as served, on one thread of the CPU, so that it means the same beside other
    workers. If the cost depends on the image, `max_macs` and `max_ms` are for the most complex image.
    """

    max_bytes: int | None = None
    max_macs: int | None = None
    max_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be more than 0, not {value}")

    def misses(self, costs: Mapping[str, float]) -> dict[str, float]:
        """The logarithm of cost over budget, for each budget: above 0 if the candidate does not fit."""
        limits = zip(dataclasses.asdict(self).items(), _COSTS, strict=True)
        return {name: math.log(costs[cost] / limit) for (name, limit), cost in limits if limit is not None}


def methods_tried() -> tuple[str, ...]:
    """The plain net, every method by itself, and the pairs: what a search tries unless told otherwise.

    A method is tried with every option that its record lists in `searched`, and with its defaults if it lists none.
    """
    return (PLAIN_METHOD, *METHODS, *_PAIRS)


_COSTS = ("file_bytes", "macs", "latency_ms")  # in the order of the budgets


@dataclass(frozen=True)
class Part:
    """One condensing of a candidate: the method, its options, and the stages that it works on."""

    method: str
    options: Mapping[str, Any]
    stages: tuple[str, ...]

    def takes(self, module: nn.Module, name: str) -> bool:
        """Returns True if the layer of this dotted name lies in the stages."""
        return _stage(name) in self.stages


@dataclass(frozen=True)
class Candidate:
    """A plain net by name, the parts that condense it, and how its weights are stored: a key of `STORED`."""

    model: str
    model_options: Mapping[str, Any]
    parts: tuple[Part, ...]
    storage: str
    label: str

    @property
    def bits(self) -> Bits:
        """The bits that its weights are trained for."""
        return STORED[self.storage][1]

    def save(self, net: nn.Module, path: Path, notes: dict[str, Any]) -> int:
        """Writes the net's packed file, and returns its bytes."""
        return checkpoint.save(net, path, notes=notes, storage=STORED[self.storage][0], packed=True)

    def build(self, seed: int) -> nn.Module:
        """The net, with initial weights drawn from the seed.

        Raises:
            NothingToCondense: a method finds nothing to do in its stages.
            ValueError: the net cannot be made this narrow.
        """
        torch.manual_seed(seed)
        net = create_model(self.model, **self.model_options)
        for part in self.parts:
            net = condense(net, part.method, where=part.takes, **part.options)
        return net


@dataclass(frozen=True)
class Space:
    """Everything that a search chooses from.

    `methods` maps each choice to its parts: methods with the options that are fixed. `stages` maps each method to its
    choices of stages, as names between blanks. `widths` is None for a net that has no width.
    """

    model: str
    model_options: Mapping[str, Any]
    methods: Mapping[str, tuple[tuple[str, Mapping[str, Any]], ...]]
    stages: Mapping[str, tuple[str, ...]]
    widths: tuple[int, int] | None

    @classmethod
    def of(cls, model: str, model_options: Mapping[str, Any], methods: Sequence[str] | None = None) -> "Space":
        """Makes the space around a plain net; plans every method on it, so that mistakes show before anything is trained.

        The stages of a method are those in which its plan replaces something. It is tried on all of them, on all from some
        stage on, and on each alone.

        Args:
            model: name of a plain net.
            model_options: for `create_model`; widths are shares of the width given here.
            methods: names of methods with the options to fix, `"ring:level=stage"`; a plus joins methods that work in
                turn, `"pde+ring"`. None for those of `METHODS_TRIED` that find something to do in this net.
        Raises:
            UnknownModel: no net of that name.
            UnknownMethod: no method of that name.
            NothingToCondense: a method that was asked for has nothing to do in the net.
            ValueError: a recipe, an option out of range, a method twice in one choice, or no methods.
        """
        if model in RECIPES:
            raise ValueError(f"{model} is {RECIPES[model].base} condensed already; a search starts from a plain net")
        net = create_model(model, **model_options)
        parts: dict[str, tuple[tuple[str, Mapping[str, Any]], ...]] = {}
        stages: dict[str, tuple[str, ...]] = {}
        for text in dict.fromkeys(methods_tried() if methods is None else methods):
            chosen = [parse_method(part) for part in text.split("+")]
            names = [name for name, _ in chosen]
            if len(set(names)) < len(names) or (PLAIN_METHOD in names and len(names) > 1):
                raise ValueError(f"{text}: name each method once, and plain alone")
            chosen = [(name, options) for name, options in chosen if name != PLAIN_METHOD]
            try:
                found = {name: _stages(net, name, options) for name, options in chosen}
            except NothingToCondense:
                if methods is not None:
                    raise
                _log.info("%s has nothing to do in %s and is left out", text, model)
                continue
            parts[text] = tuple(chosen)
            stages.update(found)
        if not parts:
            raise ValueError(f"give at least one method to search over: {', '.join(methods_tried())}")
        try:
            with torch.device("meta"):
                create_model(model, **{"width": 1.0, **model_options})
        except ValueError:
            return cls(model, model_options, parts, stages, None)
        return cls(model, model_options, parts, stages, WIDTHS)

    def propose(self, trial: Any) -> Candidate:
        """Draws a candidate from an Optuna trial, whose parameters are named by method and option."""
        text = trial.suggest_categorical("method", list(self.methods))
        model_options, words = dict(self.model_options), []
        if self.widths is not None:
            sixteenths = trial.suggest_int("width", *self.widths, log=True)
            model_options["width"] = self.model_options.get("width", 1.0) * sixteenths / 16
            words.append(f"width={model_options['width']:g}")
        parts = tuple(self._part(trial, name, fixed) for name, fixed in self.methods[text])
        storage = trial.suggest_categorical("storage", list(STORED))
        words += ["+".join(map(self._call, parts)) or PLAIN_METHOD, storage]
        return Candidate(self.model, model_options, parts, storage, " ".join(words))

    def _part(self, trial: Any, name: str, fixed: Mapping[str, Any]) -> Part:
        options = dict(fixed)
        for option, allowed in get_method(name).searched.items():
            if option not in fixed:
                options[option] = _suggest(trial, f"{name}.{option}", allowed)
        stages = trial.suggest_categorical(f"{name}.stages", self.stages[name])
        return Part(name, options, tuple(stages.split()))

    def _call(self, part: Part) -> str:
        """Spells a part for a label, without options and stages at their defaults: `ring:size=0.1@layer2,layer3`."""
        default = get_method(part.method).options()
        options = ",".join(f"{k}={v}" for k, v in part.options.items() if v != getattr(default, k, None))
        everywhere = part.stages == tuple(self.stages[part.method][0].split())
        where = "" if everywhere else "@" + ",".join(part.stages)
        return f"{part.method}{':' + options if options else ''}{where}"

    def described(self) -> Record:
        """Describes, in words that JSON has, all that the parameters of a trial are drawn from."""
        searched = {name: get_method(name).searched for name in self.stages}
        return {
            "methods": list(self.methods),
            "widths": self.widths,
            "storage": list(STORED),
            "options": {
                name: {
                    key: dataclasses.astuple(allowed) if isinstance(allowed, Range) else allowed
                    for key, allowed in options.items()
                }
                for name, options in searched.items()
            },
            "stages": self.stages,
        }


def parse_size(text: str) -> int:
    """Reads a whole number as people write it; k, M and G are a thousand, a million and a thousand million.

    Raises:
        ValueError: the text is not such a number.
    Example:
        >>> [parse_size(text) for text in ("100k", "0.1M", "100_000", "100 kB", "100,000")]
        [100000, 100000, 100000, 100000, 100000]
    """
    number = r"[0-9][0-9_]*|[0-9]{1,3}(?:,[0-9]{3})+"  # commas only between thousands
    found = re.fullmatch(rf"((?:{number})(?:\.[0-9]+)?) ?([kmg]?)b?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{text!r} is no size; write 100k, 0.1M, 100_000 or 100kB, where k is 1000")
    scale = 1000 ** " kmg".index(found[2].lower() or " ")
    return round(float(re.sub("[_,]", "", found[1])) * scale)


def _stage(name: str) -> str:
    """The stage of a layer: the first word of its dotted name."""
    return name.partition(".")[0]


def _stages(net: nn.Module, method: str, fixed: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices of stages for a method: all in which its plan replaces something, all from one on, each alone."""
    searched = get_method(method).searched
    first = {key: allowed.low if isinstance(allowed, Range) else allowed[0] for key, allowed in searched.items()}
    replaced = plan(net, method, **{**first, **fixed}).replaced
    if not replaced:
        condense(net, method, **{**first, **fixed})  # raises an error that says why
    stages = list(dict.fromkeys(map(_stage, replaced)))
    return tuple(dict.fromkeys([*(" ".join(stages[start:]) for start in range(len(stages))), *stages]))


def _suggest(trial: Any, name: str, allowed: Range | tuple[Any, ...]) -> Any:
    if not isinstance(allowed, Range):
        return trial.suggest_categorical(name, allowed)
    if isinstance(allowed.low, int):
        return trial.suggest_int(name, allowed.low, allowed.high, log=True)
    return rounded(trial.suggest_float(name, allowed.low, allowed.high, log=True))


def rounded(number: float) -> float:
    """Rounds to two significant digits."""
    return float(f"{number:.2g}")
