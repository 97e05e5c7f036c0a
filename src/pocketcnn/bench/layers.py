"""Single layers: each method written out, compiled, as the library computes it, and a plain convolution beside it.

Inputs are contiguous; the library's side and the convolution also run on channels-last tensors, and the better of both
layouts counts. bfloat16 means that the tensors themselves are. The forward pass runs without gradients; forward and
backward give gradients to the input and to everything that is learned.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketcnn import kernels, numerics
from pocketcnn.bench.limits import Limit, Machine, Work
from pocketcnn.bench.settings import Settings, Shape
from pocketcnn.methods.puppet import PuppetStage
from pocketcnn.methods.ring import ParameterRing
from pocketcnn.models.resnet import BasicBlock
from pocketcnn.support.timing import Spread, first_line, in_turns

_log = logging.getLogger(__name__)

NUM_STEPS, DT = 5, 0.2
GROUP_CHANNELS, NUM_EXPERTS, RING_SIZE, NUM_BLOCKS = 16, 4, 0.1, 4
LAYOUTS = (torch.contiguous_format, torch.channels_last)


@dataclass(frozen=True)
class LayerRecord:
    """A layer at one shape: milliseconds of each side, and the limits of the machine.

    Sides are `obvious`, `compiled`, `ours`, `conv`, and the last two also as `..., channels last`; `layout` is that of
    the others. `ours` and `conv` name the better layout of each; `ratios` are of that of ours to every other side, round
    by round, and to the limit.
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


@dataclass(frozen=True)
class Side:
    """A way to compute a layer, and the tensors that gradients are wanted of."""

    call: Callable[[], Tensor]
    learns: tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """The sides of a method at one shape, and the least work of a pass."""

    sides: Mapping[str, Side]
    work: Work
    note: str = ""


def measure_layers(settings: Settings, machine: Machine) -> Iterator[LayerRecord]:
    """Times every method at every shape, in float32 and bfloat16, forward, and forward and backward."""
    late = time.monotonic() + 60 * settings.layers_minutes
    for backward in (False, True):
        yield _measure("pde", settings.solver_shape, torch.float32, backward, settings, machine, late)
    for shape, dtype, method, backward in product(
        settings.shapes, (torch.float32, torch.bfloat16), METHODS, (False, True)
    ):
        yield _measure(method, shape, dtype, backward, settings, machine, late)


def _measure(
    method: str, shape: Shape, dtype: torch.dtype, backward: bool, settings: Settings, machine: Machine, late: float
) -> LayerRecord:
    torch._dynamo.reset()  # or what was compiled for other shapes and modes would be looked through first
    torch.manual_seed(0)
    plain, other = (METHODS[method](shape, dtype, layout, backward) for layout in LAYOUTS)
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
        method, shape, kind, "forward + backward" if backward else "forward", sides, ours, conv, ratios, limit,
        turns.rounds, note=plain.note, failures=failures,
    )  # fmt: skip
    _log.info("%s", _in_words(record))
    return record


def _in_words(record: LayerRecord) -> str:
    times = ", ".join(f"{name} {spread.median:.3g}" for name, spread in record.sides.items())
    where = "x".join(map(str, record.shape))
    return f"{record.method} {where} {record.dtype} {record.passes}: {times}, limit {record.limit.ms:.3g} ms"


def _pass(side: Side, backward: bool) -> Callable[[], object]:
    """A call of a side that was made once already: compiled, where it is to be."""
    if backward:
        grad = torch.randn_like(side.call())
        call: Callable[[], object] = functools.partial(_both, side, grad)
    else:
        call = torch.inference_mode()(side.call)
    call()
    return call


def _both(side: Side, grad: Tensor) -> object:
    return torch.autograd.grad(side.call(), side.learns, grad)


def _leaf(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, draw: Callable = torch.randn
) -> Tensor:
    return draw(shape).to(dtype).contiguous(memory_format=layout).requires_grad_()


def _sides(obvious: Callable[..., Tensor], ours: Callable[..., Tensor], *tensors: Tensor) -> dict[str, Side]:
    """What all but one method have: ways to compute a function of tensors that all learn."""
    return {
        "obvious": Side(functools.partial(obvious, *tensors), tensors),
        "compiled": Side(functools.partial(torch.compile(obvious, dynamic=False, fullgraph=True), *tensors), tensors),
        "ours": Side(functools.partial(ours, *tensors), tensors),
    }


def _conv(shape: Shape, dtype: torch.dtype, layout: torch.memory_format) -> Side:
    """A plain 3x3 convolution of as many channels."""
    x, weight = _leaf(shape, dtype, layout), _leaf((shape[1], shape[1], 3, 3), dtype, layout)
    return Side(functools.partial(F.conv2d, x, weight, padding=1), (x, weight))


def conv_work(shape: Shape, itemsize: int, *, kernel: bool = True) -> tuple[Work, Work]:
    """Of a 3x3 convolution forward and of its backward pass, with N numbers in the map and W in the kernel.

    Forward reads x and the kernel and writes y: 2 N + W numbers, 9 N channels products. Backward reads x, the kernel and
    the gradient of y, and writes the gradients of x and of the kernel: 3 N + 2 W numbers, twice the products.

    Args:
        shape: of the map.
        itemsize: bytes of a number.
        kernel: whether the kernel's own numbers are counted; one that is generated need not pass through memory.
    """
    batch, channels, height, width = shape
    numbers, weights = batch * channels * height * width, 9 * channels**2 * kernel
    products = 9 * numbers * channels
    return (
        Work(itemsize * (2 * numbers + weights), products),
        Work(itemsize * (3 * numbers + 2 * weights), 2 * products),
    )


# --- pde -------------------------------------------------------------------------------------------------------------


def advect_diffuse_by_rolls(f: Tensor, u: Tensor, v: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """The solver of `numerics.advect_diffuse`, periodic, on a grid of distance 1; what stays the same is computed once."""
    ax, ay, bx, by = u * DT, v * DT, 2 * dx * DT, 2 * dy * DT
    scale = 1 / (1 + bx + by)
    divergence = scale * DT * (u.roll(-1, 3) - u.roll(1, 3) + v.roll(-1, 2) - v.roll(1, 2))
    right, left, below, above = scale * (bx - ax), scale * (bx + ax), scale * (by - ay), scale * (by + ay)
    kept, added = scale * (1 - bx - by), scale * 2 * DT * f
    before = now = f
    for _ in range(NUM_STEPS):
        sideways = right * now.roll(-1, 3) + left * now.roll(1, 3)
        upright = below * now.roll(-1, 2) + above * now.roll(1, 2)
        before, now = now, kept * before - divergence * now + sideways + upright + added
    return now


def pde_work(shape: Shape, itemsize: int) -> tuple[Work, Work]:
    """Of the solver with K steps, forward and backward, with N numbers in the map.

    Forward reads f, u, v, Dx and Dy and writes H[K]: 6 N numbers; 6 multiply-adds a number and step and 9 a number for
    the weights. Backward takes the steps again, 6 K + 9, for keeping them would move more; the transposed step takes 6 a
    number and step, the sums that the five gradients are made of 7, and making them 9. It reads the five fields and the
    gradient of H[K] and writes five gradients: 11 N numbers.
    """
    numbers = shape[0] * shape[1] * shape[2] * shape[3]
    return (
        Work(6 * numbers * itemsize, elementwise=(6 * NUM_STEPS + 9) * numbers),
        Work(11 * numbers * itemsize, elementwise=(19 * NUM_STEPS + 18) * numbers),
    )


def _pde(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool) -> Case:
    fields = [_leaf(shape, dtype, layout, draw) for draw in (torch.randn, *4 * [torch.rand])]
    ours = functools.partial(kernels.advect_diffuse, num_steps=NUM_STEPS, dt=DT)
    sides = _sides(advect_diffuse_by_rolls, ours, *fields)
    return Case({**sides, "conv": _conv(shape, dtype, layout)}, _both_passes(pde_work(shape, dtype.itemsize), backward))


def _both_passes(work: tuple[Work, Work], backward: bool) -> Work:
    return work[0] + work[1] if backward else work[0]


# --- involution ------------------------------------------------------------------------------------------------------


def involution_work(shape: Shape, itemsize: int, kernel_size: int) -> tuple[Work, Work]:
    """Of the weighted sum, forward and backward, with N numbers in the map and T taps.

    A group of channels shares its kernels: there are T N / group_channels numbers in them. Forward reads x and kernels
    and writes y, with T multiply-adds a number; backward reads x, kernels and the gradient of y and writes two gradients,
    with twice the multiply-adds.
    """
    numbers, taps = shape[0] * shape[1] * shape[2] * shape[3], kernel_size**2
    per_pixel = taps * numbers // GROUP_CHANNELS
    return (
        Work(itemsize * (2 * numbers + per_pixel), elementwise=taps * numbers),
        Work(itemsize * (3 * numbers + 2 * per_pixel), elementwise=2 * taps * numbers),
    )


def _involution(
    kernel_size: int, shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool
) -> Case:
    batch, channels, height, width = shape
    groups = channels // GROUP_CHANNELS
    x = _leaf(shape, dtype, layout)
    flat = _leaf(
        (batch, groups * kernel_size**2, height, width), dtype, layout
    ).detach()  # as a 1x1 convolution makes it
    per_pixel = flat.unflatten(1, (groups, kernel_size**2)).requires_grad_()
    obvious, ours = (
        functools.partial(involution, kernel_size=kernel_size, padding=kernel_size // 2)
        for involution in (numerics.involution2d, kernels.involution2d)
    )
    work = _both_passes(involution_work(shape, dtype.itemsize, kernel_size), backward)
    return Case({**_sides(obvious, ours, x, per_pixel), "conv": _conv(shape, dtype, layout)}, work)


# --- condconv --------------------------------------------------------------------------------------------------------


def condconv_by_image(x: Tensor, routing_weights: Tensor, experts: Tensor) -> Tensor:
    """Mixes each image's kernel and convolves the image with it, one after the other."""
    mixed = (routing_weights @ experts.flatten(1)).unflatten(1, experts.shape[1:])
    return torch.cat([F.conv2d(image[None], kernel, padding=1) for image, kernel in zip(x, mixed, strict=True)])


def condconv_work(shape: Shape, itemsize: int) -> tuple[Work, Work]:
    """Of CondConv, forward and backward: a convolution's whose kernels, one an image, stay where they are mixed.

    Forward also reads the experts, of W numbers each, and mixes them, with num_experts W products an image. Backward
    reads them and writes their gradients; those of experts and of routing weights take as many products each.
    """
    forward, backward = conv_work(shape, itemsize, kernel=False)
    weights = NUM_EXPERTS * 9 * shape[1] ** 2
    return (
        forward + Work(itemsize * weights, shape[0] * weights),
        backward + Work(2 * itemsize * weights, 2 * shape[0] * weights),
    )


def _condconv(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool) -> Case:
    batch, channels = shape[:2]
    x = _leaf(shape, dtype, layout)
    routing_weights = _leaf((batch, NUM_EXPERTS), dtype, torch.contiguous_format, torch.rand)
    experts = _leaf((NUM_EXPERTS, channels, channels, 3, 3), dtype, torch.contiguous_format)
    ours = functools.partial(kernels.condconv2d, padding=1)
    unfold = functools.partial(numerics.condconv2d, padding=1, computation="unfold")
    sides = _sides(condconv_by_image, ours, x, routing_weights, experts)
    sides["compiled"] = _sides(unfold, ours, x, routing_weights, experts)["compiled"]
    work = _both_passes(condconv_work(shape, dtype.itemsize), backward)
    note = "compiled is unfold and one product an image: the loop over the images compiles for minutes"
    return Case({**sides, "conv": _conv(shape, dtype, layout)}, work, note)


# --- ring ------------------------------------------------------------------------------------------------------------


def ring_work(shape: Shape, itemsize: int) -> tuple[Work, Work]:
    """Of a 3x3 convolution whose kernel of W numbers is read off a ring of R, forward and backward.

    Forward also reads the ring and 4 bytes a number, enough for place and sign; backward reads those 4 bytes again and
    writes the ring's gradient. The kernel need not pass through memory. That places are reached at random is not in it.
    """
    forward, backward = conv_work(shape, itemsize, kernel=False)
    weights = 9 * shape[1] ** 2
    more = Work(itemsize * round(RING_SIZE * weights) + 4 * weights)
    return forward + more, backward + more


def _ring(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool) -> Case:
    kernel = (shape[1], shape[1], 3, 3)
    ring = ParameterRing([kernel], RING_SIZE, dtype=dtype)
    indices, signs = numerics.ring_indices([9 * shape[1] ** 2], len(ring.values), seed=0)
    indices, signs = indices.long(), signs.to(dtype)

    def obvious(x: Tensor, values: Tensor) -> Tensor:
        return F.conv2d(x, (values[indices] * signs * ring.scales[0]).view(kernel), padding=1)

    x, values = _leaf(shape, dtype, layout), ring.values.detach().clone().requires_grad_()
    sides = _sides(obvious, obvious, x, values)
    sides["ours"] = Side(lambda: F.conv2d(x, ring.read(0), padding=1), (x, ring.values))
    work = _both_passes(ring_work(shape, dtype.itemsize), backward)
    return Case({**sides, "conv": _conv(shape, dtype, layout)}, work)


# --- puppet ----------------------------------------------------------------------------------------------------------


def puppet_work(shape: Shape, itemsize: int, side: int) -> tuple[Work, Work]:
    """Of a stage of basic blocks and the generation of its kernels, forward and backward, with N numbers in the map.

    Served, kernels are kept: a block is two convolutions that read their kernels; with norm and ReLU done on the way it
    reads its input, writes and reads the map in the middle, reads its input again for the shortcut, and writes: 5 N. In
    training a block is as much forward, and backward two backward passes and the shortcut's gradient, 7 N; and all
    kernels are generated: the state of side^2 3x3 kernels moves once before each kernel but the first, with 18 side^3
    products, and every number read takes 4 bytes for place and sign. Backward twice the products, and the 4 bytes again.
    """
    batch, channels, height, width = shape
    numbers, weights = batch * channels * height * width, 9 * channels**2
    products = 2 * NUM_BLOCKS * 9 * numbers * channels
    moves = (2 * NUM_BLOCKS - 1) * 18 * side**3
    tables = 4 * 2 * NUM_BLOCKS * weights
    served = Work(itemsize * NUM_BLOCKS * (5 * numbers + 2 * weights), products)
    trained = Work(itemsize * NUM_BLOCKS * 12 * numbers + 2 * tables, 3 * (products + moves))
    return served, trained


def _puppet(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool) -> Case:
    x = _leaf(shape, dtype, layout)
    blocks = [BasicBlock(shape[1], shape[1], 1) for _ in range(NUM_BLOCKS)]
    stage: Any = PuppetStage(blocks, depth="fixed").to(dtype)
    stage.to(memory_format=layout).train(backward)
    served, trained = puppet_work(shape, dtype.itemsize, stage.puppeteer.rows)
    plain = stage.dense()
    sides = {
        "ours": Side(lambda: stage(x), (x, *stage.parameters())),
        "conv": Side(lambda: plain(x), (x, *plain.parameters())),
    }
    if not backward:  # `eval` forgets the kernels that were kept
        sides = {"obvious": Side(lambda: stage.eval()(x), ()), **sides}
    note = f"a stage of {NUM_BLOCKS} basic blocks; conv is the ordinary stage that it equals, obvious generates its kernels anew"
    return Case(sides, trained if backward else served, note)


METHODS: Mapping[str, Callable[[Shape, torch.dtype, torch.memory_format, bool], Case]] = {
    "pde": _pde,
    "involution K3": functools.partial(_involution, 3),
    "involution K7": functools.partial(_involution, 7),
    "condconv": _condconv,
    "ring": _ring,
    "puppet": _puppet,
}
