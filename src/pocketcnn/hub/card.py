"""The model card: a README made of the record of a run."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocketcnn import zoo
from pocketcnn.checkpoint import FILE
from pocketcnn.methods import METHODS
from pocketcnn.support.files import read_json
from pocketcnn.support.runs import RESULT

TASK = "image-classification"


def record_of(path: Path) -> dict[str, Any]:
    """What is known of how a model file came to be: the record of its run, or the card of a net of the package.

    Args:
        path: of the file. Only what a run itself called `model.safetensors` has the record beside it.
    Returns:
        The content of `result.json`, with `stored_accuracy` where the file was measured as it is, and `stored_data` where
        that was on other images than it was trained on; nothing for other files.
    """
    if card := next((card for card in zoo.cards() if zoo.FOLDER / card.file == path), None):
        known = dataclasses.asdict(card)
        measured = {"test_accuracy": card.trained_accuracy, "stored_accuracy": card.test_accuracy}
        return {**known, **measured, "cost": {"trainable_params": card.trainable_params}}
    beside = path.with_name(RESULT)
    return read_json(beside) if path.name == FILE and beside.is_file() else {}


def write_card(
    repo_id: str,
    header: Mapping[str, Any],
    size: int,
    record: Mapping[str, Any],
    accuracy: float | None,
    data: str,
    measured: str,
) -> str:
    """The card's text: what the net is, what it costs, how it was condensed and trained, how it is loaded.

    Of record and notes, which anybody may write, it shows what is there.
    """
    notes, base = header["notes"], header["base"]
    stored = header.get("storage", {}).get("weights")
    rows = []
    if accuracy is not None:
        on = f", on {measured}" if measured else ""
        rows.append((f"test accuracy of this file{on}", f"{100 * accuracy:.2f} %"))
    if stored and "test_accuracy" in record:
        rows.append(("test accuracy before the weights were stored so", f"{100 * record['test_accuracy']:.2f} %"))
    rows.append(("file", f"{size:,} bytes, {f'weights as {stored}' if stored else 'every number as it was trained'}"))
    cost, latency = record.get("cost", {}), record.get("latency", {})
    names = {
        "trainable_params": "trained numbers",
        "generated_params": "numbers that one image meets",
        "macs": "multiply-adds an image",
    }
    rows += [(name, f"{cost[key]:,}") for key, name in names.items() if key in cost]
    if {"runs", "batch", "threads", "dtype", "median_ms", "device"} <= latency.keys():
        how = f"median of {latency['runs']}, batch {latency['batch']}, {latency['threads']} threads, {latency['dtype']}"
        rows.append(("latency in the run", f"{latency['median_ms']:.2f} ms ({how} on {latency['device']})"))
    if "input_size" in notes:
        size_of = f"{'x'.join(map(str, notes['input_size']))} (channels x height x width)"
        rows.append(("images", f"{data}, {size_of}" if data else size_of))
    if {"mean", "std"} <= notes.keys():
        rows.append(("mean, deviation", f"{_numbers(notes['mean'])}; {_numbers(notes['std'])}, of values from 0 to 1"))
    if "classes" in notes:
        rows.append(("classes", f"{len(notes['classes'])}: {', '.join(map(str, notes['classes'][:10]))}"
                                f"{', ...' if len(notes['classes']) > 10 else ''}"))  # fmt: skip
    made = f"`{call_in_words(base['name'], base['options'])}`" if base else "A net that pocketcnn did not make"
    steps = [step_in_words(step, hidden="key" in header) for step in header["steps"]]
    given = [*([] if base else ["base=YourNet()"]), *(["passphrase=..."] if "key" in header else [])]
    lines = [
        f"# {repo_id.rpartition('/')[2]}",
        f"\n{made}{', condensed:' if steps else ', as it is.'}\n",
        *(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
        "\n| | |\n|---|---|",
        *(f"| {key} | {value} |" for key, value in rows),
        "\n## Loading it\n\n    pip install 'pocketcnn[hub]'\n\n```python",
        "from pocketcnn.hub import from_pretrained\n",
        f"net = from_pretrained({', '.join([repr(repo_id), *given])})\n```",
    ]
    if not base:
        lines.append("\n`YourNet()` makes the plain net that was condensed, freshly initialised.")
    if record.get("train"):
        settings = {**record["train"], "teacher": Path(record["train"].get("teacher", "")).name}
        shown = " ".join(f"{key}={value}" for key, value in settings.items() if value not in ("", [], None))
        known = [f"{record['epochs']} epochs"] if "epochs" in record else []
        known += [f"seed {record['seed']}"] if "seed" in record else []
        lines.append("\n".join(["\n## Training\n", *([f"{', '.join(known)}:\n"] if known else []), f"    {shown}"]))
    return "\n".join(lines) + "\n"


def step_in_words(step: Mapping[str, Any], *, hidden: bool) -> str:
    """A condensing in words; a seed that a passphrase hides is left out."""
    known = METHODS.get(step["method"])
    defaults = dataclasses.asdict(known.options()) if known else {}
    options = {key: value for key, value in step["options"].items() if defaults.get(key) != value}
    if hidden:
        options.pop("seed", None)
    sites = step["sites"]
    named = f"{sites[0]} to {sites[-1]}" if len(sites) > 1 else sites[0]
    summary = f": {known.summary} ({known.source})" if known else ""
    return f"`{call_in_words(step['method'], options)}` in place of {len(sites)} of its parts, {named}{summary}"


def call_in_words(name: str, options: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def public_name(data: Any) -> Any:
    """How a data set is called in public: a folder of images by its name alone, not by where it lies; `owner/name` of the
    hub is kept."""
    if not isinstance(data, str) or (re.fullmatch(r"\w[\w.-]*/[\w.-]+", data) and not Path(data).exists()):
        return data
    return Path(data).name
