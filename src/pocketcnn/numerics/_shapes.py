"""Sizes of kernels and maps, the dtype of sums, and what else sees the operations."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

Pair = int | tuple[int, int]


def pair(value: Pair) -> tuple[int, int]:
    """`(height, width)` from one number or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def divisors_of(channels: int) -> list[int]:
    """Lists the numbers of groups, or of channels in a group, that divide the channels."""
    return [number for number in range(1, channels + 1) if channels % number == 0]


def output_size(
    size: tuple[int, int], kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[int, int]:
    """Height and width of a convolution's output for an image of `size`; both at least 1.

    Raises:
        ValueError: the kernel does not fit in the padded image.
    Example:
        >>> output_size((7, 8), kernel_size=3, stride=2, padding=1, dilation=1)
        (4, 4)
    """
    k, s, p, d = pair(kernel_size), pair(stride), pair(padding), pair(dilation)
    height, width = ((size[a] + 2 * p[a] - d[a] * (k[a] - 1) - 1) // s[a] + 1 for a in (0, 1))
    if height < 1 or width < 1:
        raise ValueError(f"a {k[0]}x{k[1]} kernel with dilation {d} does not fit in {size} pixels padded by {p}")
    return height, width


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Chooses the dtype of sums: float32 for lower precisions, else that of `x`."""
    return torch.promote_types(x.dtype, torch.float32)


def is_recorded() -> bool:
    """Tells whether operations are recorded to run again with other batches, by `torch.export` or `torch.jit.trace`."""
    return torch.compiler.is_exporting() or (not torch.compiler.is_compiling() and torch.jit.is_tracing())


def is_transformed() -> bool:
    """Tells whether a transform of `torch.func` or a tangent of forward-mode differentiation may meet each operation."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
