"""The solver of `numerics.advect_diffuse`, and what forms its coefficients, compiled by numba for the CPU.

A tile is `LANES` planes (a plane is one channel of one image), laid side by side so that one vector instruction works on
the same pixel of all of them, whatever the size of the image and its layout in memory. A tile takes all its steps while it
lies in the caches of a core; the backward pass takes them again, and so needs nothing but the arguments of the forward pass.
Coefficients that depthwise convolutions make of the image are formed inside of a tile and never written out. Tiles are
shared out among as many threads as torch uses. `pocketcnn bench` measures what this earns.
"""

import numpy as np
import torch
from torch import Tensor

from pocketcnn.kernels._lanes import (
    LANES,
    compiled,
    flat_of,
    give,
    larger,
    load,
    spread,
    store,
    strides_of,
    take,
    where_positive,
)
from pocketcnn.kernels._threads import fork, share
from pocketcnn.numerics.dynamic_conv import accumulation_dtype
from pocketcnn.numerics.stencil import BOUNDARIES

_PERIODIC, _REPLICATE, _REFLECT, _ZERO = range(len(BOUNDARIES))

# Rows of a tile's memory, each a plane of lanes in a frame of one pixel: the image, with zeros around it; velocities; the
# weights of a step, as `numerics.stencil.stencil_weights` orders them; and from _FIELDS on what the passes need.
_IMAGE, _U, _V, _BEFORE, _NOW, _RIGHT, _LEFT, _BELOW, _ABOVE, _ADDED, _FIELDS = range(11)
# Where the gradients of source, velocities and diffusivities take the place of weights that are not needed any more.
_OF_SOURCE, _OF_U, _OF_V, _OF_DX, _OF_DY, _WORK = _ADDED, _LEFT, _ABOVE, _RIGHT, _BELOW, _NOW
# A coefficient that is formed: nine weights, then what their sum is multiplied by, and what is added to that.
_TAPS, _SCALE, _SHIFT = 9, 9, 10


@torch.library.custom_op("pocketcnn::advect_diffuse", mutates_args=(), device_types="cpu")
def advect_diffuse(
    source: Tensor,
    velocity_x: Tensor,
    velocity_y: Tensor,
    diffusivity_x: Tensor,
    diffusivity_y: Tensor,
    initial: Tensor | None,
    previous: Tensor | None,
    formed: Tensor | None,
    uses: list[int],
    rectified: bool,
    num_steps: int,
    dt: float,
    dx: float,
    dy: float,
    boundary: str,
    after: Tensor | None = None,
) -> Tensor:
    """`kernels.advect_diffuse`, of coefficients that are tensors; or, in places where `uses` names a row of `formed`
    [coefficients, 11, channels], that are formed of the source: see `kernels.advect_diffuse_formed`. `after` [2, channels]
    scales and shifts the result, which is then cut off below 0; without gradients only."""
    coefficients = (velocity_x, velocity_y, diffusivity_x, diffusivity_y)
    given = _Given(source, coefficients, initial, previous, formed, uses, rectified)
    out = given.like_source()
    grid = _grid(given.source, num_steps, dt, dx, dy, boundary)
    line = np.empty((0, 2, source.shape[1]), dtype=grid[1].dtype)
    if after is not None:
        line = after.detach().to(given.dtype)[None].contiguous().numpy()
    share(_forward, given.tiles, source.numel(), *given.arguments, *grid, line, flat_of(out))
    return out.to(source.dtype)


@torch.library.custom_op("pocketcnn::advect_diffuse_backward", mutates_args=(), device_types="cpu")
def _advect_diffuse_backward(
    grad: Tensor,
    source: Tensor,
    velocity_x: Tensor,
    velocity_y: Tensor,
    diffusivity_x: Tensor,
    diffusivity_y: Tensor,
    initial: Tensor | None,
    previous: Tensor | None,
    formed: Tensor | None,
    uses: list[int],
    rectified: bool,
    num_steps: int,
    dt: float,
    dx: float,
    dy: float,
    boundary: str,
    wanted: list[bool],
) -> list[Tensor]:
    coefficients = (velocity_x, velocity_y, diffusivity_x, diffusivity_y)
    given = _Given(source, coefficients, initial, previous, formed, uses, rectified)
    grads = [
        given.like_source(coefficient=1 <= place <= 4) if want else given.nothing(coefficient=1 <= place <= 4)
        for place, want in enumerate(wanted[:7])
    ]
    sums = np.zeros((torch.get_num_threads(), len(given.formed), 10, source.shape[1]))
    grid = _grid(given.source, num_steps, dt, dx, dy, boundary)
    share(
        _backward_parts, given.tiles, source.numel(), *given.arguments, *grid, flat_of(given.in_layout(grad)), sums,
        *map(flat_of, grads), threads=len(sums),
    )  # fmt: skip
    arguments = (source, *coefficients, initial, previous)
    summed = [
        _summed(gradient, argument) if want and argument is not None else source.new_empty(0)
        for want, gradient, argument in zip(wanted, grads, arguments, strict=False)
    ]
    if formed is None or not wanted[7]:
        return [*summed, source.new_empty(0)]
    return [*summed, _gradient_of_formed(torch.from_numpy(sums.sum(0)), given.formed).to(formed.dtype)]


def _summed(gradient: Tensor, argument: Tensor) -> Tensor:
    """A gradient of the source's shape as that of what was broadcast to it."""
    if gradient.shape == argument.shape:
        return gradient.to(argument.dtype)
    return gradient.sum_to_size(argument.shape).to(argument.dtype).contiguous()


def _gradient_of_formed(sums: Tensor, formed: Tensor) -> Tensor:
    """Of weights, scale and shift, from the sums over all pixels of the gradient of the value that is formed, times the
    pixel under each of the nine weights, and by itself."""
    weights, scale = formed[:, :_TAPS].double(), formed[:, _SCALE].double()
    under, alone = sums[:, :_TAPS], sums[:, _TAPS]
    return torch.cat([under * scale[:, None], (under * weights).sum(1, keepdim=True), alone[:, None]], dim=1)


@advect_diffuse.register_fake
def _(source, *rest):
    return torch.empty_like(_dense(source))


@_advect_diffuse_backward.register_fake
def _(grad, *arguments):
    tensors, wanted = (*arguments[:8],), arguments[-1]
    source = tensors[0]
    return [
        source.new_empty(0) if t is None or not want
        else torch.empty_like(_dense(source), dtype=t.dtype) if t.shape == source.shape
        else t.new_empty(t.shape)
        for want, t in zip(wanted, tensors, strict=True)
    ]  # fmt: skip


def _save_for_backward(ctx, inputs, output):
    ctx.settings, ctx.finished = inputs[8:-1], inputs[-1] is not None
    ctx.save_for_backward(*inputs[:8])


def _backward(ctx, grad):
    if ctx.finished:
        raise RuntimeError("what is done after the steps has no gradient here; leave `after` out")
    wanted = list(ctx.needs_input_grad[:8])
    grads = _advect_diffuse_backward(grad, *ctx.saved_tensors, *ctx.settings, wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), *[None] * (len(ctx.settings) + 1)


advect_diffuse.register_autograd(_backward, setup_context=_save_for_backward)


class _Given:
    """The arguments of a pass as the kernels take them: flat arrays of one layout, and the strides of coefficients."""

    def __init__(
        self,
        source: Tensor,
        coefficients: tuple[Tensor, ...],
        initial: Tensor | None,
        previous: Tensor | None,
        formed: Tensor | None,
        uses: list[int],
        rectified: bool,
    ) -> None:
        self.dtype = accumulation_dtype(source)
        self.stored = torch.bfloat16 if source.dtype == torch.bfloat16 else self.dtype
        self.source = _dense(source.detach()).to(self.stored)
        channels_last = not self.source.is_contiguous()
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        tensors = [_dense(c.detach().to(self.dtype)) for c in coefficients]
        strides = [self.source.stride(), *(_broadcast_strides(t) for t in tensors)]
        self.formed = torch.empty(0, 11, source.shape[1], dtype=self.dtype)
        if formed is not None:
            self.formed = formed.detach().to(self.dtype).contiguous()
        planes = source.shape[0] * source.shape[1]
        self.tiles = -(-planes // LANES)
        starts = [self.source if start is None else self.in_layout(start) for start in (initial, previous)]
        self.arguments = (
            flat_of(self.source), *map(flat_of, tensors), *map(flat_of, starts), initial is None, previous is None,
            np.array(strides, dtype=np.int64), self.formed.numpy(), np.array(uses, dtype=np.int64), rectified,
        )  # fmt: skip

    def in_layout(self, tensor: Tensor) -> Tensor:
        """A tensor of the source's shape, as the source is laid out and stored."""
        return tensor.detach().to(self.stored).contiguous(memory_format=self.layout)

    def like_source(self, coefficient: bool = False) -> Tensor:
        """An array to be filled."""
        return torch.empty_like(self.source, dtype=self.dtype if coefficient else self.stored)

    def nothing(self, coefficient: bool = False) -> Tensor:
        """In the place of a gradient that nobody wants."""
        return torch.empty(0, dtype=self.dtype if coefficient else self.stored)


@torch.library.custom_op("pocketcnn::depthwise_moments", mutates_args=(), device_types="cpu")
def depthwise_moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """`kernels.depthwise_moments`."""
    image, table, grid, tiles = _of_convolutions(x, weights)
    sums = np.zeros((torch.get_num_threads(), len(weights), 3, x.shape[1]))
    share(
        _moments, tiles, x.numel(), flat_of(image), strides_of(image), table.numpy(), *grid, sums, threads=len(sums)
    )  # fmt: skip
    count, means, squares = torch.from_numpy(sums).unbind(2)
    total = count.sum(0).clamp_(min=1)
    mean = (count * means).sum(0) / total
    variance = (squares + count * (means - mean).square()).sum(0) / total
    return mean.to(table.dtype), variance.to(table.dtype)


@torch.library.custom_op("pocketcnn::depthwise_moments_backward", mutates_args=(), device_types="cpu")
def _depthwise_moments_backward(
    grad_mean: Tensor, grad_variance: Tensor, mean: Tensor, x: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    image, table, grid, tiles = _of_convolutions(x, weights)
    count = max(1, x.numel() // max(1, x.shape[1]))
    # The gradient of a convolution's output y is a line: what it is multiplied by, and what is added.
    slope = 2 / count * grad_variance.to(table.dtype)
    lines = torch.stack([slope, grad_mean.to(table.dtype) / count - slope * mean], dim=1)
    table = torch.cat([table, lines], dim=1).contiguous()
    sums = np.zeros((torch.get_num_threads(), len(weights), 10, x.shape[1]))
    out = torch.empty_like(image)
    share(_moments_back, tiles, x.numel(), flat_of(image), strides_of(image), table.numpy(), *grid, sums, flat_of(out),
          threads=len(sums))  # fmt: skip
    return out.to(x.dtype), torch.from_numpy(sums.sum(0)[:, :_TAPS]).to(weights.dtype).contiguous()


@depthwise_moments.register_fake
def _(x, weights):
    made = weights.new_empty(weights.shape[::2], dtype=accumulation_dtype(x))
    return made, made.clone()


@_depthwise_moments_backward.register_fake
def _(grad_mean, grad_variance, mean, x, weights):
    return torch.empty_like(_dense(x)), torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)


def _save_moments(ctx, inputs, output):
    ctx.save_for_backward(output[0], *inputs)


def _moments_backward(ctx, grad_mean, grad_variance):
    return _depthwise_moments_backward(grad_mean, grad_variance, *ctx.saved_tensors)


depthwise_moments.register_autograd(_moments_backward, setup_context=_save_moments)


def _of_convolutions(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, tuple[np.ndarray, np.ndarray], int]:
    """The image as it is stored, the weights [kernels, 9, channels], the grid, and how many tiles there are."""
    dtype = accumulation_dtype(x)
    image = _dense(x.detach()).to(torch.bfloat16 if x.dtype == torch.bfloat16 else dtype)
    table = weights.detach().to(dtype).contiguous()
    return image, table, _grid(image, 0, 1.0, 1.0, 1.0, "zero"), -(-x.shape[0] * x.shape[1] // LANES)


def _dense(tensor: Tensor) -> Tensor:
    """The same numbers in rows of pixels or of channels, without gaps."""
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous()


def _broadcast_strides(tensor: Tensor) -> list[int]:
    return [0 if n == 1 else stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def _grid(
    source: Tensor, num_steps: int, dt: float, dx: float, dy: float, boundary: str
) -> tuple[np.ndarray, np.ndarray]:
    """The sizes, and the numbers in the formula in the dtype of the arithmetic: one with another would widen all."""
    batch, channels, height, width = source.shape
    numbers = [1, dt / dx, dt / dy, 2 * dt / dx**2, 2 * dt / dy**2, 2 * dt]
    return (
        np.array([batch * channels, channels, height, width, BOUNDARIES.index(boundary), num_steps], dtype=np.int64),
        np.array(numbers, dtype=np.float64 if source.dtype == torch.float64 else np.float32),
    )


@compiled
def _opened(sizes, numbers):
    """What `_grid` packed: planes, channels, height, width, boundary, and the numbers in the formula."""
    return (
        sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5],
    )  # fmt: skip


@compiled
def _forward_tiles(
    first, last, part, source, u, v, dx, dy, initial, previous, starts_at_source, was_at_source, strides, formed, uses,
    rectified, sizes, numbers, line, out,
):  # fmt: skip
    grid, num_steps = _opened(sizes, numbers), sizes[5]
    size = _size(grid)
    memory = np.zeros((_FIELDS + 3) * size, formed.dtype)
    lanes, bases = np.empty(max(1, formed.shape[0]) * 11 * LANES, formed.dtype), np.empty(LANES, np.int64)
    after = np.empty(2 * LANES, formed.dtype)
    for tile in range(first, last):
        _prepare(tile, source, u, v, dx, dy, strides, formed, uses, rectified, grid, memory, lanes, bases)
        _start(source, previous, was_at_source, strides, bases, grid, memory, _FIELDS * size)
        _start(source, initial, starts_at_source, strides, bases, grid, memory, (_FIELDS + 1) * size)
        for step in range(num_steps):
            before, now, later = _FIELDS + step % 3, _FIELDS + (step + 1) % 3, _FIELDS + (step + 2) % 3
            _step(memory, before * size, now * size, later * size, grid)
        field = (_FIELDS + (num_steps + 1) % 3) * size
        if line.shape[0]:
            _gather(tile, line, after, grid)
            _finish(memory, field, after, grid)
        give(memory, field, _count(tile, grid), out, strides[0], bases, _box(grid))


@compiled
def _backward_tiles(
    first, last, part, source, u, v, dx, dy, initial, previous, starts_at_source, was_at_source, strides, formed, uses,
    rectified, sizes, numbers, grad, sums, grad_source, grad_u, grad_v, grad_dx, grad_dy, grad_initial, grad_previous,
):  # fmt: skip
    grid, num_steps = _opened(sizes, numbers), sizes[5]
    size = _size(grid)
    flows = _FIELDS + num_steps + 2  # the gradients of the fields; of one more, which is 0
    memory = np.zeros((flows + num_steps + 3) * size, formed.dtype)
    lanes, bases = np.empty(max(1, formed.shape[0]) * 11 * LANES, formed.dtype), np.empty(LANES, np.int64)
    for tile in range(first, last):
        _prepare(tile, source, u, v, dx, dy, strides, formed, uses, rectified, grid, memory, lanes, bases)
        _start(source, previous, was_at_source, strides, bases, grid, memory, _FIELDS * size)
        _start(source, initial, starts_at_source, strides, bases, grid, memory, (_FIELDS + 1) * size)
        for step in range(num_steps):
            field = _FIELDS + step
            _step(memory, field * size, (field + 1) * size, (field + 2) * size, grid)
        take(grad, strides[0], bases, LANES, _box(grid), memory, (flows + num_steps + 1) * size)
        for step in range(num_steps, 0, -1):
            _step_back(memory, (flows + step) * size, grid)
        if num_steps:
            _carry(memory, (flows + 2) * size, flows * size, grid)
        _collect(memory, flows * size, grid, num_steps, starts_at_source, was_at_source, uses[2] >= 0, uses[3] >= 0)
        for place, row in enumerate((_OF_U, _OF_V, _OF_DX, _OF_DY)):
            if uses[place] >= 0:
                if rectified and place < 2:
                    _mask(memory, row * size, (_U + place) * size, grid)
                _add_under(tile, memory, row * size, grid, sums[part, uses[place]])
                _add_spread(memory, row * size, _OF_SOURCE * size, lanes, uses[place] * 11 * LANES, _SCALE, grid)
        if grad_source.size:
            give(memory, _OF_SOURCE * size, _count(tile, grid), grad_source, strides[0], bases, _box(grid))
        if grad_u.size:
            give(memory, _OF_U * size, _count(tile, grid), grad_u, strides[0], bases, _box(grid))
        if grad_v.size:
            give(memory, _OF_V * size, _count(tile, grid), grad_v, strides[0], bases, _box(grid))
        if grad_dx.size:
            give(memory, _OF_DX * size, _count(tile, grid), grad_dx, strides[0], bases, _box(grid))
        if grad_dy.size:
            give(memory, _OF_DY * size, _count(tile, grid), grad_dy, strides[0], bases, _box(grid))
        if grad_initial.size:
            give(memory, (flows + 1) * size, _count(tile, grid), grad_initial, strides[0], bases, _box(grid))
        if grad_previous.size:
            give(memory, flows * size, _count(tile, grid), grad_previous, strides[0], bases, _box(grid))


@compiled
def _moment_tiles(first, last, part, source, strides, table, sizes, numbers, sums):
    grid = _opened(sizes, numbers)
    _, channels, height, width = grid[:4]
    size, pitch = _size(grid), (width + 2) * LANES
    memory = np.zeros(size, table.dtype)
    lanes, bases = np.empty(table.shape[0] * 9 * LANES, table.dtype), np.empty(LANES, np.int64)
    row = np.empty(2 * LANES, table.dtype)
    totals = np.empty(2 * LANES)
    for tile in range(first, last):
        _place(tile, strides, bases, grid)
        take(source, strides, bases, LANES, _box(grid), memory, 0)
        _gather(tile, table, lanes, grid)
        for kernel in range(table.shape[0]):
            w = kernel * 9 * LANES
            w0, w1, w2 = load(lanes, w), load(lanes, w + LANES), load(lanes, w + 2 * LANES)
            w3, w4, w5 = load(lanes, w + 3 * LANES), load(lanes, w + 4 * LANES), load(lanes, w + 5 * LANES)
            w6, w7, w8 = load(lanes, w + 6 * LANES), load(lanes, w + 7 * LANES), load(lanes, w + 8 * LANES)
            # Sums are taken of distances from a value of the tile: squares of what lies far from 0 would cancel.
            o = pitch + LANES
            pivot = (
                load(memory, o) * w4 + load(memory, o + LANES) * w5
                + load(memory, o + pitch) * w7 + load(memory, o + pitch + LANES) * w8
            )  # fmt: skip
            totals[:] = 0
            for y in range(height):
                o = (y + 1) * pitch + LANES
                a0, a1 = load(memory, o - pitch - LANES), load(memory, o - pitch)
                b0, b1 = load(memory, o - LANES), load(memory, o)
                c0, c1 = load(memory, o + pitch - LANES), load(memory, o + pitch)
                first_sum = second_sum = spread(table.dtype.type(0))
                for _x in range(width):
                    a2, b2 = load(memory, o - pitch + LANES), load(memory, o + LANES)
                    c2 = load(memory, o + pitch + LANES)
                    value = a0 * w0 + a1 * w1 + a2 * w2 + (b0 * w3 + b1 * w4 + b2 * w5) + (c0 * w6 + c1 * w7 + c2 * w8)
                    value = value - pivot
                    first_sum += value
                    second_sum += value * value
                    a0, a1, b0, b1, c0, c1 = a1, a2, b1, b2, c1, c2
                    o += LANES
                store(row, 0, first_sum)
                store(row, LANES, second_sum)
                for lane in range(2 * LANES):
                    totals[lane] += row[lane]
            store(row, 0, pivot)
            # Count, mean and squares around the mean, joined with those of the tiles before: nothing large cancels.
            count = np.float64(height * width)
            for lane in range(_count(tile, grid)):
                channel, mean = (tile * LANES + lane) % channels, totals[lane] / count
                found = sums[part, kernel]
                all_of_them = found[0, channel] + count
                distance = np.float64(row[lane]) + mean - found[1, channel]
                found[2, channel] += totals[LANES + lane] - totals[lane] * mean
                found[2, channel] += distance * distance * found[0, channel] * count / all_of_them
                found[1, channel] += distance * count / all_of_them
                found[0, channel] = all_of_them


@compiled
def _moment_tiles_back(first, last, part, source, strides, table, sizes, numbers, sums, out):
    grid = _opened(sizes, numbers)
    size = _size(grid)
    memory = np.zeros(3 * size, table.dtype)  # the image, the gradient of a convolution, and that of the image
    lanes, bases = np.empty(table.shape[0] * 11 * LANES, table.dtype), np.empty(LANES, np.int64)
    for tile in range(first, last):
        _place(tile, strides, bases, grid)
        take(source, strides, bases, LANES, _box(grid), memory, 0)
        _gather(tile, table, lanes, grid)
        memory[2 * size :] = 0
        for kernel in range(table.shape[0]):
            _form(memory, size, lanes, kernel * 11 * LANES, False, grid)
            _add_under(tile, memory, size, grid, sums[part, kernel])
            _add_spread(memory, size, 2 * size, lanes, kernel * 11 * LANES, -1, grid)
        give(memory, 2 * size, _count(tile, grid), out, strides, bases, _box(grid))


@compiled
def _forward(team, parts, first, last, part, *arguments):
    fork(_forward_tiles, team, parts, first, last, part, arguments)


@compiled
def _backward_parts(team, parts, first, last, part, *arguments):
    fork(_backward_tiles, team, parts, first, last, part, arguments)


@compiled
def _moments(team, parts, first, last, part, *arguments):
    fork(_moment_tiles, team, parts, first, last, part, arguments)


@compiled
def _moments_back(team, parts, first, last, part, *arguments):
    fork(_moment_tiles_back, team, parts, first, last, part, arguments)


@compiled
def _size(grid):
    """How many numbers a row of a tile's memory has."""
    return (grid[2] + 2) * (grid[3] + 2) * LANES


@compiled
def _box(grid):
    """Where the pixels of a plane are in a row of a tile's memory: height, width, the first one, and a line's length."""
    pitch = (grid[3] + 2) * LANES
    return grid[2], grid[3], pitch + LANES, pitch


@compiled
def _count(tile, grid):
    """How many lanes of a tile hold a plane."""
    return min(LANES, grid[0] - tile * LANES)


@compiled
def _prepare(tile, source, u, v, dx, dy, strides, formed, uses, rectified, grid, memory, lanes, bases):
    """The image of a tile, its velocities, and the weights of its steps."""
    _, _, height, width, _, one, rx, ry, cx, cy, two_dt = grid
    size, pitch = _size(grid), (width + 2) * LANES
    _place(tile, strides[0], bases, grid)
    take(source, strides[0], bases, LANES, _box(grid), memory, _IMAGE * size)
    _gather(tile, formed, lanes, grid)
    # Diffusivities wait where the weights will be that are made of them.
    _coefficient(tile, u, strides[1], uses[0], rectified, grid, memory, _U * size, lanes, bases)
    _coefficient(tile, v, strides[2], uses[1], rectified, grid, memory, _V * size, lanes, bases)
    _coefficient(tile, dx, strides[3], uses[2], True, grid, memory, _RIGHT * size, lanes, bases)
    _coefficient(tile, dy, strides[4], uses[3], True, grid, memory, _BELOW * size, lanes, bases)
    _place(tile, strides[0], bases, grid)
    _fill(memory, _U * size, grid)
    _fill(memory, _V * size, grid)
    ones, along_x, along_y, spread_x, spread_y, adds = (
        spread(one), spread(rx), spread(ry), spread(cx), spread(cy), spread(two_dt)
    )  # fmt: skip
    for y in range(height):
        for x in range(width):
            o = (y + 1) * pitch + (x + 1) * LANES
            ax, ay = load(memory, _U * size + o) * along_x, load(memory, _V * size + o) * along_y
            bx, by = load(memory, _RIGHT * size + o) * spread_x, load(memory, _BELOW * size + o) * spread_y
            scale = ones / (ones + bx + by)
            slope = (load(memory, _U * size + o - LANES) - load(memory, _U * size + o + LANES)) * along_x
            slope += (load(memory, _V * size + o - pitch) - load(memory, _V * size + o + pitch)) * along_y
            store(memory, _BEFORE * size + o, scale + scale - ones)
            store(memory, _NOW * size + o, slope * scale)
            store(memory, _RIGHT * size + o, (bx - ax) * scale)
            store(memory, _LEFT * size + o, (bx + ax) * scale)
            store(memory, _BELOW * size + o, (by - ay) * scale)
            store(memory, _ABOVE * size + o, (by + ay) * scale)
            store(memory, _ADDED * size + o, load(memory, _IMAGE * size + o) * adds * scale)


@compiled
def _coefficient(tile, flat, strides, use, rectify, grid, memory, row, lanes, bases):
    """A velocity or diffusivity of a tile, formed of the image or read, whatever it broadcasts along."""
    if use >= 0:
        _form(memory, row, lanes, use * 11 * LANES, rectify, grid)
    else:
        _place(tile, strides, bases, grid)
        take(flat, strides, bases, LANES, _box(grid), memory, row)


@compiled
def _form(memory, row, lanes, values, rectify, grid):
    """A 3x3 convolution of the image in the memory's first row, scaled and shifted, and perhaps cut off below 0."""
    height, width = grid[2], grid[3]
    pitch = (width + 2) * LANES
    w0, w1, w2 = load(lanes, values), load(lanes, values + LANES), load(lanes, values + 2 * LANES)
    w3, w4, w5 = load(lanes, values + 3 * LANES), load(lanes, values + 4 * LANES), load(lanes, values + 5 * LANES)
    w6, w7, w8 = load(lanes, values + 6 * LANES), load(lanes, values + 7 * LANES), load(lanes, values + 8 * LANES)
    scale, shift = load(lanes, values + _SCALE * LANES), load(lanes, values + _SHIFT * LANES)
    zero = scale - scale
    for y in range(height):
        o = (y + 1) * pitch + LANES
        a0, a1 = load(memory, o - pitch - LANES), load(memory, o - pitch)
        b0, b1 = load(memory, o - LANES), load(memory, o)
        c0, c1 = load(memory, o + pitch - LANES), load(memory, o + pitch)
        for _x in range(width):
            a2, b2, c2 = load(memory, o - pitch + LANES), load(memory, o + LANES), load(memory, o + pitch + LANES)
            value = a0 * w0 + a1 * w1 + a2 * w2 + (b0 * w3 + b1 * w4 + b2 * w5) + (c0 * w6 + c1 * w7 + c2 * w8)
            value = value * scale + shift
            store(memory, row + o, larger(value, zero) if rectify else value)
            a0, a1, b0, b1, c0, c1 = a1, a2, b1, b2, c1, c2
            o += LANES


@compiled
def _add_under(tile, memory, row, grid, sums):
    """Adds up a gradient times the pixel under each of the nine weights, and by itself, channel by channel."""
    _, channels, height, width = grid[:4]
    pitch = (width + 2) * LANES
    zero = load(memory, row) - load(memory, row)  # frames are 0
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = s8 = s9 = zero
    for y in range(height):
        o = (y + 1) * pitch + LANES
        a0, a1 = load(memory, o - pitch - LANES), load(memory, o - pitch)
        b0, b1 = load(memory, o - LANES), load(memory, o)
        c0, c1 = load(memory, o + pitch - LANES), load(memory, o + pitch)
        for _x in range(width):
            a2, b2, c2 = load(memory, o - pitch + LANES), load(memory, o + LANES), load(memory, o + pitch + LANES)
            flow = load(memory, row + o)
            s0, s1, s2 = s0 + flow * a0, s1 + flow * a1, s2 + flow * a2
            s3, s4, s5 = s3 + flow * b0, s4 + flow * b1, s5 + flow * b2
            s6, s7, s8, s9 = s6 + flow * c0, s7 + flow * c1, s8 + flow * c2, s9 + flow
            a0, a1, b0, b1, c0, c1 = a1, a2, b1, b2, c1, c2
            o += LANES
    found = np.empty(10 * LANES, memory.dtype)
    for place, total in enumerate((s0, s1, s2, s3, s4, s5, s6, s7, s8, s9)):
        store(found, place * LANES, total)
    first, count = tile * LANES % channels, _count(tile, grid)
    for place in range(10):
        row, channel = sums[place], first
        if first + count <= channels:
            for lane in range(count):
                row[first + lane] += found[place * LANES + lane]
        else:
            for lane in range(count):
                row[channel] += found[place * LANES + lane]
                channel = channel + 1 if channel + 1 < channels else 0


@compiled
def _add_spread(memory, row, target, lanes, values, scale_place, grid):
    """The transpose of a 3x3 convolution: adds what a gradient in `row` is for the image to `target`."""
    height, width = grid[2], grid[3]
    pitch = (width + 2) * LANES
    w0, w1, w2 = load(lanes, values), load(lanes, values + LANES), load(lanes, values + 2 * LANES)
    w3, w4, w5 = load(lanes, values + 3 * LANES), load(lanes, values + 4 * LANES), load(lanes, values + 5 * LANES)
    w6, w7, w8 = load(lanes, values + 6 * LANES), load(lanes, values + 7 * LANES), load(lanes, values + 8 * LANES)
    if scale_place >= 0:
        scale = load(lanes, values + scale_place * LANES)
        w0, w1, w2, w3, w4 = w0 * scale, w1 * scale, w2 * scale, w3 * scale, w4 * scale
        w5, w6, w7, w8 = w5 * scale, w6 * scale, w7 * scale, w8 * scale
    for y in range(height):
        o = row + (y + 1) * pitch + LANES
        a0, a1 = load(memory, o - pitch - LANES), load(memory, o - pitch)
        b0, b1 = load(memory, o - LANES), load(memory, o)
        c0, c1 = load(memory, o + pitch - LANES), load(memory, o + pitch)
        for _x in range(width):
            a2, b2, c2 = load(memory, o - pitch + LANES), load(memory, o + LANES), load(memory, o + pitch + LANES)
            value = a0 * w8 + a1 * w7 + a2 * w6 + (b0 * w5 + b1 * w4 + b2 * w3) + (c0 * w2 + c1 * w1 + c2 * w0)
            place = target - row + o
            store(memory, place, load(memory, place) + value)
            a0, a1, b0, b1, c0, c1 = a1, a2, b1, b2, c1, c2
            o += LANES


@compiled
def _mask(memory, row, above, grid):
    """Keeps a gradient only where a number is above 0."""
    height, width = grid[2], grid[3]
    for y in range(height):
        for x in range(width):
            o = ((y + 1) * (width + 2) + x + 1) * LANES
            store(memory, row + o, where_positive(load(memory, above + o), load(memory, row + o)))


@compiled
def _step(memory, before, now, later, grid):
    _fill(memory, now, grid)
    height, width = grid[2], grid[3]
    size, pitch = _size(grid), (width + 2) * LANES
    for y in range(height):
        o = (y + 1) * pitch + LANES
        left, middle = load(memory, now + o - LANES), load(memory, now + o)
        for _x in range(width):
            right, last = load(memory, now + o + LANES), load(memory, before + o)
            # All weights but that of now sum up to 1, so that of the field before need not be brought into the core.
            value = load(memory, _ADDED * size + o) + last
            value += load(memory, _NOW * size + o) * middle
            value += load(memory, _RIGHT * size + o) * (right - last)
            value += load(memory, _LEFT * size + o) * (left - last)
            value += load(memory, _BELOW * size + o) * (load(memory, now + o + pitch) - last)
            value += load(memory, _ABOVE * size + o) * (load(memory, now + o - pitch) - last)
            store(memory, later + o, value)
            left, middle = middle, right
            o += LANES


@compiled
def _finish(memory, row, line, grid):
    """Scales and shifts a field and cuts it off below 0."""
    height, width = grid[2], grid[3]
    scale, shift = load(line, 0), load(line, LANES)
    zero = scale - scale
    for y in range(height):
        for x in range(width):
            o = row + ((y + 1) * (width + 2) + x + 1) * LANES
            store(memory, o, larger(load(memory, o) * scale + shift, zero))


@compiled
def _step_back(memory, row, grid):
    """The gradient of a field, of those of the two after it, which are in the next two rows with frames of 0."""
    height, width, boundary = grid[2], grid[3], grid[4]
    size, pitch = _size(grid), (width + 2) * LANES
    right, left, below, above = _RIGHT * size, _LEFT * size, _BELOW * size, _ABOVE * size
    later, last = row + size, row + 2 * size
    for y in range(height):
        o = (y + 1) * pitch + LANES
        from_left, middle = load(memory, later + o - LANES), load(memory, later + o)  # the first is 0
        for _x in range(width):
            next_one = load(memory, later + o + LANES)
            value = from_left + load(memory, _BEFORE * size + o) * load(memory, last + o)
            value += load(memory, _NOW * size + o) * middle
            value += load(memory, left + o + LANES) * next_one
            value += load(memory, below + o - pitch) * load(memory, later + o - pitch)
            value += load(memory, above + o + pitch) * load(memory, later + o + pitch)
            store(memory, row + o, value)
            from_left, middle = load(memory, right + o) * middle, next_one
            o += LANES
    if boundary == _ZERO:
        return
    # What pixels at the border took from beyond it they took from the pixels that the frame repeats.
    top, bottom, leftmost, rightmost = _mirrored(height, width, boundary)
    for y in range(1, height + 1):
        o = y * pitch
        _add_product(memory, row + o + leftmost * LANES, left + o + LANES, later + o + LANES)
        _add_product(memory, row + o + rightmost * LANES, right + o + width * LANES, later + o + width * LANES)
    for x in range(1, width + 1):
        o = x * LANES
        _add_product(memory, row + top * pitch + o, above + pitch + o, later + pitch + o)
        _add_product(memory, row + bottom * pitch + o, below + height * pitch + o, later + height * pitch + o)


@compiled
def _add_product(memory, target, a, b):
    store(memory, target, load(memory, target) + load(memory, a) * load(memory, b))


@compiled
def _carry(memory, later, row, grid):
    """The gradient of H[-1], which only the first step looks at."""
    size = _size(grid)
    for o in range(0, size, LANES):
        store(memory, row + o, load(memory, _BEFORE * size + o) * load(memory, later + o))


@compiled
def _collect(memory, flows, grid, num_steps, starts_at_source, was_at_source, dx_rectified, dy_rectified):
    """The gradients of source, velocities and diffusivities, of what they multiplied in all the steps."""
    _, _, height, width, boundary, one, rx, ry, cx, cy, two_dt = grid
    size, pitch = _size(grid), (width + 2) * LANES
    half, along_x, along_y = spread(one / (one + one)), spread(rx), spread(ry)
    spread_x, spread_y, adds = spread(cx), spread(cy), spread(two_dt)
    of_u, of_v, work = _OF_U * size, _OF_V * size, _WORK * size
    for y in range(height):
        for x in range(width):
            o = (y + 1) * pitch + (x + 1) * LANES
            zero = half - half
            of_added = of_now = of_left = of_right = of_above = of_below = of_scale = zero
            before, middle = load(memory, _FIELDS * size + o), load(memory, (_FIELDS + 1) * size + o)
            for step in range(num_steps):
                flow, now = load(memory, flows + (step + 2) * size + o), (_FIELDS + step + 1) * size + o
                after = load(memory, now + size)
                of_added += flow
                of_now += flow * middle
                of_left += flow * load(memory, now - LANES)
                of_right += flow * load(memory, now + LANES)
                of_above += flow * load(memory, now - pitch)
                of_below += flow * load(memory, now + pitch)
                of_scale += flow * (after + before)
                before, middle = middle, after
            scale = half * load(memory, _BEFORE * size + o) + half
            of_source = of_added * scale * adds
            if starts_at_source:
                of_source += load(memory, flows + size + o)
            if was_at_source:
                of_source += load(memory, flows + o)
            bx = load(memory, _RIGHT * size + o) + load(memory, _LEFT * size + o)
            by = load(memory, _BELOW * size + o) + load(memory, _ABOVE * size + o)
            # A diffusivity also scales the whole step: later + before = scale * (what does not depend on it).
            of_dx = (of_left + of_right - of_scale) * scale * spread_x
            of_dy = (of_above + of_below - of_scale) * scale * spread_y
            store(memory, _OF_SOURCE * size + o, of_source)
            store(memory, _OF_DX * size + o, where_positive(bx, of_dx) if dx_rectified else of_dx)
            store(memory, _OF_DY * size + o, where_positive(by, of_dy) if dy_rectified else of_dy)
            store(memory, of_u + o, (of_left - of_right) * scale * along_x)
            store(memory, of_v + o, (of_above - of_below) * scale * along_y)
            store(memory, work + o, of_now * scale)
    # Velocities act through their divergence too, in which neighbours take part.
    for y in range(height):
        for x in range(width):
            o = (y + 1) * pitch + (x + 1) * LANES
            slope_x = load(memory, work + o + LANES) - load(memory, work + o - LANES)
            slope_y = load(memory, work + o + pitch) - load(memory, work + o - pitch)
            store(memory, of_u + o, load(memory, of_u + o) + slope_x * along_x)
            store(memory, of_v + o, load(memory, of_v + o) + slope_y * along_y)
    if boundary == _ZERO:
        return
    top, bottom, leftmost, rightmost = _mirrored(height, width, boundary)
    for y in range(1, height + 1):
        o = y * pitch
        target = of_u + o
        value = load(memory, target + leftmost * LANES) + load(memory, work + o + LANES) * along_x
        store(memory, target + leftmost * LANES, value)
        value = load(memory, target + rightmost * LANES) - load(memory, work + o + width * LANES) * along_x
        store(memory, target + rightmost * LANES, value)
    for x in range(1, width + 1):
        o = x * LANES
        target = of_v + o
        value = load(memory, target + top * pitch) + load(memory, work + pitch + o) * along_y
        store(memory, target + top * pitch, value)
        value = load(memory, target + bottom * pitch) - load(memory, work + height * pitch + o) * along_y
        store(memory, target + bottom * pitch, value)


@compiled
def _fill(memory, row, grid):
    """Makes the frame of a field what the boundary says; corners are never read."""
    height, width, boundary = grid[2], grid[3], grid[4]
    if boundary == _ZERO:
        return
    pitch = (width + 2) * LANES
    top, bottom, left, right = _mirrored(height, width, boundary)
    for x in range(1, width + 1):
        o = row + x * LANES
        store(memory, o, load(memory, o + top * pitch))
        store(memory, o + (height + 1) * pitch, load(memory, o + bottom * pitch))
    for y in range(1, height + 1):
        o = row + y * pitch
        store(memory, o, load(memory, o + left * LANES))
        store(memory, o + (width + 1) * LANES, load(memory, o + right * LANES))


@compiled
def _mirrored(height, width, boundary):
    """Rows and columns that the frame repeats: above, below, left, right."""
    if boundary == _PERIODIC:
        return height, 1, width, 1
    if boundary == _REPLICATE:
        return 1, height, 1, width
    return 2, height - 1, 2, width - 1


@compiled
def _place(tile, strides, bases, grid):
    """Where in a flat array each lane's plane begins; lanes past the last plane repeat it."""
    planes, channels = grid[0], grid[1]
    image, channel = tile * LANES // channels, tile * LANES % channels
    for lane in range(LANES):
        bases[lane] = image * strides[0] + channel * strides[1]
        if tile * LANES + lane + 1 < planes:
            channel += 1
            if channel == channels:
                image, channel = image + 1, 0


@compiled
def _gather(tile, table, lanes, grid):
    """A table's numbers for the channels of a tile: [..., channels] to one vector for each row."""
    channels, first = grid[1], tile * LANES % grid[1]
    for kernel in range(table.shape[0]):
        for place in range(table.shape[1]):
            row, o = table[kernel, place], (kernel * table.shape[1] + place) * LANES
            if first + LANES <= channels:
                store(lanes, o, load(row, first))
            else:
                channel = first
                for lane in range(LANES):
                    lanes[o + lane] = row[channel]
                    channel = channel + 1 if channel + 1 < channels else 0


@compiled
def _start(source, start, is_source, strides, bases, grid, memory, row):
    """The field at a step before the first; its frame may be anything."""
    if is_source:
        for o in range(0, _size(grid), LANES):
            store(memory, row + o, load(memory, _IMAGE + o))
    else:
        take(start, strides[0], bases, LANES, _box(grid), memory, row)
