"""Convolutions whose kernels depend on the image: one kernel an image (CondConv), one a pixel (involution).

Sources: Yang et al., CondConv, NeurIPS 2019; Li et al., Involution, CVPR 2021.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Pair = int | tuple[int, int]

COMPUTATIONS = ("auto", "mix_kernels", "mix_outputs", "unfold")


def pair(value: Pair) -> tuple[int, int]:
    """`(height, width)` from one number or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def divisors_of(channels: int) -> list[int]:
    """Numbers of groups, or of channels in a group, that fit."""
    return [number for number in range(1, channels + 1) if channels % number == 0]


def output_size(
    size: tuple[int, int], kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[int, int]:
    """Height and width that a convolution makes of `size`; both at least 1.

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


def condconv2d(
    x: Float[Tensor, "batch in_channels height width"],
    routing_weights: Float[Tensor, "batch num_experts"],
    experts: Float[Tensor, "num_experts out_channels group_channels kernel_height kernel_width"],
    bias: Float[Tensor, "num_experts out_channels"] | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    computation: str = "auto",
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """Convolves each image with its own mixture of expert kernels.

    Image b sees the kernel `sum_e routing_weights[b, e] * experts[e]`, and the biases are mixed alike. Convolution is
    linear in the kernel, so this equals mixing the experts' outputs, at the price of one convolution. All computations
    give the same to rounding: `"unfold"` multiplies the unfolded image by its kernel, the slow and obvious one;
    `"mix_kernels"` is one convolution in which the images of the batch are groups of channels; `"mix_outputs"` convolves
    all images with all experts. `"auto"` takes the last for few experts and small maps, where a kernel for every image is
    much to make and little to use, else the one before.

    While a net is exported `"auto"` and `"mix_kernels"` unfold: a number of groups cannot depend on the batch.

    Args:
        x: the images.
        routing_weights: how much of each expert each image takes; any numbers, they need not sum to 1.
        experts: the kernels; `group_channels` is `in_channels // groups`.
        bias: added to the outputs, mixed like the kernels.
        stride: in pixels, one number or (height, width); so are `padding` (zeros) and `dilation`.
        padding: zeros on each side.
        dilation: distance between kernel taps.
        groups: as in `torch.nn.functional.conv2d`.
        computation: how, one of the above.
    Returns:
        The convolved images, in the dtype of `x`.
    Raises:
        ValueError: channels, groups and experts do not fit together, the kernel does not fit in the image, or there is no
            such computation.
    Cost: num_experts * prod(kernel shape) multiply-adds an image to mix, then those of one convolution; mixing outputs,
        those of num_experts convolutions.
    Source: Yang et al., CondConv: Conditionally Parameterized Convolutions for Efficient Inference, section 3.
    """
    batch, in_channels, *size = x.shape
    num_experts, out_channels, group_channels, *kernel_size = experts.shape
    if in_channels != group_channels * groups or out_channels % groups:
        raise ValueError(
            f"experts of {out_channels} x {group_channels} channels in {groups} groups do not fit {in_channels} input channels"
        )
    if routing_weights.shape != (batch, num_experts):
        raise ValueError(f"routing weights must be [{batch}, {num_experts}], got {list(routing_weights.shape)}")
    if computation not in COMPUTATIONS:
        raise ValueError(f"no computation {computation!r}; known: {', '.join(COMPUTATIONS)}")
    height, width = output_size((size[0], size[1]), (kernel_size[0], kernel_size[1]), stride, padding, dilation)
    if torch.compiler.is_exporting():
        computation = "mix_outputs" if computation == "mix_outputs" else "unfold"
    elif batch == 0:  # no groups to convolve in, nothing to unfold
        computation = "mix_outputs"
    elif computation == "auto":
        # Every further expert costs a number of an image's kernel one multiply-add a pixel if outputs are mixed; to make and
        # use that number costs as long as some hundred of them if kernels are. A single image always has its kernel mixed,
        # so what it costs is what the definition costs.
        small = batch > 1 and (num_experts - 1) * height * width <= 100 and groups == 1
        computation = "mix_outputs" if small else "mix_kernels"
    if computation == "mix_outputs":
        # The outputs of a convolution lie group by group, and within a group expert by expert.
        kernels = experts.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
        outputs = F.conv2d(x, kernels, None, stride, padding, dilation, groups)
        wide = outputs.unflatten(1, (groups, num_experts, -1)).to(accumulation_dtype(outputs))
        y = (wide * routing_weights.to(wide.dtype)[:, None, :, None, None, None]).sum(dim=2)
        y = y.flatten(1, 2).to(outputs.dtype)
        return y if bias is None else y + (routing_weights @ bias).to(y.dtype)[:, :, None, None]
    kernels = (routing_weights @ experts.flatten(1)).to(x.dtype)
    if computation == "mix_kernels":
        kernels = kernels.reshape(batch * out_channels, group_channels, *kernel_size)
        biases = None if bias is None else (routing_weights @ bias).to(x.dtype).reshape(-1)
        images = x.reshape(1, batch * in_channels, *size)
        y = F.conv2d(images, kernels, biases, stride, padding, dilation, batch * groups)
        return y.reshape(batch, out_channels, height, width)
    patches = F.unfold(x, tuple(kernel_size), dilation, padding, stride)  # [batch, channels * taps, pixels]
    kernels = kernels.reshape(batch, groups, out_channels // groups, -1)
    y = (kernels @ patches.reshape(batch, groups, -1, height * width)).reshape(batch, out_channels, height, width)
    return y if bias is None else y + (routing_weights @ bias).to(y.dtype)[:, :, None, None]


def involution2d(
    x: Float[Tensor, "batch channels height width"],
    kernels: Float[Tensor, "batch groups taps out_height out_width"],
    *,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> Float[Tensor, "batch channels out_height out_width"]:
    """Multiplies the window around each pixel by that pixel's own kernel and sums it up.

    Channel c belongs to group `c // (channels // groups)`; all channels of a group share a kernel, and channels are
    never mixed. Tap `i * kernel_width + j` of a kernel meets row i, column j of the window. Sums are taken in float32
    when `x` is of lower precision.

    Args:
        x: the images.
        kernels: one kernel for every output pixel and group; `taps` is kernel_height * kernel_width.
        kernel_size: in pixels, one number or (height, width); so are `stride`, `padding` (zeros) and `dilation`.
        stride: distance between windows.
        padding: zeros on each side.
        dilation: distance between taps.
    Returns:
        The filtered images, in the dtype of `x`.
    Raises:
        ValueError: channels do not divide into groups, or the kernels' shape is not that of the output.
    Cost: channels * taps * out_height * out_width multiply-adds an image.
    Source: Li et al., Involution: Inverting the Inherence of Convolution for Visual Recognition, equation 4.
    """
    batch, channels, groups, (height, width) = check_involution(x, kernels, kernel_size, stride, padding, dilation)
    patches = F.unfold(x, pair(kernel_size), dilation, padding, stride)
    patches = patches.reshape(batch, groups, channels // groups, -1, height, width)
    dtype = accumulation_dtype(x)
    y = (patches.to(dtype) * kernels.to(dtype).unsqueeze(2)).sum(dim=3)
    return y.reshape(batch, channels, height, width).to(x.dtype)


def check_involution(
    x: Tensor, kernels: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[int, int, int, tuple[int, int]]:
    """`(batch, channels, groups, output size)` of an involution whose shapes fit together, else `ValueError`."""
    batch, channels, *size = x.shape
    groups = kernels.shape[1]
    if min(*pair(kernel_size), *pair(stride), *pair(dilation)) < 1 or min(pair(padding)) < 0:
        raise ValueError(
            f"kernel_size, stride and dilation must be at least 1 and padding 0 or more, got {kernel_size}, {stride}, "
            f"{dilation} and {padding}"
        )
    if channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups; {divisors_of(channels)} would fit")
    out = output_size((size[0], size[1]), kernel_size, stride, padding, dilation)
    wanted = (batch, groups, pair(kernel_size)[0] * pair(kernel_size)[1], *out)
    if kernels.shape != wanted:
        raise ValueError(f"kernels must be {list(wanted)} for this image, got {list(kernels.shape)}")
    return batch, channels, groups, out


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """The dtype sums are taken in: float32 for lower precisions, else that of `x`."""

    return torch.promote_types(x.dtype, torch.float32)
