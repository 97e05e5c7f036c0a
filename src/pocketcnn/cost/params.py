"""Counting stored tensors: each distinct one once, however many layers share it."""

from typing import Any

from safetensors.torch import save as serialize
from torch import Tensor, nn

from pocketcnn.errors import UnsupportedNet
from pocketcnn.support.modules import ON_META, refuse_lazy
from pocketcnn.support.protocols import HoldsWholeNumbers


def distinct_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Lists the tensors that a file must hold: the state dict, with shared tensors only under their first name, and
    whole numbers in their own type.

    Raises:
        UnsupportedNet: lazy parameters, or extra state that is no tensor.
    """
    refuse_lazy(model)
    whole = {
        _place(getattr(module, name)): (module, name)
        for module in model.modules()
        if isinstance(module, HoldsWholeNumbers)
        for name in module.stored_types
    }
    seen: set[tuple] = set()
    distinct: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        _check_tensor(name, tensor)
        if (place := _place(tensor)) not in seen:
            seen.add(place)
            module, own = whole.get(place, (None, ""))
            distinct[name] = tensor.detach() if module is None else module.whole(own)
    return distinct


def _place(tensor: Tensor) -> tuple:
    """Where the numbers of a tensor lie, and how; for a tensor without numbers, which it is."""
    nowhere = tensor.is_meta or tensor.numel() == 0
    where = id(tensor) if nowhere else (tensor.device, tensor.data_ptr())
    return where, tensor.dtype, tensor.shape, tensor.stride()


def tensors_by_all_names(model: nn.Module) -> dict[str, Tensor]:
    """Lists the stored tensors, those of a shared module under the name of each of its owners."""
    found: dict[str, Tensor] = {}
    _collect(model, "", found)
    for name, tensor in found.items():
        _check_tensor(name, tensor)
    return found


def _check_tensor(name: str, stored: Any) -> None:
    if not isinstance(stored, Tensor):
        raise UnsupportedNet(
            f"{name}: extra state of type {type(stored).__name__}; model files and runs hold tensors only"
        )


def _collect(module: nn.Module, prefix: str, found: dict[str, Tensor]) -> None:
    module._save_to_state_dict(found, prefix, keep_vars=True)
    for name, child in module._modules.items():
        if child is not None:
            _collect(child, f"{prefix}{name}.", found)


def count_params(model: nn.Module) -> tuple[int, int]:
    """Counts `(trainable_params, total_params)`: distinct trainable parameters; those, frozen ones and running statistics.

    Batch norm's counter of batches is not counted.
    """
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(t.numel() for t in distinct_tensors(model).values() if t.is_floating_point())
    return trainable, total


def serialized_bytes(model: nn.Module) -> int:
    """Length in bytes of the distinct tensors as safetensors, without metadata."""
    return len(serialize(separate(distinct_tensors(model))))


def separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Prepares tensors for the safetensors format: on the CPU, contiguous, no two in one storage."""
    storages: set[int] = set()
    separated = {}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise UnsupportedNet(f"{name}: {ON_META}")
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages or tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()  # it was a view of another one
        storages.add(tensor.untyped_storage().data_ptr())
        separated[name] = tensor
    return separated
