"""The database of a search: opening it, agreeing on its settings, and keeping its trials in order among workers."""

import contextlib
import dataclasses
import json
import logging
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from pocketcnn.errors import BadStorage
from pocketcnn.experiments.search.space import Record
from pocketcnn.support.optional import optional_import
from pocketcnn.support.runs import Amount, Count, Share
from pocketcnn.support.schema import shaped
from pocketcnn.train import TrainConfig

_log = logging.getLogger(__name__)
_HEARTBEAT, _GRACE = 15, 60  # seconds between a worker's signs of life; seconds without one until it counts as dead
_RETRIES = 3  # how often a trial that broke off is resumed
_OPENINGS = 5  # attempts to open a database: workers that start together make its tables at the same moment
_OPENING_SECONDS = 60  # after which no further attempt is made
_DIRECTIONS = ("maximize", "minimize", "minimize")  # accuracy, bytes, milliseconds
_REMEDY = "give another database (storage) or study"
POLL = 1.0  # seconds between queries for the progress of other workers


@dataclass(frozen=True)
class _Settings:
    """The settings of a search, an attribute of its study."""

    train: Record


@dataclass(frozen=True)
class _Part:
    method: str


@dataclass(frozen=True)
class _Proposal:
    """The record of a proposal, an attribute of its trial."""

    label: str
    outcome: Literal[
        "running", "trained", "stopped early", "diverged", "over budget", "impossible", "repeated", "surplus"
    ]
    folder: Annotated[str, Meta(pattern=r"^trials/[0-9]+$")]
    parts: list[_Part]


@dataclass(frozen=True)
class _Costs:
    """What the record of a candidate has as soon as it was measured."""

    file_bytes: Count
    macs: Count
    latency_ms: Amount
    curve: list[Share] = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class _Scores:
    """What the record of a trained candidate has too."""

    curve: list[Share]
    validation_accuracy: Share


@dataclass(frozen=True)
class _Attributes:
    """The attributes of a trial."""

    record: _Proposal | None = None
    takes_up: Count = 0
    tries: Count = 0


def _flat(record: Any, name: str = "") -> dict[str, Any]:
    """Flattens a record into its leaves by dotted names."""
    if not isinstance(record, dict) or not record:
        return {name: record}
    return {
        key: leaf for word, part in record.items() for key, leaf in _flat(part, f"{name}.{word}".strip(".")).items()
    }


def import_optuna() -> Any:
    return optional_import("optuna", extra="search", purpose="searching")


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silences Optuna's own log, and its warnings that heartbeats are experimental."""
    optuna = import_optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def open_study(url: str, name: str) -> Any:
    """Opens the study of this name in a database; makes whichever of the two is missing.

    Raises:
        BadStorage: the database cannot be opened, or holds something else by this name; or it is kept in memory only.
    """
    shown = _shown(url)
    if re.fullmatch(r"sqlite(\+\w+)?:/{0,3}(:memory:)?(\?.*)?", url):
        raise BadStorage(f"{shown}: a database in memory is lost when the process ends; give sqlite:///FILE")
    study = _open(url, name, shown)
    try:
        _check_study(study, f"{shown}: study {name!r}")
    except BadStorage:
        raise
    except Exception as error:  # rows that Optuna itself cannot read raise errors of all kinds
        raise BadStorage(
            f"{shown}: study {name!r} cannot be read ({_cause(error, url)}); restore the database, or {_REMEDY}"
        ) from error
    return study


def _check_study(study: Any, where: str) -> None:
    """Checks that a study is a search, and the shape of what is read from its trials."""
    if tuple(direction.name.lower() for direction in study.directions) != _DIRECTIONS:
        raise BadStorage(f"{where} is no search of pocketcnn: it has other objectives; {_REMEDY}")
    for trial in study.get_trials(deepcopy=False):
        place = f"{where}, trial {trial.number}"
        found = shaped(trial.user_attrs, _Attributes, place, error=BadStorage, remedy=_REMEDY)
        if found.record is None or found.record.outcome == "impossible":
            continue
        record = trial.user_attrs["record"]
        if found.record.outcome != "running" or "file_bytes" in record:
            shaped(record, _Costs, f"{place}: record", error=BadStorage, remedy=_REMEDY)
        if found.record.outcome == "trained":
            shaped(record, _Scores, f"{place}: record", error=BadStorage, remedy=_REMEDY)


def _shown(url: str) -> str:
    """The URL of a database without its password."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)


def _cause(error: Exception, url: str) -> str:
    """The first line of the driver's own error, without the password."""
    cause = error.__cause__ or error
    return next(iter(str(cause).replace(url, _shown(url)).splitlines()), type(cause).__name__)


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turns an error of the database in the midst of a search into one line.

    Raises:
        BadStorage: the database can no longer be read or written.
    """
    try:
        yield
    except import_optuna().exceptions.StorageInternalError as error:
        raise BadStorage(
            f"{_shown(url)}: this database cannot be used ({_cause(error, url)}); it must be "
            "writable and not locked by another program; then the same command resumes the search"
        ) from error


def _open(url: str, name: str, shown: str) -> Any:
    optuna = import_optuna()
    begun = time.monotonic()
    waiting = {"timeout": 60} if url.startswith("sqlite") else {}  # for the lock that one writer holds
    for left in reversed(range(_OPENINGS)):
        try:
            database = optuna.storages.RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, "connect_args": waiting},
                heartbeat_interval=_HEARTBEAT,
                grace_period=_GRACE,
                heartbeat_stale_trial_callback=requeue,
            )
            return optuna.create_study(storage=database, study_name=name, directions=_DIRECTIONS, load_if_exists=True)
        except Exception as error:  # each driver has errors of its own
            if not left or time.monotonic() - begun > _OPENING_SECONDS:
                raise BadStorage(
                    f"{shown}: this database cannot be opened ({_cause(error, url)}); give sqlite:///FILE in a folder that can be "
                    "written to, or postgresql+psycopg://HOST/DATABASE of a server that runs"
                ) from error
            time.sleep(POLL / 2)


def check_settings(study: Any, settings: Record) -> None:
    """Writes the settings into a new study, or checks that the study has the same.

    Raises:
        BadStorage: what the study has as its settings is something else.
        ValueError: the settings differ; the first three differences are named.
    """
    had = study.user_attrs.get("settings")
    if had is None:
        study.set_user_attr("settings", settings)
        return
    where = f"study {study.study_name!r}: settings"
    shaped(had, _Settings, where, error=BadStorage, remedy=_REMEDY)
    # A field that did not exist when the study began had its default.
    had = {**had, "train": {**dataclasses.asdict(TrainConfig()), **had["train"]}}
    was, now = _flat(json.loads(json.dumps(had))), _flat(settings)
    if differing := [key for key in {**was, **now} if was.get(key) != now.get(key)]:
        changed = "; ".join(f"{key} was {was.get(key)!r}, now {now.get(key)!r}" for key in differing[:3])
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"the database holds a search {study.study_name!r} with other settings ({changed}{more}); give another database "
            "(storage) or study, or the earlier settings"
        )


def record_of(trial: Any) -> Record:
    return trial.user_attrs.get("record", {})


def origin_of(trial: Any) -> int:
    """The number of the trial that this one resumes, else its own number; the run's folder is named by it."""
    return trial.user_attrs.get("takes_up", trial.number)


def is_counted(trial: Any) -> bool:
    """Returns True if the candidate was trained: to the end, until it was stopped early, or until it diverged."""
    return trial.state.is_finished() and record_of(trial).get("outcome") in ("trained", "stopped early", "diverged")


def occupies_place(trial: Any) -> bool:
    """Returns True if a trial counts, or is unfinished and may come to count."""
    return is_counted(trial) or not trial.state.is_finished()


def fruitless_in_a_row(trials: Sequence[Any]) -> int:
    """Counts the proposals in a row, up to the last, that were not worth training."""
    count = 0
    for trial in reversed(trials):
        if occupies_place(trial):
            break
        count += record_of(trial).get("outcome") in ("over budget", "impossible", "repeated")
    return count


def requeue(study: Any, trial: Any) -> None:
    """Puts a trial that broke off back in the queue; the next worker that asks resumes it in the same folder."""
    optuna = import_optuna()
    tries = trial.user_attrs.get("tries", 0) + 1
    if tries > _RETRIES:
        _log.warning("trial %d broke off %d times and is given up", origin_of(trial), tries)
        return
    _log.info("trial %d broke off; it will be resumed", trial.number)
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"takes_up": origin_of(trial), "tries": tries},
        )
    )


def fail_dead_trials(study: Any) -> None:
    """Ends the trials of dead workers, so that they are resumed.

    Optuna knows a dead worker by its missing heartbeats. It takes one that died before its first heartbeat for alive; the
    trial of such a worker is known by having no record.
    """
    optuna = import_optuna()
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        if not record_of(trial) and time.time() - trial.datetime_start.timestamp() > _GRACE:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
            if "takes_up" in trial.user_attrs:
                requeue(study, trial)
