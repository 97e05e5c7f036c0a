"""Twins made of ordinary torch operations, faster than the definitions on every device.

`pocketcnn bench` measures what each earns.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pocketcnn import numerics
from pocketcnn.numerics import stencil
from pocketcnn.numerics._shapes import Pair, accumulation_dtype, is_transformed, pair
from pocketcnn.numerics.involution import check_involution


def involution2d(
    x: Tensor, kernels: Tensor, *, kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> Tensor:
    """`numerics.involution2d` as a sum over taps of shifted images: nothing is unfolded."""
    check_involution(x, kernels, kernel_size, stride, padding, dilation)
    geometry = (*pair(kernel_size), list(pair(stride)), list(pair(padding)), list(pair(dilation)))
    return involution2d_operator(x, kernels, *geometry)


def _windows(kernel_size: tuple[int, int], stride: list[int], dilation: list[int], size: torch.Size):
    """Lists for each tap the slices of a padded image that the outputs of the given size meet with it."""
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (size[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (size[1] - 1) * stride[1] + 1, stride[1])
            yield i * kernel_size[1] + j, (..., rows, columns)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """[batch, channels, height, width] as [batch, groups, channels of a group, height, width]."""
    return x.unflatten(1, (groups, x.shape[1] // groups))


def _planes(x: Tensor, padding: list[int]) -> Tensor:
    """The image padded with zeros, in planes: taps are shared by channels, so rows of pixels vectorise, channels not."""
    return F.pad(x.contiguous(), (padding[1], padding[1], padding[0], padding[0]))


def laid_out_like(x: Tensor, kernels: Tensor) -> Tensor:
    """An array for the filtered images: channels last if the images are."""
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(x.shape[0], x.shape[1], *kernels.shape[3:], dtype=x.dtype, device=x.device, memory_format=layout)


def shifted(
    x: Tensor, kernels: Tensor, kernel_height: int, kernel_width: int,
    stride: list[int], padding: list[int], dilation: list[int],
) -> Tensor:  # fmt: skip
    """Involution as a sum over taps of shifted images."""
    refuse_tangents("involution2d", x, kernels)
    dtype, groups, out = accumulation_dtype(x), kernels.shape[1], laid_out_like(x, kernels)
    padded, kernels = _grouped(_planes(x, padding), groups), kernels.contiguous()
    y = torch.zeros(out.shape, dtype=dtype, device=x.device)
    grouped_y = _grouped(y, groups)
    for tap, window in _windows((kernel_height, kernel_width), stride, dilation, kernels.shape[3:]):
        grouped_y.addcmul_(kernels[:, :, tap, None].to(dtype), padded[window].to(dtype))
    return out.copy_(y)


def shifted_backward(
    grad: Tensor, x: Tensor, kernels: Tensor, kernel_height: int, kernel_width: int,
    stride: list[int], padding: list[int], dilation: list[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of `shifted` for the images and the kernels."""
    dtype, groups = accumulation_dtype(x), kernels.shape[1]
    grad_x, grad_kernels = torch.empty_like(dense(x)), torch.empty_like(dense(kernels))
    padded, kernels = _grouped(_planes(x, padding), groups), kernels.contiguous()
    grad_padded = torch.zeros(padded.shape, dtype=dtype, device=x.device)
    grad = _grouped(grad.contiguous(), groups).to(dtype)
    for tap, window in _windows((kernel_height, kernel_width), stride, dilation, kernels.shape[3:]):
        grad_padded[window].addcmul_(kernels[:, :, tap, None].to(dtype), grad)
        grad_kernels[:, :, tap] = (grad * padded[window].to(dtype)).sum(dim=2)
    rows, columns = slice(padding[0], padding[0] + x.shape[2]), slice(padding[1], padding[1] + x.shape[3])
    return grad_x.copy_(grad_padded[..., rows, columns].flatten(1, 2)), grad_kernels


def dense(tensor: Tensor) -> Tensor:
    """The same numbers without gaps, in whatever order."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor if tensor.permute(order).is_contiguous() else tensor.contiguous()


involution2d_operator = torch.library.custom_op("pocketcnn::involution2d", shifted, mutates_args=())
involution2d_backward_operator = torch.library.custom_op(
    "pocketcnn::involution2d_backward", shifted_backward, mutates_args=()
)


@involution2d_operator.register_fake
def _(x, kernels, kernel_height, kernel_width, stride, padding, dilation):
    return laid_out_like(x, kernels)


@involution2d_backward_operator.register_fake
def _(grad, x, kernels, kernel_height, kernel_width, stride, padding, dilation):
    return torch.empty_like(dense(x)), torch.empty_like(dense(kernels))


def _save_for_backward(ctx, inputs, output):
    x, kernels, *ctx.geometry = inputs
    ctx.save_for_backward(x, kernels)


def defined_gradients(
    definition: Callable[..., Any], tensors: Sequence[Tensor | None], wanted: Sequence[bool], grads: Any
) -> tuple[Tensor | None, ...]:
    """Computes gradients of a definition that have gradients themselves, for tensors where they are wanted.

    An operator's backward pass calls it where `differentiated` says so.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because one tensor may be given twice and has a gradient for each.
        own: list[Any] = [t if t is None else t.view_as(t) for t in tensors]
        asked = [t for t, want in zip(own, wanted, strict=True) if want]
        outputs = definition(*own)
    found = iter(torch.autograd.grad(outputs, asked, grads, create_graph=again, allow_unused=True))
    return tuple(next(found) if want else None for want in wanted)


def differentiated() -> bool:
    """Tells whether gradients are differentiated themselves: `create_graph=True`, or forward-mode over a backward pass."""
    return torch.is_grad_enabled() or is_transformed()


def refuse_tangents(name: str, *tensors: Tensor | None) -> None:
    """Checks that no tensor of an operator carries a tangent, which the operator would lose.

    Raises:
        NotImplementedError: one does.
    """
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError(
            f"the operator pocketcnn::{name} has no forward-mode derivative; the function pocketcnn.kernels.{name} has"
        )


def _backward(ctx, grad):
    if differentiated():
        size, (stride, padding, dilation) = ctx.geometry[:2], map(tuple, ctx.geometry[2:])
        geometry: Any = {"kernel_size": tuple(size), "stride": stride, "padding": padding, "dilation": dilation}
        definition = partial(numerics.involution2d, **geometry)
        return *defined_gradients(definition, ctx.saved_tensors, ctx.needs_input_grad[:2], grad), *[None] * 5
    return *involution2d_backward_operator(grad, *ctx.saved_tensors, *ctx.geometry), None, None, None, None, None


involution2d_operator.register_autograd(_backward, setup_context=_save_for_backward)


# A step's operations keep about five maps of a chunk; 32 chunks a batch hold 20 steps in some three maps of the batch.
_CHUNKS = 32


def advect_diffuse(*arguments: Any) -> Tensor:
    """`numerics.stencil.march` on a few images at a time, whose steps are taken again in the backward pass.

    Images are independent, so only one chunk of the batch ever has all its steps in memory.
    """
    tensors, settings = arguments[:7], arguments[7:]

    def solve(*chunk: Any) -> Tensor:
        return stencil.march(*chunk, *settings)

    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    batch = tensors[0].shape[0]
    if not learns or batch == 0:
        return solve(*tensors)
    images = -(-batch // _CHUNKS)
    parts = []
    for start in range(0, batch, images):
        stop = min(batch, start + images)
        chunk = [t if t is None or t.shape[0] == 1 else t[start:stop] for t in tensors]
        parts.append(checkpoint(solve, *chunk, use_reentrant=False))
    return torch.cat(parts)
