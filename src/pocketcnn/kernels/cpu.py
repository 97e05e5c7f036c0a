"""The solver of `numerics.advect_diffuse` as loops over planes, compiled by numba for the CPU.

A plane is one channel of one image. It takes all its steps while its few kilobytes lie in the first caches; the
backward pass takes the steps again, plane by plane, and so needs nothing but the arguments of the forward pass. Planes are
shared out among as many threads as torch uses. `benchmarks/advect_diffuse.py` measures what this earns.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from pocketcnn.numerics.dynamic_conv import accumulation_dtype
from pocketcnn.numerics.stencil import BOUNDARIES

_PERIODIC, _REPLICATE, _REFLECT, _ZERO = range(len(BOUNDARIES))
_compiled = numba.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")

# Places in the stack of a plane's weights, as `numerics.stencil.stencil_weights` orders them.
_BEFORE, _NOW, _RIGHT, _LEFT, _BELOW, _ABOVE, _ADDED, _SCALE = range(8)
# And in the stack of sums over the steps that gradients of coefficients are made of.
_OF_ADDED, _OF_NOW, _ACROSS_X, _ACROSS_Y, _ALONG_X, _ALONG_Y, _OF_SCALE = range(7)


@torch.library.custom_op("pocketcnn::advect_diffuse", mutates_args=(), device_types="cpu")
def advect_diffuse(
    source: Tensor,
    velocity_x: Tensor,
    velocity_y: Tensor,
    diffusivity_x: Tensor,
    diffusivity_y: Tensor,
    initial: Tensor | None,
    previous: Tensor | None,
    num_steps: int,
    dt: float,
    dx: float,
    dy: float,
    boundary: str,
) -> Tensor:
    fields, coefficients = _arguments(source, initial, previous, (velocity_x, velocity_y, diffusivity_x, diffusivity_y))
    out = torch.empty_like(fields[0])
    grid = _grid(fields[0], num_steps, dt, dx, dy, boundary)
    _share(_forward_planes, fields[0], *map(_planes, fields), *coefficients, grid, num_steps, _planes(out))
    return out.to(source.dtype)


@torch.library.custom_op("pocketcnn::advect_diffuse_backward", mutates_args=(), device_types="cpu")
def _backward_op(
    grad: Tensor,
    source: Tensor,
    velocity_x: Tensor,
    velocity_y: Tensor,
    diffusivity_x: Tensor,
    diffusivity_y: Tensor,
    initial: Tensor | None,
    previous: Tensor | None,
    num_steps: int,
    dt: float,
    dx: float,
    dy: float,
    boundary: str,
    wanted: list[bool],
) -> list[Tensor]:
    given = (source, velocity_x, velocity_y, diffusivity_x, diffusivity_y)
    fields, coefficients = _arguments(source, initial, previous, given[1:])
    dtype = fields[0].dtype
    nothing = torch.empty(0, *source.shape[1:], dtype=dtype)
    grads = [torch.empty(source.shape, dtype=dtype) if want else nothing for want in wanted]
    grid = _grid(fields[0], num_steps, dt, dx, dy, boundary)
    _share(
        _backward_planes, fields[0], _planes(_dense(grad, dtype)), *map(_planes, fields), *coefficients, grid, num_steps,
        initial is None, previous is None, *map(_planes, grads),
    )  # fmt: skip
    starts = tuple(source if start is None else start for start in (initial, previous))
    summed = []
    for want, gradient, argument in zip(wanted, grads, (*given, *starts), strict=True):
        summed.append(gradient.sum_to_size(argument.shape).to(argument.dtype) if want else source.new_empty(0))
    return summed


@advect_diffuse.register_fake
def _(source, *rest):
    return torch.empty(source.shape, dtype=source.dtype, device=source.device)


@_backward_op.register_fake
def _(grad, *arguments):
    given, wanted = arguments[:7], arguments[-1]
    return [
        argument.new_empty(argument.shape) if want else given[0].new_empty(0)
        for want, argument in zip(wanted, given, strict=True)
    ]


def _save_for_backward(ctx, inputs, output):
    *tensors, initial, previous, num_steps, dt, dx, dy, boundary = inputs
    ctx.save_for_backward(*tensors, initial, previous)
    ctx.settings = (num_steps, dt, dx, dy, boundary)


def _backward(ctx, grad):
    wanted = list(ctx.needs_input_grad[:7])
    grads = _backward_op(grad, *ctx.saved_tensors, *ctx.settings, wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None, None, None, None


advect_diffuse.register_autograd(_backward, setup_context=_save_for_backward)


def _arguments(
    source: Tensor, initial: Tensor | None, previous: Tensor | None, coefficients: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Any]]:
    """Source, H[0] and H[-1] in rows of pixels; and each coefficient flat, with its four strides."""
    dtype = accumulation_dtype(source)
    dense = _dense(source, dtype)
    fields = (
        dense,
        dense if initial is None else _dense(initial, dtype),
        dense if previous is None else _dense(previous, dtype),
    )
    flat: list[Any] = []
    for coefficient in coefficients:
        tensor = _dense(coefficient, dtype)
        strides = [0 if n == 1 else s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
        flat += [tensor.flatten().numpy(), np.array(strides, dtype=np.int64)]
    return fields, flat


def _dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).contiguous()


def _planes(tensor: Tensor) -> np.ndarray:
    return tensor.view(-1, *tensor.shape[2:]).numpy()


def _grid(source: Tensor, num_steps: int, dt: float, dx: float, dy: float, boundary: str) -> tuple[Any, ...]:
    """Channels, boundary, and the numbers in the formula, in the dtype of the fields: one with another would widen all."""
    number = np.float64 if source.dtype == torch.float64 else np.float32
    return (
        source.shape[1], BOUNDARIES.index(boundary), number(1), number(dt / dx), number(dt / dy),
        number(2 * dt / dx**2), number(2 * dt / dy**2), number(2 * dt),
    )  # fmt: skip


def _share(kernel: Callable[..., None], source: Tensor, *arguments: Any) -> None:
    """Runs a kernel over all planes, in as many threads as torch uses."""
    planes, threads = source.shape[0] * source.shape[1], torch.get_num_threads()
    parts = min(threads, max(1, source.numel() // _NUMBERS_A_THREAD), planes)
    if parts <= 1:
        kernel(0, planes, *arguments)
        return
    bounds = [planes * part // parts for part in range(parts + 1)]
    pool = _pool(os.getpid(), threads)
    others = [pool.submit(kernel, bounds[i], bounds[i + 1], *arguments) for i in range(1, parts)]
    kernel(bounds[0], bounds[1], *arguments)
    for other in others:
        other.result()


# A thread is worth waking for some 50 microseconds of work.
_NUMBERS_A_THREAD = 2**14


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="pocketcnn")


@_compiled
def _forward_planes(first, last, source, initial, previous, u, us, v, vs, dx, dxs, dy, dys, grid, num_steps, out):
    height, width = source.shape[1], source.shape[2]
    weights = np.empty((8, height, width), source.dtype)
    velocity = np.zeros((2, height + 2, width + 2), source.dtype)
    fields = np.zeros((3, height + 2, width + 2), source.dtype)
    for plane in range(first, last):
        _weigh(plane, source[plane], u, us, v, vs, dx, dxs, dy, dys, grid, velocity, weights)
        _put(previous[plane], fields[0])
        _put(initial[plane], fields[1])
        for step in range(num_steps):
            _step(weights, fields[step % 3], fields[(step + 1) % 3], fields[(step + 2) % 3], grid[1])
        _take(fields[(num_steps + 1) % 3], out[plane])


@_compiled
def _backward_planes(
    first, last, grad, source, initial, previous, u, us, v, vs, dx, dxs, dy, dys, grid, num_steps,
    starts_at_source, was_at_source, grad_source, grad_u, grad_v, grad_dx, grad_dy, grad_initial, grad_previous,
):  # fmt: skip
    _channels, boundary, _one, rx, ry, cx, cy, two_dt = grid
    height, width = source.shape[1], source.shape[2]
    weights = np.empty((8, height, width), source.dtype)
    sums = np.empty((7, height, width), source.dtype)
    velocity = np.zeros((2, height + 2, width + 2), source.dtype)
    fields = np.zeros((num_steps + 2, height + 2, width + 2), source.dtype)
    flows = np.zeros((3, height + 2, width + 2), source.dtype)  # gradients of three fields in turns
    flowing = grad_u.shape[0] + grad_v.shape[0] > 0
    spreading = grad_dx.shape[0] + grad_dy.shape[0] > 0
    for plane in range(first, last):
        _weigh(plane, source[plane], u, us, v, vs, dx, dxs, dy, dys, grid, velocity, weights)
        _put(previous[plane], fields[0])
        _put(initial[plane], fields[1])
        for step in range(num_steps):
            _step(weights, fields[step], fields[step + 1], fields[step + 2], boundary)
        sums[:] = 0
        flows[:] = 0
        _put(grad[plane], flows[(num_steps + 1) % 3])
        for step in range(num_steps - 1, -1, -1):
            later = flows[(step + 2) % 3]
            _step_back(weights, later, flows[(step + 1) % 3], flows[step % 3], boundary)
            _collect(later, fields[step], fields[step + 1], fields[step + 2], sums, flowing, spreading)
            later[:] = 0
        if grad_initial.shape[0]:
            _take(flows[1], grad_initial[plane])
        if grad_previous.shape[0]:
            _take(flows[0], grad_previous[plane])
        scale = weights[_SCALE]
        if grad_source.shape[0]:
            _multiply(sums[_OF_ADDED], scale, two_dt, grad_source[plane])
            if starts_at_source:
                _add(flows[1], grad_source[plane])
            if was_at_source:
                _add(flows[0], grad_source[plane])
        if spreading:
            # A diffusivity also scales the whole step: later + before = scale * (what does not depend on it).
            sums[_ALONG_X] -= sums[_OF_SCALE]
            sums[_ALONG_Y] -= sums[_OF_SCALE]
            if grad_dx.shape[0]:
                _multiply(sums[_ALONG_X], scale, cx, grad_dx[plane])
            if grad_dy.shape[0]:
                _multiply(sums[_ALONG_Y], scale, cy, grad_dy[plane])
        if flowing:
            _spread_divergence(sums[_OF_NOW], scale, rx, ry, flows, boundary)
            if grad_u.shape[0]:
                _multiply(sums[_ACROSS_X], scale, rx, grad_u[plane])
                _add(flows[0], grad_u[plane])
            if grad_v.shape[0]:
                _multiply(sums[_ACROSS_Y], scale, ry, grad_v[plane])
                _add(flows[1], grad_v[plane])


@_compiled
def _weigh(plane, source, u, us, v, vs, dx, dxs, dy, dys, grid, velocity, weights):
    """The weights of a plane: `numerics.stencil.stencil_weights`, what is added at each step, and the scale."""
    channels, boundary, one, rx, ry, cx, cy, two_dt = grid
    height, width = source.shape
    image, channel = plane // channels, plane % channels
    _load(u, us, image, channel, velocity[0], 1, height, width)
    _load(v, vs, image, channel, velocity[1], 1, height, width)
    _load(dx, dxs, image, channel, weights[_RIGHT], 0, height, width)
    _load(dy, dys, image, channel, weights[_BELOW], 0, height, width)
    _fill(velocity[0], boundary)
    _fill(velocity[1], boundary)
    for y in range(height):  # a few rows at a time, so that the compiler can tell them apart and vectorise
        for x in range(width):
            weights[_RIGHT, y, x] *= cx
        for x in range(width):
            weights[_BELOW, y, x] *= cy
        for x in range(width):
            weights[_SCALE, y, x] = one / (one + weights[_RIGHT, y, x] + weights[_BELOW, y, x])
        for x in range(width):
            weights[_BEFORE, y, x] = weights[_SCALE, y, x] + weights[_SCALE, y, x] - one
        for x in range(width):
            slope = rx * (velocity[0, y + 1, x] - velocity[0, y + 1, x + 2])
            slope += ry * (velocity[1, y, x + 1] - velocity[1, y + 2, x + 1])
            weights[_NOW, y, x] = slope * weights[_SCALE, y, x]
        for x in range(width):
            straight, drift = weights[_RIGHT, y, x], rx * velocity[0, y + 1, x + 1]
            weights[_RIGHT, y, x] = (straight - drift) * weights[_SCALE, y, x]
            weights[_LEFT, y, x] = (straight + drift) * weights[_SCALE, y, x]
        for x in range(width):
            straight, drift = weights[_BELOW, y, x], ry * velocity[1, y + 1, x + 1]
            weights[_BELOW, y, x] = (straight - drift) * weights[_SCALE, y, x]
            weights[_ABOVE, y, x] = (straight + drift) * weights[_SCALE, y, x]
        for x in range(width):
            weights[_ADDED, y, x] = two_dt * source[y, x] * weights[_SCALE, y, x]


@_compiled
def _step(weights, before, now, later, boundary):
    _fill(now, boundary)
    height, width = weights.shape[1], weights.shape[2]
    for y in range(height):
        for x in range(width):
            later[y + 1, x + 1] = (
                weights[_BEFORE, y, x] * before[y + 1, x + 1]
                + weights[_NOW, y, x] * now[y + 1, x + 1]
                + weights[_RIGHT, y, x] * now[y + 1, x + 2]
                + weights[_LEFT, y, x] * now[y + 1, x]
                + weights[_BELOW, y, x] * now[y + 2, x + 1]
                + weights[_ABOVE, y, x] * now[y, x + 1]
                + weights[_ADDED, y, x]
            )


@_compiled
def _step_back(weights, later, now, before, boundary):
    """The transpose of `_step`: adds what a gradient of the later field is for the two earlier ones."""
    height, width = weights.shape[1], weights.shape[2]
    for y in range(height):
        for x in range(width):
            before[y + 1, x + 1] += weights[_BEFORE, y, x] * later[y + 1, x + 1]
        for x in range(width):
            now[y + 1, x + 1] += weights[_NOW, y, x] * later[y + 1, x + 1]
        for x in range(width):
            now[y + 1, x + 2] += weights[_RIGHT, y, x] * later[y + 1, x + 1]
        for x in range(width):
            now[y + 1, x] += weights[_LEFT, y, x] * later[y + 1, x + 1]
        for x in range(width):
            now[y + 2, x + 1] += weights[_BELOW, y, x] * later[y + 1, x + 1]
        for x in range(width):
            now[y, x + 1] += weights[_ABOVE, y, x] * later[y + 1, x + 1]
    _fold(now, boundary)


@_compiled
def _collect(flow, before, now, later, sums, flowing, spreading):
    """Adds, from one step, the gradient times everything that a coefficient is multiplied by."""
    height, width = sums.shape[1], sums.shape[2]
    for y in range(height):
        for x in range(width):
            sums[_OF_ADDED, y, x] += flow[y + 1, x + 1]
        if flowing:
            for x in range(width):
                sums[_OF_NOW, y, x] += flow[y + 1, x + 1] * now[y + 1, x + 1]
            for x in range(width):
                sums[_ACROSS_X, y, x] += flow[y + 1, x + 1] * (now[y + 1, x] - now[y + 1, x + 2])
            for x in range(width):
                sums[_ACROSS_Y, y, x] += flow[y + 1, x + 1] * (now[y, x + 1] - now[y + 2, x + 1])
        if spreading:
            for x in range(width):
                sums[_ALONG_X, y, x] += flow[y + 1, x + 1] * (now[y + 1, x] + now[y + 1, x + 2])
            for x in range(width):
                sums[_ALONG_Y, y, x] += flow[y + 1, x + 1] * (now[y, x + 1] + now[y + 2, x + 1])
            for x in range(width):
                sums[_OF_SCALE, y, x] += flow[y + 1, x + 1] * (later[y + 1, x + 1] + before[y + 1, x + 1])


@_compiled
def _spread_divergence(of_now, scale, rx, ry, flows, boundary):
    """Gradients of u and v through their divergence, into flows[0] and flows[1]: neighbours take part in it."""
    height, width = of_now.shape
    flows[:] = 0
    for y in range(height):
        for x in range(width):
            flows[2, y + 1, x + 1] = of_now[y, x] * scale[y, x]
        for x in range(width):
            flows[0, y + 1, x + 2] -= rx * flows[2, y + 1, x + 1]
        for x in range(width):
            flows[0, y + 1, x] += rx * flows[2, y + 1, x + 1]
        for x in range(width):
            flows[1, y + 2, x + 1] -= ry * flows[2, y + 1, x + 1]
        for x in range(width):
            flows[1, y, x + 1] += ry * flows[2, y + 1, x + 1]
    _fold(flows[0], boundary)
    _fold(flows[1], boundary)


@_compiled
def _multiply(total, scale, factor, out):
    for y in range(total.shape[0]):
        for x in range(total.shape[1]):
            out[y, x] = total[y, x] * scale[y, x] * factor


@_compiled
def _add(framed, plane):
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            plane[y, x] += framed[y + 1, x + 1]


@_compiled
def _fill(field, boundary):
    """Makes the frame of a field what the boundary says; corners are never read."""
    height, width = field.shape[0] - 2, field.shape[1] - 2
    top, bottom, left, right = _mirrored(height, width, boundary)
    if boundary == _ZERO:
        return
    for x in range(1, width + 1):
        field[0, x], field[height + 1, x] = field[top, x], field[bottom, x]
    for y in range(1, height + 1):
        field[y, 0], field[y, width + 1] = field[y, left], field[y, right]


@_compiled
def _fold(field, boundary):
    """The transpose of `_fill`: what reached the frame goes to the pixels it repeats, and the frame is cleared."""
    height, width = field.shape[0] - 2, field.shape[1] - 2
    top, bottom, left, right = _mirrored(height, width, boundary)
    if boundary != _ZERO:
        for x in range(1, width + 1):
            field[top, x] += field[0, x]
            field[bottom, x] += field[height + 1, x]
        for y in range(1, height + 1):
            field[y, left] += field[y, 0]
            field[y, right] += field[y, width + 1]
    field[0] = 0
    field[height + 1] = 0
    for y in range(1, height + 1):
        field[y, 0] = field[y, width + 1] = 0


@_compiled
def _mirrored(height, width, boundary):
    """Rows and columns that the frame repeats: above, below, left, right."""
    if boundary == _PERIODIC:
        return height, 1, width, 1
    if boundary == _REPLICATE:
        return 1, height, 1, width
    return 2, height - 1, 2, width - 1


@_compiled
def _load(flat, strides, image, channel, out, frame, height, width):
    """A coefficient's plane, whatever it broadcasts along, into `out` inside a frame."""
    start = image * strides[0] + channel * strides[1]
    for y in range(height):
        row = start + y * strides[2]
        if strides[3] == 0:
            for x in range(width):
                out[y + frame, x + frame] = flat[row]
        else:
            values = flat[row : row + width]  # contiguous, since a coefficient is dense
            for x in range(width):
                out[y + frame, x + frame] = values[x]


@_compiled
def _put(plane, framed):
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            framed[y + 1, x + 1] = plane[y, x]


@_compiled
def _take(framed, plane):
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            plane[y, x] = framed[y + 1, x + 1]
