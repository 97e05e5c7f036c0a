"""The goals: some follow from the records of layers and nets, the others are measured here."""

import itertools
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn.cost import measure_memory
from pocketcnn.data import DataSet, augment
from pocketcnn.data.augment import default_augmentation
from pocketcnn.data.sets import Images
from pocketcnn.experiments.bench.cases import NUM_STEPS, RING_SIZE
from pocketcnn.experiments.bench.cases.pde import advect_diffuse_by_rolls
from pocketcnn.experiments.bench.layers import LayerRecord
from pocketcnn.experiments.bench.nets import DEEP, FLOOR, WIDE, Configuration, NetRecord, find, runner
from pocketcnn.experiments.bench.settings import Settings
from pocketcnn.methods import METHODS
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.methods.puppet import Gauge, gauge_of
from pocketcnn.methods.ring import ParameterRing
from pocketcnn.models.recipes import create_model
from pocketcnn.support.optional import optional_import
from pocketcnn.support.timing import Spread, in_turns
from pocketcnn.surgery import as_served, condense, fold_norm, materialize

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Goal:
    """A measured number and the least or the most that it should be; with neither it is only reported.

    The goal is met if the number reaches it within `noise`.
    """

    what: str
    measured: float
    unit: str
    least: float | None = None
    most: float | None = None
    noise: float = 0.0
    note: str = ""

    @property
    def met(self) -> bool | None:
        """True if the goal is reached; None if the number is only reported."""
        if self.least is not None:
            return self.measured + self.noise >= self.least
        return None if self.most is None else self.measured - self.noise <= self.most


def without_goal(found: Sequence[Goal]) -> list[str]:
    """The methods that no goal begins with."""
    return [method for method in METHODS if not any(goal.what.startswith(method) for goal in found)]


def of_layers(records: Sequence[LayerRecord], settings: Settings) -> Iterator[Goal]:
    """Goals that follow from the records of layers in float32: of the solver, of involution and of CondConv."""
    found = {(r.method, r.shape, r.passes): r for r in records if r.dtype == "float32"}
    for passes, least in (("forward", 20.0), ("forward + backward", 12.0)):
        if record := found.get(("pde", settings.solver_shape, passes)):
            yield Goal(
                f"pde: solver, {_shape(record)}, {NUM_STEPS} steps, {passes}, faster than rolls by",
                1 / record.ratios["obvious"].median, "x", least=least, note=_both_layouts(record),
            )  # fmt: skip
    both, batches = "forward + backward", [shape for shape in settings.shapes if shape[0] > 1]
    wanted = [(f"involution K{size}", shape, most) for size, most in ((3, 0.6), (7, 1.5)) for shape in batches[:1]]
    wanted += [("condconv", shape, most) for shape, most in zip(batches, (1.3, 1.3, 2.0), strict=False)]
    for method, shape, most in wanted:
        if record := found.get((method, shape, both)):
            yield Goal(
                f"{method}, {_shape(record)}, {both}, time of a 3x3 convolution's",
                record.ratios[record.conv].median, "x", most=most, note=_both_layouts(record),
            )  # fmt: skip


def _shape(record: LayerRecord) -> str:
    return "x".join(map(str, record.shape))


def _both_layouts(record: LayerRecord) -> str:
    sides = ("obvious", "ours", "ours, channels last", "conv", "conv, channels last")
    return "; ".join(f"{side} {record.sides[side].median:.3g} ms" for side in sides)


def of_nets(records: Sequence[NetRecord]) -> Iterator[Goal]:
    """Goals that follow from the records of nets: how much faster the Global net is than the plain one."""
    for mode, least in (("inference", 3.0), ("training", 2.5)):
        small, plain, floor = (find(records, name, mode) for name in ("resnet32_global", DEEP, FLOOR))
        if small and plain and floor:
            note = "; ".join(f"{r.images_per_second.median:,.0f} images/s {r.configuration}" for r in (small, plain))
            note += f"; without Global layers {floor.speed.median:.2f}x"
            yield Goal(
                f"pde: resnet32_global, {mode}, faster than {DEEP} by", small.speed.median, "x", least, note=note
            )


def measure_goals(settings: Settings, nets: Sequence[NetRecord]) -> Iterator[Goal]:
    """Measures the goals that follow neither from layers nor from nets."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    for goals in (
        ring_reading(settings), ring_served(settings), mixed_depth(settings), solver_memory(settings),
        data_path(settings, nets), first_use() if settings.first_use else (),
    ):  # fmt: skip
        for goal in goals:
            _log.info("%s %.4g %s", goal.what, goal.measured, goal.unit)
            yield goal


def _ring_pair(settings: Settings) -> tuple[nn.Module, nn.Module]:
    """Makes a plain ResNet18 and the same net with a ring."""
    plain = create_model(WIDE, stem="small", num_classes=10, width=settings.width)
    return plain, condense(plain, "ring", size=RING_SIZE)


def ring_reading(settings: Settings) -> Iterator[Goal]:
    """Measures the share of a training step in which all kernels are read off the ring and its gradient is computed."""
    _, net = _ring_pair(settings)
    ring = next(module for module in net.modules() if isinstance(module, ParameterRing))
    grads = [torch.randn(shape) for shape in ring.shapes]
    images = torch.randn(settings.ring_batch, 3, settings.image_side, settings.image_side)

    def read() -> object:
        kernels = [ring.read(slot) for slot in range(len(ring.shapes))]
        return torch.autograd.grad(kernels, [ring.values], grads)

    turns = in_turns(
        {"reading": read, "step": runner(net, images, "training", Configuration())}, seconds=settings.net_seconds
    )
    note = f"{1e3 * turns.median('reading'):.1f} of {1e3 * turns.median('step'):,.0f} ms"
    share = turns.ratio("reading", "step").median
    what = f"ring: share of a {WIDE} training step, {settings.ring_batch} images, float32, spent on reading"
    yield Goal(what, 100 * share, "%", most=4.0, note=note)


def ring_served(settings: Settings) -> Iterator[Goal]:
    """Times a ring net with ordinary kernels against the plain net: served, the two are the same net."""
    nets = [as_served(net.eval(), fold=True) for net in _ring_pair(settings)]
    images = torch.randn(settings.wide_batch, 3, settings.image_side, settings.image_side)
    sides = (runner(net, images, "inference", Configuration()) for net in nets)
    turns = in_turns(dict(zip(("plain", "ring"), sides, strict=True)), seconds=settings.net_seconds / 2, least=7)
    ratio = turns.ratio("ring", "plain")
    # The median of so many rounds is uncertain by about this much.
    noise = (ratio.high - ratio.low) / turns.rounds**0.5
    note = f"quartiles {ratio.low:.3f} to {ratio.high:.3f}x over {turns.rounds} rounds; met within {noise:.3f}"
    what = f"ring: served {WIDE}, {settings.wide_batch} images, time of the plain net's"
    yield Goal(what, ratio.median, "x", most=1.0, noise=noise, note=note)


def mixed_depth(settings: Settings) -> Iterator[Goal]:
    """Times a batch of mixed levels against plain nets, each of its level's depth, on the same images."""
    size = (3, settings.image_side, settings.image_side)
    net = condense(create_model(DEEP, num_classes=10, width=settings.width), "puppet").eval()
    gauge = gauge_of(net)
    assert gauge is not None
    gauge.calibrate_([varied_images(1024, size)])
    dense = [materialize(net, entropy=entropy_of(gauge, level)) for level in range(gauge.levels)]
    folded = [*map(fold_norm, (net, *dense))]
    batches = [varied_images(count, size) for count in settings.puppet_batches]
    for images, (words, nets) in itertools.product(batches, (("", folded), (", norms not folded", [net, *dense]))):
        count = len(images)
        counts = gauge.levels_of(images).bincount(minlength=gauge.levels).tolist()
        names = ["mixed", *map(str, range(gauge.levels))]
        sides = {n: runner(m, images, "inference", Configuration()) for n, m in zip(names, nets, strict=True)}
        turns = in_turns(sides, seconds=settings.net_seconds / 2)
        ratios = []
        for mixed, *levels in zip(*(turns.seconds[name] for name in names), strict=True):
            ratios.append(mixed * count / sum(c * s for c, s in zip(counts, levels, strict=True)))
        ratio = Spread.of(ratios)
        note = f"images at the levels: {counts}; mixed {1e3 * turns.median('mixed'):.1f} ms"
        what = f"puppet: {DEEP}, {count} images of mixed depth, time of plain nets' of those depths{words}"
        yield Goal(what, ratio.median, "x", most=None if words else 1.15, note=note)


def varied_images(count: int, size: tuple[int, int, int]) -> Tensor:
    """Makes simple and complex images: random pixels from black to white that take between 2 and 256 values."""
    values = torch.randint(1, 9, (count, 1, 1, 1)).exp2()
    return (torch.rand(count, *size) * values).floor() / (values - 1)


def entropy_of(gauge: Gauge, level: int) -> float:
    """The entropy in the middle of a level."""
    values = torch.linspace(0, gauge.quantiles[-1].item(), 4001)
    return values[gauge.level_of(gauge.share_of(values)) == level].median().item()


class ByRolls(nn.Module):
    """A Global layer with its solver written out."""

    def __init__(self, layer: GlobalLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.layer.velocities(x)
        dx, dy = self.layer.diffusivities(x)
        return F.relu(self.layer.bn(advect_diffuse_by_rolls(x, *map(torch.as_tensor, (u, v, dx, dy)))))


def solver_memory(settings: Settings) -> Iterator[Goal]:
    """Measures the peak memory of a Global layer in training against that with its solver written out."""
    batch, channels, height, width = settings.solver_shape
    layer = GlobalLayer(channels, num_steps=NUM_STEPS)
    ours, rolls = (
        measure_memory(net, (channels, height, width), batch=batch, training=True) for net in (layer, ByRolls(layer))
    )
    where, note = "x".join(map(str, settings.solver_shape)), f"{ours / 1e6:,.0f} of {rolls / 1e6:,.0f} MB"
    yield Goal(f"pde: peak memory of a Global layer, {where}, training, of the same by rolls", ours / rolls, "x",
               most=0.35, note=note)  # fmt: skip


def data_path(settings: Settings, nets: Sequence[NetRecord]) -> Iterator[Goal]:
    """Times fetching, augmenting and normalising a batch, and its share of a training step of the fastest net."""
    pl = optional_import("lightning.pytorch", extra="train", purpose="timing the loader")
    from pocketcnn.train import TrainConfig
    from pocketcnn.train.module import Classifier

    data, batch = _uniform_data(settings), settings.deep_batch
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = Classifier(nn.Flatten(), data, TrainConfig(batch_size=batch, channels_last="on"))
    module.trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    batches: Any = iter(())

    def fetch() -> Tensor:
        nonlocal batches
        if (found := next(batches, None)) is None:
            batches = iter(module.train_dataloader())
            found = next(batches)
        images = augment(found[0], module.augmentation, torch.Generator().manual_seed(0))
        return module.normalize(images).contiguous(memory_format=torch.channels_last)

    taken = 1e3 * in_turns({"batch": fetch}, seconds=settings.net_seconds / 6, most=500).median("batch")
    what = f"data: loading, augmenting and normalising {batch} images of 32x32"
    yield Goal(what, taken, "ms")
    if record := find(nets, "resnet32_global", "training"):
        step = 1e3 * batch / record.images_per_second.median
        yield Goal("data: the loader's share of a resnet32_global training step", 100 * taken / (taken + step), "%",
                   note=f"beside a step of {step:.0f} ms")  # fmt: skip


def _uniform_data(settings: Settings) -> DataSet:
    """Makes 20 batches of random images of CIFAR's shape."""
    images = torch.randint(256, (20 * settings.deep_batch, 3, 32, 32), dtype=torch.uint8)
    part = Images(images, torch.arange(len(images)) % 10)
    names = tuple(map(str, range(10)))
    return DataSet("random", names, part, part, part, 3 * (0.5,), 3 * (0.3,), default_augmentation("random", 32), "")


_FIRST_USE = """
import time
import torch
from pocketcnn import kernels
from pocketcnn.methods.ring import RingConv2d
start = time.perf_counter()
x, u, v, dx, dy = (torch.rand(1, 16, 4, 4, requires_grad=True) for _ in range(5))
kernels.advect_diffuse(x, u, v, dx, dy).sum().backward()
pixels = torch.rand(1, 1, 9, 4, 4, requires_grad=True)
kernels.involution2d(x, pixels, kernel_size=3, padding=1).sum().backward()
routing, experts = torch.rand(1, 4, requires_grad=True), torch.rand(4, 16, 16, 3, 3, requires_grad=True)
kernels.condconv2d(x, routing, experts, padding=1).sum().backward()
RingConv2d(16, 16, 3, padding=1)(x).sum().backward()
print(time.perf_counter() - start)
"""


def first_use() -> Iterator[Goal]:
    """Times the first forward and backward pass of each kernel and of a ring layer in a new process."""
    with tempfile.TemporaryDirectory() as cache:
        for words in ("nothing compiled before", "from the cache on disk"):
            done = subprocess.run(
                [sys.executable, "-c", _FIRST_USE], env={**os.environ, "NUMBA_CACHE_DIR": cache}, capture_output=True,
                text=True, check=True,
            )  # fmt: skip
            yield Goal(f"kernels: first use in a process, {words}", float(done.stdout), "s")
