"""Costs of a net over a set of images, if they depend on the image: how many images pass how much of the net."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pocketcnn.cost.latency import measure_latency
from pocketcnn.cost.macs import measure
from pocketcnn.support.modules import device_and_dtype, evaluating
from pocketcnn.support.protocols import gauge_of


@dataclass(frozen=True)
class Spread:
    """Spread of one cost over the images."""

    min: float
    mean: float
    p95: float
    max: float


@dataclass(frozen=True)
class LevelCost:
    """Cost of one image at one level.

    `images` of the set lie at the level, with measures from `lowest` to `highest`; these are None if there are no images.
    """

    level: int
    images: int
    lowest: float | None
    highest: float | None
    depth: int
    macs: int
    latency_ms: float


@dataclass(frozen=True)
class ImageCosts:
    """Costs of a net over a set of images.

    `levels` has one entry for each level of a net whose depth depends on the image, else a single one. `macs` and
    `latency_ms` are for one image at a time. `joules` is the mean energy for an image of the first batch; None on a
    machine without a readable counter.

    Example:
        >>> import torch, pocketcnn as pc
        >>> pc.measure_images(pc.create_model("resnet20"), torch.randn(4, 3, 32, 32), runs=2, rounds=1).macs.mean
        40813184.0
    """

    images: int
    levels: tuple[LevelCost, ...]
    macs: Spread
    latency_ms: Spread
    joules: float | None


def measure_images(
    model: nn.Module, images: Tensor | Iterable[Tensor], *, runs: int = 20, rounds: int = 5
) -> ImageCosts:
    """Counts and times a net over a set of images.

    Latency is measured with one image at each level in turn, and includes measuring the image. Images are then counted by
    level.

    Args:
        model: any net; left as it was.
        images: [n, channels, height, width] as the net is given them, or batches of them; each batch is read once.
        runs: passes timed at each level in a round.
        rounds: rounds over the levels; the median over the rounds counts.
    Raises:
        ValueError: no images.
    Example:
        >>> import torch, pocketcnn as pc
        >>> found = pc.measure_images(pc.create_model("resnet20"), torch.randn(4, 3, 32, 32), runs=2, rounds=1)
        >>> found.images, len(found.levels)
        (4, 1)
    """
    level_of, value, sample = levels_of_images(model, images.split(256) if isinstance(images, Tensor) else images)
    size = tuple(sample.shape[1:])
    gauge = gauge_of(model)
    levels = list(range(gauge.levels)) if gauge is not None else [0]

    def at(level: int) -> Any:
        return gauge.pinned(level) if gauge is not None else contextlib.nullcontext()

    times: dict[int, list[float]] = {level: [] for level in levels}
    for _ in range(rounds):
        for level in levels:
            with at(level):
                times[level].append(measure_latency(model, size, runs=runs, warmup=3).median_ms)
    found = []
    for level in levels:
        here = value[level_of == level]
        low, high = (here.min().item(), here.max().item()) if gauge is not None and len(here) else (None, None)
        with at(level):
            cost = measure(model, size)
        found.append(LevelCost(level, len(here), low, high, cost.depth, cost.macs, float(np.median(times[level]))))
    each = level_of.numpy()
    return ImageCosts(
        images=len(each),
        levels=tuple(found),
        macs=_spread(np.array([row.macs for row in found])[each]),
        latency_ms=_spread(np.array([row.latency_ms for row in found])[each]),
        joules=_energy(model, sample),
    )


def levels_of_images(model: nn.Module, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Finds level and measure of every image, both [n], 0 for a net that treats all alike; returns the first batch too.

    Raises:
        ValueError: no images.
    """
    device, dtype = device_and_dtype(model)
    gauge = gauge_of(model)
    record: list[tuple[Tensor, Tensor]] = []
    sample = None
    with evaluating(model), gauge.recording(model) if gauge is not None else contextlib.nullcontext() as recording:
        for batch in batches:
            batch = batch.to(device, dtype)
            sample = batch if sample is None else sample
            if recording is None:
                record.append((torch.zeros(len(batch), dtype=torch.long), torch.zeros(len(batch))))
            else:
                recording[0](batch)
        record = record if recording is None else recording[1]
    if sample is None or not len(sample):
        raise ValueError("there are no images to measure")
    levels, values = (torch.cat(list(part)).cpu() for part in zip(*record, strict=True))
    return levels, values.float(), sample


def _spread(values: np.ndarray) -> Spread:
    return Spread(*map(float, (values.min(), values.mean(), np.percentile(values, 95), values.max())))


def _energy(model: nn.Module, batch: Tensor) -> float | None:
    """Measures joules an image by the processor's own counter, which counts all other work of the machine too."""
    before = _microjoules() if batch.device.type == "cpu" else None
    if before is None:
        return None
    passes, start = 0, time.perf_counter()
    with evaluating(model), torch.inference_mode():
        while passes == 0 or time.perf_counter() - start < 2:
            model(batch)
            passes += 1
    after = _microjoules()
    return None if after is None or after < before else (after - before) / 1e6 / passes / len(batch)


def _microjoules(root: Path = Path("/sys/class/powercap")) -> int | None:
    """Adds up Linux's powercap counters of all processor packages; None if none can be read."""
    try:
        counters = [int((zone / "energy_uj").read_text()) for zone in sorted(root.glob("intel-rapl:?"))]
    except OSError:
        return None
    return sum(counters) if counters else None
