"""Searching for the smallest, fastest, most accurate nets within budgets: many candidates are proposed, those that fit are
trained.

A candidate is a plain net of some width, condensed in some of its stages by one method or by two in turn, and stored in
some precision, for which it is trained if it has few bits. Its cost in bytes, multiply-adds and milliseconds is known
before training, so candidates over budget are never trained: Optuna learns by how much they miss and proposes others. The result is the Pareto front of validation
accuracy, bytes of the file and latency. The accuracy is that of the net in the file, rounded as stored.

The sampler is Optuna's TPE. It takes three objectives and constraints, and learns from every proposal, from the twentieth
on; a single generation of NSGA-II has more candidates than most searches train. Its random numbers depend on the number of
the trial, so workers that share a database propose different candidates.

The test images are used for the nets of the front only, whenever a search ends; nothing is chosen by them.
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from pocketcnn.data import DataSet
from pocketcnn.experiments.search.findings import Found, write_findings
from pocketcnn.experiments.search.space import Budgets, Candidate, Part, Record, Space, methods_tried, parse_size
from pocketcnn.experiments.search.study import check_settings, is_counted, open_study, quiet_optuna, storage_errors
from pocketcnn.experiments.search.worker import Worker, stops
from pocketcnn.models.recipes import create_model
from pocketcnn.models.spec import PLAIN_METHOD
from pocketcnn.support.files import make_folder
from pocketcnn.train import TrainConfig
from pocketcnn.train.outputs import check_input
from pocketcnn.train.teacher import Teacher

__all__ = ["METHODS_TRIED", "Budgets", "Candidate", "Found", "Part", "Space", "parse_size", "search", "stops"]


def __getattr__(name: str) -> Any:
    """`METHODS_TRIED` with the methods that are registered when it is read."""
    if name == "METHODS_TRIED":
        return methods_tried()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    """Trains candidates that meet the budgets until there are enough of them, and writes the findings into a folder.

    Workers started with the same arguments, on one machine or many, share the database and the folder, and together train
    as many candidates as asked for. If a worker is killed, its trial resumes from the last checkpoint: in another worker,
    or in the same one started again. A finished search is read, not repeated; with more trials it continues.

    Only candidates that are trained count as trials, whether they finish, are stopped early, or diverge. Proposals over
    budget or of a net that was trained before do not count; after a hundred of these in a row the search ends early.

    Args:
        data: the images to train on; the validation images decide.
        config: how each candidate is trained; its seed is that of all nets and of the search.
        output: folder of `trials.json`, `front.json`, `table.md`, `pareto.svg`, the nets of the front in `front/`, and a
            run for each trial in `trials/`. Workers on several machines need a folder that all of them see.
        trials: how many candidates all workers together train.
        space: what candidates are proposed from.
        budgets: what a candidate may cost.
        storage: URL of the database that workers share, `sqlite:///FILE` or `postgresql+psycopg://HOST/NAME`; the file
            `search.db` in the output folder by default. Leave passwords to the driver's own files and variables.
        study: name of the search in that database.
        accelerator: as in Lightning; each worker uses one device.
    Raises:
        NothingFits: no candidate meets the budgets; the nearest is named.
        BadStorage: the database cannot be opened, written or is not that of a search.
        BadData: the net does not fit the images or the classes.
        ValueError: fewer than one trial, or fewer than were trained; bits or sparsity in the config; or the database holds a search with other settings.
        MissingExtra: Optuna is missing.
    """
    if config.bits != "off" or config.sparsity:
        raise ValueError("a search chooses the bits of each candidate itself; leave out bits and sparsity")
    if trials < 1:
        raise ValueError(f"trials is how many candidates are trained, at least 1, not {trials}")
    check_input(create_model(space.model, **space.model_options), data)
    output = make_folder(Path(output))
    settings = _settings(data, config, space, budgets)
    with quiet_optuna(), contextlib.ExitStack() as stack:
        url = storage or f"sqlite:///{output / 'search.db'}"
        shared = open_study(url, study)
        stack.enter_context(storage_errors(url))
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
    """The settings on which all workers of a search must agree, and the search itself when it is continued."""
    return json.loads(json.dumps({
        "model": space.model,
        "model_options": space.model_options,
        "data": Path(data.name).name,
        "fingerprint": data.fingerprint,
        "budgets": dataclasses.asdict(budgets),
        "space": space.described(),
        "train": {**dataclasses.asdict(config), "teacher": Path(config.teacher).name},
        **({"teacher": Teacher.read(config.teacher).digest} if config.teacher else {}),
    }))  # fmt: skip
