"""The layers that are timed: for each method a file of its name beside this one, with its `LAYERS`.

A layer is timed from several sides; its work says how fast it could be on this machine.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketcnn.experiments.bench.limits import Work
from pocketcnn.experiments.bench.settings import Settings, Shape

NUM_STEPS, DT = 5, 0.2
GROUP_CHANNELS, NUM_EXPERTS, RING_SIZE, NUM_BLOCKS = 16, 4, 0.1, 4
LAYOUTS = (torch.contiguous_format, torch.channels_last)


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


@dataclass(frozen=True)
class Layer:
    """A layer that is timed: its name in the records, and the function that makes its case.

    `more_shapes` are timed too, in float32, before those that all layers are timed at.
    """

    name: str
    case: Callable[[Shape, torch.dtype, torch.memory_format, bool], Case]  # shape, dtype, layout, with backward pass
    more_shapes: Callable[[Settings], Sequence[Shape]] = lambda settings: ()


def leaf(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, draw: Callable = torch.randn
) -> Tensor:
    return draw(shape).to(dtype).contiguous(memory_format=layout).requires_grad_()


def sides_of(obvious: Callable[..., Tensor], ours: Callable[..., Tensor], *tensors: Tensor) -> dict[str, Side]:
    """What all but one method have: ways to compute a function of tensors that all learn."""
    return {
        "obvious": Side(functools.partial(obvious, *tensors), tensors),
        "compiled": Side(functools.partial(torch.compile(obvious, dynamic=False, fullgraph=True), *tensors), tensors),
        "ours": Side(functools.partial(ours, *tensors), tensors),
    }


def conv_side(shape: Shape, dtype: torch.dtype, layout: torch.memory_format) -> Side:
    """A plain 3x3 convolution of as many channels."""
    x, weight = leaf(shape, dtype, layout), leaf((shape[1], shape[1], 3, 3), dtype, layout)
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


def both_passes(work: tuple[Work, Work], backward: bool) -> Work:
    return work[0] + work[1] if backward else work[0]
