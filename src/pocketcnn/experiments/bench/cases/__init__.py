"""The layers that are timed: a file for each method, named like it, offers them as `LAYERS`.

A layer has several sides, which are ways to compute it, and an amount of work, which tells how fast it could be.
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
    """A way to compute a layer, and the tensors whose gradients are computed."""

    call: Callable[[], Tensor]
    learns: tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """The sides of a layer at one shape, and the least work of a pass."""

    sides: Mapping[str, Side]
    work: Work
    note: str = ""


@dataclass(frozen=True)
class Layer:
    """A layer that is timed: its name in the records, and the function that makes its case.

    Besides the shapes of all layers, it is timed at `more_shapes`, in float32 only.
    """

    name: str
    case: Callable[[Shape, torch.dtype, torch.memory_format, bool], Case]  # shape, dtype, layout, with backward pass
    more_shapes: Callable[[Settings], Sequence[Shape]] = lambda settings: ()


def leaf(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, draw: Callable = torch.randn
) -> Tensor:
    return draw(shape).to(dtype).contiguous(memory_format=layout).requires_grad_()


def sides_of(obvious: Callable[..., Tensor], ours: Callable[..., Tensor], *tensors: Tensor) -> dict[str, Side]:
    """Makes the sides of a layer that is a function of tensors which all learn."""
    return {
        "obvious": Side(functools.partial(obvious, *tensors), tensors),
        "compiled": Side(functools.partial(torch.compile(obvious, dynamic=False, fullgraph=True), *tensors), tensors),
        "ours": Side(functools.partial(ours, *tensors), tensors),
    }


def conv_side(shape: Shape, dtype: torch.dtype, layout: torch.memory_format) -> Side:
    """Makes the side of a plain 3x3 convolution with as many channels."""
    x, weight = leaf(shape, dtype, layout), leaf((shape[1], shape[1], 3, 3), dtype, layout)
    return Side(functools.partial(F.conv2d, x, weight, padding=1), (x, weight))


def conv_work(shape: Shape, itemsize: int, *, kernel: bool = True) -> tuple[Work, Work]:
    """Work of a 3x3 convolution, forward and backward, with N numbers in the map and W in the kernel.

    Forward reads x and the kernel and writes y: 2 N + W numbers, 9 N channels products. Backward reads x, the kernel and
    the gradient of y, and writes the gradients of x and of the kernel: 3 N + 2 W numbers, twice the products.

    Args:
        shape: shape of the map.
        itemsize: bytes of a number.
        kernel: count reading and writing the kernel; a generated kernel need not pass through memory.
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
