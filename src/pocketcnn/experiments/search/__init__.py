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

import dataclasses
import json
import logging
from pathlib import Path

from pocketcnn.data import DataSet
from pocketcnn.experiments.search.findings import Found, write_findings
from pocketcnn.experiments.search.space import METHODS_TRIED, Budgets, Candidate, Part, Record, Space, parse_size
from pocketcnn.experiments.search.study import check_settings, is_counted, open_study, quiet_optuna
from pocketcnn.experiments.search.worker import Worker, stops
from pocketcnn.models.recipes import create_model
from pocketcnn.models.spec import PLAIN_METHOD
from pocketcnn.support.files import make_folder
from pocketcnn.train import TrainConfig
from pocketcnn.train.evaluation import check_input

__all__ = ["METHODS_TRIED", "Budgets", "Candidate", "Found", "Part", "Space", "parse_size", "search", "stops"]

_log = logging.getLogger(__name__)
_UNLIMITED = Budgets()


def search(
    data: DataSet,
    config: TrainConfig,
    output: str | Path,
    *,
    trials: int,
    space: Space,
    budgets: Budgets = _UNLIMITED,
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
    check_input(create_model(space.model, **space.model_options), data)
    output = make_folder(Path(output))
    settings = _settings(data, config, space, budgets)
    with quiet_optuna():
        shared = open_study(storage or f"sqlite:///{output / 'search.db'}", study)
        check_settings(shared, settings)
        done = sum(map(is_counted, shared.get_trials(deepcopy=False)))
        if done > trials:
            raise ValueError(
                f"this search has trained {done} candidates already, more than {trials}; ask for {done} or more"
            )
        worker = Worker(shared, data, config, output, space, budgets, trials, accelerator)
        if not shared.get_trials(deepcopy=False) and PLAIN_METHOD in space.methods:
            worker.enqueue_plain()
        worker.run()
        return write_findings(shared, settings, data, output, budgets)


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
