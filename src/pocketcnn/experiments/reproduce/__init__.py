"""`pocketcnn reproduce`: published figures beside ours, from the records of runs; what is missing can be run.

The published figures are in `published.json`, ours only in the records of a folder of results.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from pocketcnn.data import DataSet, load
from pocketcnn.errors import Interrupted, PocketError, Preempted, UnknownTable
from pocketcnn.experiments.compare import folder_of
from pocketcnn.experiments.reproduce.page import Rates, cells, hours, orders, write_page
from pocketcnn.experiments.reproduce.published import Recipe, Row, Table, read_tables
from pocketcnn.experiments.reproduce.runs import read_runs, runs_of
from pocketcnn.experiments.speeds import measure_speeds
from pocketcnn.support.environment import environment
from pocketcnn.support.files import make_folder, read_json, write_json
from pocketcnn.support.memory import keep_memory
from pocketcnn.support.runs import MODEL, RESULT, read_curve
from pocketcnn.train import fit
from pocketcnn.train.auto import step_seconds, to_layout, trial_batch
from pocketcnn.train.images import calibrate

__all__ = ["Reproduced", "measure_rates", "read_tables", "reproduce"]
_log = logging.getLogger(__name__)
Column = Literal["table", "quick"]
Work = Sequence[tuple[Row, Recipe]]


@dataclass(frozen=True)
class Reproduced:
    """What `reproduce` found: the cells of each table asked for, titles first, sentences below them, and what diverged."""

    cells: Mapping[str, Sequence[Sequence[str]]]
    sentences: Mapping[str, Sequence[str]]
    failures: Sequence[str]


def reproduce(
    name: str = "all",
    *,
    minutes: float = 0,
    seeds: int = 1,
    recipe: Column = "table",
    rates: bool = False,
    data_folder: str | Path | None = None,
    results: str | Path = "results",
    docs: str | Path = "docs/results.md",
    **run: Any,
) -> Reproduced:
    """Runs what is missing of a table as far as the time goes, then reads all records and writes the page of all tables.

    Args:
        name: of a table, or `"all"`.
        minutes: for runs: 0 for none, `math.inf` for all. A run starts only if it should end in time.
        seeds: how many runs each row gets.
        recipe: that of the table, or the quick one.
        rates: first measure how fast each net trains here, which tells how long a run takes, and how fast the nets serve
            whose model files are among the results, in turns.
        data_folder: where data sets lie, `cifar10` in `data_folder/cifar10`; None for the built-in hub names.
        results: folder of records, where runs go too.
        docs: the page; figures are written beside it.
        **run: passed on to `fit`.
    Raises:
        UnknownTable: no table of that name.
        ValueError: minutes or seeds out of range, or a preset is missing.
        CannotWrite: the page or a run cannot be written.
    """
    tables, results, docs = read_tables(), Path(results), Path(docs)
    if name not in (*tables, "all"):
        raise UnknownTable(name, (*tables, "all"))
    if seeds < 1 or not minutes >= 0:
        raise ValueError(f"seeds must be at least 1 and minutes 0 or more, got {seeds} and {minutes}")
    make_folder(docs.parent)  # before hours of runs
    chosen = list(tables.values()) if name == "all" else [tables[name]]
    if rates:
        every = _work(chosen, "table") + _work(chosen, "quick")
        measure_rates(every, results, data_folder)
        _measure_speeds(every, results, data_folder)
    known = _rates(results)
    work = _work(chosen, recipe)
    failures = _run(work, results, known, minutes, seeds, data_folder, run) if minutes else []
    if minutes and (by_hand := [row.command for table in chosen for row in table.rows if row.command]):
        _log.info("not run from here: %s", "; ".join(by_hand))
    found = write_page(list(tables.values()), read_runs(results), known, docs, results)
    return Reproduced(
        {table.name: cells(table, found[table.name], known) for table in chosen},
        {table.name: orders(table, found[table.name]) for table in chosen},
        failures,
    )


def measure_rates(work: Work, results: Path, data_folder: str | Path | None = None, *, steps: int = 3) -> Path:
    """Times training steps of each net by the batch of its recipe, in bfloat16 and channels last: medians, after one step
    to warm up. Rates measured before stay, unless measured again.

    Returns:
        The path of `reproduce/rates.json`, where `hours` come from.
    """
    keep_memory()
    path = make_folder(results / "reproduce") / "rates.json"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {recipe: dict(known) for recipe, known in _rates(results).items()}
    loaded: dict[tuple[str, float], DataSet] = {}
    for row, recipe in work:
        net, data = row.spec().build(seed=0), _load(row, recipe, data_folder, loaded)
        calibrate(net, data)
        net = to_layout(net.to(device), torch.channels_last).train()
        images, labels = trial_batch(data, recipe.train.batch_size, device)
        images = images.contiguous(memory_format=torch.channels_last)
        seconds = [step_seconds(net, images, labels, bfloat16=True) for _ in range(steps + 1)][1:]
        rates.setdefault(recipe.name, {})[row.spec().label] = round(len(labels) / median(seconds), 1)
        write_json(path, {"images_per_second": rates, "environment": environment()})
    return path


def _measure_speeds(work: Work, results: Path, data_folder: str | Path | None) -> None:
    """Times finished nets of a recipe side by side; the records of runs have times that other runs may have disturbed."""
    finished: dict[str, dict[str, Path]] = {}
    loaded: dict[tuple[str, float], DataSet] = {}
    for row, recipe in work:
        label = row.spec().label
        folder = folder_of(results / "reproduce" / recipe.name, label) / "seed0"
        if (folder / MODEL).is_file() and (folder / RESULT).is_file():
            finished.setdefault(recipe.name, {})[label] = folder
            data = _load(row, recipe, data_folder, loaded)
    for recipe_name, folders in finished.items():
        measure_speeds(folders, data, results / "reproduce" / recipe_name)


def _rates(results: Path) -> Rates:
    path = results / "reproduce" / "rates.json"
    return read_json(path)["images_per_second"] if path.exists() else {}


def _work(tables: Sequence[Table], column: Column) -> list[tuple[Row, Recipe]]:
    """The rows to train, each net once under each recipe, in the order of the tables."""
    work: dict[tuple[str, str], tuple[Row, Recipe]] = {}
    for row in (row for table in tables for row in table.rows if not row.command):
        if recipe := row.recipe if column == "table" else row.quick:
            work.setdefault((recipe.name, row.spec().label), (row, recipe))
    return list(work.values())


def _run(
    work: Work, results: Path, rates: Rates, minutes: float, seeds: int, data_folder: Any, run: Mapping[str, Any]
) -> list[str]:
    """Trains what has no record: the first seed of every row before the second of any."""
    start, before, failures = time.monotonic(), read_runs(results), []
    loaded: dict[tuple[str, float], DataSet] = {}
    for seed in range(seeds):
        for row, recipe in work:
            if any(found.seed == seed for found in runs_of(row, recipe, before)):
                continue
            spec = row.spec()
            folder = folder_of(results / "reproduce" / recipe.name, spec.label) / f"seed{seed}"
            if math.isfinite(minutes) and spec.label not in rates.get(recipe.name, {}):
                measure_rates([(row, recipe)], results, data_folder)
                rates = _rates(results)
            expected = 60 * (hours(row, recipe, rates, len(read_curve(folder))) or 0)
            left = minutes - (time.monotonic() - start) / 60
            title = f"{spec.label}, {recipe.name}, seed {seed}"
            if left <= 0 or expected > left:
                _log.info("%s: left out, takes %.0f minutes of the %.0f that are left", title, expected, max(left, 0))
                continue
            try:
                fit(
                    spec.build(seed),
                    _load(row, recipe, data_folder, loaded),
                    dataclasses.replace(recipe.train, seed=seed),
                    folder,
                    name=title,
                    identity={**dataclasses.asdict(spec), "label": spec.label},
                    **run,
                )
            except (Interrupted, Preempted):
                raise
            except (PocketError, ValueError) as error:  # of this run; the others may do
                failures.append(f"{title}: {error}")
                _log.error("%s", failures[-1])
    return failures


def _load(row: Row, recipe: Recipe, folder: Any, loaded: dict[tuple[str, float], DataSet]) -> DataSet:
    """The data of a row, read once."""
    key = row.data.name, recipe.validation
    if key not in loaded:
        loaded[key] = load(Path(folder) / row.data.name if folder else row.data.name, validation=recipe.validation)
    return loaded[key]
