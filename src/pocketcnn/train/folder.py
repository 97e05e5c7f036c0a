"""The folder of a run: begun, taken up again, finished."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pocketcnn.data import DataSet
from pocketcnn.errors import BadData, ForeignFile
from pocketcnn.support.environment import environment
from pocketcnn.support.files import read_json, write_json
from pocketcnn.support.runs import CONFIG, ENVIRONMENT
from pocketcnn.train.auto import resolve
from pocketcnn.train.config import TrainConfig
from pocketcnn.train.devices import device_of, is_first_process

_PATIENCE = 600.0  # seconds that a process waits for the first one to begin


def begin_run(
    config: TrainConfig, model: nn.Module, data: DataSet, accelerator: str, folder: Path, settings: Mapping[str, Any]
) -> TrainConfig:
    """Begins a run: the first process measures what `auto` stands for and writes it down, the others read it there."""
    if is_first_process():
        config = resolve(config, model, data, device_of(accelerator))
        write_json(folder / ENVIRONMENT, environment())
        write_json(folder / CONFIG, {**settings, "train": dataclasses.asdict(config)})
        return config
    deadline = time.monotonic() + _PATIENCE
    while (found := earlier_config(folder, settings, config)) is None:
        if time.monotonic() > deadline:
            raise BadData(f"{folder}: the first process has not begun the run; is the folder the same on all machines?")
        time.sleep(0.1)
    return found


def as_read(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it will be read again: tuples are lists there."""
    return json.loads(json.dumps(record))


def earlier_config(folder: Path, settings: Mapping[str, Any], config: TrainConfig) -> TrainConfig | None:
    """The configuration of a run that is in the folder, with what `auto` chose then; None where there is none."""
    path = folder / CONFIG
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("train"), dict):
        raise ForeignFile(f"{path}: not written by a run of pocketcnn; give another output folder")
    asked = {**settings, **as_read(dataclasses.asdict(config))}
    defaults = as_read(dataclasses.asdict(TrainConfig()))  # of fields that are younger than the run
    had = {**defaults, **found, **found.pop("train")}
    # Neither the name of a run nor where its data and teacher lie: a hash tells these.
    compared = {key: value for key, value in asked.items() if key not in ("name", "data", "teacher")}
    differing = [key for key, value in compared.items() if value != "auto" and had.get(key) != value]
    differing += [key for key in ("sync_batchnorm", "teacher_hash", "workers") if key in had and key not in asked]
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
    return TrainConfig(**{field.name: had[field.name] for field in dataclasses.fields(TrainConfig)})
