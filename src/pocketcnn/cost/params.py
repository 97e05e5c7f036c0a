"""Counting what is stored: every distinct tensor once, however many layers share it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def distinct_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors a file must hold: the state dict with each shared tensor only under its first name."""
    seen: set[tuple] = set()
    distinct = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        key = (
            (id(tensor),)
            if tensor.numel() == 0 or tensor.is_meta
            else (tensor.data_ptr(), tensor.shape, tensor.stride())
        )
        if key not in seen:
            seen.add(key)
            distinct[name] = tensor.detach()
    return distinct


def count_params(model: nn.Module) -> tuple[int, int]:
    """`(trainable_params, total_params)`: distinct trainable numbers; those plus frozen ones and running statistics.

    Batch norm's counter of batches is bookkeeping and not counted.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(t.numel() for t in distinct_tensors(model).values() if t.is_floating_point())
    return trainable, total


def serialized_bytes(model: nn.Module) -> int:
    """Length in bytes of the safetensors serialisation of the distinct tensors, without metadata."""
    from safetensors.torch import save

    return len(save({name: tensor.contiguous() for name, tensor in distinct_tensors(model).items()}))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a net in evaluation mode without gradients, and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a net lives and in which precision, from its first floating-point tensor; CPU and float32 without one."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()
