"""Involution compiled by numba for the CPU: forward and both gradients without unfolding.

A tile is up to `LANES` channels of one group and image, side by side, in a frame of the padding: all of them meet the same
kernel at a pixel, so that each tap is one multiply-add of a whole vector with one number. The gradient of the image is added
up where the windows lie; that of a kernel's tap is a sum over the channels. Images and groups are shared out among threads.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketcnn.kernels import torch_ops
from pocketcnn.kernels._lanes import (
    LANES,
    flat_of,
    give,
    load,
    number_at,
    put_number,
    spread,
    store,
    strides_of,
    take,
    total,
)
from pocketcnn.kernels._routines import WHOLE, WHOLES, Kinds, Routines, compiled, launcher
from pocketcnn.kernels._threads import fork, share
from pocketcnn.numerics._shapes import accumulation_dtype

involution = Routines("involution")
_LEAST = 4  # channels of a group: with fewer, lanes are left empty and planes are faster


@torch_ops.involution2d_operator.register_kernel("cpu")
def _involution2d(
    x: Tensor, kernels: Tensor, kernel_height: int, kernel_width: int,
    stride: list[int], padding: list[int], dilation: list[int],
) -> Tensor:  # fmt: skip
    geometry = (kernel_height, kernel_width, stride, padding, dilation)
    if x.shape[1] // max(1, kernels.shape[1]) < _LEAST or not kernels.numel():
        return torch_ops.shifted(x, kernels, *geometry)
    torch_ops.refuse_tangents("involution2d", x, kernels)
    given = _Given(x, kernels, *geometry)
    y = torch.empty_like(torch_ops.laid_out_like(x, kernels), dtype=given.stored)
    share(_forward, given.table(_forward_tiles), given.tiles, x.numel(), *given.arguments, flat_of(y), strides_of(y))
    return y.to(x.dtype)


@torch_ops.involution2d_backward_operator.register_kernel("cpu")
def _involution2d_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, kernel_height: int, kernel_width: int,
    stride: list[int], padding: list[int], dilation: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    geometry = (kernel_height, kernel_width, stride, padding, dilation)
    channels = x.shape[1] // max(1, kernels.shape[1])
    if channels < _LEAST or not kernels.numel():
        return torch_ops.shifted_backward(grad, x, kernels, *geometry)
    given = _Given(x, kernels, *geometry)
    grad = torch_ops.dense(grad.detach().to(given.stored))
    grad_x = torch.empty_like(given.x)
    # Sums over several tiles are rounded once.
    alone = channels <= LANES and given.stored == torch.bfloat16  # else both have the same types
    grad_kernels = torch.empty_like(given.kernels, dtype=given.stored if alone else given.dtype)
    launch, routine = (_backward, _backward_tiles) if alone else (_backward_in_blocks, _backward_blocks)
    share(
        launch, given.table(routine), given.tiles, x.numel(), *given.arguments, flat_of(grad), strides_of(grad), flat_of(grad_x),
        flat_of(grad_kernels),
    )  # fmt: skip
    return grad_x.to(x.dtype), grad_kernels.to(kernels.dtype)


class _Given:
    """Holds the arguments of a pass as the kernels take them."""

    def __init__(
        self, x: Tensor, kernels: Tensor, kernel_height: int, kernel_width: int,
        stride: list[int], padding: list[int], dilation: list[int],
    ) -> None:  # fmt: skip
        self.dtype = accumulation_dtype(x)
        self.stored = torch.bfloat16 if x.dtype == kernels.dtype == torch.bfloat16 else self.dtype
        self.x, self.kernels = (torch_ops.dense(t.detach()).to(self.stored) for t in (x, kernels))
        batch, channels, height, width = x.shape
        groups, _, out_height, out_width = kernels.shape[1:]
        self.tiles = batch * groups
        sizes = [
            groups, channels // groups, height, width, out_height, out_width, kernel_height, kernel_width,
            *stride, *padding, *dilation,
        ]  # fmt: skip
        self.arguments: tuple[Any, ...] = (
            np.zeros(1, dtype=np.float64 if self.dtype == torch.float64 else np.float32),
            np.array(sizes, dtype=np.int64), flat_of(self.x), strides_of(self.x), flat_of(self.kernels),
            strides_of(self.kernels),
        )  # fmt: skip

    def table(self, routine: Any) -> np.ndarray:
        """Returns the addresses of a routine and those that it calls, for these types."""
        number = np.dtype(np.float64 if self.dtype == torch.float64 else np.float32)
        return involution.table(routine, number, np.dtype(np.int16) if self.stored == torch.bfloat16 else number)


def _pass(k: Kinds) -> tuple[Any, ...]:
    """Returns the types that both passes begin with: first and last tile, part, and the arguments."""
    return (WHOLE, WHOLE, WHOLE, k.memory, WHOLES, k.image, WHOLES, k.image, WHOLES)


@launcher
def _forward(team, table, parts, first, last, part, *arguments):
    fork(_forward_tiles, team, table, parts, first, last, part, arguments)


@launcher
def _backward(team, table, parts, first, last, part, *arguments):
    fork(_backward_tiles, team, table, parts, first, last, part, arguments)


@launcher
def _backward_in_blocks(team, table, parts, first, last, part, *arguments):
    fork(_backward_blocks, team, table, parts, first, last, part, arguments)


@involution.routine(lambda k: (*_pass(k), k.image, WHOLES))
def _forward_tiles(table, first, last, part, zero, sizes, x, x_strides, kernels, kernel_strides, y, y_strides):
    groups, channels, height, width, out_height, out_width, rows, columns = sizes[:8]
    (down, right), (top, left), (apart_y, apart_x) = sizes[8:10], sizes[10:12], sizes[12:14]
    pitch = (width + 2 * left) * LANES
    box = (height, width, top * pitch + left * LANES, pitch)
    out_box = (out_height, out_width, 0, out_width * LANES)
    image = np.zeros((height + 2 * top) * pitch, zero.dtype)
    made = np.zeros(out_height * out_width * LANES, zero.dtype)
    bases = np.empty(LANES, np.int64)
    for tile in range(first, last):
        batch, group = tile // groups, tile % groups
        taps = batch * kernel_strides[0] + group * kernel_strides[1]
        for block in range(0, channels, LANES):
            count = min(LANES, channels - block)
            _place(batch, group * channels + block, count, x_strides, bases)
            take(x, x_strides, bases, count, box, image, 0)
            for oy in range(out_height):
                for ox in range(out_width):
                    window = oy * down * pitch + ox * right * LANES
                    tap = taps + oy * kernel_strides[3] + ox * kernel_strides[4]
                    found = spread(zero[0])
                    for i in range(rows):
                        o = window + i * apart_y * pitch
                        for j in range(columns):
                            found += spread(number_at(kernels, tap)) * load(image, o + j * apart_x * LANES)
                            tap += kernel_strides[2]
                    store(made, (oy * out_width + ox) * LANES, found)
            _place(batch, group * channels + block, count, y_strides, bases)
            give(made, 0, count, y, y_strides, bases, out_box)


@involution.routine(lambda k: (*_pass(k), k.image, WHOLES, k.image, k.image))
def _backward_tiles(
    table,
    first,
    last,
    part,
    zero,
    sizes,
    x,
    x_strides,
    kernels,
    kernel_strides,
    grad,
    grad_strides,
    grad_x,
    grad_kernels,
):
    _go_back(first, last, zero, sizes, x, x_strides, kernels, kernel_strides, grad, grad_strides, grad_x, grad_kernels)


@involution.routine(lambda k: (*_pass(k), k.image, WHOLES, k.image, k.memory))
def _backward_blocks(
    table,
    first,
    last,
    part,
    zero,
    sizes,
    x,
    x_strides,
    kernels,
    kernel_strides,
    grad,
    grad_strides,
    grad_x,
    grad_kernels,
):
    """Does the work of `_backward_tiles` for groups of several tiles: kernel gradients are summed in full precision."""
    _go_back(first, last, zero, sizes, x, x_strides, kernels, kernel_strides, grad, grad_strides, grad_x, grad_kernels)


@compiled
def _go_back(first, last, zero, sizes, x, x_strides, kernels, kernel_strides, grad, grad_strides, grad_x, grad_kernels):
    groups, channels, height, width, out_height, out_width, rows, columns = sizes[:8]
    (down, right), (top, left), (apart_y, apart_x) = sizes[8:10], sizes[10:12], sizes[12:14]
    pitch = (width + 2 * left) * LANES
    box = (height, width, top * pitch + left * LANES, pitch)
    out_box = (out_height, out_width, 0, out_width * LANES)
    image = np.zeros((height + 2 * top) * pitch, zero.dtype)
    spread_out = np.zeros(image.size, zero.dtype)
    flow = np.zeros(out_height * out_width * LANES, zero.dtype)
    bases = np.empty(LANES, np.int64)
    for tile in range(first, last):
        batch, group = tile // groups, tile % groups
        taps = batch * kernel_strides[0] + group * kernel_strides[1]
        for block in range(0, channels, LANES):
            count = min(LANES, channels - block)
            if count < LANES:
                flow[:] = 0
                image[:] = 0
            _place(batch, group * channels + block, count, grad_strides, bases)
            take(grad, grad_strides, bases, count, out_box, flow, 0)
            _place(batch, group * channels + block, count, x_strides, bases)
            take(x, x_strides, bases, count, box, image, 0)
            spread_out[:] = 0
            for oy in range(out_height):
                for ox in range(out_width):
                    window = oy * down * pitch + ox * right * LANES
                    tap = taps + oy * kernel_strides[3] + ox * kernel_strides[4]
                    here = load(flow, (oy * out_width + ox) * LANES)
                    for i in range(rows):
                        for j in range(columns):
                            o = window + i * apart_y * pitch + j * apart_x * LANES
                            store(spread_out, o, load(spread_out, o) + spread(number_at(kernels, tap)) * here)
                            found = total(here * load(image, o))
                            put_number(grad_kernels, tap, found if block == 0 else found + number_at(grad_kernels, tap))
                            tap += kernel_strides[2]
            give(spread_out, 0, count, grad_x, x_strides, bases, box)


@compiled
def _place(image, channel, count, strides, bases):
    """Finds where in a flat array the planes of some channels begin."""
    for lane in range(count):
        bases[lane] = image * strides[0] + (channel + lane) * strides[1]
