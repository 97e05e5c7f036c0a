"""The published figures, read from the one data file, with the net and the preset of each row."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from pocketcnn.errors import BrokenFile, PocketError
from pocketcnn.methods import get_method
from pocketcnn.models.recipes import RECIPES
from pocketcnn.models.spec import PLAIN_METHOD, NetSpec, parse_method, parse_options
from pocketcnn.support.schema import read_shaped, shaped
from pocketcnn.train.config import PRESETS, TrainConfig

FILE = Path(__file__).with_name("published.json")
_OF_DATA = ("in_channels", "num_classes")
_OF_RUN = ("seed", "precision", "channels_last", "compile")  # settings in which two runs of one preset may differ
_PATTERNS = ("include", "exclude")
_REMEDY = "correct the entry"
Side = Annotated[int, Meta(ge=1, le=1 << 31)]
Percent = Annotated[float, Meta(ge=0, le=100)]
ShareOfImages = Annotated[float, Meta(gt=0, lt=1)]


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
        return data.train_images if self.train.all_images else round(data.train_images * (1 - self.validation))


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


@dataclass(frozen=True)
class _DataEntry:
    input_size: tuple[Side, Side, Side]
    classes: Side
    train_images: Side
    test_images: Side


@dataclass(frozen=True)
class _RowEntry:
    key: str
    label: str
    model: str
    method: str = PLAIN_METHOD
    recipe: str = ""
    published: dict[str, Percent] = field(default_factory=dict)
    printed: str = ""
    trainable: Side | None = None
    goal: dict[str, float | str] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class _TableEntry:
    title: str
    source: str
    data: str
    about: str
    recipe: str
    rows: Annotated[list[_RowEntry], Meta(min_length=1)]
    quick: str | None = None
    validation: ShareOfImages = 0.1
    figure: str = ""


@dataclass(frozen=True)
class _Content:
    sources: dict[str, str]
    data: dict[str, _DataEntry]
    recipes: dict[str, dict[str, Any]]
    tables: dict[str, _TableEntry]


def read_tables() -> dict[str, Table]:
    """Reads all tables, by name.

    Raises:
        BrokenFile: an entry of the file is missing, has another type or is out of range.
        ValueError: a preset that exists neither in the file nor in the library.
    """
    content = read_shaped(FILE, _Content, remedy=_REMEDY)
    return {name: _table(name, given, content) for name, given in content.tables.items()}


def _table(name: str, given: _TableEntry, content: _Content) -> Table:
    for kind, word, known in (("data", given.data, content.data), ("source", given.source, content.sources)):
        if word not in known:
            raise BrokenFile(f"{FILE}: tables.{name}: no {kind} {word!r}; known: {', '.join(known)}; {_REMEDY}")
    data = Data(given.data, **vars(content.data[given.data]))
    quick = Preset(given.quick, _train(given.quick, content, name)) if given.quick else None
    preset = Preset(given.recipe, _train(given.recipe, content, name), given.validation)
    rows = []
    for entry in given.rows:
        own, quickly = preset, quick
        if entry.recipe:  # quick runs are not comparable with this row
            own, quickly = Preset(entry.recipe, _train(entry.recipe, content, name), given.validation), None
        said = {key: value for key, value in vars(entry).items() if key != "recipe"}
        rows.append(Row(**said, data=data, preset=own, quick=quickly))
    source = content.sources[given.source]
    return Table(name, given.title, source, data, given.about, given.figure, preset, quick, rows)


def _train(name: str, content: _Content, table: str) -> TrainConfig:
    if name in content.recipes:
        settings = dict(content.recipes[name])
        base = dataclasses.asdict(_preset(settings.pop("like"), table)) if "like" in settings else {}
        return shaped({**base, **settings}, TrainConfig, f"{FILE}: recipes.{name}", remedy=_REMEDY)
    return _preset(name, table)


def _preset(name: str, table: str) -> TrainConfig:
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
