"""Memory layouts that hold: torch takes a tensor for channels last by its strides, also those of axes of length one.

An image of one channel, or a kernel of one pixel, is in both layouts at once, so `contiguous` and `to` leave it as it is.
A convolution then looks at its strides, and may choose the layout that was not asked for, for itself and all after it.
"""

from typing import Any

import torch
from torch import Tensor, nn


def in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Returns a tensor of four axes with the very strides of a layout; the same tensor if it has them.

    Args:
        x: [batch, channels, height, width], or a kernel; a tensor of other axes is returned as it is.
        layout: `torch.contiguous_format` or `torch.channels_last`.
    """
    if x.dim() != 4:
        return x
    empty = torch.empty_like(x, memory_format=layout, device="meta")
    return x if x.stride() == empty.stride() else torch.empty_like(x, memory_format=layout).copy_(x)


def to_layout(net: Any, layout: torch.memory_format) -> nn.Module:
    """Puts a net's kernels into a memory layout, in place."""
    net.to(memory_format=layout)
    for parameter in net.parameters():
        parameter.data = in_layout(parameter.data, layout)
    return net
