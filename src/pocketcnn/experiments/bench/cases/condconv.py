"""The timed layer of CondConv."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketcnn import kernels, numerics
from pocketcnn.experiments.bench.cases import (
    NUM_EXPERTS,
    Case,
    Layer,
    both_passes,
    conv_side,
    conv_work,
    leaf,
    sides_of,
)
from pocketcnn.experiments.bench.limits import Work
from pocketcnn.experiments.bench.settings import Shape


def condconv_by_image(x: Tensor, routing_weights: Tensor, experts: Tensor) -> Tensor:
    """Mixes each image's kernel and convolves the image with it, one after the other."""
    mixed = (routing_weights @ experts.flatten(1)).unflatten(1, experts.shape[1:])
    return torch.cat([F.conv2d(image[None], kernel, padding=1) for image, kernel in zip(x, mixed, strict=True)])


def condconv_work(shape: Shape, itemsize: int) -> tuple[Work, Work]:
    """Work of CondConv, forward and backward: that of a convolution whose kernels do not pass through memory.

    Forward also reads the experts, W numbers each, and mixes a kernel for each image, with num_experts W products. Backward
    reads the experts and writes their gradients. The gradients of the experts take as many products again, and so do those
    of the routing weights.
    """
    forward, backward = conv_work(shape, itemsize, kernel=False)
    weights = NUM_EXPERTS * 9 * shape[1] ** 2
    return (
        forward + Work(itemsize * weights, shape[0] * weights),
        backward + Work(2 * itemsize * weights, 2 * shape[0] * weights),
    )


def condconv_case(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool) -> Case:
    batch, channels = shape[:2]
    x = leaf(shape, dtype, layout)
    routing_weights = leaf((batch, NUM_EXPERTS), dtype, torch.contiguous_format, torch.rand)
    experts = leaf((NUM_EXPERTS, channels, channels, 3, 3), dtype, torch.contiguous_format)
    ours = functools.partial(kernels.condconv2d, padding=1)
    unfold = functools.partial(numerics.condconv2d, padding=1, computation="unfold")
    sides = sides_of(condconv_by_image, ours, x, routing_weights, experts)
    sides["compiled"] = sides_of(unfold, ours, x, routing_weights, experts)["compiled"]
    work = both_passes(condconv_work(shape, dtype.itemsize), backward)
    note = "compiled is unfold and one product an image: the loop over the images compiles for minutes"
    return Case({**sides, "conv": conv_side(shape, dtype, layout)}, work, note)


LAYERS = (Layer("condconv", condconv_case),)
