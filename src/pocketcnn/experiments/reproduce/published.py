"""The published figures, read from the one data file, with the net and the preset of each row."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketcnn.errors import PocketError
from pocketcnn.methods import get_method
from pocketcnn.models.recipes import RECIPES
from pocketcnn.models.spec import PLAIN_METHOD, NetSpec, parse_method, parse_options
from pocketcnn.support.files import read_json
from pocketcnn.train.config import PRESETS, TrainConfig

FILE = Path(__file__).with_name("published.json")
_OF_DATA = ("in_channels", "num_classes")
_OF_RUN = ("seed", "precision", "channels_last", "compile")  # settings in which two runs of one preset may differ
_PATTERNS = ("include", "exclude")


@dataclass(frozen=True)
class Data:
    """A data set as the tables use it; `train_images` counts the validation images too."""

    name: str
    input_size: tuple[int, int, int]
    classes: int
    train_images: int
    test_images: int


@dataclass(frozen=True)
class Preset:
    """Settings by which a column of a table is trained, by name, and the share of images set aside for validation."""

    name: str
    train: TrainConfig
    validation: float = 0.1

    def images(self, data: Data) -> int:
        """Number of images in an epoch."""
        return round(data.train_images * (1 - self.validation))


@dataclass(frozen=True)
class Row:
    """A net of a table. `published` has accuracies in per cent by source, the table's own source first."""

    key: str
    label: str
    model: str
    data: Data
    preset: Preset
    method: str = PLAIN_METHOD
    quick: Preset | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    printed: str = ""  # the size as the source prints it
    trainable: int | None = None  # number of trainable parameters, if the sources fix it
    goal: Mapping[str, Any] = field(default_factory=dict)  # text, and percent, or of_first: points above the first row
    command: str = ""  # makes this row, if it is not made by training its net alone

    def spec(self) -> NetSpec:
        """The net in the form in which `compare` trains it."""
        model, given = parse_options(self.model)
        method, options = parse_method(self.method)
        shape = {"in_channels": self.data.input_size[0], "num_classes": self.data.classes}
        return NetSpec(model, method, options, {**shape, **given})


@dataclass(frozen=True)
class Table:
    """Rows under one title; `preset` is that of all rows but those with one of their own."""

    name: str
    title: str
    source: str
    data: Data
    about: str
    figure: str  # law, macs or none
    preset: Preset
    quick: Preset | None
    rows: Sequence[Row]

    @property
    def sources(self) -> list[str]:
        """The sources that have a figure for some row."""
        return list(dict.fromkeys(source for row in self.rows for source in row.published))


def read_tables() -> dict[str, Table]:
    """Reads all tables, by name.

    Raises:
        ValueError: a preset that exists neither in the file nor in the library.
    """
    content = read_json(FILE)
    tables = {}
    for name, given in content["tables"].items():
        data = Data(given["data"], **content["data"][given["data"]])
        share = given.get("validation", 0.1)
        quick = Preset(given["quick"], _train(given["quick"], content, name)) if given.get("quick") else None
        preset = Preset(given["recipe"], _train(given["recipe"], content, name), share)
        rows = []
        for row in given["rows"]:
            own = {"preset": preset, "quick": quick, "data": data}
            if own_preset := row.pop("recipe", ""):  # quick runs are not comparable with this row
                own |= {"preset": Preset(own_preset, _train(own_preset, content, name), share), "quick": None}
            rows.append(Row(**{**row, **own}))
        source = content["sources"][given["source"]]
        figure = given.get("figure", "")
        tables[name] = Table(name, given["title"], source, data, given["about"], figure, preset, quick, rows)
    return tables


def _train(name: str, content: Mapping[str, Any], table: str) -> TrainConfig:
    if name in content["recipes"]:
        return TrainConfig(**content["recipes"][name])
    if name not in PRESETS:
        raise ValueError(f"{table} is made by preset {name!r}, which does not exist; known: {', '.join(PRESETS)}")
    return PRESETS[name]


def net_of(
    model: str, method: str = PLAIN_METHOD, options: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    """Spells a net so that equal nets compare equal: the plain net, its options, and the steps with all of their options.

    So `resnet32_global` equals `resnet32_4stage` with `pde:last_stage=drop`. Options that follow from the data, and a width
    of 1, are left out.

    Returns:
        Lists and dictionaries to compare; None for a net that this version cannot make.
    """
    given = dict(model_options or {})
    steps = [] if method == PLAIN_METHOD else [(method, dict(options or {}))]
    try:
        while model in RECIPES:
            recipe = RECIPES[model]
            own = [(name, dict(step)) for name, step in recipe.steps]
            if len(own) == 1:
                known = {option.name for option in dataclasses.fields(get_method(own[0][0]).options)}
                own[0][1].update({key: given.pop(key) for key in known & given.keys()})
            model, given, steps = recipe.base, {**recipe.base_options, **given}, own + steps
        given = {k: v for k, v in given.items() if k not in _OF_DATA and (k, v) != ("width", 1)}
        return json.loads(json.dumps([model, given, [_step(*step) for step in steps]], sort_keys=True))
    except (TypeError, ValueError, PocketError):
        return None


def _step(method: str, options: Mapping[str, Any]) -> list[Any]:
    """A method with all of its options, defaults included."""
    patterns = {key: options[key] for key in _PATTERNS if options.get(key)}
    listed = {key: [value] if isinstance(value, str) else list(value) for key, value in patterns.items()}
    full = get_method(method).options(**{key: value for key, value in options.items() if key not in _PATTERNS})
    return [method, {**dataclasses.asdict(full), **listed}]


def comparable_settings(train: Mapping[str, Any] | TrainConfig) -> dict[str, Any]:
    """The settings that make a preset: every field but seed, precision, layout and compiler.

    A field that an older record lacks counts as the default.
    """
    given = dataclasses.asdict(train) if isinstance(train, TrainConfig) else train
    full = json.loads(json.dumps({**dataclasses.asdict(TrainConfig()), **given}))
    return {key: value for key, value in full.items() if key not in _OF_RUN}
