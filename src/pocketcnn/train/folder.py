"""The folder of a run: begin it, take it up again, finish it."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.cost import gauge_of, measure, measure_images, measure_latency, tensors_by_all_names
from pocketcnn.data import DataSet
from pocketcnn.errors import BadData
from pocketcnn.support.environment import environment
from pocketcnn.support.files import write_json
from pocketcnn.support.runs import CONFIG, ENVIRONMENT, MODEL, RESULT, read_config
from pocketcnn.support.schema import shaped
from pocketcnn.surgery import as_served
from pocketcnn.train.auto import resolve
from pocketcnn.train.config import TrainConfig
from pocketcnn.train.devices import device_of
from pocketcnn.train.hardware import Hardware, is_first_process
from pocketcnn.train.images import normalized
from pocketcnn.train.teacher import Teacher

_PATIENCE = 600.0  # seconds that a process waits for the first one to begin
_LATER = ("sync_batchnorm", "teacher_hash", "workers")  # written only where they are not at their defaults


def settings_of(
    model: nn.Module, data: DataSet, hardware: Hardware, teacher: Teacher | None, label: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns all that identifies a run beside its configuration, as it stands in `config.json`.

    Args:
        model: the net.
        data: the data set.
        hardware: with the number of devices counted.
        teacher: the trained net whose outputs are learnt.
        label: the run's name and identity.
    """
    shapes = [(name, list(tensor.shape)) for name, tensor in tensors_by_all_names(model).items()]
    settings = {
        **label,
        "data": data.name,
        "fingerprint": data.fingerprint,
        "train_images": len(data.train),
        "net": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        "world": [hardware.devices, hardware.num_nodes],
    }
    later = {
        "sync_batchnorm": hardware.sync_batchnorm,
        "teacher_hash": teacher.digest if teacher is not None else "",
        "workers": getattr(data.train, "workers", 0),  # of a stream: they determine its order
    }
    assert later.keys() == set(_LATER)
    return as_read(settings | {key: value for key, value in later.items() if value})


def begin_run(
    config: TrainConfig, model: nn.Module, data: DataSet, hardware: Hardware, folder: Path, settings: Mapping[str, Any]
) -> TrainConfig:
    """Begins a run: the first process resolves `auto` and writes `config.json`; the others wait for it and read it.

    Returns:
        The configuration without `auto`.
    Raises:
        BadData: the first process has written nothing for ten minutes.
    """
    if is_first_process():
        config = resolve(config, model, data, device_of(hardware.accelerator))
        write_json(folder / ENVIRONMENT, environment())
        write_json(folder / CONFIG, {**settings, "train": dataclasses.asdict(config)})
        return config
    deadline = time.monotonic() + _PATIENCE
    while (found := earlier_config(folder, settings, config)) is None:
        if time.monotonic() > deadline:
            raise BadData(f"{folder}: the first process has not begun the run; is the folder the same on all machines?")
        time.sleep(0.1)
    return found


def earlier_config(folder: Path, settings: Mapping[str, Any], config: TrainConfig) -> TrainConfig | None:
    """Returns the configuration of the run in the folder, with what `auto` chose then; None where there is no run.

    Raises:
        BrokenFile: `config.json` is damaged.
        ForeignFile: `config.json` was not written by a run.
        ValueError: the run has other settings, or its data changed.
    """
    if not (folder / CONFIG).exists():
        return None
    found = read_config(folder)
    asked = {**settings, **as_read(dataclasses.asdict(config))}
    defaults = as_read(dataclasses.asdict(TrainConfig()))  # for fields that are younger than the run
    had = {**defaults, **found, **found.pop("train")}
    # Names and places may change: data and teacher are compared by their hashes.
    unused = () if config.optimizer == "muon" else ("state_lr", "rest_lr", "rest_momentum")
    compared = {key: value for key, value in asked.items() if key not in ("name", "data", "teacher", *unused)}
    differing = [key for key, value in compared.items() if value != "auto" and had.get(key) != value]
    differing += [key for key in _LATER if key in had and key not in asked]
    if "fingerprint" in differing:
        raise ValueError(
            f"{folder}: the data {settings['data']} changed since this run began: other images, labels or splits than then "
            "(fingerprint); give another output folder, or the data as it was"
        )
    if differing:
        key = differing[0]
        raise ValueError(
            f"{folder}: holds a run with other settings ({', '.join(differing)}; {key} was {had.get(key)!r}, now "
            f"{asked.get(key)!r}); give another output folder, or delete this one"
        )
    return train_config({field.name: had[field.name] for field in dataclasses.fields(TrainConfig)}, folder)


def train_config(settings: Mapping[str, Any], folder: Path) -> TrainConfig:
    """Turns the entry `train` of a run's record into a configuration; settings that it lacks are at their defaults.

    Raises:
        BrokenFile: a setting has another type or is out of range.
    """
    remedy = "restore it, or delete the run's folder to start afresh"
    return shaped(dict(settings), TrainConfig, f"{folder / CONFIG}: train", remedy=remedy)


def finish_run(
    model: nn.Module,
    data: DataSet,
    config: TrainConfig,
    folder: Path,
    label: Mapping[str, Any],
    scores: Mapping[str, Any],
    *,
    start: float,
) -> dict[str, Any]:
    """Saves the trained net, measures what it costs, and writes `result.json`.

    Args:
        model: the trained net, on the CPU.
        data: the data set; its notes go into the model file.
        config: the configuration without `auto`.
        folder: the folder of the run.
        label: the run's name and identity.
        scores: what training and evaluation found; test images are measured only if the net was tested.
        start: when training began, by `time.perf_counter`.
    Returns:
        The content of `result.json`.
    """
    size = checkpoint.save(model, folder / MODEL, notes=ImageNotes.of(data).as_dict())
    result = {
        **label,
        "data": data.name,
        "seed": config.seed,
        **scores,
        "wall_seconds": time.perf_counter() - start,
        "file_bytes": size,
        "cost": dataclasses.asdict(measure(model, data.input_size)),
        "image_costs": _image_costs(model, data) if "test_accuracy" in scores else None,
        "latency": dataclasses.asdict(measure_latency(as_served(model), data.input_size)),
        "train": as_read(dataclasses.asdict(config)),
    }
    write_json(folder / RESULT, result)
    return result


def _image_costs(model: nn.Module, data: DataSet) -> dict[str, Any] | None:
    """Measures the costs of the test images; None for a net whose cost does not depend on the image."""
    if gauge_of(model) is None:
        return None
    return dataclasses.asdict(measure_images(model, normalized(data.test.in_order(500), data), runs=10, rounds=3))


def as_read(record: dict[str, Any]) -> dict[str, Any]:
    """Returns a record as JSON gives it back: with lists for tuples."""
    return json.loads(json.dumps(record))
