"""The table of a comparison: a row for each net, with means over its seeds and ratios to the plain net."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from pocketcnn.support.intervals import Difference, difference
from pocketcnn.support.labels import labels_of
from pocketcnn.support.tables import markdown_table


@dataclass(frozen=True)
class Summary:
    """A net's figures over its seeds; `ratios` are to the plain net of the same model, empty if there is none."""

    label: str
    model: str
    method: str
    rival_of: str
    accuracy: float  # on the test split, mean over the seeds
    spread: float  # standard deviation over the seeds, 0 for one seed
    averaged: tuple[float, float] | None  # mean and deviation with outputs averaged over views, if all runs have it
    seeds: int
    values: dict[str, float]
    ratios: dict[str, float]
    by_seed: Mapping[int, float]  # accuracies in per cent
    to_plain: Difference | None  # from the plain net of the same model, in per cent


# Title, key in Summary.values, format.
COLUMNS = (
    ("trainable", "trainable_params", "count"),
    ("total", "total_params", "count"),
    ("depth", "depth", "count"),
    ("file bytes", "file_bytes", "count"),
    ("MACs", "macs", "count"),
    ("latency ms", "latency_ms", "float"),
    ("train img/s", "train_images_per_second", "count"),
)


def summarize(
    results: Sequence[dict[str, Any]], speeds: Mapping[str, Mapping[str, float]] | None = None
) -> list[Summary]:
    """Groups results by net, in the order of their first appearance.

    Args:
        results: contents of `result.json` files.
        speeds: for each label, figures of nets measured in turns; they replace those that each run measured alone.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for label, result in zip(row_labels(results), results, strict=True):
        groups.setdefault(label, []).append(result)
    values = {label: {**_values(group), **(speeds or {}).get(label, {})} for label, group in groups.items()}
    plain = {
        group[0]["identity"].get("model"): label
        for label, group in groups.items()
        if group[0]["identity"].get("method") == "plain" and not group[0]["identity"].get("rival_of")
    }
    summaries = []
    for label, group in groups.items():
        identity = group[0]["identity"]
        model = identity.get("model")
        reference = values[plain[model]] if model in plain else None
        others = _by_seed(groups[plain[model]]) if plain.get(model, label) != label else {}
        accuracies = [result["test_accuracy"] for result in group]
        averaged = [result["test_tta_accuracy"] for result in group if result.get("test_tta_accuracy") is not None]
        summaries.append(
            Summary(
                label,
                identity.get("model", ""),
                identity.get("method", ""),
                identity.get("rival_of", ""),
                mean(accuracies),
                _deviation(accuracies),
                (mean(averaged), _deviation(averaged)) if len(averaged) == len(group) else None,
                len(group),
                values[label],
                {key: value / reference[key] for key, value in values[label].items() if reference[key]}
                if reference
                else {},
                _by_seed(group),
                difference(_by_seed(group), others) if others else None,
            )
        )
    return summaries


def _by_seed(group: Sequence[dict[str, Any]]) -> dict[int, float]:
    return {result["seed"]: 100 * result["test_accuracy"] for result in group}


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


_CHOSEN = ("seed", "precision", "channels_last", "teacher")  # settings in which the runs of a row may differ


def row_labels(results: Sequence[dict[str, Any]]) -> list[str]:
    """The label of the row that each result belongs to: of the net; and of the folder, where one label means several rows.

    Runs are seeds of one row if they trained a net of one size on the same data with the same settings, each seed once.
    """
    labels = [result["identity"].get("label") or result["name"] for result in results]
    keys = [(label, _essence(result)) for label, result in zip(labels, results, strict=True)]
    places = [Path(result.get("folder", "")) for result in results]
    for part in ("", "parent", "own"):  # what tells two runs with one seed apart
        rows = [
            (*key, {"": "", "parent": place.parent, "own": place}[part])
            for key, place in zip(keys, places, strict=True)
        ]
        if len({(row, result["seed"]) for row, result in zip(rows, results, strict=True)}) == len(results):
            break
    several = {label for label in labels if len({row for row in rows if row[0] == label}) > 1}
    folders = {
        row: _common([p for p, other in zip(places, rows, strict=True) if other == row]) for row in dict.fromkeys(rows)
    }
    named: dict[Any, str] = {}
    for label in several:
        own = [row for row in folders if row[0] == label]
        for row, words in zip(own, labels_of([folders[row] for row in own]), strict=True):
            named[row] = words if label in words.split("/") else f"{label} [{words}]"
    return [named.get(row, label) for row, label in zip(rows, labels, strict=True)]


def _essence(result: Mapping[str, Any]) -> str:
    """All in which the runs of a row are alike, as text."""
    train = {key: value for key, value in result.get("train", {}).items() if key not in _CHOSEN}
    return repr((result.get("data"), sorted(train.items()), result["cost"].get("total_params")))


def _common(folders: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


def _values(group: Sequence[dict[str, Any]]) -> dict[str, float]:
    cost, by_image = group[0]["cost"], group[0].get("image_costs")
    return {
        **{key: cost[key] for key in ("trainable_params", "total_params", "depth", "macs")},
        **({"macs": by_image["macs"]["mean"]} if by_image else {}),  # over the test images
        "file_bytes": group[0]["file_bytes"],
        "latency_ms": median(result["latency"]["median_ms"] for result in group),
        "train_images_per_second": median(result["train_images_per_second"] for result in group),
    }


def rows_of(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The titles of the columns, and the cells of each row: each figure with its ratio to the plain net's.

    Differences in accuracy from the plain net have a column if runs with shared seeds give them 95 % intervals; so have
    accuracies of outputs averaged over views of an image, if any run has them.
    """
    compared = any(summary.to_plain is not None and summary.to_plain.half is not None for summary in summaries)
    averaged = any(summary.averaged for summary in summaries)
    titles = ["net", "test accuracy %"]
    titles += ["to plain"] * compared + ["with tta %"] * averaged + [title for title, _, _ in COLUMNS]
    return titles, [_cells(summary, compared, averaged) for summary in summaries]


def _percent(average: float, spread: float, seeds: int) -> str:
    return f"{100 * average:.2f}" + (f" ± {100 * spread:.2f}" if seeds > 1 else "")


def _cells(summary: Summary, compared: bool, averaged: bool) -> list[str]:
    row = [name(summary), _percent(summary.accuracy, summary.spread, summary.seeds)]
    if compared:
        row.append(str(summary.to_plain or "-"))
    if averaged:
        row.append(_percent(*summary.averaged, summary.seeds) if summary.averaged else "-")
    for _, key, kind in COLUMNS:
        value = summary.values[key]
        text = f"{value:,.0f}" if kind == "count" else f"{value:.2f}"
        ratio = summary.ratios.get(key)
        row.append(text if ratio is None else f"{text} ({ratio:.2f}x)")
    return row


def records_of(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """The table for programs: a record for each net. Accuracies are shares of 1; differences are in per cent points."""
    return [
        {
            "net": name(summary),
            "model": summary.model,
            "method": summary.method,
            "test_accuracy": summary.accuracy,
            "test_accuracy_deviation": summary.spread,
            "test_tta_accuracy": summary.averaged and summary.averaged[0],
            "seeds": summary.seeds,
            **summary.values,
            "ratios_to_plain": summary.ratios,
            "points_to_plain": summary.to_plain and summary.to_plain.mean,
            "points_to_plain_half_interval": summary.to_plain and summary.to_plain.half,
        }
        for summary in summaries
    ]


def name(summary: Summary) -> str:
    """The label of a net; for a rival, with the small net of the same size."""
    return f"{summary.label} (size of {summary.rival_of.split(' ', 1)[-1]})" if summary.rival_of else summary.label


def markdown(summaries: Sequence[Summary]) -> str:
    """Writes the table as Markdown."""
    titles, rows = rows_of(summaries)
    return markdown_table(titles, rows, "l" + "r" * (len(titles) - 1)) + "\n"
