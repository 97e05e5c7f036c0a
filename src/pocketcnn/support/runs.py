"""The folder of a run: the names of its files, and their readers."""

import csv
from pathlib import Path
from typing import Any

from pocketcnn.errors import BadData, ForeignFile
from pocketcnn.support.files import read_json

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
MODEL = "model.safetensors"
RESULT = "result.json"
# In a folder of several runs.
COMPARISON, SPEEDS = "comparison.json", "speed.json"

_KEYS = {"name", "identity", "data", "seed", "test_accuracy", "epochs", "train", "cost", "file_bytes", "latency"}


def read_result(folder: Path) -> dict[str, Any]:
    """Reads the result of a finished run.

    Raises:
        FileNotFoundError: the run is not finished, or the folder holds none.
    """
    if not (folder / RESULT).is_file():
        raise FileNotFoundError(f"{folder}: not the folder of a finished run: there is no {RESULT}")
    return read_json(folder / RESULT)


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """Reads the results of all finished runs in a folder; of a comparison its rows and seeds only, in their order.

    Returns:
        The content of each `result.json`, with the run's own folder as `"folder"`.
    Raises:
        BadData: there are none.
        ForeignFile: a `result.json` was not written by a run.
    """
    folder = Path(folder)
    results = []
    for path in sorted(folder.rglob(RESULT)):
        record = read_json(path)
        if not isinstance(record, dict) or not record.keys() >= _KEYS:
            raise ForeignFile(f"{path}: not the result of a run of pocketcnn; move it out of the folder")
        results.append({**record, "folder": path.parent})
    if (plan := planned(folder)) is not None:
        order = {row["label"]: number for number, row in enumerate(plan["rows"])}
        results = [r for r in results if r["identity"].get("label") in order and r["seed"] in plan["seeds"]]
        results.sort(key=lambda r: (order[r["identity"]["label"]], r["seed"]))
    if not results:
        raise BadData(f"{folder}: no finished runs (no {RESULT}); pocketcnn compare or train makes them")
    return results


def planned(folder: Path) -> dict[str, Any] | None:
    """Reads which rows and seeds a comparison covers; None if the folder holds other runs."""
    path = folder / COMPARISON
    return read_json(path) if path.exists() else None


def read_speeds(folder: str | Path) -> dict[str, dict[str, float]]:
    """Reads the speeds that a comparison measured at its end, by label; empty if it measured none."""
    path = Path(folder) / SPEEDS
    return read_json(path)["nets"] if path.exists() else {}


def read_curve(folder: Path) -> list[float]:
    """Reads the validation accuracy, in [0, 1], after each finished epoch of a run; empty before the first."""
    path = folder / METRICS
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [float(row["validation_accuracy"]) for row in csv.DictReader(file)]
