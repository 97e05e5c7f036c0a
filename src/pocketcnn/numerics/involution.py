"""Involution: a kernel for every pixel, shared by the channels of a group."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pocketcnn.numerics._shapes import Pair, accumulation_dtype, divisors_of, is_recorded, output_size, pair


def involution2d(
    x: Float[Tensor, "batch channels height width"],
    kernels: Float[Tensor, "batch groups taps out_height out_width"],
    *,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> Float[Tensor, "batch channels out_height out_width"]:
    """Multiplies the window around each pixel by that pixel's own kernel, and sums the products.

    Channel c belongs to group `c // (channels // groups)`; all channels of a group share a kernel, and channels are
    never mixed. Tap `i * kernel_width + j` of a kernel meets row i, column j of the window. Sums are taken in float32
    when `x` is of lower precision.

    Args:
        x: the images.
        kernels: one kernel for each output pixel and group; `taps` is kernel_height * kernel_width.
        kernel_size: in pixels, one number or (height, width); so are `stride`, `padding` (zeros) and `dilation`.
        stride: distance between windows.
        padding: zeros on each side.
        dilation: distance between taps.
    Returns:
        The filtered images, in the dtype of `x`.
    Raises:
        ValueError: channels that do not divide into groups, or kernels that do not fit the output.
    Cost: channels * taps * out_height * out_width multiply-adds an image.
    Source: Li et al., Involution: Inverting the Inherence of Convolution for Visual Recognition, equation 4.
    """
    batch, channels, groups, (height, width) = check_involution(x, kernels, kernel_size, stride, padding, dilation)
    if not is_recorded() and batch == 0:  # nothing to unfold
        return x.new_zeros(0, channels, height, width) + 0 * (x.sum() + kernels.sum()).to(x.dtype)
    patches = F.unfold(x, pair(kernel_size), dilation, padding, stride)
    patches = patches.reshape(batch, groups, channels // groups, kernels.shape[2], height, width)
    dtype = accumulation_dtype(x)
    y = (patches.to(dtype) * kernels.to(dtype).unsqueeze(2)).sum(dim=3)
    return y.reshape(batch, channels, height, width).to(x.dtype)


def check_involution(
    x: Tensor, kernels: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> tuple[int, int, int, tuple[int, int]]:
    """Checks that the shapes of an involution fit together; returns `(batch, channels, groups, output size)`.

    Raises:
        ValueError: as in `involution2d`.
    """
    if x.dim() != 4 or kernels.dim() != 5:
        raise ValueError(
            f"images must be [batch, channels, height, width] and kernels [batch, groups, taps, height, width], got "
            f"{list(x.shape)} and {list(kernels.shape)}"
        )
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
