"""Timing single layers: each method written out, compiled, and by the library, beside a plain convolution.

Inputs are contiguous; the library's side and the convolution also run on channels-last tensors, and the better layout
counts. With bfloat16 the tensors themselves have that type. The forward pass runs without gradients; forward and backward
together compute gradients of the input and of everything that learns.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from pocketcnn.experiments.bench import cases
from pocketcnn.experiments.bench.cases import LAYOUTS, Layer, Side
from pocketcnn.experiments.bench.limits import Limit, Machine
from pocketcnn.experiments.bench.settings import Settings, Shape
from pocketcnn.methods import METHODS
from pocketcnn.support.timing import Spread, first_line, in_turns
from pocketcnn.support.wings import part_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerRecord:
    """A layer at one shape: milliseconds of each side, and the limits of the machine.

    Sides are `obvious`, `compiled`, `ours` and `conv` in the layout `layout`, and `ours, channels last` and `conv, channels
    last`. `ours` and `conv` name the faster of their two sides. `ratios` divide the time of `ours`, round by round, by that
    of every other side and by the limit.
    """

    method: str
    shape: Shape
    dtype: str
    passes: str
    sides: Mapping[str, Spread]
    ours: str
    conv: str
    ratios: Mapping[str, Spread]
    limit: Limit
    rounds: int
    layout: str = "contiguous"
    note: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)


def layers_timed() -> list[Layer]:
    """The layers of every method that has a file in `cases`, in the order of the methods; logs which methods have none."""
    found: list[Layer] = []
    for method in METHODS:
        if part := part_of(cases.__name__, method):
            found += part.LAYERS
        else:
            _log.warning("bench has no layer cases for method %r; add experiments/bench/cases/%s.py", method, method)
    return found


def measure_layers(settings: Settings, machine: Machine) -> Iterator[LayerRecord]:
    """Times every layer at every shape, in float32 and bfloat16, forward, and forward and backward."""
    late = time.monotonic() + 60 * settings.layers_minutes
    timed = layers_timed()
    for layer in timed:
        for shape, backward in product(layer.more_shapes(settings), (False, True)):
            yield _measure(layer, shape, torch.float32, backward, settings, machine, late)
    dtypes = (torch.float32, torch.bfloat16)
    for shape, dtype, layer, backward in product(settings.shapes, dtypes, timed, (False, True)):
        yield _measure(layer, shape, dtype, backward, settings, machine, late)


def _measure(
    layer: Layer, shape: Shape, dtype: torch.dtype, backward: bool, settings: Settings, machine: Machine, late: float
) -> LayerRecord:
    torch._dynamo.reset()  # else each call would first search what was compiled for other shapes and modes
    torch.manual_seed(0)
    plain, other = (layer.case(shape, dtype, layout, backward) for layout in LAYOUTS)
    candidates = {**plain.sides, **{f"{name}, channels last": other.sides[name] for name in ("ours", "conv")}}
    failures = {}
    if not settings.compiled:
        candidates.pop("compiled", None)
    elif "compiled" in candidates and time.monotonic() > late:
        candidates.pop("compiled")
        failures["compiled"] = "not tried: no time was left"
    calls = {}
    for name, side in candidates.items():
        try:
            calls[name] = _pass(side, backward)
        except Exception as error:
            if name != "compiled":
                raise
            failures[name] = first_line(error)
    turns = in_turns(calls, seconds=settings.layer_seconds, warmup=0)
    sides = {name: turns.milliseconds(name) for name in calls}
    ours, conv = (min((name, f"{name}, channels last"), key=lambda n: sides[n].median) for name in ("ours", "conv"))
    kind = str(dtype).removeprefix("torch.")
    limit = machine.limit(plain.work, kind)
    ratios = {name: turns.ratio(ours, name) for name in calls if not name.startswith("ours")}
    ratios["limit"] = Spread.of(1e3 * s / limit.ms for s in turns.seconds[ours])
    record = LayerRecord(
        layer.name, shape, kind, "forward + backward" if backward else "forward", sides, ours, conv, ratios, limit,
        turns.rounds, note=plain.note, failures=failures,
    )  # fmt: skip
    _log.info("%s", _in_words(record))
    return record


def _in_words(record: LayerRecord) -> str:
    times = ", ".join(f"{name} {spread.median:.3g}" for name, spread in record.sides.items())
    where = "x".join(map(str, record.shape))
    return f"{record.method} {where} {record.dtype} {record.passes}: {times}, limit {record.limit.ms:.3g} ms"


def _pass(side: Side, backward: bool) -> Callable[[], object]:
    """Makes the call that is timed, and calls it once, so that it is compiled before it is timed."""
    if backward:
        grad = torch.randn_like(side.call())
        call: Callable[[], object] = functools.partial(_both, side, grad)
    else:
        call = torch.inference_mode()(side.call)
    call()
    return call


def _both(side: Side, grad: Tensor) -> object:
    return torch.autograd.grad(side.call(), side.learns, grad)
