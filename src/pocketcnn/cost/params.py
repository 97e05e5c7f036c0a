"""Counting what is stored: every distinct tensor once, however many layers share it."""

import contextlib
from collections.abc import Iterator

import torch
from safetensors.torch import save as serialize
from torch import Tensor, nn


def distinct_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors a file must hold: the state dict with each shared tensor only under its first name."""
    seen: set[tuple] = set()
    distinct: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        nowhere = tensor.is_meta or tensor.numel() == 0
        place = id(tensor) if nowhere else (tensor.device, tensor.data_ptr())
        key = (place, tensor.dtype, tensor.shape, tensor.stride())
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
    return len(serialize(separate(distinct_tensors(model))))


def separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, and no two in one storage, as the format wants them."""
    storages: set[int] = set()
    separated = {}
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages or tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()  # a view of part of another one
        storages.add(tensor.untyped_storage().data_ptr())
        separated[name] = tensor
    return separated


def check_input_size(input_size: tuple[int, ...], batch: int = 1) -> None:
    """Checks (channels, height, width) and a batch size.

    Raises:
        ValueError: not three whole numbers of at least 1, or a batch below 1.
    """
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size is (channels, height, width), each at least 1, not {tuple(input_size)}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")


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
