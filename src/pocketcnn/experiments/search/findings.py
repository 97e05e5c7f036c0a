"""The findings of a search: the front, its table, its figure and its files."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pocketcnn import checkpoint
from pocketcnn.data import DataSet
from pocketcnn.errors import BrokenFile, NothingFits
from pocketcnn.experiments.search.space import Budgets, Record
from pocketcnn.experiments.search.study import import_optuna, occupies_place, record_of
from pocketcnn.report.pareto import pareto
from pocketcnn.support.files import make_folder, write_atomically, write_json
from pocketcnn.support.tables import markdown_table
from pocketcnn.train import evaluate


@dataclass(frozen=True)
class Found:
    """The findings of a search so far: the records of its front, smallest file first; the records of all proposals in
    their order; and the front as a Markdown table."""

    front: list[Record]
    trials: list[Record]
    table: str


def accuracy_of(file: Path, data: DataSet, split: Literal["test", "validation"]) -> float:
    """Accuracy of the net in a model file, as loaded, on the images of a split."""
    return evaluate(checkpoint.load(file), data, split=split)[f"{split}_accuracy"]


def costs_in_words(record: Mapping[str, Any]) -> str:
    return f"{record['file_bytes']:,} bytes, {record['macs']:,} MACs, {record['latency_ms']:g} ms"


def write_findings(study: Any, settings: Record, data: DataSet, output: Path, budgets: Budgets) -> Found:
    """Writes the files of a search from its database; every worker, at any time, writes the same from the same trials.

    Raises:
        NothingFits: no candidate meets the budgets; the nearest is named.
        BrokenFile: the file of a net on the front is missing.
    """
    found = study.get_trials(deepcopy=False)
    failed = import_optuna().trial.TrialState.FAIL  # this trial was resumed under another number
    records = [{"number": t.number, **record_of(t)} for t in found if record_of(t) and t.state != failed]
    best = {trial.number for trial in study.best_trials}
    trained = any(record["outcome"] == "trained" for record in records)  # and was too large in the end
    if not best and (trained or not any(map(occupies_place, found))):
        raise NothingFits(_nothing_fits(records, budgets))
    counts = Counter(record["outcome"] for record in records if record["outcome"] != "surplus")
    front = sorted((r for r in records if r["number"] in best), key=lambda r: (r["file_bytes"], r["latency_ms"]))
    make_folder(output / "front")
    kept = []
    for record in front:
        source, name = output / record["folder"] / "stored.safetensors", f"front/trial-{record['number']}.safetensors"
        if not source.is_file():
            raise BrokenFile(
                f"{source}: the file of trial {record['number']} is gone; give the folder in which it was trained"
            )
        write_atomically(output / name, source.read_bytes())
        kept.append({**record, "file": name, "test_accuracy": accuracy_of(source, data, "test")})
    for path in (output / "front").glob("trial-*.safetensors"):
        if f"front/{path.name}" not in {record["file"] for record in kept}:
            path.unlink(missing_ok=True)  # another worker may remove it at the same time
    summary = _sentence(counts, settings)
    table = f"{_markdown(kept)}\n{summary}\n"
    write_json(output / "trials.json", {"settings": settings, "proposals": dict(counts), "trials": records})
    write_json(output / "front.json", {"settings": settings, "front": kept})
    write_atomically(output / "table.md", table)
    write_atomically(output / "pareto.svg", pareto(records, best, dataclasses.asdict(budgets), summary))
    return Found(kept, records, table)


def _markdown(front: Sequence[Record]) -> str:
    titles = ["trial", "net", "file bytes", "MACs", "latency ms", "validation %", "test %"]
    rows = [
        (
            f"{record['number']}", record["label"], f"{record['file_bytes']:,}", f"{record['macs']:,}",
            f"{record['latency_ms']:g}", f"{100 * record['validation_accuracy']:.2f}",
            f"{100 * record['test_accuracy']:.2f}",
        )
        for record in front
    ]  # fmt: skip
    return markdown_table(titles, rows, "rl" + 5 * "r") + "\n"


def _sentence(counts: Mapping[str, int], settings: Record) -> str:
    """Counts the nets that were trained, and the proposals that were not by reason."""
    trained = sum(counts.get(outcome, 0) for outcome in ("trained", "stopped early", "diverged"))
    early = ", ".join(f"{counts[o]} {o}" for o in ("stopped early", "diverged") if counts.get(o))
    words = {"over budget": "over budget", "impossible": "impossible to build", "repeated": "trained before"}
    others = ", ".join(f"{counts[outcome]} {reason}" for outcome, reason in words.items() if counts.get(outcome))
    first = f"{settings['model']} on {settings['data']}: {trained} nets trained{f', of which {early}' if early else ''}"
    return f"{first}; proposals never trained: {others or 'none'}."


def _nothing_fits(records: Sequence[Record], budgets: Budgets) -> str:
    """Names the nearest candidate and the budgets that it exceeds; a candidate's distance is the sum of its misses."""
    measured = [record for record in records if "file_bytes" in record]
    if not measured:
        return f"none of {len(records)} proposals can be built: {records[-1]['reason']}"
    nearest = min(measured, key=lambda record: sum(max(0, miss) for miss in budgets.misses(record).values()))
    limits = dataclasses.asdict(budgets)
    exceeded = " and ".join(f"{name} {limits[name]:,}" for name, miss in budgets.misses(nearest).items() if miss > 0)
    return (
        f"none of {len(records)} proposals meets the budgets; the nearest, {nearest['label']}, has {costs_in_words(nearest)}, "
        f"over {exceeded}; allow more, or search around a smaller net (--width, --methods)"
    )
