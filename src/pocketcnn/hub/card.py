"""The model card: a README made from the record of a run."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketcnn import zoo
from pocketcnn.checkpoint import FILE
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.methods import METHODS
from pocketcnn.support.runs import RESULT, Count, Record, Share, read_record
from pocketcnn.support.tables import markdown_table

TASK = "image-classification"
_COSTS = {
    "trainable_params": "trained parameters",
    "generated_params": "weights that one image meets",
    "macs": "multiply-adds an image",
}


@dataclass(frozen=True)
class CardCost:
    """The entry `cost` of a record."""

    trainable_params: Count | None = None
    generated_params: Count | None = None
    macs: Count | None = None


@dataclass(frozen=True)
class CardLatency:
    """The entry `latency` of a record."""

    median_ms: float | None = None


@dataclass(frozen=True)
class CardTraining:
    """The entry `train` of a record; of all others any value is shown."""

    teacher: str = ""


@dataclass(frozen=True)
class CardRecord:
    """What a card shows of a record, which anybody may write: every entry may be missing."""

    data: str = ""
    test_accuracy: Share | None = None
    stored_accuracy: Share | None = None
    epochs: Count | None = None
    seed: Count | None = None
    cost: CardCost = field(default_factory=CardCost)
    latency: CardLatency = field(default_factory=CardLatency)
    train: CardTraining = field(default_factory=CardTraining)


def record_of(path: Path) -> Record:
    """Finds the record of a model file: that of its run, or the card of a net of the package.

    Args:
        path: of the file. Only a file called `model.safetensors`, as runs call theirs, has the record beside it.
    Returns:
        The content of `result.json`, with `stored_accuracy` if the file itself was measured, and `stored_data` if that
        was on other images than those of the training; empty for other files.
    """
    if card := next((card for card in zoo.cards() if zoo.FOLDER / card.file == path), None):
        known = dataclasses.asdict(card)
        measured = {"test_accuracy": card.trained_accuracy, "stored_accuracy": card.test_accuracy}
        return {**known, **measured, "cost": {"trainable_params": card.trainable_params}}
    beside = path.with_name(RESULT)
    if path.name != FILE or not beside.is_file():
        return {}
    return read_record(beside, CardRecord, remedy="correct or remove it")


def write_card(
    repo_id: str,
    header: Mapping[str, Any],
    size: int,
    record: Mapping[str, Any],
    accuracy: float | None,
    data: str,
    measured: str,
) -> str:
    """Writes the card's text: what the net is, what it costs, how it was condensed and trained, how to load it.

    Anybody may write a record and notes, so the card shows the entries that are there.

    Args:
        repo_id: of the repository.
        header: of the model file.
        size: of the model file in bytes.
        record: of the run.
        accuracy: of this file on the test split, in [0, 1]; None if it is not known.
        data: name of the data set of the training.
        measured: name of the data set of the accuracy.
    """
    base, steps = header["base"], header["steps"]
    made = f"`{call_in_words(base['name'], base['options'])}`" if base else "A net that pocketcnn did not make"
    rows = [
        *_file_rows(header, size, record, accuracy, measured),
        *_cost_rows(record),
        *_image_rows(ImageNotes.from_notes(header["notes"]), data),
    ]
    parts = [
        f"# {repo_id.rpartition('/')[2]}",
        f"{made}{', condensed:' if steps else ', not condensed.'}",
        "\n".join(
            f"{number}. {step_in_words(step, hidden='key' in header)}" for number, step in enumerate(steps, start=1)
        ),
        markdown_table(("", ""), rows, "ll"),
        _loading(repo_id, header),
        _training(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _file_rows(
    header: Mapping[str, Any], size: int, record: Mapping[str, Any], accuracy: float | None, measured: str
) -> Iterator[tuple[str, str]]:
    stored = header["storage"]["weights"] if "storage" in header else ""
    if accuracy is not None:
        yield f"test accuracy of this file{f', on {measured}' if measured else ''}", f"{100 * accuracy:.2f} %"
    if stored and record.get("test_accuracy") is not None:
        yield f"test accuracy before the weights were stored as {stored}", f"{100 * record['test_accuracy']:.2f} %"
    yield "file", f"{size:,} bytes, {f'weights as {stored}' if stored else 'weights as they were trained'}"


def _cost_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    cost, latency = record.get("cost", {}), record.get("latency", {})
    for key, name in _COSTS.items():
        if cost.get(key) is not None:
            yield name, f"{cost[key]:,}"
    if {"runs", "batch", "threads", "dtype", "median_ms", "device"} <= latency.keys() and latency[
        "median_ms"
    ] is not None:
        how = f"median of {latency['runs']}, batch {latency['batch']}, {latency['threads']} threads, {latency['dtype']}"
        yield "latency in the run", f"{latency['median_ms']:.2f} ms ({how} on {latency['device']})"


def _image_rows(notes: ImageNotes, data: str) -> Iterator[tuple[str, str]]:
    if notes.input_size:
        size = f"{'x'.join(map(str, notes.input_size))} (channels x height x width)"
        yield "images", f"{data}, {size}" if data else size
    if notes.mean and notes.std:
        yield "mean, deviation", f"{_numbers(notes.mean)}; {_numbers(notes.std)}, of values from 0 to 1"
    if notes.classes:
        first = ", ".join(notes.classes[:10])
        yield "classes", f"{len(notes.classes)}: {first}{', ...' if len(notes.classes) > 10 else ''}"


def _loading(repo_id: str, header: Mapping[str, Any]) -> str:
    """The section about loading. A published card keeps this code for ever, so it uses only public names of `pocketcnn`."""
    given = [*([] if header["base"] else ["base=YourNet()"]), *(["passphrase=..."] if "key" in header else [])]
    lines = [
        "## Loading it\n\n    pip install 'pocketcnn[hub]'\n\n```python",
        "import pocketcnn as pc\n",
        f"net = pc.from_pretrained({', '.join([repr(repo_id), *given])})\n```",
    ]
    if not header["base"]:
        lines.append("\n`YourNet()` makes the plain net that was condensed, freshly initialised.")
    return "\n".join(lines)


def _training(record: Mapping[str, Any]) -> str:
    """The section about the training; empty if the record says nothing of it."""
    if not record.get("train"):
        return ""
    settings = {**record["train"], "teacher": Path(record["train"].get("teacher", "")).name}
    shown = " ".join(f"{key}={value}" for key, value in settings.items() if value not in ("", [], None))
    known = [f"{record['epochs']} epochs"] if "epochs" in record else []
    known += [f"seed {record['seed']}"] if "seed" in record else []
    return "\n\n".join(["## Training", *([f"{', '.join(known)}:"] if known else []), f"    {shown}"])


def step_in_words(step: Mapping[str, Any], *, hidden: bool) -> str:
    """A condensing step in words; a seed that a passphrase hides is left out."""
    known = METHODS.get(step["method"])
    defaults = dataclasses.asdict(known.options()) if known else {}
    options = {key: value for key, value in step["options"].items() if defaults.get(key) != value}
    if hidden:
        options.pop("seed", None)
    sites = step["sites"]
    named = f"{sites[0]} to {sites[-1]}" if len(sites) > 1 else sites[0]
    summary = f": {known.summary} ({known.source})" if known else ""
    return f"`{call_in_words(step['method'], options)}` replaces {len(sites)} of its parts, {named}{summary}"


def call_in_words(name: str, options: Mapping[str, Any]) -> str:
    """A call as Python spells it: `ring(size=0.5)`."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def public_name(data: Any) -> Any:
    """The name of a data set without its path: a folder of images by its own name. `owner/name` of the hub is kept."""
    if not isinstance(data, str) or (re.fullmatch(r"\w[\w.-]*/[\w.-]+", data) and not Path(data).exists()):
        return data
    return Path(data).name
