"""The functions of `pocketcnn.numerics` offered fast: a fast twin where one pays, else the definition.

While a model is exported (`torch.export`) the definition is used: it holds for every batch size and backend.
"""

import torch
from torch import Tensor

from pocketcnn import numerics
from pocketcnn.kernels import torch_ops
from pocketcnn.numerics import ring_indices, ring_kernel
from pocketcnn.numerics.dynamic_conv import Pair

__all__ = ["condconv2d", "involution2d", "ring_indices", "ring_kernel"]


def condconv2d(
    x: Tensor,
    routing_weights: Tensor,
    experts: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """As `pocketcnn.numerics.condconv2d`."""
    compute = numerics.condconv2d if torch.compiler.is_exporting() else torch_ops.condconv2d
    return compute(x, routing_weights, experts, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def involution2d(
    x: Tensor, kernels: Tensor, *, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Tensor:
    """As `pocketcnn.numerics.involution2d`."""
    compute = numerics.involution2d if torch.compiler.is_exporting() else torch_ops.involution2d
    return compute(x, kernels, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation)
