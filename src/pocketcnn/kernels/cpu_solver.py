"""The solver of `numerics.advect_diffuse`, and what forms its coefficients, compiled by numba for the CPU.

A tile is `LANES` planes (a plane is one channel of one image), laid side by side so that one vector instruction works on
the same pixel of all of them, whatever the size of the image and its layout in memory. A tile takes all its steps while it
lies in the caches of a core; the backward pass takes them again, and so needs nothing but the arguments of the forward pass.
Coefficients that depthwise convolutions make of the image are formed inside of a tile and never written out. Tiles are
shared out among as many threads as torch uses. `pocketcnn bench` measures what this earns.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pocketcnn.kernels._lanes import LANES, flat_of, strides_of
from pocketcnn.kernels._threads import share
from pocketcnn.kernels.cpu_solver_loops import (
    SCALE,
    TAPS,
    backward_parts,
    backward_tiles,
    forward_parts,
    forward_tiles,
    moment_parts,
    moment_parts_back,
    moment_tiles,
    moment_tiles_back,
    solver,
)
from pocketcnn.kernels.torch_ops import defined_gradients, differentiated, refuse_tangents
from pocketcnn.numerics import stencil
from pocketcnn.numerics._shapes import accumulation_dtype
from pocketcnn.numerics.stencil import BOUNDARIES


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
    """Computes `kernels.advect_diffuse`.

    Coefficients are tensors, or are formed from the source where `uses` names a row of `formed` [coefficients, 11, channels]:
    see `kernels.advect_diffuse_formed`. `after` [2, channels] scales and shifts the result, which is then cut off below 0;
    without gradients only.
    """
    coefficients = (velocity_x, velocity_y, diffusivity_x, diffusivity_y)
    refuse_tangents("advect_diffuse", source, *coefficients, initial, previous, formed, after)
    given = _Given(source, coefficients, initial, previous, formed, uses, rectified)
    out = given.like_source()
    grid = _grid(given.source, num_steps, dt, dx, dy, boundary)
    line = np.empty((0, 2, source.shape[1]), dtype=grid[1].dtype)
    if after is not None:
        line = after.detach().to(given.dtype)[None].contiguous().numpy()
    share(
        forward_parts,
        _table(forward_tiles, given.source),
        given.tiles,
        source.numel(),
        *given.arguments,
        *grid,
        line,
        flat_of(out),
    )
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
        backward_parts, _table(backward_tiles, given.source), given.tiles, source.numel(), *given.arguments, *grid, flat_of(given.in_layout(grad)), sums,
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
    """Reduces a gradient of the source's shape to the shape of the argument that was broadcast to it."""
    if gradient.shape == argument.shape:
        return gradient.to(argument.dtype)
    return gradient.sum_to_size(argument.shape).to(argument.dtype).contiguous()


def _gradient_of_formed(sums: Tensor, formed: Tensor) -> Tensor:
    """Returns the gradient of weights, scale and shift.

    It follows from two sums over all pixels: of the formed value's gradient times the pixel under each of the nine weights,
    and of that gradient alone.
    """
    weights, scale = formed[:, :TAPS].double(), formed[:, SCALE].double()
    under, alone = sums[:, :TAPS], sums[:, TAPS]
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


def _definition(uses: Any, rectified: bool, *arguments: Any) -> Tensor:
    """Computes the operator by its definition: settings first, then the tensors."""
    settings: Any = arguments[:5]
    source, *coefficients, initial, previous, formed = arguments[5:]
    if formed is not None:
        coefficients = stencil.form(source, formed, uses, coefficients, rectified)
    tensors: Any = (source, *coefficients, initial, previous)
    return stencil.march(*tensors, *settings)


def _save_for_backward(ctx, inputs, output):
    ctx.settings, ctx.finished = inputs[8:-1], inputs[-1] is not None
    ctx.save_for_backward(*inputs[:8])


def _backward(ctx, grad):
    if ctx.finished:
        raise RuntimeError("what is done after the steps has no gradient here; leave `after` out")
    wanted = list(ctx.needs_input_grad[:8])
    if differentiated():
        found = defined_gradients(partial(_definition, *ctx.settings), ctx.saved_tensors, wanted, grad)
        return *found, *[None] * (len(ctx.settings) + 1)
    grads = _advect_diffuse_backward(grad, *ctx.saved_tensors, *ctx.settings, wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), *[None] * (len(ctx.settings) + 1)


advect_diffuse.register_autograd(_backward, setup_context=_save_for_backward)


class _Given:
    """Holds the arguments of a pass as the kernels take them: flat arrays of one layout, and strides of coefficients."""

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
        """Lays out and stores a tensor of the source's shape as the source is."""
        return tensor.detach().to(self.stored).contiguous(memory_format=self.layout)

    def like_source(self, coefficient: bool = False) -> Tensor:
        """Makes an array to be filled."""
        return torch.empty_like(self.source, dtype=self.dtype if coefficient else self.stored)

    def nothing(self, coefficient: bool = False) -> Tensor:
        """Makes an empty array, for a gradient that is not wanted."""
        return torch.empty(0, dtype=self.dtype if coefficient else self.stored)


@torch.library.custom_op("pocketcnn::depthwise_moments", mutates_args=(), device_types="cpu")
def depthwise_moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `kernels.depthwise_moments`."""
    refuse_tangents("depthwise_moments", x, weights)
    image, table, grid, tiles = _of_convolutions(x, weights)
    sums = np.zeros((torch.get_num_threads(), len(weights), 3, x.shape[1]))
    share(
        moment_parts, _table(moment_tiles, image), tiles, x.numel(), flat_of(image), strides_of(image), table.numpy(), *grid, sums, threads=len(sums)
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
    share(moment_parts_back, _table(moment_tiles_back, image), tiles, x.numel(), flat_of(image), strides_of(image), table.numpy(), *grid, sums, flat_of(out),
          threads=len(sums))  # fmt: skip
    return out.to(x.dtype), torch.from_numpy(sums.sum(0)[:, :TAPS]).to(weights.dtype).contiguous()


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
    if differentiated():
        tensors, wanted = ctx.saved_tensors[1:], ctx.needs_input_grad
        return defined_gradients(stencil.depthwise_moments, tensors, wanted, (grad_mean, grad_variance))
    return _depthwise_moments_backward(grad_mean, grad_variance, *ctx.saved_tensors)


depthwise_moments.register_autograd(_moments_backward, setup_context=_save_moments)


def _of_convolutions(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, tuple[np.ndarray, np.ndarray], int]:
    """Returns the image as it is stored, the weights [kernels, 9, channels], the grid, and the number of tiles."""
    dtype = accumulation_dtype(x)
    image = _dense(x.detach()).to(torch.bfloat16 if x.dtype == torch.bfloat16 else dtype)
    table = weights.detach().to(dtype).contiguous()
    return image, table, _grid(image, 0, 1.0, 1.0, 1.0, "zero"), -(-x.shape[0] * x.shape[1] // LANES)


def _table(routine: Any, image: Tensor) -> np.ndarray:
    """Returns the addresses of a routine and those that it calls, for images stored like this one."""
    number = np.dtype(np.float64 if image.dtype == torch.float64 else np.float32)
    return solver.table(routine, number, np.dtype(np.int16) if image.dtype == torch.bfloat16 else number)


def _dense(tensor: Tensor) -> Tensor:
    """Lays a tensor out in rows of pixels or of channels, without gaps."""
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous()


def _broadcast_strides(tensor: Tensor) -> list[int]:
    return [0 if n == 1 else stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def _grid(
    source: Tensor, num_steps: int, dt: float, dx: float, dy: float, boundary: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sizes, and the numbers of the formula in the dtype of the arithmetic, since another would widen all."""
    batch, channels, height, width = source.shape
    numbers = [1, dt / dx, dt / dy, 2 * dt / dx**2, 2 * dt / dy**2, 2 * dt]
    return (
        np.array([batch * channels, channels, height, width, BOUNDARIES.index(boundary), num_steps], dtype=np.int64),
        np.array(numbers, dtype=np.float64 if source.dtype == torch.float64 else np.float32),
    )
