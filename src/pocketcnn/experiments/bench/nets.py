"""Timing whole nets, each at its best configuration: images per second in training and in inference, and memory.

Weights and images are random, which changes no times. A training step is forward pass, loss, backward pass and a step of
SGD with momentum. Nets are served with ordinary kernels and folded batch norms wherever these are exact. Short trials find
the configuration of each net, then the nets run in turns.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn.cost import measure_memory
from pocketcnn.errors import BadData
from pocketcnn.experiments.bench.settings import Settings
from pocketcnn.methods import METHODS
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.models.recipes import create_model
from pocketcnn.support.layouts import in_layout, to_layout
from pocketcnn.support.timing import Spread, Turns, first_line, in_turns
from pocketcnn.surgery import as_served, condense, provenance
from pocketcnn.train.crashes import convolutions_of, crash_in

_log = logging.getLogger(__name__)
NUM_CLASSES = 10
FLOOR = "resnet32_global without its Global layers"
DEEP, WIDE = "resnet32_4stage", "resnet18"


@dataclass(frozen=True)
class Configuration:
    """Settings in which a net runs: arithmetic (bfloat16 by autocast), memory layout, with or without the compiler."""

    dtype: str = "float32"
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        words = [self.dtype, *["channels last"] * self.channels_last, *["compiled"] * self.compiled]
        return ", ".join(words)

    def arithmetic(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16")

    @property
    def layout(self) -> torch.memory_format:
        """The memory layout of images and kernels."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


@dataclass(frozen=True)
class Trial:
    """A configuration that was tried: milliseconds of the fastest of five passes, or the failure."""

    configuration: Configuration
    milliseconds: float | None
    failure: str = ""


@dataclass(frozen=True)
class NetRecord:
    """A net in training or inference, at its best configuration.

    `speed` is images per second over those of the plain net, round by round. `peak_bytes` is the memory that one batch takes
    beyond the net itself, in this arithmetic and layout, without the compiler, counted between operations.
    """

    name: str
    plain: str
    mode: str
    batch: int
    configuration: Configuration
    images_per_second: Spread
    speed: Spread
    peak_bytes: int
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Group:
    """Nets that are compared with the first of them.

    `thorough` compiles every configuration. Else only channels-last is tried, and only the faster arithmetic is compiled.
    """

    nets: Mapping[str, Callable[[], nn.Module]]
    batch: int
    thorough: bool


def groups(settings: Settings) -> tuple[Group, ...]:
    """Makes the two groups: the ResNet32s, and the ResNet18s."""
    options = {"num_classes": NUM_CLASSES, "width": settings.width}
    wide = functools.partial(create_model, WIDE, stem="small", **options)
    deep = {name: functools.partial(create_model, name, **options) for name in (DEEP, "resnet32_global")}
    return (
        Group({**deep, FLOOR: lambda: without_global_layers(deep["resnet32_global"]())}, settings.deep_batch, True),
        Group(
            {
                WIDE: wide,
                "resnet18_involution": functools.partial(create_model, "resnet18_involution", **options),
                "resnet18_condconv": functools.partial(create_model, "resnet18_condconv", **options),
                "resnet18, ring of 0.1": lambda: condense(wide(), "ring", size=0.1),
                "resnet18, puppet at its full depth": lambda: condense(wide(), "puppet", depth="fixed"),
            },
            settings.wide_batch,
            False,
        ),
    )


def without_net(compared: Sequence[Group]) -> list[str]:
    """The methods that none of the nets is condensed by."""
    with torch.device("meta"):  # no time, no memory, no random numbers
        nets = [build() for group in compared for build in group.nets.values()]
    used = {step.method for net in nets for step in provenance(net).steps}
    return [method for method in METHODS if method not in used]


def without_global_layers(net: nn.Module) -> nn.Module:
    """Takes the Global layers out of a net: no solver can make the net faster than this."""
    for name, module in list(net.named_modules()):
        if isinstance(module, GlobalLayer):
            net.set_submodule(name, nn.Identity())
    return net


def measure_nets(settings: Settings) -> Iterator[NetRecord]:
    """Times the nets of each group in training, then in inference."""
    late = time.monotonic() + 60 * settings.nets_minutes
    compared = groups(settings)
    for method in without_net(compared):
        _log.warning("bench has no net of method %r; add one to groups in experiments/bench/nets.py", method)
    for group in compared:
        for mode in ("training", "inference"):
            yield from _measure(group, mode, settings, late)


def _measure(group: Group, mode: str, settings: Settings, late: float) -> Iterator[NetRecord]:
    torch.manual_seed(0)
    images = torch.randn(group.batch, 3, settings.image_side, settings.image_side)
    plain = next(iter(group.nets))
    nets: dict[str, nn.Module] = {}
    chosen: dict[str, Configuration] = {}
    trials: dict[str, tuple[Trial, ...]] = {}
    for name, build in group.nets.items():
        net = build()
        with torch.no_grad():
            net.train()(images)  # batch norms need to see images: without them an involution's output grows
        nets[name] = net if mode == "training" else as_served(net.eval(), fold=True)
        if name == FLOOR:
            chosen[name], trials[name] = chosen["resnet32_global"], ()
            continue
        trials[name] = tuple(_try_out(nets[name], images, mode, group.thorough, settings, late))
        chosen[name] = min(trials[name], key=_milliseconds).configuration
        _log.info("%s, %s: %s", name, mode, "; ".join(map(_in_words, trials[name])))
    torch._dynamo.reset()
    turns = in_turns(
        {name: runner(nets[name], images, mode, chosen[name]) for name in nets}, seconds=settings.net_seconds, warmup=2
    )
    for name, net in nets.items():
        with chosen[name].arithmetic():
            peak = measure_memory(net, tuple(images.shape[1:]), batch=group.batch, training=mode == "training")
        record = NetRecord(
            name, plain, mode, group.batch, chosen[name], images_per_second(turns, name, group.batch),
            turns.ratio(plain, name), peak, trials[name],
        )  # fmt: skip
        _log.info("%s, %s: %.0f images/s, %s", name, mode, record.images_per_second.median, record.configuration)
        yield record


def images_per_second(turns: Turns, side: str, batch: int) -> Spread:
    """Images per second of a side that takes one batch a turn."""
    return Spread.of(batch / s for s in turns.seconds[side])


def _try_out(
    net: nn.Module, images: Tensor, mode: str, thorough: bool, settings: Settings, late: float
) -> Iterator[Trial]:
    """Tries all configurations, those without the compiler first."""
    layouts = (False, True) if thorough else (True,)
    plain = [Configuration(dtype, layout) for dtype in ("float32", "bfloat16") for layout in layouts]
    tried = [_trial(net, images, mode, configuration) for configuration in plain]
    if all(trial.milliseconds is None for trial in tried):  # as where channels last would crash
        tried += [_trial(net, images, mode, Configuration(dtype, False)) for dtype in ("float32", "bfloat16")]
    yield from tried
    if not settings.compiled:
        return
    if not thorough:
        tried = [min(tried, key=_milliseconds)]
    for trial in tried:
        compiled = Configuration(trial.configuration.dtype, trial.configuration.channels_last, compiled=True)
        if time.monotonic() > late:
            yield Trial(compiled, None, "not tried: no time was left")
        else:
            yield _trial(net, images, mode, compiled)


def _trial(net: nn.Module, images: Tensor, mode: str, configuration: Configuration) -> Trial:
    torch._dynamo.reset()
    try:
        turns = in_turns({"net": runner(net, images, mode, configuration)}, seconds=0, least=5)
    except Exception as error:  # any failure of the compiler is a finding
        return Trial(configuration, None, first_line(error))
    return Trial(configuration, 1e3 * min(turns.seconds["net"]))


def _milliseconds(trial: Trial) -> float:
    return float("inf") if trial.milliseconds is None else trial.milliseconds


def _in_words(trial: Trial) -> str:
    return f"{trial.configuration} {trial.failure or f'{trial.milliseconds:.3g} ms'}"


def runner(net: nn.Module, images: Tensor, mode: str, configuration: Configuration) -> Callable[[], object]:
    """Makes the call of a training step or of inference; the net is converted to the layout.

    A net is compiled as a whole or not at all: if the compiler would split it, the call raises.

    Raises:
        BadData: training in this configuration would end the process.
    """
    if mode == "training" and configuration.channels_last:
        calls = convolutions_of(net, tuple(images.shape[1:]))
        if reason := crash_in(calls, getattr(torch, configuration.dtype), configuration.layout, len(images)):
            raise BadData(f"not tried: {reason}")
    x = in_layout(images, configuration.layout)
    net = to_layout(net, configuration.layout).train(mode == "training")
    callee = torch.compile(net, dynamic=False, fullgraph=True) if configuration.compiled else net

    @torch.inference_mode()
    def infer() -> object:
        with configuration.arithmetic():
            return callee(x)

    labels = torch.arange(len(images)) % NUM_CLASSES
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> object:
        with configuration.arithmetic():
            loss = F.cross_entropy(callee(x).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step if mode == "training" else infer


def find(records: Sequence[NetRecord], name: str, mode: str) -> NetRecord | None:
    """Finds the record of a net in a mode; None if it was not measured."""
    return next((record for record in records if (record.name, record.mode) == (name, mode)), None)
