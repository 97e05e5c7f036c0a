"""CondConv: a kernel for every image, mixed from experts."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pocketcnn.numerics._shapes import Pair, accumulation_dtype, is_recorded, output_size

COMPUTATIONS = ("auto", "mix_kernels", "mix_outputs", "unfold")


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

    Image b gets the kernel `sum_e routing_weights[b, e] * experts[e]`, and the biases are mixed alike. Convolution is
    linear in the kernel, so this equals mixing the experts' outputs, at the price of one convolution. All computations
    give the same result, up to rounding: `"unfold"`, slow and obvious, multiplies the unfolded image by its kernel;
    `"mix_kernels"` is one convolution in which the images of the batch are groups of channels; `"mix_outputs"` convolves
    all images with all experts. `"auto"` chooses `"mix_outputs"` for few experts and small maps, where a kernel for every
    image costs much to make and is used little, else `"mix_kernels"`.

    While a net is exported or traced `"auto"` and `"mix_kernels"` unfold: a number of groups cannot depend on the batch.

    Args:
        x: the images.
        routing_weights: weights of the experts for each image; they need not sum to 1.
        experts: the kernels; `group_channels` is `in_channels // groups`.
        bias: added to the outputs, mixed like the kernels.
        stride: in pixels, one number or (height, width); so are `padding` (zeros) and `dilation`.
        padding: zeros on each side.
        dilation: distance between kernel taps.
        groups: as in `torch.nn.functional.conv2d`.
        computation: one of the above.
    Returns:
        The convolved images, in the dtype of `x`.
    Raises:
        ValueError: channels, groups and experts that do not fit together, a kernel that does not fit in the image, or an
            unknown computation.
    Cost: num_experts * prod(kernel shape) multiply-adds an image to mix, then those of one convolution; mixing outputs,
        those of num_experts convolutions.
    Source: Yang et al., CondConv: Conditionally Parameterized Convolutions for Efficient Inference, section 3.
    """
    if x.dim() != 4 or experts.dim() != 5:
        raise ValueError(
            f"images must be [batch, channels, height, width] and experts [num_experts, out_channels, group_channels, height, "
            f"width], got {list(x.shape)} and {list(experts.shape)}"
        )
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
    if is_recorded():
        computation = "mix_outputs" if computation == "mix_outputs" else "unfold"
    elif batch == 0:  # no groups to convolve in, nothing to unfold
        computation = "mix_outputs"
    elif computation == "auto":
        # Per weight of an image's kernel, mixing outputs costs one multiply-add a pixel for every further expert; mixing
        # kernels takes as long as about a hundred of them. The kernel of a single image is always mixed, so that its
        # cost is the definition's.
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
    taps = group_channels * kernel_size[0] * kernel_size[1]
    kernels = kernels.reshape(batch, groups, out_channels // groups, taps)
    y = (kernels @ patches.reshape(batch, groups, taps, height * width)).reshape(batch, out_channels, height, width)
    return y if bias is None else y + (routing_weights @ bias).to(y.dtype)[:, :, None, None]
