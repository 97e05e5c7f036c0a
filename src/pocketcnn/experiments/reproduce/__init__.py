"""`pocketcnn reproduce`: published figures beside ours, from the records of runs; missing runs can be made.

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

from pocketcnn.cost import measure_memory
from pocketcnn.data import DataSet, load
from pocketcnn.errors import Interrupted, PocketError, Preempted, UnknownTable
from pocketcnn.experiments.compare import folder_of
from pocketcnn.experiments.reproduce.page import Rates, cells, hours, orders, records, write_page
from pocketcnn.experiments.reproduce.published import Preset, Row, Table, read_tables
from pocketcnn.experiments.reproduce.runs import read_runs, runs_of
from pocketcnn.experiments.speeds import measure_speeds
from pocketcnn.support.environment import environment
from pocketcnn.support.files import make_folder, write_json
from pocketcnn.support.layouts import in_layout, to_layout
from pocketcnn.support.memory import keep_memory
from pocketcnn.support.runs import MODEL, RESULT, read_curve
from pocketcnn.support.schema import read_shaped
from pocketcnn.train import fit
from pocketcnn.train.auto import LAYOUTS, step_seconds, trial_batch
from pocketcnn.train.crashes import without_crash
from pocketcnn.train.images import calibrate

__all__ = ["Reproduced", "measure_rates", "read_tables", "reproduce"]
_log = logging.getLogger(__name__)
Column = Literal["table", "quick"]
Work = Sequence[tuple[Row, Preset]]


@dataclass(frozen=True)
class Reproduced:
    """The findings: the cells of each table asked for, titles first; the sentences below it; the rows of all these tables
    as records; and the runs that failed."""

    cells: Mapping[str, Sequence[Sequence[str]]]
    sentences: Mapping[str, Sequence[str]]
    rows: Sequence[Mapping[str, Any]]
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
    """Runs what is missing of a table as far as time allows, then reads all records and writes the page of all tables.

    Args:
        name: name of a table, or `"all"`.
        minutes: time for runs: 0 for none, `math.inf` for all. A run starts only if it is expected to end in time.
        seeds: how many runs each row gets.
        recipe: train with the preset of the table, or with the quick one.
        rates: first measure how fast each net trains here, which tells how long a run takes; and time in turns the nets
            whose model files are among the results.
        data_folder: folder of the data sets, with `cifar10` in `data_folder/cifar10`; None for the built-in hub names.
        results: folder of the records; runs are kept there too.
        docs: the page; figures are written beside it.
        **run: further arguments of `fit`.
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
    make_folder(docs.parent)  # fails before hours of runs, not after
    chosen = list(tables.values()) if name == "all" else [tables[name]]
    if rates:
        every = _work(chosen, "table") + _work(chosen, "quick")
        measure_rates(every, results, data_folder)
        _measure_speeds(every, results, data_folder)
    known = _rates(results)
    work = _work(chosen, recipe)
    failures = _run(work, results, known, minutes, seeds, data_folder, run) if minutes else []
    if minutes and (by_hand := [row.command for table in chosen for row in table.rows if row.command]):
        _log.info("to be run by hand: %s", "; ".join(by_hand))
    found = write_page(list(tables.values()), read_runs(results), known, docs, results)
    return Reproduced(
        {table.name: cells(table, found[table.name], known) for table in chosen},
        {table.name: orders(table, found[table.name]) for table in chosen},
        [record for table in chosen for record in records(table, found[table.name])],
        failures,
    )


def measure_rates(work: Work, results: Path, data_folder: str | Path | None = None, *, steps: int = 3) -> Path:
    """Times training steps of each net with the batch of its preset, in bfloat16 and, unless that crashes, channels last.

    A rate is the median over the steps, after one step to warm up. It replaces the net's earlier rate; others are kept. The
    memory of a step is measured too.

    Returns:
        The path of `reproduce/rates.json`, from which `hours` are computed.
    """
    keep_memory()
    path = make_folder(results / "reproduce") / "rates.json"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = _rates(results)
    rates, memory = (
        {preset: dict(of) for preset, of in by.items()} for by in (known.images_per_second, known.memory_bytes)
    )
    loaded: dict[tuple[str, float], DataSet] = {}
    for row, preset in work:
        net, data = row.spec().build(seed=0), _load(row, preset, data_folder, loaded)
        calibrate(net, data)
        wanted = dataclasses.replace(preset.train, precision="bfloat16", channels_last="on")
        layout = LAYOUTS[without_crash(wanted, net, data, device).channels_last]
        net = to_layout(net.to(device), layout).train()
        images, labels = trial_batch(data, preset.train.batch_size, device)
        images = in_layout(images, layout)
        seconds = [step_seconds(net, images, labels, bfloat16=True) for _ in range(steps + 1)][1:]
        rates.setdefault(preset.name, {})[row.spec().label] = round(len(labels) / median(seconds), 1)
        with torch.autocast(device.type, torch.bfloat16):
            peak = measure_memory(net, row.data.input_size, batch=len(labels), training=True)
        memory.setdefault(preset.name, {})[row.spec().label] = peak
        write_json(path, {"images_per_second": rates, "memory_bytes": memory, "environment": environment()})
    return path


def _measure_speeds(work: Work, results: Path, data_folder: str | Path | None) -> None:
    """Times the finished nets of each preset in turns; other runs may have disturbed the times in the records."""
    folders: dict[str, dict[str, Path]] = {}  # by preset and label, like the data sets
    data: dict[str, dict[str, DataSet]] = {}
    loaded: dict[tuple[str, float], DataSet] = {}
    for row, preset in work:
        label = row.spec().label
        folder = folder_of(results / "reproduce" / preset.name, label) / "seed0"
        if (folder / MODEL).is_file() and (folder / RESULT).is_file():
            folders.setdefault(preset.name, {})[label] = folder
            data.setdefault(preset.name, {})[label] = _load(row, preset, data_folder, loaded)
    for name, finished in folders.items():
        measure_speeds(finished, data[name], results / "reproduce" / name)


def _rates(results: Path) -> Rates:
    path = results / "reproduce" / "rates.json"
    if not path.exists():
        return Rates({})
    return read_shaped(path, Rates, remedy="delete it; --rates measures them again")


def _work(tables: Sequence[Table], column: Column) -> list[tuple[Row, Preset]]:
    """Lists the rows to train in the order of the tables: each net once under each preset.

    Raises:
        ValueError: rows of two data sets would share the folder of a run.
    """
    work: dict[tuple[str, str], tuple[Row, Preset]] = {}
    for row in (row for table in tables for row in table.rows if not row.command):
        if preset := row.preset if column == "table" else row.quick:
            first, _ = work.setdefault((preset.name, row.spec().label), (row, preset))
            if first.data != row.data:
                raise ValueError(
                    f"rows {first.key} and {row.key} train {row.spec().label} under preset {preset.name}, one on "
                    f"{first.data.name}, the other on {row.data.name}: their runs would share a folder; give one of them a "
                    "preset with a name of its own"
                )
    return list(work.values())


def _run(
    work: Work, results: Path, rates: Rates, minutes: float, seeds: int, data_folder: Any, run: Mapping[str, Any]
) -> list[str]:
    """Trains what has no record, the first seed of every row before the second of any; returns the failures."""
    start, before, failures = time.monotonic(), read_runs(results), []
    loaded: dict[tuple[str, float], DataSet] = {}
    for seed in range(seeds):
        for row, preset in work:
            if any(found.seed == seed for found in runs_of(row, preset, before)):
                continue
            spec = row.spec()
            folder = folder_of(results / "reproduce" / preset.name, spec.label) / f"seed{seed}"
            if math.isfinite(minutes) and spec.label not in rates.images_per_second.get(preset.name, {}):
                measure_rates([(row, preset)], results, data_folder)
                rates = _rates(results)
            expected = 60 * (hours(row, preset, rates, len(read_curve(folder))) or 0)
            left = minutes - (time.monotonic() - start) / 60
            title = f"{spec.label}, {preset.name}, seed {seed}"
            if left <= 0 or expected > left:
                _log.info("%s: not started, needs %.0f minutes and %.0f are left", title, expected, max(left, 0))
                continue
            try:
                fit(
                    spec.build(seed),
                    _load(row, preset, data_folder, loaded),
                    dataclasses.replace(preset.train, seed=seed),
                    folder,
                    name=title,
                    identity={**dataclasses.asdict(spec), "label": spec.label},
                    **run,
                )
            except (Interrupted, Preempted):
                raise
            except (PocketError, ValueError) as error:  # the other runs may succeed
                failures.append(f"{title}: {error}")
                _log.error("%s", failures[-1])
    return failures


def _load(row: Row, preset: Preset, folder: Any, loaded: dict[tuple[str, float], DataSet]) -> DataSet:
    """Loads the data set of a row, once for all rows that share it."""
    key = row.data.name, preset.validation
    if key not in loaded:
        loaded[key] = load(Path(folder) / row.data.name if folder else row.data.name, validation=preset.validation)
    return loaded[key]
