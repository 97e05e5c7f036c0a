"""Nets of one or several inputs and outputs: their inputs in batches, and the tensors in what they return."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.support.modules import device_and_dtype

Inputs = Tensor | tuple[Tensor, ...]
"""What a net is called with: one tensor, or a tuple of as many as it takes; the first axis counts the examples."""
ExampleSize = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""The size of one example: (channels, height, width) of an image; or a tuple of as many sizes as the net has inputs."""
_TINY = 1e-12


def sizes_of(input_size: ExampleSize, batch: int = 1) -> tuple[tuple[int, ...], ...]:
    """Checks the size of an example and of a batch, and returns a size for each input.

    Raises:
        ValueError: a size is not one to four whole numbers of at least 1, or the batch is below 1.
    Example:
        >>> sizes_of((3, 32, 32)), sizes_of(((3, 32, 32), (5,)))
        (((3, 32, 32),), ((3, 32, 32), (5,)))
    """
    given: Any = input_size if isinstance(input_size, tuple | list) else (None,)
    sizes = given if given and all(isinstance(one, tuple | list) for one in given) else (given,)
    if any(not 1 <= len(size) <= 4 or any(type(side) is not int or side < 1 for side in size) for size in sizes):
        raise ValueError(
            f"input_size is (channels, height, width), whole numbers of at least 1, or a tuple of such sizes for a net of several "
            f"inputs, not {input_size!r}"
        )
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")
    return tuple(map(tuple, sizes))


def random_inputs(net: nn.Module, input_size: ExampleSize, batch: int = 1) -> tuple[Tensor, ...]:
    """Draws what a net is called with, from 0 to 1, on its device and in its precision; always the same numbers.

    Raises:
        ValueError: as in `sizes_of`.
    """
    device, dtype = device_and_dtype(net)
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.rand(batch, *size, generator=generator).to(device, dtype) for size in sizes_of(input_size, batch)
    )


def as_inputs(given: Any) -> tuple[Tensor, ...]:
    """Checks a net's inputs, and returns them as a tuple.

    Raises:
        ValueError: no tensors, fewer than two examples, tensors of different lengths, or numbers that are not finite.
    """
    found = tuple(given) if isinstance(given, tuple | list) else (given,)
    if not found or not all(isinstance(one, Tensor) for one in found):
        raise ValueError(
            "inputs are a tensor, or a tuple of as many tensors as the net takes, in the order of its arguments"
        )
    counts = {len(one) if one.dim() else 0 for one in found}
    if len(counts) > 1 or min(counts) < 2:
        raise ValueError(
            f"inputs hold {' and '.join(map(str, sorted(counts)))} examples; give two or more, of all alike"
        )
    if any(one.is_floating_point() and not torch.isfinite(one).all() for one in found):
        raise ValueError(
            "inputs hold numbers that are not finite; remove examples that were not decoded or normalised well"
        )
    return found


def batches_of(inputs: Sequence[Tensor], size: int, net: nn.Module | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Divides inputs into batches of equal size, up to one example; on the device of a net if one is given."""
    where = next((p.device for p in net.parameters()), None) if net is not None else None
    for parts in zip(*(one.tensor_split(-(-len(one) // size)) for one in inputs), strict=True):
        yield tuple(part if where is None else part.to(where) for part in parts)


def tensors_in(output: Any) -> list[Tensor]:
    """The floating-point tensors in what a net returns: a tensor, or tuples, lists, dictionaries and dataclasses of them."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, field.name) for field in dataclasses.fields(output)]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [tensor for part in output for tensor in tensors_in(part)] if isinstance(output, tuple | list) else []


def named_tensors(output: Any, name: str = "output") -> dict[str, Tensor]:
    """Names the tensors in what a net returns: by the keys of dictionaries, the fields of records, else by their places.

    Args:
        output: what a net returns.
        name: of a tensor that is all of it, and beginning of the names by place.
    Example:
        >>> list(named_tensors({"boxes": torch.ones(1), "aux": (torch.ones(1), None, torch.ones(2))}))
        ['boxes', 'aux.0', 'aux.2']
    """
    if isinstance(output, Tensor):
        return {name: output}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    elif isinstance(output, Mapping):
        parts = {str(key): value for key, value in output.items()}
    elif isinstance(output, tuple | list):
        names = getattr(output, "_fields", None) or [f"{name}{place}" for place in range(len(output))]
        parts = dict(zip(names, output, strict=True))
    else:
        return {}
    found: dict[str, Tensor] = {}
    for own, part in parts.items():
        nested = {} if isinstance(part, Tensor) else named_tensors(part, "")
        new = {own: part} if isinstance(part, Tensor) else {f"{own}.{key}": value for key, value in nested.items()}
        if twice := next((key for key in new if key in found or not key), None):
            raise ValueError(f"two outputs are called {twice!r}; give them names that differ")
        found |= new
    return found


class FlatOutputs(nn.Module):
    """A net that returns its tensors as a tuple, in the order of `named_tensors`; one tensor as it is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> Any:
        output = self.net(*inputs)
        return output if isinstance(output, Tensor) else tuple(named_tensors(output).values())


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Averages over the outputs the mean squared distance from the wanted one, divided by the variance of the wanted one.

    Raises:
        ValueError: another number of outputs, or other shapes.
    """
    if not wanted or [one.shape for one in found] != [one.shape for one in wanted]:
        shapes = [" and ".join(str(list(one.shape)) for one in some) or "no tensor" for some in (found, wanted)]
        raise ValueError(f"a net returns {shapes[0]} where {shapes[1]} is wanted")
    apart = [
        (one.float() - other.float()).square().mean() / other.float().var(correction=0).clamp(min=_TINY)
        for one, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(apart).mean()
