"""The solver's compiled loops, in one file: numba's disk cache looks only at the file that a function is in."""

from typing import Any

import numpy as np
from numba import types

from pocketcnn.kernels._lanes import LANES, give, larger, load, spread, store, take, where_positive
from pocketcnn.kernels._routines import FLAG, WHOLE, WHOLES, Kinds, Routines, call, compiled, launcher
from pocketcnn.kernels._threads import fork
from pocketcnn.numerics.stencil import BOUNDARIES

_PERIODIC, _REPLICATE, _REFLECT, _ZERO = range(len(BOUNDARIES))
# Rows of a tile's memory, each a plane of lanes in a frame of one pixel: the image, with zeros around it; velocities; the
# weights of a step, as `numerics.stencil.stencil_weights` orders them; and from _FIELDS on what the passes need.
_IMAGE, _U, _V, _BEFORE, _NOW, _RIGHT, _LEFT, _BELOW, _ABOVE, _ADDED, _FIELDS = range(11)
# Where the gradients of source, velocities and diffusivities take the place of weights that are not needed any more.
_OF_SOURCE, _OF_U, _OF_V, _OF_DX, _OF_DY, _WORK = _ADDED, _LEFT, _ABOVE, _RIGHT, _BELOW, _NOW
# A coefficient that is formed: nine weights, then what their sum is multiplied by, and what is added to that.
TAPS, SCALE, _SHIFT = 9, 9, 10


solver = Routines("the solver of the advection-diffusion equation")


def _grid(k: Kinds) -> Any:
    """Returns the type of what `_opened` returns."""
    return types.Tuple((WHOLE,) * 5 + (k.number,) * 6)


def _pass(k: Kinds) -> tuple[Any, ...]:
    """Returns the types that both passes begin with: first and last tile, part, and the arguments of the equation."""
    return (
        WHOLE, WHOLE, WHOLE, k.image, *[k.memory] * 4, k.image, k.image, FLAG, FLAG, types.int64[:, ::1],
        k.number[:, :, ::1], WHOLES, FLAG, WHOLES, k.memory,
    )  # fmt: skip


@compiled
def _opened(sizes, numbers):
    """Unpacks planes, channels, height, width, boundary, and the numbers of the formula."""
    return (
        sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
        numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5],
    )  # fmt: skip


@solver.routine(lambda k: (k.image, WHOLES, WHOLES, WHOLE, types.UniTuple(WHOLE, 4), k.memory, WHOLE))
def _take_image(table, flat, strides, bases, count, box, memory, row):
    take(flat, strides, bases, count, box, memory, row)


@solver.routine(lambda k: (k.memory, WHOLES, WHOLES, WHOLE, types.UniTuple(WHOLE, 4), k.memory, WHOLE))
def _take_numbers(table, flat, strides, bases, count, box, memory, row):
    take(flat, strides, bases, count, box, memory, row)


@solver.routine(lambda k: (k.memory, WHOLE, WHOLE, k.image, WHOLES, WHOLES, types.UniTuple(WHOLE, 4)))
def _give_image(table, memory, row, count, flat, strides, bases, box):
    if flat.size:  # an empty array stands for a gradient that is not wanted
        give(memory, row, count, flat, strides, bases, box)


@solver.routine(lambda k: (k.memory, WHOLE, WHOLE, k.memory, WHOLES, WHOLES, types.UniTuple(WHOLE, 4)))
def _give_numbers(table, memory, row, count, flat, strides, bases, box):
    if flat.size:  # an empty array stands for a gradient that is not wanted
        give(memory, row, count, flat, strides, bases, box)


@solver.routine(lambda k: (*_pass(k), k.number[:, :, ::1], k.image))
def forward_tiles(
    table, first, last, part, source, u, v, dx, dy, initial, previous, starts_at_source, was_at_source, strides, formed, uses,
    rectified, sizes, numbers, line, out,
):  # fmt: skip
    grid, num_steps = _opened(sizes, numbers), sizes[5]
    size = _size(grid)
    memory = np.zeros((_FIELDS + 3) * size, formed.dtype)
    lanes, bases = np.empty(max(1, formed.shape[0]) * 11 * LANES, formed.dtype), np.empty(LANES, np.int64)
    after = np.empty(2 * LANES, formed.dtype)
    for tile in range(first, last):
        call(
            _prepare, table, (tile, source, u, v, dx, dy, strides, formed, uses, rectified, grid, memory, lanes, bases)
        )
        call(_start, table, (source, previous, was_at_source, strides, bases, grid, memory, _FIELDS * size))
        call(_start, table, (source, initial, starts_at_source, strides, bases, grid, memory, (_FIELDS + 1) * size))
        for step in range(num_steps):
            before, now, later = _FIELDS + step % 3, _FIELDS + (step + 1) % 3, _FIELDS + (step + 2) % 3
            call(_step, table, (memory, before * size, now * size, later * size, grid))
        field = (_FIELDS + (num_steps + 1) % 3) * size
        if line.shape[0]:
            call(_gather, table, (tile, line, after, grid))
            call(_finish, table, (memory, field, after, grid))
        call(_give_image, table, (memory, field, _count(tile, grid), out, strides[0], bases, _box(grid)))


@solver.routine(lambda k: (*_pass(k), k.image, types.float64[:, :, :, ::1], k.image, *[k.memory] * 4, k.image, k.image))
def backward_tiles(
    table, first, last, part, source, u, v, dx, dy, initial, previous, starts_at_source, was_at_source, strides, formed, uses,
    rectified, sizes, numbers, grad, sums, grad_source, grad_u, grad_v, grad_dx, grad_dy, grad_initial, grad_previous,
):  # fmt: skip
    grid, num_steps = _opened(sizes, numbers), sizes[5]
    size = _size(grid)
    flows = _FIELDS + num_steps + 2  # the gradients of the fields; of one more, which is 0
    memory = np.zeros((flows + num_steps + 3) * size, formed.dtype)
    lanes, bases = np.empty(max(1, formed.shape[0]) * 11 * LANES, formed.dtype), np.empty(LANES, np.int64)
    for tile in range(first, last):
        call(
            _prepare, table, (tile, source, u, v, dx, dy, strides, formed, uses, rectified, grid, memory, lanes, bases)
        )
        call(_start, table, (source, previous, was_at_source, strides, bases, grid, memory, _FIELDS * size))
        call(_start, table, (source, initial, starts_at_source, strides, bases, grid, memory, (_FIELDS + 1) * size))
        for step in range(num_steps):
            field = _FIELDS + step
            call(_step, table, (memory, field * size, (field + 1) * size, (field + 2) * size, grid))
        call(_take_image, table, (grad, strides[0], bases, LANES, _box(grid), memory, (flows + num_steps + 1) * size))
        for step in range(num_steps, 0, -1):
            call(_step_back, table, (memory, (flows + step) * size, grid))
        if num_steps:
            call(_carry, table, (memory, (flows + 2) * size, flows * size, grid))
        call(
            _collect,
            table,
            (memory, flows * size, grid, num_steps, starts_at_source, was_at_source, uses[2] >= 0, uses[3] >= 0),
        )
        for place, row in enumerate((_OF_U, _OF_V, _OF_DX, _OF_DY)):
            if uses[place] >= 0:
                if rectified and place < 2:
                    call(_mask, table, (memory, row * size, (_U + place) * size, grid))
                call(_add_under, table, (tile, memory, row * size, grid, sums[part, uses[place]]))
                call(
                    _add_spread,
                    table,
                    (memory, row * size, _OF_SOURCE * size, lanes, uses[place] * 11 * LANES, SCALE, grid),
                )
        count, box, apart = _count(tile, grid), _box(grid), strides[0]
        call(_give_image, table, (memory, _OF_SOURCE * size, count, grad_source, apart, bases, box))
        call(_give_numbers, table, (memory, _OF_U * size, count, grad_u, apart, bases, box))
        call(_give_numbers, table, (memory, _OF_V * size, count, grad_v, apart, bases, box))
        call(_give_numbers, table, (memory, _OF_DX * size, count, grad_dx, apart, bases, box))
        call(_give_numbers, table, (memory, _OF_DY * size, count, grad_dy, apart, bases, box))
        call(_give_image, table, (memory, (flows + 1) * size, count, grad_initial, apart, bases, box))
        call(_give_image, table, (memory, flows * size, count, grad_previous, apart, bases, box))


@solver.routine(
    lambda k: (WHOLE, WHOLE, WHOLE, k.image, WHOLES, k.number[:, :, ::1], WHOLES, k.memory, types.float64[:, :, :, ::1])
)
def moment_tiles(table, first, last, part, source, strides, weights, sizes, numbers, sums):
    grid = _opened(sizes, numbers)
    _, channels, height, width = grid[:4]
    size, pitch = _size(grid), (width + 2) * LANES
    memory = np.zeros(size, weights.dtype)
    lanes, bases = np.empty(weights.shape[0] * 9 * LANES, weights.dtype), np.empty(LANES, np.int64)
    row = np.empty(2 * LANES, weights.dtype)
    totals = np.empty(2 * LANES)
    for tile in range(first, last):
        _place(tile, strides, bases, grid)
        call(_take_image, table, (source, strides, bases, LANES, _box(grid), memory, 0))
        call(_gather, table, (tile, weights, lanes, grid))
        for kernel in range(weights.shape[0]):
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
                first_sum = second_sum = spread(weights.dtype.type(0))
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


@solver.routine(
    lambda k: (
        WHOLE,
        WHOLE,
        WHOLE,
        k.image,
        WHOLES,
        k.number[:, :, ::1],
        WHOLES,
        k.memory,
        types.float64[:, :, :, ::1],
        k.image,
    )
)
def moment_tiles_back(table, first, last, part, source, strides, weights, sizes, numbers, sums, out):
    grid = _opened(sizes, numbers)
    size = _size(grid)
    memory = np.zeros(3 * size, weights.dtype)  # the image, the gradient of a convolution, and that of the image
    lanes, bases = np.empty(weights.shape[0] * 11 * LANES, weights.dtype), np.empty(LANES, np.int64)
    for tile in range(first, last):
        _place(tile, strides, bases, grid)
        call(_take_image, table, (source, strides, bases, LANES, _box(grid), memory, 0))
        call(_gather, table, (tile, weights, lanes, grid))
        memory[2 * size :] = 0
        for kernel in range(weights.shape[0]):
            call(_form, table, (memory, size, lanes, kernel * 11 * LANES, False, grid))
            call(_add_under, table, (tile, memory, size, grid, sums[part, kernel]))
            call(_add_spread, table, (memory, size, 2 * size, lanes, kernel * 11 * LANES, -1, grid))
        call(_give_image, table, (memory, 2 * size, _count(tile, grid), out, strides, bases, _box(grid)))


@launcher
def forward_parts(team, table, parts, first, last, part, *arguments):
    fork(forward_tiles, team, table, parts, first, last, part, arguments)


@launcher
def backward_parts(team, table, parts, first, last, part, *arguments):
    fork(backward_tiles, team, table, parts, first, last, part, arguments)


@launcher
def moment_parts(team, table, parts, first, last, part, *arguments):
    fork(moment_tiles, team, table, parts, first, last, part, arguments)


@launcher
def moment_parts_back(team, table, parts, first, last, part, *arguments):
    fork(moment_tiles_back, team, table, parts, first, last, part, arguments)


@compiled
def _size(grid):
    """Returns the length of a row of a tile's memory."""
    return (grid[2] + 2) * (grid[3] + 2) * LANES


@compiled
def _box(grid):
    """Returns where a plane lies in a row of a tile's memory: height, width, first pixel, and length of a line."""
    pitch = (grid[3] + 2) * LANES
    return grid[2], grid[3], pitch + LANES, pitch


@compiled
def _count(tile, grid):
    """Returns how many lanes of a tile hold a plane."""
    return min(LANES, grid[0] - tile * LANES)


@solver.routine(
    lambda k: (
        WHOLE,
        k.image,
        *[k.memory] * 4,
        types.int64[:, ::1],
        k.number[:, :, ::1],
        WHOLES,
        FLAG,
        _grid(k),
        k.memory,
        k.memory,
        WHOLES,
    )
)
def _prepare(table, tile, source, u, v, dx, dy, strides, formed, uses, rectified, grid, memory, lanes, bases):
    """Fills a tile's memory with its image, its velocities, and the weights of its steps."""
    _, _, height, width, _, one, rx, ry, cx, cy, two_dt = grid
    size, pitch = _size(grid), (width + 2) * LANES
    _place(tile, strides[0], bases, grid)
    call(_take_image, table, (source, strides[0], bases, LANES, _box(grid), memory, _IMAGE * size))
    call(_gather, table, (tile, formed, lanes, grid))
    # Diffusivities wait where the weights will be that are made of them.
    call(_coefficient, table, (tile, u, strides[1], uses[0], rectified, grid, memory, _U * size, lanes, bases))
    call(_coefficient, table, (tile, v, strides[2], uses[1], rectified, grid, memory, _V * size, lanes, bases))
    call(_coefficient, table, (tile, dx, strides[3], uses[2], True, grid, memory, _RIGHT * size, lanes, bases))
    call(_coefficient, table, (tile, dy, strides[4], uses[3], True, grid, memory, _BELOW * size, lanes, bases))
    _place(tile, strides[0], bases, grid)
    call(_fill, table, (memory, _U * size, grid))
    call(_fill, table, (memory, _V * size, grid))
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


@solver.routine(lambda k: (WHOLE, k.memory, WHOLES, WHOLE, FLAG, _grid(k), k.memory, WHOLE, k.memory, WHOLES))
def _coefficient(table, tile, flat, strides, use, rectify, grid, memory, row, lanes, bases):
    """Forms a velocity or diffusivity from the image, or reads it, along whatever axes it broadcasts."""
    if use >= 0:
        call(_form, table, (memory, row, lanes, use * 11 * LANES, rectify, grid))
    else:
        _place(tile, strides, bases, grid)
        call(_take_numbers, table, (flat, strides, bases, LANES, _box(grid), memory, row))


@solver.routine(lambda k: (k.memory, WHOLE, k.memory, WHOLE, FLAG, _grid(k)))
def _form(table, memory, row, lanes, values, rectify, grid):
    """Convolves the image in the memory's first row (3x3), scales and shifts it, and cuts it off below 0 if asked."""
    height, width = grid[2], grid[3]
    pitch = (width + 2) * LANES
    w0, w1, w2 = load(lanes, values), load(lanes, values + LANES), load(lanes, values + 2 * LANES)
    w3, w4, w5 = load(lanes, values + 3 * LANES), load(lanes, values + 4 * LANES), load(lanes, values + 5 * LANES)
    w6, w7, w8 = load(lanes, values + 6 * LANES), load(lanes, values + 7 * LANES), load(lanes, values + 8 * LANES)
    scale, shift = load(lanes, values + SCALE * LANES), load(lanes, values + _SHIFT * LANES)
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


@solver.routine(lambda k: (WHOLE, k.memory, WHOLE, _grid(k), types.float64[:, ::1]))
def _add_under(table, tile, memory, row, grid, sums):
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


@solver.routine(lambda k: (k.memory, WHOLE, WHOLE, k.memory, WHOLE, WHOLE, _grid(k)))
def _add_spread(table, memory, row, target, lanes, values, scale_place, grid):
    """Applies the transpose of a 3x3 convolution: adds the image's gradient, from one in `row`, to `target`."""
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


@solver.routine(lambda k: (k.memory, WHOLE, WHOLE, _grid(k)))
def _mask(table, memory, row, above, grid):
    """Keeps a gradient only where a number is above 0."""
    height, width = grid[2], grid[3]
    for y in range(height):
        for x in range(width):
            o = ((y + 1) * (width + 2) + x + 1) * LANES
            store(memory, row + o, where_positive(load(memory, above + o), load(memory, row + o)))


@solver.routine(lambda k: (k.memory, WHOLE, WHOLE, WHOLE, _grid(k)))
def _step(table, memory, before, now, later, grid):
    call(_fill, table, (memory, now, grid))
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


@solver.routine(lambda k: (k.memory, WHOLE, k.memory, _grid(k)))
def _finish(table, memory, row, line, grid):
    """Scales and shifts a field and cuts it off below 0."""
    height, width = grid[2], grid[3]
    scale, shift = load(line, 0), load(line, LANES)
    zero = scale - scale
    for y in range(height):
        for x in range(width):
            o = row + ((y + 1) * (width + 2) + x + 1) * LANES
            store(memory, o, larger(load(memory, o) * scale + shift, zero))


@solver.routine(lambda k: (k.memory, WHOLE, _grid(k)))
def _step_back(table, memory, row, grid):
    """Computes the gradient of a field from those of the two fields after it, in the next two rows with frames of 0."""
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


@solver.routine(lambda k: (k.memory, WHOLE, WHOLE, _grid(k)))
def _carry(table, memory, later, row, grid):
    """Computes the gradient of H[-1], which only the first step uses."""
    size = _size(grid)
    for o in range(0, size, LANES):
        store(memory, row + o, load(memory, _BEFORE * size + o) * load(memory, later + o))


@solver.routine(lambda k: (k.memory, WHOLE, _grid(k), WHOLE, FLAG, FLAG, FLAG, FLAG))
def _collect(table, memory, flows, grid, num_steps, starts_at_source, was_at_source, dx_rectified, dy_rectified):
    """Sums the gradients of source, velocities and diffusivities over all steps."""
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


@solver.routine(lambda k: (k.memory, WHOLE, _grid(k)))
def _fill(table, memory, row, grid):
    """Fills the frame of a field as the boundary rule says; corners are never read."""
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
    """Returns the rows and columns that the frame repeats: above, below, left, right."""
    if boundary == _PERIODIC:
        return height, 1, width, 1
    if boundary == _REPLICATE:
        return 1, height, 1, width
    return 2, height - 1, 2, width - 1


@compiled
def _place(tile, strides, bases, grid):
    """Finds where in a flat array each lane's plane begins; lanes past the last plane repeat it."""
    planes, channels = grid[0], grid[1]
    image, channel = tile * LANES // channels, tile * LANES % channels
    for lane in range(LANES):
        bases[lane] = image * strides[0] + channel * strides[1]
        if tile * LANES + lane + 1 < planes:
            channel += 1
            if channel == channels:
                image, channel = image + 1, 0


@solver.routine(lambda k: (WHOLE, k.number[:, :, ::1], k.memory, _grid(k)))
def _gather(table, tile, rows, lanes, grid):
    """Gathers a table's numbers for the channels of a tile: [..., channels] to one vector for each row."""
    channels, first = grid[1], tile * LANES % grid[1]
    for kernel in range(rows.shape[0]):
        for place in range(rows.shape[1]):
            row, o = rows[kernel, place], (kernel * rows.shape[1] + place) * LANES
            if first + LANES <= channels:
                store(lanes, o, load(row, first))
            else:
                channel = first
                for lane in range(LANES):
                    lanes[o + lane] = row[channel]
                    channel = channel + 1 if channel + 1 < channels else 0


@solver.routine(lambda k: (k.image, k.image, FLAG, types.int64[:, ::1], WHOLES, _grid(k), k.memory, WHOLE))
def _start(table, source, start, is_source, strides, bases, grid, memory, row):
    """Fills in the field at a step before the first; its frame may hold anything."""
    if is_source:
        for o in range(0, _size(grid), LANES):
            store(memory, row + o, load(memory, _IMAGE + o))
    else:
        call(_take_image, table, (start, strides[0], bases, LANES, _box(grid), memory, row))
