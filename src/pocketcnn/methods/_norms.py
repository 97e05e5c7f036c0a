"""Batch norms as a factor and a summand for each channel: folded into convolutions, or applied inside the solver."""

from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.numerics._shapes import accumulation_dtype
from pocketcnn.support.modules import is_watched


@torch.no_grad()
def fold_(conv: nn.Conv2d, norm: Any) -> None:
    """Folds a batch norm, as it is in evaluation mode, into the convolution before it; the norm becomes an `nn.Identity`.

    The norm stays the same object, so that all references to it see the change. The convolution gets new parameters, so
    that modules that share the old ones keep them; each new one is as trainable as the one it replaces.

    Args:
        conv: a convolution whose output goes to the norm only.
        norm: an `nn.BatchNorm2d` with running statistics.
    Raises:
        ValueError: the norm keeps no running statistics.
    Cost: none in later passes; the folding is computed in float64 and rounded once.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> fold_(*net)
        >>> net
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
        )
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            "a batch norm without running statistics (track_running_stats=False) takes those of each batch, which no "
            "convolution can hold; leave the net unfolded, or give the norm running statistics"
        )
    scale = (_wide(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale *= _wide(norm.weight)
    bias = -_wide(norm.running_mean)
    if conv.bias is not None:
        bias += _wide(conv.bias)
    bias *= scale
    if norm.bias is not None:
        bias += _wide(norm.bias)
    weight = _wide(conv.weight) * scale[:, None, None, None]
    before = next(p for p in (conv.bias, norm.bias, conv.weight) if p is not None)
    conv.weight, conv.bias = (
        nn.Parameter(new.to(conv.weight), requires_grad=old.requires_grad)
        for new, old in ((weight, conv.weight), (bias, before))
    )
    mode = norm.training
    vars(norm).clear()
    norm.__class__ = nn.Identity
    nn.Identity.__init__(norm)
    norm.training = mode


@torch.no_grad()
def reduce_(norm: Any) -> bool:
    """Leaves of a batch norm a factor and a summand, in its weight and bias; its mean becomes 0, its variance 1 - eps.

    In evaluation mode it gives what it gave, up to rounding. Norms without weight and bias, or without running statistics,
    are left alone.

    Returns:
        Whether it was reduced.
    """
    if norm.weight is None or norm.bias is None or norm.running_mean is None or norm.running_var is None:
        return False
    factor = _wide(norm.weight) * (_wide(norm.running_var) + norm.eps).rsqrt()
    norm.bias.copy_(_wide(norm.bias) - _wide(norm.running_mean) * factor)
    norm.weight.copy_(factor)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)
    return True


def _wide(tensor: Tensor) -> Tensor:
    """Copies a tensor to float64 on the CPU; not every device has float64."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def is_plain(norm: nn.Module) -> bool:
    """Tells whether a module is a batch norm with running statistics that nothing watches."""
    return type(norm) is nn.BatchNorm2d and norm.track_running_stats and not is_watched(norm)


def as_line(
    norm: Any, bias: Tensor | None = None, mean: Tensor | None = None, variance: Tensor | None = None
) -> Tensor:
    """Turns a batch norm after a convolution, whose bias is given apart, into factors and summands, [2, channels]."""
    if mean is None or variance is None:
        mean, variance = norm.running_mean, norm.running_var
    mean, variance = (moment.to(accumulation_dtype(moment)) for moment in (mean, variance))
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale if bias is None else (bias - mean) * scale
    return torch.stack([scale, shift if norm.bias is None else shift + norm.bias])


@torch.no_grad()
def remember_statistics(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Updates the running statistics of a batch norm as its own forward pass does."""
    norm.num_batches_tracked += 1
    share = norm.momentum
    if share is None:
        share = (1 / norm.num_batches_tracked.double()).to(norm.running_mean.dtype)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
