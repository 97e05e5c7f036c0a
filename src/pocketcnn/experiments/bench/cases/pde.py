"""The timed layer of pde: the solver of a Global layer."""

import functools

import torch
from torch import Tensor

from pocketcnn import kernels
from pocketcnn.experiments.bench.cases import DT, NUM_STEPS, Case, Layer, both_passes, conv_side, leaf, sides_of
from pocketcnn.experiments.bench.limits import Work
from pocketcnn.experiments.bench.settings import Shape


def advect_diffuse_by_rolls(f: Tensor, u: Tensor, v: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """The solver of `numerics.advect_diffuse`, periodic, with grid spacing 1; values that all steps share are computed once."""
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
    """Work of the solver with K steps, forward and backward, with N numbers in the map.

    Forward reads f, u, v, Dx and Dy and writes H[K]: 6 N numbers. For each number it takes 6 multiply-adds a step, and 9 for
    the weights. Backward repeats the steps, 6 K + 9, because keeping them would move more. For each number the transposed
    step takes 6 multiply-adds a step, the sums from which the five gradients are made 7 a step, and making the gradients 9.
    Backward reads the five fields and the gradient of H[K] and writes five gradients: 11 N numbers.
    """
    numbers = shape[0] * shape[1] * shape[2] * shape[3]
    return (
        Work(6 * numbers * itemsize, elementwise=(6 * NUM_STEPS + 9) * numbers),
        Work(11 * numbers * itemsize, elementwise=(19 * NUM_STEPS + 18) * numbers),
    )


def pde_case(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool) -> Case:
    fields = [leaf(shape, dtype, layout, draw) for draw in (torch.randn, *4 * [torch.rand])]
    ours = functools.partial(kernels.advect_diffuse, num_steps=NUM_STEPS, dt=DT)
    sides = sides_of(advect_diffuse_by_rolls, ours, *fields)
    return Case(
        {**sides, "conv": conv_side(shape, dtype, layout)}, both_passes(pde_work(shape, dtype.itemsize), backward)
    )


LAYERS = (Layer("pde", pde_case, more_shapes=lambda settings: (settings.solver_shape,)),)
