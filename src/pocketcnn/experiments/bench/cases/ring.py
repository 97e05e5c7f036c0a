"""The timed layer of ring."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pocketcnn import numerics
from pocketcnn.experiments.bench.cases import (
    RING_SIZE,
    Case,
    Layer,
    Side,
    both_passes,
    conv_side,
    conv_work,
    leaf,
    sides_of,
)
from pocketcnn.experiments.bench.limits import Work
from pocketcnn.experiments.bench.settings import Shape
from pocketcnn.methods.ring import ParameterRing


def ring_work(shape: Shape, itemsize: int) -> tuple[Work, Work]:
    """Work of a 3x3 convolution whose kernel of W numbers is read off a ring of R numbers, forward and backward.

    Forward also reads the ring and, for each number of the kernel, 4 bytes with its place and sign. Backward reads those
    4 bytes again and writes the ring's gradient. The kernel need not pass through memory. The cost of random access is not
    counted.
    """
    forward, backward = conv_work(shape, itemsize, kernel=False)
    weights = 9 * shape[1] ** 2
    more = Work(itemsize * round(RING_SIZE * weights) + 4 * weights)
    return forward + more, backward + more


def ring_case(shape: Shape, dtype: torch.dtype, layout: torch.memory_format, backward: bool) -> Case:
    kernel = (shape[1], shape[1], 3, 3)
    ring = ParameterRing([kernel], RING_SIZE, dtype=dtype)
    indices, signs = numerics.ring_indices([9 * shape[1] ** 2], len(ring.values), seed=0)
    indices, signs = indices.long(), signs.to(dtype)

    def obvious(x: Tensor, values: Tensor) -> Tensor:
        return F.conv2d(x, (values[indices] * signs * ring.scales[0]).view(kernel), padding=1)

    x, values = leaf(shape, dtype, layout), ring.values.detach().clone().requires_grad_()
    sides = sides_of(obvious, obvious, x, values)
    sides["ours"] = Side(lambda: F.conv2d(x, ring.read(0), padding=1), (x, ring.values))
    work = both_passes(ring_work(shape, dtype.itemsize), backward)
    return Case({**sides, "conv": conv_side(shape, dtype, layout)}, work)


LAYERS = (Layer("ring", ring_case),)
