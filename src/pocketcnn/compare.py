"""Training many nets under one recipe, each with several seeds, next to the plain net and plain nets of equal size."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.cost import count_params, dial_of, measure_latency
from pocketcnn.cost.images import look_at
from pocketcnn.data import DataSet
from pocketcnn.errors import NonFiniteLoss
from pocketcnn.models.recipes import RECIPES, create_model
from pocketcnn.models.spec import PLAIN_METHOD, Contestant, parse_method
from pocketcnn.support.files import make_folder, read_json, write_json
from pocketcnn.surgery import as_served
from pocketcnn.train import TrainConfig, fit
from pocketcnn.train.auto import LAYOUTS, step_seconds, to_layout, trial_batch
from pocketcnn.train.loop import normalized

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a comparison left: the results in the order of the table, and what diverged."""

    results: list[dict[str, Any]]
    failures: list[str]
    speeds: dict[str, dict[str, float]]  # by label, as measure_speeds leaves them


def contestants(
    models: Sequence[str], methods: Sequence[str], model_options: Mapping[str, Any], *, equal_size: bool
) -> list[Contestant]:
    """The rows of a comparison, each small net followed by its rival; every one is built once, so that mistakes show
    before anything is trained.

    Args:
        models: names of plain nets.
        methods: `plain` and methods with options, as `parse_method` takes them.
        model_options: for `create_model`.
        equal_size: add for each small net the plain net of equal stored numbers.
    Raises:
        UnknownModel: or any other error of `create_model` and `condense`.
    """
    rows: list[Contestant] = []
    if not models or not methods:
        raise ValueError("give at least one model and one method to compare")
    for model in models:
        if model in RECIPES:
            recipe = RECIPES[model]
            raise ValueError(
                f"{model} is a recipe, {recipe.base} condensed by {recipe.steps[0][0]}; a comparison takes plain nets in "
                f"models and methods apart"
            )
        for text in methods:
            method, options = parse_method(text)
            contestant = Contestant(model, method, options, model_options)
            if contestant in rows:
                continue
            net = contestant.build(seed=0)
            rows.append(contestant)
            if equal_size and method != PLAIN_METHOD:
                width = width_of_size(model, count_params(net)[1], model_options)
                rival = Contestant(
                    model, PLAIN_METHOD, {}, {**model_options, "width": width}, rival_of=contestant.label
                )
                if rival.label not in {row.label for row in rows}:  # nets of one size share their rival
                    rows.append(rival)
    return rows


def width_of_size(model: str, numbers: int, model_options: Mapping[str, Any]) -> float:
    """The width at which a plain net stores about as many numbers (running statistics included) as asked for.

    Widths are multiples of 1/256, up to 8; of the two nearest sizes the closer one wins.
    """

    def size(step: int) -> int:
        with torch.device("meta"):
            return count_params(create_model(model, **{**model_options, "width": step / 256}))[1]

    low, high = 1, 8 * 256
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= numbers else (low, middle)
    return min((256, low, high), key=lambda step: abs(size(step) - numbers)) / 256  # of equal ones the plain net itself


def compare(
    data: DataSet,
    rows: Sequence[Contestant],
    config: TrainConfig,
    output: str | Path,
    *,
    seeds: int = 1,
    on_result: Callable[[list[dict[str, Any]]], None] = lambda results: None,
    **run: Any,
) -> Outcome:
    """Trains every contestant with every seed under one recipe; runs that are finished are read, not repeated.

    Precision, where `auto`, is measured for the first run and kept for all: it changes the numbers. The memory layout,
    which does not, is measured for the first seed of each contestant.

    Args:
        data: what is trained and tested on.
        rows: as `contestants` makes them.
        config: the recipe; its seed is the first one.
        output: folder; each run gets one inside it, `comparison.json` says what was compared.
        seeds: how many seeds.
        on_result: called with all results so far after each run.
        **run: passed on to `fit`: devices, progress, ...
    Returns:
        The results, a message for each run that diverged, and speeds measured in turns at the end.
    """
    output = make_folder(Path(output))
    if seeds < 1:
        raise ValueError(f"seeds is how many runs each row gets, at least 1, not {seeds}")
    listed = [{**dataclasses.asdict(row), "label": row.label} for row in rows]
    folders = {row.label: folder_of(output, row.label) for row in rows}
    if len(set(folders.values())) < len(rows):
        raise ValueError(f"two rows would share a folder: {', '.join(folders)}; compare them in two output folders")
    plan = {"data": data.name, "seeds": list(range(config.seed, config.seed + seeds)), "rows": listed, "diverged": []}
    write_json(output / "comparison.json", plan)
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    finished: dict[str, Path] = {}
    for row in rows:
        settled = config
        for seed in range(config.seed, config.seed + seeds):
            folder = folders[row.label] / f"seed{seed}"
            identity = {**dataclasses.asdict(row), "label": row.label}
            try:
                result = fit(
                    row.build(seed),
                    data,
                    dataclasses.replace(settled, seed=seed),
                    folder,
                    name=f"{row.label} seed {seed}",
                    identity=identity,
                    **run,
                )
            except NonFiniteLoss as error:
                failures.append(f"{row.label} seed {seed}: {error}")
                _log.error("%s", failures[-1])
                continue
            config = dataclasses.replace(config, precision=result["train"]["precision"])
            settled = dataclasses.replace(config, channels_last=result["train"]["channels_last"])
            results.append(result)
            finished.setdefault(row.label, folder)
            on_result(results)
    write_json(output / "comparison.json", {**plan, "diverged": failures})
    return Outcome(results, failures, measure_speeds(finished, data, output))


def folder_of(output: Path, label: str) -> Path:
    """Where in a comparison's folder the runs of a row are, a folder for each seed."""
    return output / re.sub(r"[^\w.=,+-]+", "-", label)


def measure_speeds(
    folders: Mapping[str, Path], data: DataSet, output: Path, *, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Times the nets of finished runs in turns, so that a busy moment of the machine strikes all of them alike.

    Latency is that of one image in float32, with ordinary kernels wherever that is exact; where it depends on the image,
    the mean over the test images. Training speed is that of
    forward and backward passes of a batch, in the precision and layout of the run. Both are medians over the rounds, on the
    first GPU where there is one.

    Args:
        folders: a finished run for each label.
        data: what the runs trained on.
        output: where `speed.json` is written.
        rounds: how often each net is timed.
    Returns:
        For each label `latency_ms` and `train_images_per_second`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nets = {label: checkpoint.load(folder / "model.safetensors", device=device) for label, folder in folders.items()}
    settings = {label: read_json(folder / "config.json")["train"] for label, folder in folders.items()}
    served = {label: as_served(net) for label, net in nets.items()}
    shares = {label: level_shares(net, data) for label, net in nets.items()}
    latencies: dict[str, list[float]] = {label: [] for label in nets}
    rates: dict[str, list[float]] = {label: [] for label in nets}
    for _ in range(rounds + 1):  # the first round warms up
        for label, net in nets.items():
            latencies[label].append(_mean_latency(served[label], data.input_size, shares[label]))
            layout = LAYOUTS[settings[label]["channels_last"]]
            images, labels = trial_batch(data, settings[label]["batch_size"], device)
            to_layout(net.train(), layout)
            seconds = step_seconds(
                net, images.contiguous(memory_format=layout), labels, settings[label]["precision"] == "bfloat16"
            )
            rates[label].append(len(labels) / seconds)
    speeds = {
        label: {"latency_ms": median(latencies[label][1:]), "train_images_per_second": median(rates[label][1:])}
        for label in nets
    }
    write_json(
        output / "speed.json",
        {"rounds": rounds, "device": str(device), "threads": torch.get_num_threads(), "nets": speeds},
    )
    return speeds


def level_shares(net: nn.Module, data: DataSet) -> list[float]:
    """How large a part of the test images lies at each level of a net whose cost depends on the image; else []."""
    dial = dial_of(net)
    if dial is None:
        return []
    counts = look_at(net, normalized(data.test.in_order(500), data))[0].bincount(minlength=dial.levels)
    return (counts / counts.sum()).tolist()


def _mean_latency(net: nn.Module, input_size: tuple[int, ...], shares: Sequence[float]) -> float:
    """Milliseconds for one image; the mean over the levels of a net by their shares."""

    def timed() -> float:
        return measure_latency(net, input_size, runs=10, warmup=2).median_ms

    total = 0.0
    for level, share in enumerate(shares):
        with dial_of(net).pinned(level):
            total += share * timed()
    return total if shares else timed()
