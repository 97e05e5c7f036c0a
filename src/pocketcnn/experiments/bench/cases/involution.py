"""The timed layers of involution."""

import functools

import torch

from pocketcnn import kernels, numerics
from pocketcnn.experiments.bench.cases import GROUP_CHANNELS, Case, Layer, both_passes, conv_side, leaf, sides_of
from pocketcnn.experiments.bench.limits import Work
from pocketcnn.experiments.bench.settings import Shape


def involution_work(shape: Shape, itemsize: int, kernel_size: int) -> tuple[Work, Work]:
    """Work of the weighted sum, forward and backward, with N numbers in the map and T taps in a kernel.

    A group of channels shares its kernels, so the kernels have T N / group_channels numbers. Forward reads x and the
    kernels and writes y, with T multiply-adds for each number. Backward reads x, the kernels and the gradient of y and
    writes two gradients, with twice the multiply-adds.
    """
    numbers, taps = shape[0] * shape[1] * shape[2] * shape[3], kernel_size**2
    per_pixel = taps * numbers // GROUP_CHANNELS
    return (
        Work(itemsize * (2 * numbers + per_pixel), elementwise=taps * numbers),
        Work(itemsize * (3 * numbers + 2 * per_pixel), elementwise=2 * taps * numbers),
    )


def involution_case(
    kernel_size: int, shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool
) -> Case:
    batch, channels, height, width = shape
    groups = channels // GROUP_CHANNELS
    x = leaf(shape, dtype, layout)
    flat = leaf(
        (batch, groups * kernel_size**2, height, width), dtype, layout
    ).detach()  # as a 1x1 convolution makes it
    per_pixel = flat.unflatten(1, (groups, kernel_size**2)).requires_grad_()
    obvious, ours = (
        functools.partial(involution, kernel_size=kernel_size, padding=kernel_size // 2)
        for involution in (numerics.involution2d, kernels.involution2d)
    )
    work = both_passes(involution_work(shape, dtype.itemsize, kernel_size), backward)
    return Case({**sides_of(obvious, ours, x, per_pixel), "conv": conv_side(shape, dtype, layout)}, work)


LAYERS = tuple(Layer(f"involution K{size}", functools.partial(involution_case, size)) for size in (3, 7))
