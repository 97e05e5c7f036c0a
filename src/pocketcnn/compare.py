"""Training many nets under one recipe, each with several seeds, next to the plain net and plain nets of equal size."""

import ast
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn._files import make_folder, write_json
from pocketcnn.cost import count_params
from pocketcnn.data import DataSet
from pocketcnn.errors import NonFiniteLoss, UnknownMethod
from pocketcnn.methods import METHODS
from pocketcnn.recipes import create_model
from pocketcnn.surgery import condense
from pocketcnn.train import TrainConfig, fit

_log = logging.getLogger(__name__)
PLAIN = "plain"


@dataclass(frozen=True)
class Contestant:
    """One row of a comparison: a net by name, and the method that condenses it or `plain`.

    `rival_of` names the small net whose stored numbers this plain net was narrowed (or widened) to.
    """

    model: str
    method: str = PLAIN
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rival_of: str = ""

    @property
    def label(self) -> str:
        """`resnet20 ring:size=0.1`, as it would be written on the command line."""
        width = self.model_options.get("width", 1.0)
        model = self.model if width == 1.0 else f"{self.model} width={width:.4g}"
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{model} {self.method}{':' + options if options else ''}"

    def build(self, seed: int) -> nn.Module:
        """The net, with initial weights drawn from the seed."""
        torch.manual_seed(seed)
        net = create_model(self.model, **self.model_options)
        return net if self.method == PLAIN else condense(net, self.method, **self.options)


@dataclass(frozen=True)
class Outcome:
    """What a comparison left: the results in the order of the table, and what diverged."""

    results: list[dict[str, Any]]
    failures: list[str]


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """A method and its options from `"ring:size=0.1,seed=3"`; `include` and `exclude` patterns may be among them.

    Raises:
        UnknownMethod: no such method, nor `plain`.
        ValueError: an option without a value.
    Example:
        >>> parse_method("ring:size=0.1,include=layer3.*")
        ('ring', {'size': 0.1, 'include': 'layer3.*'})
    """
    name, _, rest = text.partition(":")
    if name != PLAIN and name not in METHODS:
        raise UnknownMethod(name, (PLAIN, *METHODS))
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: option {part!r} has no value; write {name}:{part}=VALUE")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    if name == PLAIN and options:
        raise ValueError(f"{text!r}: plain takes no options; --width scales the plain net")
    return name, options


def contestants(
    models: Sequence[str], methods: Sequence[str], model_options: Mapping[str, Any], *, equal_size: bool
) -> list[Contestant]:
    """The rows of a comparison, each small net followed by its rival; every one is built once, so that mistakes show
    before anything is trained.

    Args:
        models: names of plain nets.
        methods: `plain` and methods with options, as `parse_method` takes them.
        model_options: for `create_model`.
        equal_size: add for each small net the plain net of equal stored numbers.
    Raises:
        UnknownModel: or any other error of `create_model` and `condense`.
    """
    rows: list[Contestant] = []
    for model in models:
        for text in methods:
            method, options = parse_method(text)
            contestant = Contestant(model, method, options, model_options)
            if contestant in rows:
                continue
            net = contestant.build(seed=0)
            rows.append(contestant)
            if equal_size and method != PLAIN:
                width = width_of_size(model, count_params(net)[1], model_options)
                rival = Contestant(model, PLAIN, {}, {**model_options, "width": width}, rival_of=contestant.label)
                rows.append(rival)
    return rows


def width_of_size(model: str, numbers: int, model_options: Mapping[str, Any]) -> float:
    """The width at which a plain net stores about as many numbers (running statistics included) as asked for.

    Widths are multiples of 1/256, up to 8; of the two nearest sizes the closer one wins.
    """

    def size(step: int) -> int:
        with torch.device("meta"):
            return count_params(create_model(model, **{**model_options, "width": step / 256}))[1]

    low, high = 1, 8 * 256
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= numbers else (low, middle)
    return min((low, high), key=lambda step: abs(size(step) - numbers)) / 256


def compare(
    data: DataSet,
    rows: Sequence[Contestant],
    config: TrainConfig,
    output: str | Path,
    *,
    seeds: int = 1,
    on_result: Callable[[list[dict[str, Any]]], None] = lambda results: None,
    **run: Any,
) -> Outcome:
    """Trains every contestant with every seed under one recipe; runs that are finished are read, not repeated.

    Precision and layout, where `auto`, are measured for the first seed of a contestant and kept for its others.

    Args:
        data: what is trained and tested on.
        rows: as `contestants` makes them.
        config: the recipe; its seed is the first one.
        output: folder; each run gets one inside it, `comparison.json` says what was compared.
        seeds: how many seeds.
        on_result: called with all results so far after each run.
        **run: passed on to `fit`: devices, progress, ...
    Returns:
        The results, and a message for each run that diverged.
    """
    output = make_folder(Path(output))
    if seeds < 1:
        raise ValueError(f"seeds is how many runs each row gets, at least 1, not {seeds}")
    listed = [{**dataclasses.asdict(row), "label": row.label} for row in rows]
    write_json(output / "comparison.json", {"data": data.name, "seeds": seeds, "rows": listed})
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    for row in rows:
        settled = config
        for seed in range(config.seed, config.seed + seeds):
            folder = output / row.label.replace(" ", "-").replace("*", "_").replace("/", "_") / f"seed{seed}"
            identity = {**dataclasses.asdict(row), "label": row.label}
            try:
                result = fit(
                    row.build(seed),
                    data,
                    dataclasses.replace(settled, seed=seed),
                    folder,
                    name=f"{row.label} seed {seed}",
                    identity=identity,
                    **run,
                )
            except NonFiniteLoss as error:
                failures.append(f"{row.label} seed {seed}: {error}")
                _log.error("%s", failures[-1])
                continue
            chosen = {key: result["train"][key] for key in ("precision", "channels_last")}
            settled = dataclasses.replace(settled, **chosen)
            results.append(result)
            on_result(results)
    return Outcome(results, failures)
