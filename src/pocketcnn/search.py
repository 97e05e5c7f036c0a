"""The smallest, fastest, most accurate nets within a budget: many candidates, of which the few that fit are trained.

A candidate is a plain net of some width, condensed by a method or by two of them in turn, in some of its stages, and stored
in some precision. What it costs in bytes, multiply-adds and milliseconds is known before it is trained, so a candidate over
budget never is: Optuna is told by how much it misses, and proposes others. The result is the Pareto front of validation
accuracy, bytes of the file and latency; the accuracy is that of the net in the file, rounded as stored.

The sampler is Optuna's TPE. It takes three objectives and constraints, learns from every proposal, and does so from the
twentieth on; a generation of NSGA-II alone has more candidates than most searches train. Its proposals differ with the
number of the trial, so workers that share a storage propose different ones.

The test images are looked at for the nets of the front, whenever a search ends; nothing is chosen by them.
"""

import contextlib
import dataclasses
import json
import logging
import math
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import image_notes
from pocketcnn.checkpoint.storage import Storage, weights_of
from pocketcnn.cost import measure, measure_latency
from pocketcnn.data import DataSet
from pocketcnn.errors import BadStorage, BrokenFile, NonFiniteLoss, NothingFits, NothingToCondense
from pocketcnn.methods import METHODS, Range, get_method
from pocketcnn.models.recipes import RECIPES, create_model
from pocketcnn.models.spec import PLAIN_METHOD, parse_method
from pocketcnn.report import read_curve
from pocketcnn.report.pareto import pareto
from pocketcnn.support.files import make_folder, write_atomically, write_json
from pocketcnn.support.optional import optional_import
from pocketcnn.surgery import as_served, condense, plan
from pocketcnn.train import TrainConfig, evaluate, fit
from pocketcnn.train.callbacks import LAST, PREVIOUS
from pocketcnn.train.loop import check_fit

METHODS_TRIED = (PLAIN_METHOD, *METHODS, "pde+ring", "involution+ring")
WIDTHS = (2, 16)  # sixteenths of the net's channels

_STARTUP = 20  # proposals that are drawn at random before any are modelled
_PATIENCE = 100  # proposals in a row of which none is trained, before a search ends early
_HEARTBEAT, _GRACE = 15, 60  # seconds between signs of life of a worker, and after which it counts as dead
_RETRIES = 3  # times that a trial whose worker died is taken up again
_OPENINGS = 5  # tries to open a storage: workers that start together make its tables at the same moment
_POLL = 1.0  # seconds between looks at what other workers do
_SAMPLES = 4  # nets that must have finished before one is compared with them
_ROUNDS, _RUNS = 5, 10  # how often latency is measured, and passes of each
_ALIKE = 1.1  # how much larger or slower a net may be that a poor one is compared with

_log = logging.getLogger(__name__)
Record = dict[str, Any]


@dataclass(frozen=True)
class Budgets:
    """What a candidate may cost at most; None for no limit.

    `max_ms` is for one image of the net as served, on one thread of the CPU, so that it means the same beside other
    workers; where the cost depends on the image, `max_macs` and `max_ms` are for the most complex one.
    """

    max_bytes: int | None = None
    max_macs: int | None = None
    max_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be more than 0, not {value}")

    def misses(self, costs: Mapping[str, float]) -> dict[str, float]:
        """For each budget the logarithm of cost over budget: above 0 where the candidate does not fit."""
        limits = zip(dataclasses.asdict(self).items(), _COSTS, strict=True)
        return {name: math.log(costs[cost] / limit) for (name, limit), cost in limits if limit is not None}


_COSTS = ("file_bytes", "macs", "latency_ms")  # in the order of the budgets


@dataclass(frozen=True)
class Part:
    """A condensing of a candidate: the method, its options, and the stages it works on."""

    method: str
    options: Mapping[str, Any]
    stages: tuple[str, ...]

    def takes(self, module: nn.Module, name: str) -> bool:
        """Whether a layer of that dotted name lies in its stages."""
        return _stage(name) in self.stages


@dataclass(frozen=True)
class Candidate:
    """A plain net by name, what condenses it, and the type of its weights in the file."""

    model: str
    model_options: Mapping[str, Any]
    parts: tuple[Part, ...]
    storage: Storage
    label: str

    def build(self, seed: int) -> nn.Module:
        """The net, with initial weights drawn from the seed.

        Raises:
            NothingToCondense: a method finds nothing to do in its stages.
            ValueError: the net cannot be so narrow.
        """
        torch.manual_seed(seed)
        net = create_model(self.model, **self.model_options)
        for part in self.parts:
            net = condense(net, part.method, where=part.takes, **part.options)
        return net


@dataclass(frozen=True)
class Space:
    """What a search chooses from. `methods` are the parts of each choice, with options that are fixed; `stages` the choices
    for each method, names between blanks."""

    model: str
    model_options: Mapping[str, Any]
    methods: Mapping[str, tuple[tuple[str, Mapping[str, Any]], ...]]
    stages: Mapping[str, tuple[str, ...]]
    widths: tuple[int, int] | None

    @classmethod
    def of(cls, model: str, model_options: Mapping[str, Any], methods: Sequence[str] | None = None) -> "Space":
        """The space around a plain net; every method is planned on it, so that mistakes show before anything is trained.

        A method's stages are those that hold what its plan would replace: all of them, from any one on, or one alone.

        Args:
            model: name of a plain net.
            model_options: for `create_model`; widths are shares of the one given here.
            methods: names with options that are to be fixed, `"ring:level=stage"`, in turn where joined by a plus,
                `"pde+ring"`. None for those of `METHODS_TRIED` that find something to do in this net.
        Raises:
            UnknownModel: no such net.
            UnknownMethod: no such method.
            NothingToCondense: a method that was asked for has nothing to do in the net.
            ValueError: a recipe, an option out of range, a method twice in one choice, or no methods.
        """
        if model in RECIPES:
            raise ValueError(f"{model} is {RECIPES[model].base} condensed already; a search starts from a plain net")
        net = create_model(model, **model_options)
        parts: dict[str, tuple[tuple[str, Mapping[str, Any]], ...]] = {}
        stages: dict[str, tuple[str, ...]] = {}
        for text in dict.fromkeys(METHODS_TRIED if methods is None else methods):
            chosen = [parse_method(part) for part in text.split("+")]
            names = [name for name, _ in chosen]
            if len(set(names)) < len(names) or (PLAIN_METHOD in names and len(names) > 1):
                raise ValueError(f"{text}: each method once, and plain alone")
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
            raise ValueError(f"give at least one method to search over: {', '.join(METHODS_TRIED)}")
        try:
            with torch.device("meta"):
                create_model(model, **{"width": 1.0, **model_options})
        except ValueError:
            return cls(model, model_options, parts, stages, None)
        return cls(model, model_options, parts, stages, WIDTHS)

    def propose(self, trial: Any) -> Candidate:
        """The candidate of an Optuna trial, whose parameters are named by method and option."""
        text = trial.suggest_categorical("method", list(self.methods))
        model_options, words = dict(self.model_options), []
        if self.widths is not None:
            sixteenths = trial.suggest_int("width", *self.widths, log=True)
            model_options["width"] = self.model_options.get("width", 1.0) * sixteenths / 16
            words.append(f"width={model_options['width']:g}")
        parts = tuple(self._part(trial, name, fixed) for name, fixed in self.methods[text])
        storage = trial.suggest_categorical("storage", get_args(Storage))
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
        """A part as in a label, without what is so by default: `ring:size=0.1@layer2,layer3`."""
        default = get_method(part.method).options()
        options = ",".join(f"{k}={v}" for k, v in part.options.items() if v != getattr(default, k, None))
        everywhere = part.stages == tuple(self.stages[part.method][0].split())
        where = "" if everywhere else "@" + ",".join(part.stages)
        return f"{part.method}{':' + options if options else ''}{where}"

    def described(self) -> Record:
        """Everything a trial's parameters are drawn from, as JSON holds it."""
        searched = {name: get_method(name).searched for name in self.stages}
        return {
            "methods": list(self.methods),
            "widths": self.widths,
            "options": {
                name: {
                    key: dataclasses.astuple(allowed) if isinstance(allowed, Range) else allowed
                    for key, allowed in options.items()
                }
                for name, options in searched.items()
            },
            "stages": self.stages,
        }


@dataclass(frozen=True)
class Found:
    """What a search has found so far: the records of its front, smallest file first, those of all proposals in their order,
    and the front as a Markdown table."""

    front: list[Record]
    trials: list[Record]
    table: str


def search(
    data: DataSet,
    config: TrainConfig,
    output: str | Path,
    *,
    trials: int,
    space: Space,
    budgets: Budgets = Budgets(),
    storage: str | None = None,
    study: str = "pocketcnn",
    accelerator: str = "auto",
) -> Found:
    """Trains candidates that meet the budgets until there are enough of them, and writes what is found into a folder.

    Started several times with the same arguments, on one machine or many, the workers share the storage and the folder, and
    train as many in all as asked for. A worker that is killed leaves its trial to another one, or to itself started again,
    which goes on from its last checkpoint. A finished search is read, not repeated; with more trials it goes on.

    Only candidates that are trained count as trials, whether they end, are stopped early, or diverge. A proposal over
    budget, or of a net that was trained before, does not count; after a hundred such in a row the search ends early.

    Args:
        data: what is trained on, and whose validation images decide.
        config: the recipe; its seed is that of all nets and of the search.
        output: folder: `trials.json`, `front.json`, `table.md`, `pareto.svg`, the nets of the front in `front/`, a run for
            each trial in `trials/`. Workers on several machines need one that all of them see.
        trials: how many candidates are trained, by all workers together.
        space: what is chosen from.
        budgets: what a candidate may cost.
        storage: URL of the database that workers share, `sqlite:///FILE` or `postgresql+psycopg://HOST/NAME`; the file
            `search.db` in the output folder by default. Leave passwords to the driver's own files and variables.
        study: name of the search in that database.
        accelerator: as in Lightning; each worker uses one device.
    Raises:
        NothingFits: no candidate meets the budgets; the nearest is named.
        BadStorage: the storage cannot be opened.
        BadData: the net does not fit the images or the classes.
        ValueError: fewer than one trial, or fewer than there are; or the storage holds a search with other settings.
        MissingExtra: Optuna is missing.
    """
    if trials < 1:
        raise ValueError(f"trials is how many candidates are trained, at least 1, not {trials}")
    check_fit(create_model(space.model, **space.model_options), data)
    output = make_folder(Path(output))
    settings = _settings(data, config, space, budgets)
    with _quiet_optuna():
        shared = _open(storage or f"sqlite:///{output / 'search.db'}", study)
        _agree(shared, settings)
        done = sum(map(_counts, shared.get_trials(deepcopy=False)))
        if done > trials:
            raise ValueError(
                f"this search has trained {done} candidates already, more than {trials}; ask for {done} or more"
            )
        worker = _Worker(shared, data, config, output, space, budgets, trials, accelerator)
        if not shared.get_trials(deepcopy=False) and PLAIN_METHOD in space.methods:
            worker.enqueue_plain()
        worker.run()
        return _write(shared, settings, data, output, budgets)


class _TakenOver(BaseException):
    """This worker was taken for dead. No `Exception`, so that Optuna does not tell how the trial ended: it is another's."""


@dataclass(frozen=True)
class _Worker:
    """One of the processes that share a search."""

    study: Any
    data: DataSet
    config: TrainConfig
    output: Path
    space: Space
    budgets: Budgets
    trials: int
    accelerator: str

    def enqueue_plain(self) -> None:
        """Has the widest plain net that fits trained first, in int8: what the others must beat."""
        low, high = self.space.widths or (0, 0)
        widest: Record | None = None
        with contextlib.suppress(ValueError):  # of a net that cannot be so narrow
            while low <= high:  # bisection
                width = (low + high) // 2
                params = {"method": PLAIN_METHOD, "width": width, "storage": "int8"}
                candidate = self.space.propose(_optuna().trial.FixedTrial(params))
                if any(miss > 0 for miss in self.budgets.misses(self._costs(candidate)).values()):
                    high = width - 1
                else:
                    low, widest = width + 1, params
        if widest is not None:
            self.study.enqueue_trial(widest, skip_if_exists=True)

    def run(self) -> None:
        """Proposes and trains until all workers together have trained enough, or nothing that fits is left."""
        optuna = _optuna()
        running = optuna.trial.TrialState.RUNNING
        while True:
            _bury(self.study)
            found = self.study.get_trials(deepcopy=False)
            done, busy = sum(map(_counts, found)), sum(trial.state == running for trial in found)
            if done >= self.trials:
                return
            if done + busy >= self.trials:
                time.sleep(_POLL)
                continue
            if _in_vain(found) >= _PATIENCE:
                _log.warning("%d proposals in a row that do not fit or were trained before: %d of %d trials, no more",
                             _PATIENCE, done, self.trials)  # fmt: skip
                return
            try:
                self.study.optimize(self._try, n_trials=1)
            except _TakenOver:
                _log.warning("this worker was silent for so long that another one took its trial over")

    def _try(self, trial: Any) -> tuple[float, float, float]:
        """Proposes a candidate, checks what it costs, trains it. Optuna's objective: accuracy, bytes, milliseconds."""
        optuna = _optuna()
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_STARTUP, seed=(100_003 * self.config.seed + trial.number) % 2**32
        )
        candidate = self.space.propose(trial)
        record = {**dataclasses.asdict(candidate), "outcome": "running", "folder": f"trials/{_origin(trial)}"}

        def note(**more: Any) -> None:
            record.update(more)
            try:
                trial.set_user_attr("record", record)
            except optuna.exceptions.UpdateFinishedTrialError as error:
                raise _TakenOver from error

        def end(outcome: str) -> Exception:
            note(outcome=outcome)
            self._tidy(trial)
            _log.info("trial %d: %s: %s", trial.number, candidate.label, outcome)
            return optuna.TrialPruned(outcome)

        note()
        try:
            costs = self._costs(candidate)
        except (NothingToCondense, ValueError) as error:
            trial.set_constraint("built", 1.0)
            note(reason=str(error))
            raise end("impossible") from error
        note(**costs)
        misses = self.budgets.misses(costs)
        for name, miss in misses.items():
            trial.set_constraint(name, miss)
        if any(miss > 0 for miss in misses.values()):
            raise end("over budget")
        earlier = [other for other in self.study.get_trials(deepcopy=False) if other.number < trial.number]
        if any(_occupies(other) and _record(other).get("label") == candidate.label for other in earlier):
            raise end("repeated")
        # Of several workers that ask at the same time for the last one, the first by number gets it.
        if sum(map(_occupies, earlier)) >= self.trials:
            raise end("surplus")
        try:
            return self._train(trial, candidate, costs, note)
        except optuna.TrialPruned:
            raise end("stopped early") from None
        except NonFiniteLoss as error:
            note(reason=str(error))
            raise end("diverged") from error
        except _TakenOver:
            raise
        except BaseException:
            _again(self.study, self.study.get_trials(deepcopy=False)[trial.number])
            raise

    def _costs(self, candidate: Candidate) -> Record:
        """Bytes of the file, multiply-adds and milliseconds of a candidate, which training does not change."""
        net = candidate.build(self.config.seed)
        with torch.no_grad():
            for weight in weights_of(net).values():
                weight[weight == 0] = 1.0  # zeros, which some nets start from, are stored in fewer bytes
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "net.safetensors"
            size = checkpoint.save(net, file, notes=image_notes(self.data), storage=candidate.storage)
        cost = measure(net, self.data.input_size)
        served = as_served(net)
        # The least of several medians: what other processes take of the time is not the net's.
        rounds = [measure_latency(served, self.data.input_size, threads=1, runs=_RUNS) for _ in range(_ROUNDS)]
        return {
            "file_bytes": size,
            "macs": cost.macs,
            "latency_ms": _rounded(min(latency.median_ms for latency in rounds)),  # less than that is the clock's
            "trainable_params": cost.trainable_params,
        }

    def _train(
        self, trial: Any, candidate: Candidate, costs: Mapping[str, float], note: Callable[..., None]
    ) -> tuple[float, float, float]:
        pruned = _optuna().TrialPruned

        def watch(rows: Sequence[Mapping[str, float]]) -> None:
            curve = [round(row["validation_accuracy"], 6) for row in rows]  # as metrics.csv has it
            note(curve=curve)
            if stops(curve, self._peers(costs), self.config.epochs):
                raise pruned

        folder = self.output / f"trials/{_origin(trial)}"
        _log.info("trial %d: %s: %s", trial.number, candidate.label, _costs_in_words(costs))
        net = candidate.build(self.config.seed)
        fit(
            net, self.data, self.config, folder, name=f"trial {trial.number}",
            identity={"model": candidate.model, "label": candidate.label}, accelerator=self.accelerator,
            test=False, on_epoch=watch,
        )  # fmt: skip
        file = folder / "stored.safetensors"
        size = checkpoint.save(net, file, notes=image_notes(self.data), storage=candidate.storage)
        accuracy = _accuracy(file, self.data, "validation")
        note(outcome="trained", file_bytes=size, validation_accuracy=accuracy, curve=read_curve(folder))
        self._tidy(trial)
        _log.info("trial %d: validation accuracy %.2f %% in %s bytes", trial.number, 100 * accuracy, f"{size:,}")
        return accuracy, size, costs["latency_ms"]

    def _tidy(self, trial: Any) -> None:
        """Removes the checkpoints of a run that nobody will go on with."""
        for name in (LAST, PREVIOUS):
            (self.output / f"trials/{_origin(trial)}" / name).unlink(missing_ok=True)

    def _peers(self, costs: Mapping[str, float]) -> list[list[float]]:
        """The curves of trained nets that are not much larger and not much slower."""
        done = (_record(trial) for trial in self.study.get_trials(deepcopy=False))
        return [
            record["curve"]
            for record in done
            if record.get("outcome") == "trained"
            and all(record[cost] <= _ALIKE * costs[cost] for cost in ("file_bytes", "latency_ms"))
        ]


def stops(curve: Sequence[float], peers: Sequence[Sequence[float]], epochs: int) -> bool:
    """Whether a net is not worth training further: its best accuracy so far is below the median of the best that its peers
    had after as many epochs.

    Optuna's own rules are for one objective. Peers are nets that are not larger and not slower, so a net that is behind most
    of them would hardly reach the front; small nets are never held against larger ones.

    Args:
        curve: validation accuracy after each epoch so far.
        peers: the curves of such nets, trained to the end. Fewer than four say nothing.
        epochs: of a whole training; nothing is stopped in the first quarter of it, nor after the last.
    Example:
        >>> peers = [[0.3, 0.6], [0.3, 0.7], [0.4, 0.8], [0.5, 0.9]]
        >>> stops([0.2, 0.74], peers, epochs=4), stops([0.2, 0.76], peers, epochs=4)
        (True, False)
    """
    epoch = len(curve)
    if len(peers) < _SAMPLES or not epochs / 4 < epoch < epochs:
        return False
    return max(curve) < median(max(peer[:epoch]) for peer in peers)


def parse_size(text: str) -> int:
    """A whole number as people write it; k, M and G are thousand, million and thousand million.

    Raises:
        ValueError: it cannot be understood.
    Example:
        >>> [parse_size(text) for text in ("100k", "0.1M", "100_000", "100 kB", "100,000")]
        [100000, 100000, 100000, 100000, 100000]
    """
    number = r"\d[\d_]*|\d{1,3}(?:,\d{3})+"  # a comma that is no separator of thousands is refused
    found = re.fullmatch(rf"((?:{number})(?:\.\d+)?) ?([kmg]?)b?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{text!r} is no size; write 100k, 0.1M, 100_000 or 100kB, where k is 1000")
    scale = 1000 ** " kmg".index(found[2].lower() or " ")
    return round(float(re.sub("[_,]", "", found[1])) * scale)


# --- what is asked for -----------------------------------------------------------------------------------------------


def _stage(name: str) -> str:
    """The part of a net that a layer is in, by the first word of its dotted name."""
    return name.partition(".")[0]


def _stages(net: nn.Module, method: str, fixed: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices of stages for a method: all that its plan has places in, all from one on, one alone."""
    searched = get_method(method).searched
    first = {key: allowed.low if isinstance(allowed, Range) else allowed[0] for key, allowed in searched.items()}
    replaced = plan(net, method, **{**first, **fixed}).replaced
    if not replaced:
        condense(net, method, **{**first, **fixed})  # says why
    stages = list(dict.fromkeys(map(_stage, replaced)))
    return tuple(dict.fromkeys([*(" ".join(stages[start:]) for start in range(len(stages))), *stages]))


def _suggest(trial: Any, name: str, allowed: Range | tuple[Any, ...]) -> Any:
    if not isinstance(allowed, Range):
        return trial.suggest_categorical(name, allowed)
    if isinstance(allowed.low, int):
        return trial.suggest_int(name, allowed.low, allowed.high, log=True)
    return _rounded(trial.suggest_float(name, allowed.low, allowed.high, log=True))


def _rounded(number: float) -> float:
    """To two digits."""
    return float(f"{number:.2g}")


def _settings(data: DataSet, config: TrainConfig, space: Space, budgets: Budgets) -> Record:
    """What all workers of a search, and the same search taken up again, must agree on."""
    return json.loads(json.dumps({
        "model": space.model,
        "model_options": space.model_options,
        "data": Path(data.name).name,
        "fingerprint": data.fingerprint,
        "budgets": dataclasses.asdict(budgets),
        "space": space.described(),
        "train": {**dataclasses.asdict(config), "teacher": Path(config.teacher).name},
    }))  # fmt: skip


def _flat(record: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a record by dotted names."""
    if not isinstance(record, dict) or not record:
        return {name: record}
    return {
        key: leaf for word, part in record.items() for key, leaf in _flat(part, f"{name}.{word}".strip(".")).items()
    }


# --- the storage -----------------------------------------------------------------------------------------------------


def _optuna() -> Any:
    return optional_import("optuna", extra="search", purpose="searching")


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Without Optuna's own log, nor its notes that heartbeats may change in a later version."""
    optuna = _optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _open(url: str, name: str) -> Any:
    """The study of that name in a database; both are made where they are missing."""
    optuna = _optuna()
    shown = re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)
    waiting = {"timeout": 60} if url.startswith("sqlite") else {}  # for the lock that one writer holds
    for left in reversed(range(_OPENINGS)):
        try:
            storage = optuna.storages.RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, "connect_args": waiting},
                heartbeat_interval=_HEARTBEAT,
                grace_period=_GRACE,
                heartbeat_stale_trial_callback=_again,
            )
            directions = ("maximize", "minimize", "minimize")
            return optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        except Exception as error:  # of the database's driver, whichever that is
            if not left:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                first = first.replace(url, shown)
                raise BadStorage(
                    f"{shown}: this storage cannot be opened ({first}); give sqlite:///FILE in a folder that can be "
                    "written to, or postgresql+psycopg://HOST/DATABASE of a server that runs"
                ) from error
            time.sleep(_POLL / 2)


def _agree(study: Any, settings: Record) -> None:
    """Writes the settings into a new study, or checks that they are the same."""
    had = study.user_attrs.get("settings")
    if had is None:
        study.set_user_attr("settings", settings)
        return
    # Fields that are younger than the study had their defaults.
    had = {**had, "train": {**dataclasses.asdict(TrainConfig()), **had["train"]}}
    was, now = _flat(json.loads(json.dumps(had))), _flat(settings)
    if differing := [key for key in {**was, **now} if was.get(key) != now.get(key)]:
        changed = "; ".join(f"{key} was {was.get(key)!r}, now {now.get(key)!r}" for key in differing[:3])
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"the storage holds a search {study.study_name!r} with other settings ({changed}{more}); give another storage "
            "or study, or the settings as they were"
        )


def _record(trial: Any) -> Record:
    return trial.user_attrs.get("record", {})


def _origin(trial: Any) -> int:
    """The number of the trial that this one takes up, or its own: where the run lies."""
    return trial.user_attrs.get("takes_up", trial.number)


def _counts(trial: Any) -> bool:
    """Whether a candidate was trained: to the end, until it was stopped early, or until it diverged."""
    return trial.state.is_finished() and _record(trial).get("outcome") in ("trained", "stopped early", "diverged")


def _occupies(trial: Any) -> bool:
    """Whether a trial counts, or will as far as is known."""
    return _counts(trial) or not trial.state.is_finished()


def _in_vain(trials: Sequence[Any]) -> int:
    """How many proposals in a row, up to the last one, were not worth training."""
    count = 0
    for trial in reversed(trials):
        if _occupies(trial):
            break
        count += _record(trial).get("outcome") in ("over budget", "impossible", "repeated")
    return count


def _again(study: Any, trial: Any) -> None:
    """Has a trial that broke off taken up by whoever asks next, in the same folder."""
    optuna = _optuna()
    tries = trial.user_attrs.get("tries", 0) + 1
    if tries > _RETRIES:
        _log.warning("trial %d broke off %d times and is given up", _origin(trial), tries)
        return
    _log.info("trial %d broke off; it is taken up again", trial.number)
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"takes_up": _origin(trial), "tries": tries},
        )
    )


def _bury(study: Any) -> None:
    """Gives up what dead workers have left running. Optuna knows them by heartbeats that have ceased; those that died
    before their first one it would believe alive for ever, and they have written no record."""
    optuna = _optuna()
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        if not _record(trial) and time.time() - trial.datetime_start.timestamp() > _GRACE:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
            if "takes_up" in trial.user_attrs:
                _again(study, trial)


# --- what is found ---------------------------------------------------------------------------------------------------


def _accuracy(file: Path, data: DataSet, split: Literal["test", "validation"]) -> float:
    """Of the net in a model file, as it loads, on the images of a split."""
    return evaluate(checkpoint.load(file), data, split=split)[f"{split}_accuracy"]


def _costs_in_words(record: Mapping[str, Any]) -> str:
    return f"{record['file_bytes']:,} bytes, {record['macs']:,} MACs, {record['latency_ms']:g} ms"


def _write(study: Any, settings: Record, data: DataSet, output: Path, budgets: Budgets) -> Found:
    """Writes all there is to tell of a search, from its storage: the same by whichever worker, however often."""
    found = study.get_trials(deepcopy=False)
    broken = _optuna().trial.TrialState.FAIL  # such a trial was taken up under another number
    records = [{"number": t.number, **_record(t)} for t in found if _record(t) and t.state != broken]
    best = {trial.number for trial in study.best_trials}
    if not best and not any(map(_occupies, found)):
        raise NothingFits(_nothing_fits(records, budgets))
    counts = Counter(record["outcome"] for record in records if record["outcome"] != "surplus")
    front = sorted((r for r in records if r["number"] in best), key=lambda r: (r["file_bytes"], r["latency_ms"]))
    make_folder(output / "front")
    kept = []
    for record in front:
        source, name = output / record["folder"] / "stored.safetensors", f"front/trial-{record['number']}.safetensors"
        if not source.is_file():
            raise BrokenFile(
                f"{source}: the file of trial {record['number']} is gone; give the folder that it was trained in"
            )
        write_atomically(output / name, source.read_bytes())
        kept.append({**record, "file": name, "test_accuracy": _accuracy(source, data, "test")})
    for path in (output / "front").glob("trial-*.safetensors"):
        if f"front/{path.name}" not in {record["file"] for record in kept}:
            path.unlink(missing_ok=True)  # another worker may be at it too
    said = _sentence(counts, settings)
    table = f"{_markdown(kept)}\n{said}\n"
    write_json(output / "trials.json", {"settings": settings, "proposals": dict(counts), "trials": records})
    write_json(output / "front.json", {"settings": settings, "front": kept})
    write_atomically(output / "table.md", table)
    write_atomically(output / "pareto.svg", pareto(records, best, dataclasses.asdict(budgets), said))
    return Found(kept, records, table)


def _markdown(front: Sequence[Record]) -> str:
    titles = ["trial", "net", "file bytes", "MACs", "latency ms", "validation %", "test %"]
    lines = ["| " + " | ".join(titles) + " |", "|---:|---" + "|---:" * 5 + "|"]
    for record in front:
        cells = [
            f"{record['number']}", record["label"], f"{record['file_bytes']:,}", f"{record['macs']:,}",
            f"{record['latency_ms']:g}", f"{100 * record['validation_accuracy']:.2f}",
            f"{100 * record['test_accuracy']:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _sentence(counts: Mapping[str, int], settings: Record) -> str:
    """How many were trained and how many were not, and why."""
    trained = sum(counts.get(outcome, 0) for outcome in ("trained", "stopped early", "diverged"))
    early = ", ".join(f"{counts[o]} {o}" for o in ("stopped early", "diverged") if counts.get(o))
    words = {"over budget": "over budget", "impossible": "impossible to build", "repeated": "trained before"}
    others = ", ".join(f"{counts[outcome]} {said}" for outcome, said in words.items() if counts.get(outcome))
    said = f"{settings['model']} on {settings['data']}: {trained} nets trained{f', of which {early}' if early else ''}"
    return f"{said}; proposals never trained: {others or 'none'}."


def _nothing_fits(records: Sequence[Record], budgets: Budgets) -> str:
    """The nearest candidate and what it breaks; how far away one is, is summed over the budgets."""
    measured = [record for record in records if "file_bytes" in record]
    if not measured:
        return f"none of {len(records)} proposals can be built: {records[-1]['reason']}"
    nearest = min(measured, key=lambda record: sum(max(0, miss) for miss in budgets.misses(record).values()))
    limits = dataclasses.asdict(budgets)
    broken = " and ".join(f"{name} {limits[name]:,}" for name, miss in budgets.misses(nearest).items() if miss > 0)
    return (
        f"none of {len(records)} proposals meets the budgets; the nearest, {nearest['label']}, has {_costs_in_words(nearest)}, "
        f"over {broken}; allow more, or search around a smaller net (--width, --methods)"
    )


__all__ = ["METHODS_TRIED", "Budgets", "Candidate", "Found", "Part", "Space", "parse_size", "search", "stops"]
