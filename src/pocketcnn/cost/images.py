"""What a net costs over a set of images, where the cost depends on the image: how many pass how much of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pocketcnn.cost.latency import measure_latency
from pocketcnn.cost.macs import dial_of, measure
from pocketcnn.cost.params import device_and_dtype, evaluating


@dataclass(frozen=True)
class Spread:
    """Of one number over the images."""

    min: float
    mean: float
    p95: float
    max: float


@dataclass(frozen=True)
class LevelCost:
    """What one image costs at one level: `images` of the set lie there, with measures from `lowest` to `highest`."""

    level: int
    images: int
    lowest: float
    highest: float
    depth: int
    macs: int
    latency_ms: float


@dataclass(frozen=True)
class ImageCosts:
    """What a net costs over a set of images.

    `levels` are those of a net whose depth depends on the image, and a single one for another net. `macs` and
    `latency_ms` are of one image at a time. `joules` is the mean energy of an image in batches as given, None on a
    machine without a counter that can be read.
    """

    images: int
    levels: tuple[LevelCost, ...]
    macs: Spread
    latency_ms: Spread
    joules: float | None


def measure_images(
    model: nn.Module, images: Tensor | Sequence[Tensor], *, runs: int = 20, rounds: int = 5
) -> ImageCosts:
    """Counts and times a net over a set of images.

    Latency is measured at each level, in turns, with one image; images are then counted by level.

    Args:
        model: any net; left as it was.
        images: [n, channels, height, width] as the net is given them, or batches of such.
        runs: passes that are timed at a level and in a round.
        rounds: of the levels in turn; the median over them counts.
    Raises:
        ValueError: no images.
    """
    batches = list(images.split(256)) if isinstance(images, Tensor) else list(images)
    if not sum(map(len, batches)):
        raise ValueError("there are no images to measure")
    device, dtype = device_and_dtype(model)
    batches = [batch.to(device, dtype) for batch in batches]
    size = tuple(batches[0].shape[1:])
    dial = dial_of(model)
    level_of, value = torch.zeros(sum(map(len, batches)), dtype=torch.long), torch.zeros(sum(map(len, batches)))
    if dial is not None:
        with evaluating(model):
            level_of = torch.cat([dial.levels_of(batch).cpu() for batch in batches])
            value = torch.cat([dial.value(batch).float().cpu() for batch in batches])
    levels = list(range(dial.levels)) if dial is not None else [0]

    def at(level: int, work: Callable[[], float | int]) -> float | int:
        if dial is None:
            return work()
        with dial.pinned(level):
            return work()

    times: dict[int, list[float]] = {level: [] for level in levels}
    for _ in range(rounds):
        for level in levels:
            times[level].append(at(level, lambda: measure_latency(model, size, runs=runs, warmup=3).median_ms))
    found = []
    for level in levels:
        here = value[level_of == level]
        ends = (here.min().item(), here.max().item()) if len(here) else (float("nan"), float("nan"))
        cost = at(level, lambda: measure(model, size).macs)
        depth = at(level, lambda: measure(model, size).depth)
        found.append(LevelCost(level, len(here), *ends, int(depth), int(cost), float(np.median(times[level]))))
    each = level_of.numpy()
    return ImageCosts(
        images=len(each),
        levels=tuple(found),
        macs=_spread(np.array([row.macs for row in found])[each]),
        latency_ms=_spread(np.array([row.latency_ms for row in found])[each]),
        joules=_energy(model, batches),
    )


def _spread(values: np.ndarray) -> Spread:
    return Spread(*map(float, (values.min(), values.mean(), np.percentile(values, 95), values.max())))


def _energy(model: nn.Module, batches: Sequence[Tensor]) -> float | None:
    """Joules an image, by the processor's own counter, with what else the machine does meanwhile."""
    before = _microjoules()
    if before is None:
        return None
    passes, start = 0, time.perf_counter()
    with evaluating(model), torch.inference_mode():
        while passes == 0 or time.perf_counter() - start < 2:
            for batch in batches:
                model(batch)
            passes += 1
    after = _microjoules()
    return None if after is None or after < before else (after - before) / 1e6 / passes / sum(map(len, batches))


def _microjoules(root: Path = Path("/sys/class/powercap")) -> int | None:
    """What Linux's powercap counters of all processor packages add up to; None where there are none to be read."""
    try:
        counters = [int((zone / "energy_uj").read_text()) for zone in sorted(root.glob("intel-rapl:?"))]
    except OSError:
        return None
    return sum(counters) if counters else None
