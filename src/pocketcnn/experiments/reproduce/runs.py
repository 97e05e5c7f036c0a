"""Finished runs, read from their records, and the row of a table that each belongs to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from pocketcnn.cost import measure
from pocketcnn.errors import BrokenFile
from pocketcnn.experiments.reproduce.published import Data, Preset, Row, comparable_settings, net_of
from pocketcnn.support.files import read_json
from pocketcnn.support.runs import CONFIG, RESULT, Count, RunResult, Share, read_config
from pocketcnn.support.schema import shaped
from pocketcnn.train.config import TrainConfig

_IDLE_IN_PLAIN = ("state_lr",)  # settings that act on methods alone: plain runs may differ in them
_REMEDY = "restore it, or move it out of the folder of results"


@dataclass(frozen=True)
class Run:
    """A finished run. `net` and `train` are spelled so that equal ones compare equal; `accuracy` is in per cent."""

    folder: Path
    label: str
    data: str
    net: Any
    train: Mapping[str, Any]
    seed: int
    accuracy: float
    epochs: int
    images: int | None  # number of training images, if the record has it
    averaged: float | None  # accuracy of outputs averaged over views of an image, in per cent, if the record has it
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Size:
    """Parameters, bytes and multiply-adds of a net; `written` if the bytes are those of a file, not of the tensors alone."""

    numbers: int
    bytes: int
    macs: float
    written: bool


@dataclass(frozen=True)
class _RowRecord:
    """`result.json` of a row with all its seeds, as examples/mnist_illustrative.py writes it."""

    row: str
    seeds: list[Count]
    test_accuracy: list[Share]
    train_images: Count | None = None


def read_runs(folder: Path) -> list[Run]:
    """Reads all finished runs in a folder, in the order of their paths; other records are skipped.

    Raises:
        BrokenFile: a record of a run is damaged.
        ForeignFile: a `config.json` beside a result was not written by a run.
    """
    runs: list[Run] = []
    for path in sorted(folder.rglob(RESULT)):
        found = read_json(path)
        if not isinstance(found, dict) or not isinstance(found.get("train"), dict):
            continue
        shaped(found["train"], TrainConfig, f"{path}: train", remedy=_REMEDY)
        train = comparable_settings(found["train"])
        if isinstance(found.get("identity"), dict) and {"data", "seed", "test_accuracy", "epochs"} <= found.keys():
            shaped(found, RunResult, str(path), remedy=_REMEDY)
            if found["test_accuracy"] is None:
                continue
            identity = found["identity"]
            fields = ("model", "method", "options", "model_options")
            net = net_of(*(identity[key] for key in fields)) if identity.keys() >= set(fields) else None
            settings = read_config(path.parent) if path.with_name(CONFIG).exists() else {}
            images = settings.get("train_images")
            world = [number for number in settings.get("world", []) if isinstance(number, int)]
            # Images of a step on all devices together.
            train = {**train, "batch_size": train["batch_size"] * prod(world)}
            data = Path(found["data"]).name
            shared = (path.parent, identity.get("label") or found["name"], data, net, train)
            averaged = None if (share := found.get("test_tta_accuracy")) is None else 100 * share
            accuracy = 100 * found["test_accuracy"]
            runs.append(Run(*shared, found["seed"], accuracy, found["epochs"], images, averaged, found))
        elif {"row", "seeds", "test_accuracy"} <= found.keys():
            rows = shaped(found, _RowRecord, str(path), remedy=_REMEDY)
            if len(rows.seeds) != len(rows.test_accuracy):
                raise BrokenFile(
                    f"{path}: {len(rows.seeds)} seeds, but {len(rows.test_accuracy)} accuracies; {_REMEDY}"
                )
            shared = (path.parent, found["row"], "mnist", found["row"], train)
            for seed, accuracy in zip(found["seeds"], found["test_accuracy"], strict=True):
                epochs, images = found["train"]["epochs"], found.get("train_images")
                runs.append(Run(*shared, seed, 100 * accuracy, epochs, images, None, found))
    return runs


def is_of(run: Run, data: Data, preset: Preset) -> bool:
    """Returns True if a run used this data set and preset, and as many training images within one per cent."""
    images = preset.images(data)
    complete = run.images is None or abs(run.images - images) <= images / 100
    idle = _IDLE_IN_PLAIN if isinstance(run.net, list) and not run.net[2] else ()
    asked, used = (
        {k: v for k, v in train.items() if k not in idle} for train in (comparable_settings(preset.train), run.train)
    )
    return complete and run.data == data.name and used == asked


def runs_of(row: Row, preset: Preset | None, runs: Iterable[Run]) -> list[Run]:
    """The runs of a row under a preset: the first for each seed."""
    if preset is None:
        return []
    spec = row.spec()
    net = net_of(spec.model, spec.method, spec.options, spec.model_options)
    nets = [net, row.key] if row.command else [net]
    chosen: dict[int, Run] = {}
    for run in runs:
        if run.net in nets and is_of(run, row.data, preset):
            chosen.setdefault(run.seed, run)
    return [chosen[seed] for seed in sorted(chosen)]


def size_of(row: Row, runs: Sequence[Run]) -> Size:
    """The size in the first record that has one, else counted on the net itself."""
    for run in runs:
        if {"cost", "file_bytes"} <= run.result.keys():
            return recorded_size(run)
    cost = measure(row.spec().build(0), row.data.input_size)
    return Size(cost.trainable_params, cost.size_bytes, cost.macs, written=False)


def recorded_size(run: Run) -> Size:
    """The size in a record; multiply-adds that depend on the image are the mean over the test images."""
    cost, by_image = run.result["cost"], run.result.get("image_costs")
    macs = by_image["macs"]["mean"] if by_image else cost["macs"]
    return Size(cost["trainable_params"], run.result["file_bytes"], macs, written=True)


def latency_of(runs: Iterable[Run]) -> float | None:
    """Milliseconds for one image: the median over the runs that measured it, None if none did."""
    measured = [run.result["latency"]["median_ms"] for run in runs if "latency" in run.result]
    return median(measured) if measured else None
