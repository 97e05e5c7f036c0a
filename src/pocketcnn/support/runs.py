"""Reading the records of finished runs."""

import csv
from pathlib import Path
from typing import Any

from pocketcnn.errors import BadData, ForeignFile
from pocketcnn.support.files import read_json

_KEYS = {"name", "identity", "data", "seed", "test_accuracy", "epochs", "train", "cost", "file_bytes", "latency"}


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """The results of all finished runs in a folder; of a comparison its rows and seeds only, in their order.

    Raises:
        BadData: there are none.
        ForeignFile: a `result.json` that no run wrote.
    """
    folder = Path(folder)
    results = []
    for path in sorted(folder.rglob("result.json")):
        record = read_json(path)
        if not isinstance(record, dict) or not record.keys() >= _KEYS:
            raise ForeignFile(f"{path}: not the result of a run of pocketcnn; move it out of the folder")
        results.append({**record, "folder": path.parent})
    if (plan := planned(folder)) is not None:
        order = {row["label"]: number for number, row in enumerate(plan["rows"])}
        results = [r for r in results if r["identity"].get("label") in order and r["seed"] in plan["seeds"]]
        results.sort(key=lambda r: (order[r["identity"]["label"]], r["seed"]))
    if not results:
        raise BadData(f"{folder}: no finished runs (no result.json); pocketcnn compare or train makes them")
    return results


def planned(folder: Path) -> dict[str, Any] | None:
    """What a comparison was to compare; None for a folder of other runs."""
    path = folder / "comparison.json"
    return read_json(path) if path.exists() else None


def read_speeds(folder: str | Path) -> dict[str, dict[str, float]]:
    """What a comparison measured in turns at its end; empty where there is none."""
    path = Path(folder) / "speed.json"
    return read_json(path)["nets"] if path.exists() else {}


def read_curve(folder: Path) -> list[float]:
    """Validation accuracy in [0, 1] after each epoch of a run."""
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [float(row["validation_accuracy"]) for row in csv.DictReader(file)]


def curve_of(folder: Path) -> list[float]:
    """Validation accuracy in per cent after each epoch that a run, finished or not, has behind it."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [100 * float(row["validation_accuracy"]) for row in csv.DictReader(file)]
