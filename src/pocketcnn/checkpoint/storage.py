"""Storage of weights in fewer bytes: as float16, as int8 with scales, and without the zeros that pruning leaves.

Weights are the parameters with two or more axes that are no biases, and those that a module's class names in
`stored_weights`: a ring has only one axis. Batch norms and biases are stored unchanged. An int8 weight has one scale for
each index of its first axis (an output channel, an expert), a ring has a single scale. Scales are symmetric, and the largest
value is exact up to rounding. A weight with enough zeros is stored as a mask of bits and its other values.

Source: the plain baseline that compact nets are compared with, as in Jacob et al., Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018; only the storage is quantised here, not the arithmetic.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pocketcnn.checkpoint.header import StorageEntry
from pocketcnn.checkpoint.sealed import Head
from pocketcnn.cost import distinct_tensors
from pocketcnn.errors import BrokenFile, NewerFormat
from pocketcnn.support.protocols import NamesWeights
from pocketcnn.surgery.folding import reduce_norms_

Storage = Literal["float32", "float16", "int8"]
Norms = Literal["exact", "float16", "folded"]
_PROBED, _DIVISORS = 8, 16
"""Values of a row that are looked at first; divisors of its smallest value that are tried for its step."""
_DIGITS = 11  # of float16, the one that is not written included
SCALES, MASKS = "storage.scales", "storage.masks"  # one tensor each, because each name takes a hundred bytes
_WORTH = 128  # the bytes that a mask must save at least
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_FLOATS_IN_FILES = ("F16", "BF16", "F32", "F64")
_WHOLE_IN_FILES = {
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def weights_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The distinct weights of a net by name; a shared weight has the first of its names."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            own = name.rpartition(".")[2]
            # Where a row is a single number, as in a gain for each channel, its scale would be as long as the row.
            wide = parameter.dim() > 1 and parameter.numel() > len(parameter) and own != "bias"
            if wide or (isinstance(module, NamesWeights) and own in module.stored_weights):
                found.setdefault(id(parameter), (name, parameter))
    return dict(found.values())


@torch.no_grad()
def prune_(model: nn.Module, fraction: float, names: Collection[str] | None = None) -> float:
    """Sets the weights of smallest magnitude to zero, in each weight tensor by itself.

    Args:
        model: the net; changed in place.
        fraction: share of each tensor's weights, in [0, 1).
        names: the tensors to prune, by their names in `weights_of`; by default all.
    Returns:
        The share of the weights in these tensors that is zero now.
    Raises:
        ValueError: the fraction is out of range, a name is no weight's, or the net has no weights.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the fraction pruned must lie in [0, 1), not {fraction}")
    known = weights_of(model)
    if wrong := [name for name in names or () if name not in known]:
        raise ValueError(f"{wrong[0]} is no weight of this {type(model).__name__}; it has {', '.join(known)}")
    weights = [known[name] for name in (known if names is None else names)]
    if not weights:
        raise ValueError(f"{type(model).__name__} has no weights to prune")
    for weight in weights:
        smallest = weight.abs().flatten().argsort(stable=True)[: round(fraction * weight.numel())]
        kept = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
        kept[smallest] = False
        weight.copy_(torch.where(kept.view(weight.shape), weight, 0))  # whatever its layout in memory
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@torch.no_grad()
def lighten_(model: nn.Module, norms: Norms) -> None:
    """Makes numbers that are no weights, those of norms and biases, take fewer bytes in a packed file.

    Args:
        model: the net; changed in place.
        norms: `"exact"` changes nothing. `"float16"` rounds these numbers to the 11 digits that float16 keeps; their range stays
            that of their type. `"folded"` also makes of each batch norm a factor and a summand, which is enough to serve.
    Raises:
        ValueError: no such way.
    """
    if norms not in get_args(Norms):
        raise ValueError(f"no norms {norms!r}; known: {', '.join(get_args(Norms))}")
    if norms == "folded":
        reduce_norms_(model)
    if norms == "exact":
        return
    weights = set(weights_of(model).values())
    statistics = (b for module in model.modules() if isinstance(module, _BatchNorm) for b in module.buffers())
    for tensor in (*(p for p in model.parameters() if p not in weights), *statistics):
        if tensor.is_floating_point():
            tensor.copy_(rounded(tensor))


def rounded(tensor: Tensor, digits: int = _DIGITS) -> Tensor:
    """Rounds numbers to some binary digits, by default the 11 of float16; their range stays that of their type."""
    mantissa, exponent = torch.frexp(tensor.double())
    return torch.ldexp((mantissa * 2**digits).round() / 2**digits, exponent).to(tensor.dtype)


def hold_zeros_(model: nn.Module) -> None:
    """Keeps the weights that are zero now at zero during training: their gradients are set to zero.

    Momentum and weight decay do not move a weight whose value and gradients are zero. Copies of the net, and nets loaded
    from its file, are not held.
    """
    for weight in weights_of(model).values():
        if weight.requires_grad:
            kept = weight.detach() != 0
            weight.register_hook(lambda grad, kept=kept: torch.where(kept.to(grad.device), grad, 0))


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a weight to `(int8 numbers, float32 scales)`; numbers * scales is near the weight.

    A row that holds whole numbers times a step, as after training for few bits, keeps them: its scale is the step, and nothing is
    lost, if its smallest number but 0 is at most 16. Of other rows the largest value becomes 127 scales.

    Args:
        weight: any shape; each index of the first axis has a scale, a weight of one axis has a single scale.
    Raises:
        ValueError: the weight is not finite.
    Example:
        >>> quantize(torch.tensor([1.0, -0.51, 0.0]))[0], quantize(torch.tensor([1.0, -0.5, 0.0]))[0]
        (tensor([127, -65,   0], dtype=torch.int8), tensor([ 2, -1,  0], dtype=torch.int8))
    """
    rows = rows_of(weight.float())
    scales = rows.abs().amax(dim=1) / 127
    if not torch.isfinite(scales).all():
        raise ValueError("weights that are not finite cannot be stored as int8")
    scales = torch.where(scales == 0, 1.0, scales)
    steps = _steps_of(rows)
    scales = torch.where(steps > 0, steps, scales)
    return (rows / scales[:, None]).round().to(torch.int8).view(weight.shape), scales


def _steps_of(rows: Tensor) -> Tensor:
    """For each row the step of which all values are multiples, up to 127, exactly; 0 where none was found.

    Steps are tried that go into the smallest value up to `_DIVISORS` times.
    """
    sizes, found = rows.abs(), torch.zeros(len(rows))
    smallest = torch.where(sizes > 0, sizes, torch.inf).amin(1) if rows.numel() else torch.full((len(rows),), torch.inf)
    for divisor in range(1, _DIVISORS + 1):
        steps = smallest / divisor
        todo = (smallest.isfinite() & (found == 0)).nonzero()[:, 0]
        for width in (_PROBED, sizes.shape[1]):  # a few values tell for most rows
            part, step = sizes[todo, :width], steps[todo, None]
            numbers = (part / step).round()
            todo = todo[((numbers * step == part) & (numbers <= 127)).all(1)]
        found[todo] = steps[todo]
    return found


def dequantize(numbers: Tensor, scales: Tensor) -> Tensor:
    """The float32 weight that the result of `quantize` stands for."""
    return (rows_of(numbers).float() * scales[:, None]).view(numbers.shape)


def rows_of(weight: Tensor) -> Tensor:
    """A weight as a matrix [rows, values of each]: a row for each index of its first axis, one for a weight of one axis."""
    return weight.reshape(1, -1) if weight.dim() < 2 else weight.flatten(1)


def pack(
    tensors: Mapping[str, Tensor], model: nn.Module, storage: Storage, *, coded: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Converts the weights among a file's tensors to another type.

    Args:
        tensors: the tensors of a net, by name.
        model: the net, which says which of them are weights.
        storage: `"float32"`, `"float16"` or `"int8"`.
        coded: the file will code whole numbers, zeros too, in few bytes; these need no mask.
    Returns:
        The tensors to store, and the entry `storage` of the file's header.
    Raises:
        ValueError: no such storage, the weights have several types, or a value is too large for the storage.
    """
    if storage not in get_args(Storage):
        raise ValueError(f"no storage {storage!r}; known: {', '.join(get_args(Storage))}")
    known = weights_of(model)
    weights = [name for name in tensors if name in known and tensors[name].is_floating_point()]
    kinds = {str(tensors[name].dtype).removeprefix("torch.") for name in weights}
    if len(kinds) > 1:
        raise ValueError(f"weights of several types ({', '.join(sorted(kinds))}) cannot share a storage")
    packed, scales, masks, sparse = dict(tensors), [], [], []
    for name in weights:
        weight = tensors[name].detach().cpu()
        if storage == "int8":
            small, scale = quantize(weight)
            scales.append(scale)
        else:
            small = weight.to(getattr(torch, storage))
            if not torch.isfinite(small).all() and torch.isfinite(weight).all():
                raise ValueError(f"{name}: its largest value, {weight.abs().max():.3g}, does not fit in {storage}")
        nonzero = small.flatten() != 0
        masked = not (coded and storage == "int8")
        if masked and small.nbytes - int(nonzero.sum()) * small.itemsize - -(-len(nonzero) // 8) > _WORTH:
            masks.append(_bits(nonzero))
            small = small.flatten()[nonzero]
            sparse.append(name)
        packed[name] = small
    if scales:
        packed[SCALES] = torch.cat(scales)
    if masks:
        packed[MASKS] = torch.cat(masks)
    return packed, {"weights": storage, "dtype": next(iter(kinds), "float32"), "sparse": sparse}


def check_fit(path: Path, head: Head, model: nn.Module, storage: StorageEntry | None) -> None:
    """Checks by the head of a file that its tensors fit a net; no tensor is read, and the net may be on the meta device.

    Raises:
        BrokenFile: names, shapes or types differ.
        NewerFormat: the storage is one that this version does not know.
    """
    if storage is not None and storage.weights not in get_args(Storage):
        raise NewerFormat(
            f"{path}: its weights are stored as {storage.weights}, which this version does not know; upgrade pocketcnn"
        )
    wanted, net = distinct_tensors(model), type(model).__name__
    stored, sparse = dict(head.tensors), set(storage.sparse) if storage is not None else set()
    whole = weights_of(model) if storage is not None and storage.weights == "int8" else {}
    for name in (SCALES, MASKS) if storage is not None else ():
        stored.pop(name, None)
    if keys := sorted(stored.keys() ^ wanted.keys()):
        raise BrokenFile(
            f"{path}: its tensors do not fit {net}: {keys[0]!r} and {len(keys) - 1} more are in only one of the two; was the "
            "net changed after condense?"
        )
    if unknown := sorted(sparse - wanted.keys()):
        raise BrokenFile(f"{path}: its weights do not fit {net}: it has no {unknown[0]!r} to be stored without zeros")
    for name, tensor in wanted.items():
        shape, dtype = stored[name].shape, stored[name].dtype
        if name in sparse:
            if len(shape) != 1 or shape[0] > tensor.numel():
                raise BrokenFile(
                    f"{path}: its weights do not fit {net}: {name} is {list(shape)}, no list of what is not zero"
                )
        elif shape != tuple(tensor.shape):
            raise BrokenFile(f"{path}: {name} is {list(shape)} in the file, {list(tensor.shape)} in the net")
        known = (*_FLOATS_IN_FILES, *(["I8"] if name in whole else [])) if tensor.is_floating_point() else ()
        known = known or (_WHOLE_IN_FILES.get(tensor.dtype, dtype),)
        if dtype not in known:
            raise BrokenFile(f"{path}: {name} is stored as {dtype}, and must be {' or '.join(known)}")


def unpack(
    stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], model: nn.Module, entry: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Restores the tensors that `pack` was given, as exactly as the storage keeps them.

    Args:
        stored: the tensors of the file.
        wanted: the tensors of a net like the one that was packed, in the same order.
        model: that net.
        entry: the entry `storage` of the file's header.
    Raises:
        ValueError: the tensors do not fit together.
    """
    if entry["dtype"] not in _FLOATS:
        raise ValueError(f"weights cannot be {entry['dtype']}; known: {', '.join(_FLOATS)}")
    tensors = {name: tensor for name, tensor in stored.items() if name not in (SCALES, MASKS)}
    scales, masks = stored.get(SCALES, torch.empty(0)), stored.get(MASKS, torch.empty(0, dtype=torch.uint8))
    dtype = getattr(torch, entry["dtype"])
    known = weights_of(model)
    for name in (name for name in wanted if name in known and name in tensors):
        tensor, like = tensors[name], wanted[name]
        if name in entry["sparse"]:
            count = -(-like.numel() // 8)
            kept = _flags(masks[:count], like.numel())
            masks = masks[count:]
            if len(kept) != like.numel() or int(kept.sum()) != len(tensor):
                raise ValueError(f"{name}: {len(tensor)} values for {int(kept.sum())} places")
            whole = torch.zeros(like.numel(), dtype=tensor.dtype)
            whole[kept] = tensor
            tensor = whole.view(like.shape)
        if entry["weights"] == "int8" and tensor.dtype == torch.int8:
            count = len(rows_of(like))
            if tensor.shape != like.shape or len(scales) < count:
                raise ValueError(f"{name} is {list(tensor.shape)} in the file, {list(like.shape)} in the net")
            if not ((scales[:count] > 0) & (scales[:count] < torch.inf)).all():
                raise ValueError(f"a scale of {name} is not between 0 and infinity")
            tensor = dequantize(tensor, scales[:count])
            scales = scales[count:]
        tensors[name] = tensor.to(dtype)
    if len(scales) or len(masks):
        raise ValueError(f"{len(scales)} scales and {len(masks)} bytes of masks are left over")
    return tensors


def _bits(flags: Tensor) -> Tensor:
    """Packs eight flags into each byte, the first in its lowest bit."""
    padded = torch.nn.functional.pad(flags.to(torch.uint8), (0, -len(flags) % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(dim=1, dtype=torch.uint8)


def _flags(packed: Tensor, count: int) -> Tensor:
    return ((packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[:count].bool()
