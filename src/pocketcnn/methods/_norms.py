"""Batch norms as factors and summands: folded into convolutions, or formed inside the solver."""

from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.numerics._shapes import accumulation_dtype


def is_watched(module: nn.Module) -> bool:
    """Whether something looks at a module when it runs, or runs in its stead; what passes the module by would go unseen."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


@torch.no_grad()
def fold_(conv: nn.Conv2d, norm: Any) -> None:
    """Has a convolution do what the batch norm after it does in evaluation mode; the norm becomes an `nn.Identity`.

    The norm stays the same object, so that everything that refers to it sees the change. The convolution gets new
    parameters, each as trainable as what it takes the place of, so that others who share the old ones keep them.

    Args:
        conv: whose output the norm is given, and nothing else.
        norm: an `nn.BatchNorm2d` with running statistics.
    Raises:
        ValueError: the norm keeps no running statistics.
    Cost: none when run; computed in float64 and rounded once.
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


def _wide(tensor: Tensor) -> Tensor:
    """In float64, on the CPU, because not every device has it."""
    return tensor.detach().to("cpu", torch.float64, copy=True)


def is_plain(norm: nn.Module) -> bool:
    """Whether a batch norm keeps running statistics, and nobody watches it."""
    return type(norm) is nn.BatchNorm2d and norm.track_running_stats and not is_watched(norm)


def as_line(
    norm: Any, bias: Tensor | None = None, mean: Tensor | None = None, variance: Tensor | None = None
) -> Tensor:
    """What a batch norm does after a convolution without its bias: multiply, then add; [2, channels]."""
    if mean is None or variance is None:
        mean, variance = norm.running_mean, norm.running_var
    mean, variance = (moment.to(accumulation_dtype(moment)) for moment in (mean, variance))
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -mean * scale if bias is None else (bias - mean) * scale
    return torch.stack([scale, shift if norm.bias is None else shift + norm.bias])


@torch.no_grad()
def remember_statistics(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Moves the running statistics of a batch norm as it does itself."""
    norm.num_batches_tracked += 1
    share = norm.momentum
    if share is None:
        share = (1 / norm.num_batches_tracked.double()).to(norm.running_mean.dtype)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)
