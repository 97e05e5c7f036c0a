"""The database of a search: opened, agreed on, and its trials kept in order among workers."""

import contextlib
import dataclasses
import json
import logging
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from pocketcnn.errors import BadStorage
from pocketcnn.experiments.search.space import Record
from pocketcnn.support.optional import optional_import
from pocketcnn.train import TrainConfig

_log = logging.getLogger(__name__)
_HEARTBEAT, _GRACE = 15, 60  # seconds between signs of life of a worker, and after which it counts as dead
_RETRIES = 3  # times that a trial whose worker died is taken up again
_OPENINGS = 5  # tries to open a storage: workers that start together make its tables at the same moment
POLL = 1.0  # seconds between looks at what other workers do


def _flat(record: Any, name: str = "") -> dict[str, Any]:
    """The leaves of a record by dotted names."""
    if not isinstance(record, dict) or not record:
        return {name: record}
    return {
        key: leaf for word, part in record.items() for key, leaf in _flat(part, f"{name}.{word}".strip(".")).items()
    }


def import_optuna() -> Any:
    return optional_import("optuna", extra="search", purpose="searching")


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's own log, nor its notes that heartbeats may change in a later version."""
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
    """The study of that name in a database; both are made where they are missing."""
    optuna = import_optuna()
    shown = re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)
    waiting = {"timeout": 60} if url.startswith("sqlite") else {}  # for the lock that one writer holds
    for left in reversed(range(_OPENINGS)):
        try:
            storage = optuna.storages.RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True, "connect_args": waiting},
                heartbeat_interval=_HEARTBEAT,
                grace_period=_GRACE,
                heartbeat_stale_trial_callback=requeue,
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
            time.sleep(POLL / 2)


def check_settings(study: Any, settings: Record) -> None:
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


def record_of(trial: Any) -> Record:
    return trial.user_attrs.get("record", {})


def origin_of(trial: Any) -> int:
    """The number of the trial that this one takes up, or its own: where the run lies."""
    return trial.user_attrs.get("takes_up", trial.number)


def is_counted(trial: Any) -> bool:
    """Whether a candidate was trained: to the end, until it was stopped early, or until it diverged."""
    return trial.state.is_finished() and record_of(trial).get("outcome") in ("trained", "stopped early", "diverged")


def occupies_place(trial: Any) -> bool:
    """Whether a trial counts, or will as far as is known."""
    return is_counted(trial) or not trial.state.is_finished()


def fruitless_in_a_row(trials: Sequence[Any]) -> int:
    """How many proposals in a row, up to the last one, were not worth training."""
    count = 0
    for trial in reversed(trials):
        if occupies_place(trial):
            break
        count += record_of(trial).get("outcome") in ("over budget", "impossible", "repeated")
    return count


def requeue(study: Any, trial: Any) -> None:
    """Has a trial that broke off taken up by whoever asks next, in the same folder."""
    optuna = import_optuna()
    tries = trial.user_attrs.get("tries", 0) + 1
    if tries > _RETRIES:
        _log.warning("trial %d broke off %d times and is given up", origin_of(trial), tries)
        return
    _log.info("trial %d broke off; it is taken up again", trial.number)
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={"takes_up": origin_of(trial), "tries": tries},
        )
    )


def fail_dead_trials(study: Any) -> None:
    """Gives up what dead workers have left running. Optuna knows them by heartbeats that have ceased; those that died
    before their first one it would believe alive for ever, and they have written no record."""
    optuna = import_optuna()
    optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        if not record_of(trial) and time.time() - trial.datetime_start.timestamp() > _GRACE:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
            if "takes_up" in trial.user_attrs:
                requeue(study, trial)
