"""Timing the nets of finished runs in turns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.cost import gauge_of, measure_latency
from pocketcnn.cost.images import levels_of_images
from pocketcnn.data import DataSet
from pocketcnn.support.files import write_json
from pocketcnn.support.layouts import in_layout, to_layout
from pocketcnn.support.runs import MODEL, SPEEDS, read_config
from pocketcnn.surgery import as_served
from pocketcnn.train.auto import LAYOUTS, step_seconds, trial_batch
from pocketcnn.train.crashes import without_crash
from pocketcnn.train.folder import train_config
from pocketcnn.train.images import normalized


def measure_speeds(
    folders: Mapping[str, Path], data: DataSet | Mapping[str, DataSet], output: Path, *, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Times the nets of finished runs in turns, so that a busy moment of the machine slows all of them alike.

    Latency is that of one image in float32, with ordinary kernels wherever these are exact; if it depends on the image, it
    is the mean over the test images. Training speed is that of forward and backward passes of a batch, in the precision and
    layout of the run. Both are medians over the rounds, on the first GPU if there is one.

    Args:
        folders: label -> folder of a finished run.
        data: the data set that all runs were trained on, or label -> data set.
        output: folder in which `speed.json` is written.
        rounds: how often each net is timed.
    Returns:
        For each label `latency_ms` and `train_images_per_second`.
    """
    data_of = data if isinstance(data, Mapping) else dict.fromkeys(folders, data)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nets = {label: checkpoint.load(folder / MODEL, device=device) for label, folder in folders.items()}
    settings = {label: train_config(read_config(folder)["train"], folder) for label, folder in folders.items()}
    layouts = {
        label: LAYOUTS[without_crash(settings[label], net, data_of[label], device).channels_last]
        for label, net in nets.items()
    }
    served = {label: as_served(net) for label, net in nets.items()}
    shares = {label: level_shares(net, data_of[label]) for label, net in nets.items()}
    latencies: dict[str, list[float]] = {label: [] for label in nets}
    rates: dict[str, list[float]] = {label: [] for label in nets}
    for _ in range(rounds + 1):  # the first round warms up
        for label, net in nets.items():
            latencies[label].append(_mean_latency(served[label], data_of[label].input_size, shares[label]))
            layout = layouts[label]
            images, labels = trial_batch(data_of[label], settings[label].batch_size, device)
            to_layout(net.train(), layout)
            seconds = step_seconds(net, in_layout(images, layout), labels, settings[label].precision == "bfloat16")
            rates[label].append(len(labels) / seconds)
    speeds = {
        label: {"latency_ms": median(latencies[label][1:]), "train_images_per_second": median(rates[label][1:])}
        for label in nets
    }
    write_json(
        output / SPEEDS,
        {"rounds": rounds, "device": str(device), "threads": torch.get_num_threads(), "nets": speeds},
    )
    return speeds


def level_shares(net: nn.Module, data: DataSet) -> list[float]:
    """The share of the test images at each level of a net whose cost depends on the image; [] for other nets."""
    gauge = gauge_of(net)
    if gauge is None:
        return []
    counts = levels_of_images(net, normalized(data.test.in_order(500), data))[0].bincount(minlength=gauge.levels)
    return (counts / counts.sum()).tolist()


def _mean_latency(net: nn.Module, input_size: tuple[int, ...], shares: Sequence[float]) -> float:
    """Milliseconds for one image; for a net with levels, their mean weighted by `shares`."""

    def timed() -> float:
        return measure_latency(net, input_size, runs=10, warmup=2).median_ms

    total = 0.0
    for level, share in enumerate(shares):
        with gauge_of(net).pinned(level):
            total += share * timed()
    return total if shares else timed()
