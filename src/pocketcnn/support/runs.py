"""The folder of a run: the names of its files, the shapes of its records, and their readers.

A record may have been cut short, edited or written by another program, so each reader holds it against its shape first.
What a reader returns is the record as it stands in the file, with entries that the shape does not name.
"""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from pocketcnn.errors import BadData, BrokenFile, ForeignFile
from pocketcnn.support.schema import parse_json, shaped

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
MODEL = "model.safetensors"
RESULT = "result.json"
# In a folder of several runs.
COMPARISON, SPEEDS = "comparison.json", "speed.json"

_MOST_BYTES = 64 << 20  # of a record; the longest in use have a few thousand
_REMEDY = "restore it, or delete its run to train it again"

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Amount = Annotated[float, Meta(gt=0, le=1e18)]
Record = dict[str, Any]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class RunCost:
    """The costs in a result that tables show."""

    trainable_params: Count
    total_params: Count
    depth: Count
    macs: Count


@dataclass(frozen=True)
class RunLatency:
    """The latency in a result."""

    median_ms: Amount


@dataclass(frozen=True)
class ImageMacs:
    """The multiply-adds over the test images."""

    mean: Amount


@dataclass(frozen=True)
class RunImageCosts:
    """The costs of the test images, where they depend on the image."""

    macs: ImageMacs


@dataclass(frozen=True)
class RunIdentity:
    """What tells a net from others in a table; all of it is optional."""

    label: str | None = None
    model: str | None = None
    method: str | None = None
    rival_of: str | None = None


@dataclass(frozen=True)
class RunTraining:
    """The settings in a result that a report groups by; `TrainConfig` holds all."""

    precision: str = ""
    channels_last: str = ""


@dataclass(frozen=True)
class RunResult:
    """`result.json` of a finished run; without test scores if the test images were not looked at."""

    name: str
    identity: RunIdentity
    data: str
    seed: Count
    epochs: Count
    train: RunTraining
    cost: RunCost
    file_bytes: Count
    latency: RunLatency
    train_images_per_second: Amount
    test_accuracy: Share | None = None
    test_tta_accuracy: Share | None = None
    validation_accuracy: Share | None = None
    image_costs: RunImageCosts | None = None


@dataclass(frozen=True)
class PartialResult:
    """A `result.json` that anybody may have written: every entry may be missing, and those here have their types."""

    data: str = ""
    test_accuracy: Share | None = None
    validation_accuracy: Share | None = None
    seed: Count | None = None
    epochs: Count | None = None
    file_bytes: Count | None = None


@dataclass(frozen=True)
class RunConfig:
    """`config.json`: what was asked for, and on what."""

    train: Record
    name: str = ""
    identity: Record = field(default_factory=dict)
    data: str = ""
    fingerprint: str = ""
    train_images: Count | None = None
    world: tuple[Count | str, ...] = ()


@dataclass(frozen=True)
class RunEnvironment:
    """`environment.json`: the machine and the packages."""

    processor: str
    threads: Count
    gpu: str | None
    packages: dict[str, str]


@dataclass(frozen=True)
class ComparedRow:
    """A row of a comparison."""

    label: str


@dataclass(frozen=True)
class Comparison:
    """`comparison.json`: the rows and seeds, and a message for each run that diverged."""

    seeds: tuple[Count, ...]
    rows: tuple[ComparedRow, ...]
    diverged: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetSpeeds:
    """The speeds of a net that was timed in turns with others."""

    latency_ms: Amount
    train_images_per_second: Amount


@dataclass(frozen=True)
class Speeds:
    """`speed.json`: the speeds by label."""

    nets: dict[str, NetSpeeds]


def read_record(path: Path, kind: type[Any], *, remedy: str = _REMEDY) -> Record:
    """Reads a JSON record, and checks it against its shape.

    Returns:
        The record as it stands in the file.
    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: not JSON; or an entry is missing, has another type or is out of range.
        ForeignFile: not a plain file, or too long for a record.
    """
    content = parse_json(_content(path, remedy), str(path), remedy=remedy)
    shaped(content, kind, str(path), remedy=remedy)
    return content


def read_result(folder: Path) -> Record:
    """Reads the result of a finished run.

    Raises:
        FileNotFoundError: the run is not finished, or the folder holds none.
        BrokenFile: the record is damaged.
        ForeignFile: `result.json` is not a plain file.
    """
    path = folder / RESULT
    if not path.exists():
        raise FileNotFoundError(f"{folder}: not the folder of a finished run: there is no {RESULT}")
    return read_record(path, PartialResult)


def _result(path: Path) -> Record:
    content = parse_json(_content(path, _REMEDY), str(path), remedy=_REMEDY)
    if not isinstance(content, dict) or not content.keys() & {"identity", "latency", "file_bytes"}:
        raise ForeignFile(f"{path}: not the result of a run of pocketcnn; move it out of the folder")
    shaped(content, RunResult, str(path), remedy=_REMEDY)
    return content


def read_results(folder: str | Path) -> list[Record]:
    """Reads the results of all finished runs in a folder; of a comparison its rows and seeds only, in their order.

    Returns:
        The content of each `result.json`, with the run's own folder as `"folder"`.
    Raises:
        BadData: there are none.
        BrokenFile: a record is damaged.
        ForeignFile: a `result.json` was not written by a run that looked at its test images.
    """
    folder = Path(folder)
    results = []
    for path in sorted(folder.rglob(RESULT)):
        record = _result(path)
        if record.get("test_accuracy") is None:
            raise ForeignFile(
                f"{path}: not the result of a run of pocketcnn with a test accuracy; move it out of the folder"
            )
        results.append({**record, "folder": path.parent})
    if (plan := planned(folder)) is not None:
        order = {row["label"]: number for number, row in enumerate(plan["rows"])}
        results = [r for r in results if r["identity"].get("label") in order and r["seed"] in plan["seeds"]]
        results.sort(key=lambda r: (order[r["identity"]["label"]], r["seed"]))
    if not results:
        raise BadData(f"{folder}: no finished runs (no {RESULT}); pocketcnn compare or train makes them")
    return results


def planned(folder: Path) -> Record | None:
    """Reads which rows and seeds a comparison covers; None if the folder holds other runs."""
    path = folder / COMPARISON
    return read_record(path, Comparison, remedy="delete it; compare writes it again") if path.exists() else None


def read_speeds(folder: str | Path) -> dict[str, dict[str, float]]:
    """Reads the speeds that a comparison measured at its end, by label; empty if it measured none."""
    path = Path(folder) / SPEEDS
    return read_record(path, Speeds, remedy="delete it; compare writes it again")["nets"] if path.exists() else {}


def read_config(folder: Path) -> Record:
    """Reads the configuration of a run.

    Raises:
        FileNotFoundError: the folder holds no run.
        BrokenFile: the record is damaged.
        ForeignFile: `config.json` was not written by a run.
    """
    path = folder / CONFIG
    remedy = "restore it, or delete the run's folder to start afresh"
    content = parse_json(_content(path, remedy), str(path), remedy=remedy)
    if not isinstance(content, dict) or not isinstance(content.get("train"), dict):
        raise ForeignFile(f"{path}: not written by a run of pocketcnn; give another output folder")
    shaped(content, RunConfig, str(path), remedy=remedy)
    return content


def read_environment(folder: Path) -> Record:
    """Reads on which machine and with which packages a run was made.

    Raises:
        BadData: there is no such record.
        BrokenFile: the record is damaged.
    """
    path = folder / ENVIRONMENT
    if not path.exists():
        raise BadData(f"{folder}: no {ENVIRONMENT}, which a run has; restore it or move the run away")
    return read_record(path, RunEnvironment)


def read_curve(folder: Path) -> list[float]:
    """Reads the validation accuracy, in [0, 1], after each finished epoch of a run; empty before the first.

    Raises:
        BrokenFile: not the table of a run, or an epoch is missing or twice there.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    try:
        text = _content(path, _REMEDY).decode("utf-8-sig")
        table = csv.DictReader(io.StringIO(text, newline=""))
        if not {"epoch", "validation_accuracy"} <= set(table.fieldnames or ()):
            raise ValueError(f"its first line is {text[:60].splitlines()[:1]}")
        rows = list(table)
        epochs = [int(row["epoch"]) for row in rows]
        curve = [float(row["validation_accuracy"]) for row in rows]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise BrokenFile(
            f"{path}: not the table of a run, with columns epoch and validation_accuracy ({error}); {_REMEDY}"
        ) from error
    if epochs != list(range(1, len(epochs) + 1)):
        raise BrokenFile(f"{path}: its epochs are not 1, 2, 3 and so on, each once; {_REMEDY}")
    if wrong := [accuracy for accuracy in curve if not 0 <= accuracy <= 1]:
        raise BrokenFile(f"{path}: a validation accuracy of {wrong[0]}, which lies between 0 and 1; {_REMEDY}")
    return curve


def _content(path: Path, remedy: str) -> bytes:
    """Reads a record, which must be a plain file of moderate length."""
    if path.exists() and not path.is_file():
        raise ForeignFile(f"{path}: not a plain file; {remedy}")
    if (length := path.stat().st_size) > _MOST_BYTES:
        raise ForeignFile(f"{path}: {length:,} bytes, too long for a record of a run; {remedy}")
    return path.read_bytes()
